"""Compare image loaders on this machine: the same files, the same recipes, each in a process of its own."""

from __future__ import annotations

import argparse
import datetime
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import contestants
from ..core import PROGRAM, images, machine, measure
from ..core.job import Job
from . import report
from .generate import bar
from .plan import RECIPES, plan
from .results import SCHEMA, SECTIONS, read

if TYPE_CHECKING:
    from rich.console import Console

NAME = "loaders"
HELP = "compare image loaders (the default)"
QUICK_SECONDS = 100.0  # after the images are there; leaves time for the report
FIELDS = ("rounds", "seconds", "batch_size", "workers", "device", "images", "epoch_images", "seed", "cold", "model",
          "only", "recipes", "sections", "quick", "estimate_images", "estimate_epochs")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        metavar="DATA",
        help="ImageFolder tree or any other data, or train/ and val/ of it; default: generated",
    )
    add("--quick", action="store_true", help="four loaders, classic and strong, within two minutes")
    add("--only", default="", metavar="NAMES", help="contestants to run, separated by commas (see --list)")
    add("--recipes", default="", metavar="NAMES", help=",".join(RECIPES))
    add("--sections", default="", metavar="NAMES", help=",".join(SECTIONS))
    add("--batch-size", type=int, metavar="N", default=64, help="images a batch (64)")
    add("--workers", type=int, metavar="N", help="workers or threads of every contestant (the cores, at most 16)")
    add("--device", choices=("cpu", "cuda"), help="where batches must arrive (cuda where there is one)")
    add("--rounds", type=int, metavar="N", help="measured rounds (5; quick: 2); sweeps take half of them")
    add("--seconds", type=float, metavar="N", help="measured seconds a run (6; quick: 2)")
    add("--minutes", type=float, metavar="N", help="stop when this much time has passed and report what there is")
    add("--images", type=int, metavar="N", default=10_000, help="images taken from a larger --data (10000)")
    add("--epoch-images", type=int, metavar="N", default=6400, help="names in an epoch; small data is repeated (6400)")
    add("--cold", action="store_true", help="drop the files from the page cache before every run")
    add("--model", default="", help="model of the training section (small; resnet50 on a GPU)")
    add("--seed", type=int, metavar="N", default=0, help="of images and loaders (0)")
    add("--out", type=Path, metavar="DIR", help="folder of the report (runs/bench-<time>)")
    add("--resume", type=Path, metavar="DIR", help="go on with an interrupted run; settings come from it")
    add("--estimate-images", type=int, metavar="N", default=1_281_167, help="images of the epoch to estimate (1281167)")
    add("--estimate-epochs", type=int, metavar="N", default=90, help="epochs to estimate (90)")
    add("--list", action="store_true", help="list the contestants and whether they can take part")


def fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def show_list() -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in ("name", "what", "here"):
        table.add_column(head)
    for c in contestants.CONTESTANTS:
        reason = c.missing()
        how = f" ({c.install})" if reason and c.install and not c.gpu else ""
        table.add_row(c.name, c.title, f"no: {reason}{how}" if reason else "yes")
    Console().print(table)
    return 0


def run(options: argparse.Namespace) -> int:
    if options.list:
        return show_list()
    from rich.console import Console

    console = Console()
    try:
        if options.resume:
            folder, file = options.resume, options.resume / "results.json"
            results = read(file)
            _restore(options, results)
        else:
            _defaults(options)
            stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            folder = options.out or Path("runs") / f"bench-{stamp}"
            file = folder / "results.json"
            if file.exists():
                return fail(f"{file} exists: go on with --resume {folder}, or name another --out")
            results = {}
        data, train, val = _data(options, console)
        jobs, missing = plan(options, str(train), str(val))
    except (ValueError, FileNotFoundError) as error:
        return fail(str(error))
    folder.mkdir(parents=True, exist_ok=True)
    if not results:
        results = _header(options, data, train, val)
    results["missing"] = missing
    runner = measure.Runner(results, file, options.rounds, 0 if options.quick else 1, _deadline(options))
    runner.cold_files = images.distinct(images.image_files(train) + images.image_files(val))
    if options.cold:
        if not measure.drop_page_cache(runner.cold_files[:1]):
            return fail("--cold: this system cannot be asked to forget files; leave it out")
    else:
        measure.warm_page_cache(runner.cold_files)
    console.print(
        f"{len(jobs)} cells, {options.rounds} rounds of {options.seconds:g} s, {options.workers} workers, "
        f"{options.device}; Ctrl-C stops and keeps what there is", highlight=False
    )  # fmt: skip
    try:
        with _interruptible(), _watched(runner, jobs, console):
            results["complete"] = runner.run(jobs)
    except KeyboardInterrupt:
        console.print(f"stopped; go on with: {PROGRAM} --resume {folder}", highlight=False)
    results["load"]["after"] = machine.load()
    report.settle(results)
    runner.save()
    if not any("summary" in c for c in results["cells"]):
        for name, why in report.failures(results):
            print(f"{name}: {why}", file=sys.stderr)
        return fail("nothing was measured")
    written = report.write(results, folder)
    report.print_tables(results, console)
    console.print(f"\n{file}, " + ", ".join(f.name for f in written), highlight=False)
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """A polite end (SIGTERM) counts as Ctrl-C, and Ctrl-C works in background jobs too."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _watched(runner: measure.Runner, jobs: Sequence[Job], console: Console) -> Iterator[None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    total = len(runner.left(jobs))
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
               TextColumn("{task.fields[left]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total, left="")

        def tell(job: Job, number: int, answer: dict[str, Any] | None, seconds: float) -> None:
            if runner.deadline is not None:
                seconds = min(seconds, max(0.0, runner.deadline - time.monotonic()))
            left = f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"
            if answer is None:
                name = "warm-up" if number < 0 else f"round {number + 1}"
                progress.update(task, description=f"{name}: {job.contestant}, {job.recipe}", left=left)
                return
            progress.update(task, advance=1, left=left)
            if not console.is_terminal or "error" in answer:
                value = answer.get("error") or f"{answer['images_per_s']:,.0f} img/s"
                console.print(f"{job.contestant:18s} {job.recipe:9s} {job.section:9s} {value}", highlight=False)

        runner.report = tell
        yield


def _defaults(options: argparse.Namespace) -> None:
    """Settings that were not given; raises ValueError for those that make no sense."""
    quick = options.quick
    options.rounds = options.rounds or (2 if quick else 5)
    options.seconds = options.seconds or (2.0 if quick else 6.0)
    options.workers = min(16, machine.cores()) if options.workers is None else options.workers
    options.device = options.device or ("cuda" if contestants.has_cuda() else "cpu")
    options.model = options.model or ("resnet50" if options.device == "cuda" else "small")
    if options.device == "cuda" and not contestants.has_cuda():
        raise ValueError("--device cuda: torch finds no CUDA GPU here; leave it out or ask for cpu")
    for name, least in (("rounds", 1), ("workers", 0), ("batch_size", 1), ("images", 1), ("epoch_images", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be {least} or more")


def _deadline(options: argparse.Namespace) -> float | None:
    if options.minutes is not None:
        return time.monotonic() + 60 * float(options.minutes)
    return time.monotonic() + QUICK_SECONDS if options.quick else None


def _restore(options: argparse.Namespace, results: dict[str, Any]) -> None:
    for name in FIELDS:
        setattr(options, name, results["settings"][name])
    if not results["data"]["generated"] and options.data is None:
        raise ValueError(f"--resume: this run measured {results['data']['name']}; give it again with --data")
    results["complete"] = False


def _data(options: argparse.Namespace, console: Console) -> tuple[Path, Path, Path]:
    """(what was asked for, the folder to train on, the folder to evaluate on)."""
    if options.data is None:
        with bar(console, "generating images (once)") as progress:
            data = images.default_data(options.seed, progress)
    else:
        data = options.data
    train, val = images.split_roots(data)
    limit, epoch = options.images, options.epoch_images
    return data, images.linked(train, limit, epoch), images.linked(val, limit, epoch)


def _share(root: Path) -> dict[str, Any]:
    files = images.image_files(root)
    single = images.distinct(files)
    return {
        "files": len(files),
        "distinct": len(single),
        "mean_kb": round(sum(f.stat().st_size for f in single) / len(single) / 1000, 1),
    }


def _header(options: argparse.Namespace, data: Path, train: Path, val: Path) -> dict[str, Any]:
    state = "cold: files dropped before every run" if options.cold else "warm: every file read once before"
    settings = {name: getattr(options, name) for name in FIELDS}
    settings |= {"warmup_rounds": 0 if options.quick else 1, "size": 224, "page_cache": state}
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _said(options.words),
        "seed": options.seed,
        "settings": settings,
        "data": {
            "name": "generated images" if options.data is None else data.resolve().name,
            "generated": options.data is None,
            "train": _share(train),
            "val": _share(val),
        },
        "machine": machine.describe(),
        "versions": machine.versions(),
        "load": {"before": machine.load(), "after": None},
        "cells": [],
        "missing": [],
        "verdict": [],
        "too_noisy": False,
        "complete": False,
    }


def _said(words: Sequence[str]) -> str:
    """The command line with folders by their last name: a report names no path of the machine it ran on."""
    return shlex.join(Path(w).name if "/" in w or "\\" in w else w for w in words)
