"""`dali-imagenet`: look at data, pack them, see what a recipe makes of them, run timm's scripts, compare."""

# What a command needs is imported in it: help and wrong options shall not wait for torch (2 s).

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import sys
from pathlib import Path
from typing import Any

from dali_imagenet.escape import escaped, printable
from dali_imagenet.presets import PRESETS
from dali_imagenet.validation import whole, wrong

# Arguments of the library, and what they are called here.
_OPTIONS = {"root": "data", "data": "data", "batch_size": "--count", "num_threads": "--threads"} | {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("split", "classes", "labels", "recipe", "backend", "device", "count", "epoch", "seed", "output", "shuffle"),
        *("shard_size", "max_side", "quality", "part", "label_key", "image_key"),
    )
}

BACKENDS = ("auto", "dali", "torchvision", "reference", "reference-tensor")  # engine.ENGINES, without importing torch


def main(argv: list[str] | None = None) -> int:
    as_module = not sys.argv or not sys.argv[0].endswith(("dali-imagenet", "dali-imagenet.exe"))
    prog = "python -m dali_imagenet" if as_module else "dali-imagenet"
    parser = argparse.ArgumentParser(prog=prog, description=str(__doc__).partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="read and cache the index of data, and list their broken images")
    pack = commands.add_parser("pack", help="write any data as WebDataset's tar shards, with their index beside them")
    preview = commands.add_parser("preview", help="save a grid of augmented images, before and after mixing")
    for command in (index, pack, preview):
        command.add_argument("data", help="a folder, tar, zip, shards ({000..127}.tar), Parquet, or a manifest")
        command.add_argument("--split", metavar="NAME", help="train, val, a subfolder, or . for the folder itself")
        command.add_argument("--classes", metavar="FILE", help="one class a line, in label order; or: natural")
        command.add_argument("--labels", metavar="FILE", help="of images in no folder: the devkit, or Kaggle's .csv")
        command.add_argument("--label-key", metavar="NAME", help="field or column that holds the label")
        command.add_argument("--image-key", metavar="NAME", help="which image, where a sample has several")
    index.add_argument("--write", action="store_true", help="write the index of shards beside them, for everyone")
    pack.add_argument("output", help="a folder; what is there from the same command is left")
    pack.add_argument("--shuffle", type=int, metavar="SEED", help="write in a permuted order, for other readers")
    pack.add_argument("--shard-size", default="1GB", metavar="SIZE", help="of each tar (default: 1GB)")
    pack.add_argument("--max-side", type=int, metavar="N", help="make images with a longer side smaller, as JPEGs")
    pack.add_argument("--quality", type=int, metavar="Q", help="of these JPEGs (default: 90)")
    pack.add_argument("--part", default="1/1", metavar="I/N", help="write the I-th of N parts of the shards")
    pack.add_argument("--threads", type=int, metavar="N", help="shards written at once (default: the cores)")
    names = (*PRESETS, "eval")
    preview.add_argument("--recipe", choices=names, metavar="NAME", default="strong", help=", ".join(names))
    preview.add_argument("--backend", choices=BACKENDS, metavar="NAME", default="auto", help=", ".join(BACKENDS))
    preview.add_argument("--device", help="cpu, cuda or cuda:N; by default the GPU where there is one")
    preview.add_argument("--count", type=int, default=8, help="images (default: 8)")
    preview.add_argument("--epoch", type=int, default=0)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--output", default="preview.png")
    _add_timm_train(commands)
    commands.add_parser("bench", help="compare image loaders on this machine (the extra compare); see: bench --help")
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["bench"]:
        return _bench(words[1:])
    options = parser.parse_args(words)
    if options.command == "timm-train":
        return _timm_train(options)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        return {"index": _index, "pack": _pack, "preview": _preview}[options.command](options)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError) as error:
        print(f"error: {_as_options(str(error))}", file=sys.stderr)
        return 1


def _add_timm_train(commands: Any) -> None:
    timm = commands.add_parser("timm-train", help="run timm's train.py or validate.py, unmodified, with this loader")
    timm.add_argument("script", metavar="PATH", help="the script")
    timm.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")


def _timm_train(options: argparse.Namespace) -> int:
    """The script logs, fails and exits as by itself."""
    if not Path(options.script).is_file():
        print(f"error: {options.script} does not exist: give the path of timm's train.py", file=sys.stderr)
        return 1
    sys.path.insert(0, str(Path(options.script).resolve().parent))  # as Python does, so that a timm beside it is taken
    try:
        from dali_imagenet.integrations.timm import run_script
    except ImportError as error:
        print(f"error: {error}: pip install timm", file=sys.stderr)
        return 1
    run_script(options.script, options.arguments)
    return 0


def _bench(words: list[str]) -> int:
    """The comparison has a parser, and words for its errors, of its own."""
    if importlib.util.find_spec("dali_imagenet_bench") is None:
        print("error: the comparison is not installed: pip install 'dali-imagenet[compare]'", file=sys.stderr)
        return 1
    return int(importlib.import_module("dali_imagenet_bench.__main__").main(words))


def _as_options(message: str) -> str:
    """A message about arguments of the library as one about the options of this command."""
    return re.sub(rf"(?<![\w/.'])({'|'.join(_OPTIONS)})=", lambda found: f"{_OPTIONS[found[1]]} ", message)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _as_options(super().format(record))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """What `SampleIndex.open` takes besides the data."""
    given = {name: getattr(options, name) for name in ("split", "classes", "labels", "label_key", "image_key")}
    if given["classes"] not in (None, "sorted", "natural"):
        given["classes"] = Path(given["classes"])
    return {name: value for name, value in given.items() if value is not None}


def _index(options: argparse.Namespace) -> int:
    from dali_imagenet import SampleIndex

    written: dict[str, Any] = {"write_index": True} if options.write else {}
    found = SampleIndex.open(options.data, **_given(options), **written)
    for i in found.broken.nonzero()[0]:
        print(f"{escaped(found.path(int(i)))}: {printable(str(found.reason(int(i))))}")
    scan = found.scan
    print(
        f"{len(found)} images in {len(found.classes)} classes, {int(found.broken.sum())} broken; "
        f"{scan.files_per_second:.0f} files/s"
    )
    return 0


def _pack(options: argparse.Namespace) -> int:
    from dali_imagenet.packing import pack

    part = re.fullmatch(r"(\d+)/(\d+)", options.part)
    if part is None:
        raise wrong("part", options.part, "I/N: the I-th of N parts, as 1/4")
    done = pack(
        options.data,
        options.output,
        shuffle=options.shuffle,
        shard_size=options.shard_size,
        max_side=options.max_side,
        quality=options.quality,
        part=(int(part[1]), int(part[2])),
        num_threads=options.threads,
        **_given(options),
    )
    where = f"{len(done.shards)} shard(s) of {options.output}"
    print(f"{done.images} images in {where}, {done.written / 1e6:,.1f} MB written, {len(done.left_out)} left out")
    if done.size_ratio is not None:
        print(
            f"{done.reencoded} images made smaller, to {done.size_ratio:.0%} of their bytes; evaluation's pixels "
            f"differ by {done.pixel_difference:.2f} of 255 on average, decoding takes {done.time_ratio:.0%} of the time"
        )
    return 0


def _preview(options: argparse.Namespace) -> int:
    from PIL import Image

    if Path(options.output).suffix.lower() not in Image.registered_extensions():
        raise wrong("output", options.output, "a name that ends in .png, .jpg or another image's extension")
    from dali_imagenet import EvalRecipe, TrainRecipe, create_loader, save_preview
    from dali_imagenet.loader import index_for

    recipe = EvalRecipe() if options.recipe == "eval" else getattr(TrainRecipe, options.recipe)()
    index = index_for(options.data, recipe, **_given(options))
    step = 2 if recipe.mixing else 1
    count = whole("count", options.count, 1, max(1, len(index) // step * step))
    with create_loader(
        index,
        recipe,
        batch_size=count + count % step,
        backend=options.backend,
        device=options.device,
        num_workers=0,
        seed=options.seed,
        on_error="replace",
        max_broken=1.0,
    ) as loader:
        save_preview(loader, options.output, count=count, epoch=options.epoch)
    print(f"saved {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
