"""Every open question about a GPU machine, each in its own process with a time limit, in parts of some minutes.

What is said is written to disk at once, and the report after every question: a part that is cut off keeps what it has,
the next one goes on there, and a question that crashes or hangs is a result like any other. --device cpu asks the same
of DALI's CPU graph.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import PROGRAM
from ..core.process import call
from .gpu_report import text_of, write
from .parts import FEWEST_SECONDS, REPEATS, Question, ask_in_a_part, left_over

NAME = "gpu"
HELP = "every open question about a GPU machine, in parts"
SCHEMA = "dali-imagenet-gpu-2"
NEEDED = ("numpy", "PIL", "torch", "torchvision", "timm", "platformdirs", "tqdm", "nvidia.dali")
OPTIONAL = {
    "psutil": "no CPU use and no memory of processes",
    "matplotlib": "no plot",
    "simplejpeg": "where its own decoder was not built, the fallback decodes with Pillow",
}


def questions(cuda: bool) -> list[Question]:
    """The most valuable first."""
    documented = "dali-doc-gpu" if cuda else "dali-doc-cpu"
    model = "resnet50" if cuda else "small"

    def loader(who: str, recipe: str, core: bool = False, quick: bool = True, **options: Any) -> Question:
        return Question("loader", {"who": who, "recipe": recipe} | options, 75, core, quick)

    def train(model: str, who: str, recipe: str, size: int = 0, core: bool = False, quick: bool = True) -> Question:
        return Question("train", {"model": model, "who": who, "recipe": recipe, "size": size}, 90, core, quick)

    def sweep(option: str, *values: Any, recipe: str = "strong", quick: bool = False) -> Question:
        return Question(
            "sweep", {"recipe": recipe, "option": option, "values": values}, 30 + 25 * len(values), False, quick
        )

    asked = [
        Question("hardware"),
        Question("agree", limit=120),
        loader("ours", "classic", core=True),
        loader("ours", "strong", core=True),
        loader(documented, "classic", core=True),
        loader("tv-v1-pil", "classic"),
        loader(documented, "strong", core=True, quick=False),
        loader("tv-v1-pil", "strong", quick=False),
        loader("fallback", "strong"),
        Question("decode", limit=90, core=True),
        Question("probe", limit=150),
        Question("roi", limit=120),
        Question("stage", limit=75),
        train(model, "synthetic", "classic", core=True),
        train(model, "ours", "classic", core=True),
        train(model, "ours", "strong", core=True, quick=False),
        train(model, "tv-v1-pil", "classic", quick=False),
    ]
    if cuda:
        asked += [
            train("resnet18", "synthetic", "classic", 160),
            train("resnet18", "ours", "classic", 160),
            train("resnet18", "ours", "strong", 160),
        ]
    regions = sweep("roi_decode", cuda, recipe="classic")  # what is not the default there
    asked.append(replace(regions, limit=150) if cuda else regions)  # on a GPU behind a probe
    if cuda:
        asked.append(sweep("fancy_upsampling", False))
    asked += [
        sweep("cpu_share", 0.25, 0.1, 0.5, 0.75, quick=True),
        Question("decode_options", limit=90),
        sweep("num_workers", 4, 8, 2),
        sweep("prefetch", 1, 3),
    ]
    if cuda:
        asked.append(sweep("hw_decoder_load", 0.9, 1.0, 0.0))
    asked += [
        Question("launches", limit=90),
        Question("auto", limit=90, quick=False),
        Question("caller", limit=75, quick=False),
        Question("read"),
        loader("ours", "eval"),
        loader("fallback", "classic", quick=False),
        loader("tv-v2-tensor", "classic", quick=False),
        loader("ours", "advanced", quick=False),
        loader("ours", "strong", jitter=True, quick=False),
    ]
    if cuda:
        asked += [Question("nvjpeg"), loader("tv-v2-gpu", "strong", quick=False)]
    return asked


# ---- asking


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--data", metavar="DATA", help="ImageFolder tree or any other data, or train/ of it; default: generated"
    )
    p.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is a GPU")
    p.add_argument("--quick", action="store_true", help="fewer questions and shorter ones")
    p.add_argument("--minutes", type=float, metavar="N", default=8.0, help="time for this part (8)")
    p.add_argument("--total", type=float, metavar="N", default=25.0, help="minutes for all parts (25)")
    p.add_argument("--batch-size", type=int, metavar="N", help="images a batch (256; on the CPU 64)")
    p.add_argument("--workers", type=int, metavar="N", help="threads or workers of each loader (the cores, at most 16)")
    p.add_argument("--seconds", type=float, metavar="N", help="measured seconds a point (3; quick: 1)")
    p.add_argument("--only", default="", metavar="NAMES", help="questions to ask, by commas: " + ", ".join(
        dict.fromkeys(q.ask for q in questions(True))))  # fmt: skip
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the report (runs/gpu-<time>); one that has a part goes on"
    )


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def earlier_parts(folder: Path) -> dict[str, Any]:
    """What the parts before this one wrote there; empty where there are none.

    Raises:
        ValueError: that is not from here.
    """
    file = folder / "results.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"--out: {file} is not of this command's version: choose another folder")
    return found


def settings_of(options: argparse.Namespace, before: dict[str, Any], device: str, cores: int) -> dict[str, Any]:
    """What all questions share: as given, else as in the parts before, else the default.

    Raises:
        ValueError: the parts before had another value, so that their answers would not be comparable.
    """
    quick, cuda = options.quick or before.get("sweep") is False, device == "cuda"
    given = {
        "device": options.device,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "seconds": options.seconds,
        "sweep": False if options.quick else None,
    }
    usual = {
        "device": device,
        "batch_size": 256 if cuda else 32 if quick else 64,
        "workers": min(16, cores),
        "seconds": 1.0 if quick else 3.0,
        "size": 224,
        "sweep": not quick,
    }
    for name, value in given.items():
        if value is not None and before and value != before[name]:
            raise ValueError(
                f"--out: its parts before had {name} {before[name]!r}, not {value!r}: give the same, or another folder"
            )
    return usual | {name: value for name, value in given.items() if value is not None} | before


def run(options: argparse.Namespace) -> int:
    absent = [name for name in NEEDED if not _importable(name)]
    if absent:
        print(f"Missing here: {', '.join(absent)}. Install them, or put them on PYTHONPATH.", file=sys.stderr)
        return 2
    from .. import contestants
    from ..core import images, machine
    from .gpu_questions import Settings, task

    begun = time.monotonic()
    folder = options.out or Path("runs") / f"gpu-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    try:
        before = earlier_parts(folder)
        was = before.get("settings", {})
        device = options.device or was.get("device") or ("cuda" if contestants.has_cuda() else "cpu")
        if device == "cuda" and not contestants.has_cuda():
            raise ValueError("--device cuda: torch finds no CUDA GPU here; use --device cpu")
        shared = settings_of(options, was, device, machine.cores())
        chosen = _chosen(options.only, questions(device == "cuda"), quick=not shared["sweep"])
        data = options.data or images.default_data()
        train, _ = images.split_roots(data)
        # an epoch long enough that its start and end do not count
        root = images.linked(train, 10_000, shared["batch_size"] * (200 if device == "cuda" else 20))
        files = images.image_files(root)
        about = (
            f"{'generated images' if options.data is None else data.resolve().name}, "
            f"{len(images.distinct(files))} distinct of {len(files)} names an epoch, read once before"
        )
        if before and before["images"] != about:
            raise ValueError(f"--out: its parts before read {before['images']}, not {about}: give the same --data")
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    settings = Settings(root=str(root), **shared)
    folder.mkdir(parents=True, exist_ok=True)
    words = [Path(w).name if "/" in w else w for w in options.words]  # a report names no path of the machine it ran on
    results: dict[str, Any] = before or {
        "schema": SCHEMA,
        "settings": shared,
        "images": about,
        "missing": {name: effect for name, effect in OPTIONAL.items() if not _importable(name)},
        "parts": [],
        "points": {},
        "asked": [],
        "targets": [],
        "seconds": 0.0,
    }
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results["parts"].append({"created": created, "command": shlex.join(words)})
    for file in images.distinct(files):
        file.read_bytes()
    last_picture = time.monotonic()

    def keep() -> None:
        nonlocal last_picture
        results["left"] = [question.name for question in left_over(chosen, results["asked"])]
        picture = time.monotonic() - last_picture > 60
        last_picture = time.monotonic() if picture else last_picture
        write(results, folder, picture)

    with tempfile.TemporaryDirectory() as scratch:

        def ask(question: Question, limit: float) -> tuple[dict[str, Any], str]:
            said, error = call(
                "gpu.gpu_questions", task(settings, question.ask, question.arguments), limit, Path(scratch)
            )
            if error:  # its traceback, which the report has no room for
                (folder / "logs").mkdir(exist_ok=True)
                name = re.sub(r"[^\w.=-]+", "_", question.name)
                shutil.copyfile(Path(scratch) / "log.txt", folder / "logs" / f"{name}.txt")
            return said, error

        minutes = options.minutes - (time.monotonic() - begun) / 60  # reading the images once was part of it
        repeats = REPEATS if shared["sweep"] else 0
        asked = ask_in_a_part(results, chosen, ask, keep, minutes=minutes, total=options.total, repeats=repeats)
        for entry in asked:
            rates = [f"{n}: {v['images_per_s']:,.0f}" for n, v in entry["said"].items() if "images_per_s" in v]
            print(f"{entry['seconds']:6.1f} s  {entry['question']}: "
                  + (entry["error"] or ("; ".join(rates) + " img/s" if rates else "done")), flush=True)  # fmt: skip
    keep()
    write(results, folder, picture=True)
    for row in results["targets"]:
        print(f"{row['verdict']:7s} {text_of(row['value'], 2):>8s} ({row['bound']})  {row['target']}")
    if results["left"]:
        over = results["seconds"] > 60 * options.total - FEWEST_SECONDS
        more = f"--total {options.total:g} is used up" if over else f"ask them with: {PROGRAM} gpu --out {folder} ..."
        print(f"{len(results['left'])} questions are left; {more}")
    print(folder / "report.md")
    return 0 if results["points"] else 2


def _chosen(only: str, all_of_them: list[Question], *, quick: bool) -> list[Question]:
    """Those that are asked for.

    Raises:
        ValueError: there is no such question.
    """
    names = only.split(",") if only else [question.ask for question in all_of_them]
    unknown = set(names) - {question.ask for question in questions(True)}
    if unknown:
        raise ValueError(f"--only {', '.join(sorted(unknown))}: no such question; see --help")
    return [question for question in all_of_them if question.ask in names and (question.quick or not quick)]
