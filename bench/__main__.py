"""`python -m bench`: compare image loaders on this machine. `python -m bench --help` lists everything."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

EXTRA = {"rich": "rich", "matplotlib": "matplotlib", "psutil": "psutil"}


def need_extra() -> None:
    absent = [name for module, name in EXTRA.items() if importlib.util.find_spec(module) is None]
    if absent:
        sys.exit(f"The comparison needs {', '.join(absent)}. Install its extra: pip install -e '.[compare]'")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description="Compare image loaders on this machine.")
    top.add_argument("--data", type=Path, help="ImageFolder tree, or a folder with train/ and val/; default: generated")
    top.add_argument("--quick", action="store_true", help="four loaders, classic and strong, within two minutes")
    top.add_argument("--only", default="", help="contestants to run, separated by commas (see --list)")
    top.add_argument("--recipes", default="", help="classic,strong,advanced,eval")
    top.add_argument("--questions", default="", help="loaders,ceilings,modes,workers,batches,training")
    top.add_argument("--batch-size", type=int, default=64, help="images a batch (64)")
    top.add_argument("--workers", type=int, help="workers or threads of every contestant (the cores, at most 16)")
    top.add_argument("--device", choices=("cpu", "cuda"), help="where batches must arrive (cuda where there is one)")
    top.add_argument("--rounds", type=int, help="measured rounds (5; quick: 2); sweeps take half of them")
    top.add_argument("--seconds", type=float, help="measured seconds a visit (6; quick: 2)")
    top.add_argument("--minutes", type=float, help="stop when this much time has passed and report what there is")
    top.add_argument("--images", type=int, default=10_000, help="images taken from a larger --data (10000)")
    top.add_argument("--epoch-images", type=int, default=6400, help="names in an epoch; small data is repeated (6400)")
    top.add_argument("--cold", action="store_true", help="drop the files from the page cache before every visit")
    top.add_argument("--model", default="", help="model of the training question (small; resnet50 on a GPU)")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--out", type=Path, help="folder of the report (runs/bench-<time>)")
    top.add_argument("--resume", type=Path, metavar="DIR", help="go on with an interrupted run; settings come from it")
    top.add_argument("--estimate-images", type=int, default=1_281_167, help="images of the epoch to estimate")
    top.add_argument("--estimate-epochs", type=int, default=90)
    top.add_argument("--list", action="store_true", help="list the contestants and whether they can take part")
    return top


def generate_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench generate", description="Make realistic JPEGs as an ImageFolder.")
    p.add_argument("folder", type=Path)
    p.add_argument("--train", type=int, default=800)
    p.add_argument("--val", type=int, default=200)
    p.add_argument("--classes", type=int, default=10)
    p.add_argument("--seed", type=int, default=0)
    return p


def compare_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench compare", description="What changed between two runs.")
    p.add_argument("a", type=Path, metavar="A.json")
    p.add_argument("b", type=Path, metavar="B.json")
    return p


def report_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench report", description="Write the report of a results.json again.")
    p.add_argument("results", type=Path, metavar="results.json")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["gpu"]:  # does without the extra
        from .gpu import gpu

        return gpu.main(words[1:])
    need_extra()
    if words[:1] == ["first-batch"]:
        from .checks import first_batch

        return first_batch.main(words[1:])
    if words[:1] == ["ops"]:
        from . import ops

        return ops.main(words[1:])
    if words[:1] == ["parity"]:
        from .checks import parity

        return parity.main(words[1:])
    if words[:1] == ["audit"]:
        from .checks import audit

        return audit.main(words[1:])
    if words[:1] == ["soak"]:
        from .checks import soak

        return soak.run(soak.parser().parse_args(words[1:]))
    if words[:1] == ["fuzz"]:
        from .checks import fuzz

        return fuzz.run(fuzz.parser().parse_args(words[1:]))
    if words[:1] == ["broken"]:
        from .checks import broken

        return broken.run(broken.parser().parse_args(words[1:]))
    from .compare import commands

    if words and words[0] in COMMANDS:
        make, call = COMMANDS[words[0]]
        return int(getattr(commands, call)(make().parse_args(words[1:])))
    options = parser().parse_args(words)
    options.words = words
    return commands.loaders(options)


COMMANDS = {
    "generate": (generate_parser, "generate"),
    "compare": (compare_parser, "compare"),
    "report": (report_parser, "report_again"),
}


if __name__ == "__main__":
    sys.exit(main())
