"""The commands behind `python -m bench`."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .. import contestants
from ..contestants import BY_NAME, CONTESTANTS
from ..core import images, machine, measure, stats
from ..core.job import Job
from . import report, verdict
from .results import QUESTIONS, SCHEMA, rate, read

QUICK = ("tv-v1-pil", "dali-doc-cpu", "ours-torchvision", "ours-dali-cpu", "ours-dali-gpu")
QUICK_SECONDS = 100.0  # after the images are there; leaves time for the report
FIELDS = ("rounds", "seconds", "batch_size", "workers", "device", "images", "epoch_images", "seed", "cold", "model",
          "only", "recipes", "questions", "quick", "estimate_images", "estimate_epochs")  # fmt: skip


def fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


@contextmanager
def bar(console: Console, text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar to be called with (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def generate(options: argparse.Namespace) -> int:
    console = Console()
    if options.folder.exists():
        return fail(f"{options.folder} exists already: name a new folder")
    with bar(console, "generating images") as progress:
        images.generate(options.folder, options.train, options.val, options.classes, options.seed, progress)
    console.print(f"{options.train} training and {options.val} validation images in {options.folder}")
    return 0


def compare(options: argparse.Namespace) -> int:
    try:
        a, b = read(options.a), read(options.b)
    except ValueError as error:
        return fail(str(error))
    console = Console()
    rows = differences(a, b)
    if not rows:
        return fail("the two runs have no measured cell in common")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, head in enumerate(("cell", "A img/s", "B img/s", "B / A", "")):
        table.add_column(head, justify="left" if number in (0, 4) else "right")
    for name, x, y, word in rows:
        style = {"faster": "green", "slower": "red"}.get(word, "")
        table.add_row(name, f"{x:,.0f}", f"{y:,.0f}", f"{y / x:.2f}", "" if word == "same" else word, style=style)
    console.print(table)
    for part in ("settings", "machine", "versions"):
        for key in sorted({*a[part], *b[part]}):
            if a[part].get(key) != b[part].get(key):
                console.print(f"[yellow]{part}: {key} was {a[part].get(key)}, is {b[part].get(key)}[/yellow]")
    changed = sum(word != "same" for *_, word in rows)
    console.print(f"{changed} of {len(rows)} cells changed beyond the noise.")
    return 0


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    """(cell, rate in a, rate in b, "faster" | "slower" | "same") of the cells that both runs measured."""
    old = {c["key"]: c for c in a["cells"] if "summary" in c}
    rows = []
    for cell in b["cells"]:
        before = old.get(cell["key"])
        if before is None or "summary" not in cell:
            continue
        name = f"{cell['contestant']} {cell['recipe']}"
        if cell["question"] not in ("loaders", "ceilings"):
            name += f" ({cell['question']}: {cell['workers']} workers, batch {cell['batch_size']})"
        rows.append((name, rate(before), rate(cell), stats.changed(before["summary"], cell["summary"])))
    return rows


def report_again(options: argparse.Namespace) -> int:
    try:
        results = read(options.results)
    except ValueError as error:
        return fail(str(error))
    settle(results)
    options.results.write_text(json.dumps(results, indent=1))
    for file in report.write(results, options.results.parent):
        print(file)
    report.print_tables(results, Console())
    return 0


def show_list() -> int:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in ("name", "what", "here"):
        table.add_column(head)
    for c in CONTESTANTS:
        reason = c.missing()
        how = f" ({c.install})" if reason and c.install and not c.gpu else ""
        table.add_row(c.name, c.title, f"no: {reason}{how}" if reason else "yes")
    Console().print(table)
    return 0


def loaders(options: argparse.Namespace) -> int:
    """The comparison itself."""
    if options.list:
        return show_list()
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
    referee = measure.Referee(results, file, options.rounds, 0 if options.quick else 1, _deadline(options))
    referee.cold_files = images.distinct(images.image_files(train) + images.image_files(val))
    if options.cold:
        if not measure.drop_page_cache(referee.cold_files[:1]):
            return fail("--cold: this system cannot be asked to forget files; leave it out")
    else:
        measure.warm_page_cache(referee.cold_files)
    console.print(
        f"{len(jobs)} cells, {options.rounds} rounds of {options.seconds:g} s, {options.workers} workers, "
        f"{options.device}; Ctrl-C stops and keeps what there is", highlight=False
    )  # fmt: skip
    try:
        with _interruptible(), _watched(referee, jobs, console):
            results["complete"] = referee.run(jobs)
    except KeyboardInterrupt:
        console.print(f"stopped; go on with: python -m bench --resume {folder}", highlight=False)
    results["load"]["after"] = machine.load()
    settle(results)
    referee.save()
    if not any("summary" in c for c in results["cells"]):
        for name, why in report.failures(results):
            print(f"{name}: {why}", file=sys.stderr)
        return fail("nothing was measured")
    written = report.write(results, folder)
    report.print_tables(results, console)
    console.print(f"\n{file}, " + ", ".join(f.name for f in written), highlight=False)
    return 0


def settle(results: dict[str, Any]) -> None:
    """The conclusions: noise and verdict."""
    cells = [c for c in results["cells"] if "summary" in c]
    results["too_noisy"] = stats.too_noisy(cells, results["machine"]["cores"])
    s = results["settings"]
    results["verdict"] = verdict.sentences(results, s["estimate_images"], s["estimate_epochs"])


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
def _watched(referee: measure.Referee, jobs: Sequence[Job], console: Console) -> Iterator[None]:
    total = len(referee.left(jobs))
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
               TextColumn("{task.fields[left]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total, left="")

        def tell(job: Job, number: int, answer: dict[str, Any] | None, seconds: float) -> None:
            if referee.deadline is not None:
                seconds = min(seconds, max(0.0, referee.deadline - time.monotonic()))
            left = f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"
            if answer is None:
                name = "warm-up" if number < 0 else f"round {number + 1}"
                progress.update(task, description=f"{name}: {job.contestant}, {job.recipe}", left=left)
                return
            progress.update(task, advance=1, left=left)
            if not console.is_terminal or "error" in answer:
                value = answer.get("error") or f"{answer['images_per_s']:,.0f} img/s"
                console.print(f"{job.contestant:18s} {job.recipe:9s} {job.question:9s} {value}", highlight=False)

        referee.report = tell
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
    state = "cold: files dropped before every visit" if options.cold else "warm: every file read once before"
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


def plan(options: argparse.Namespace, train: str, val: str) -> tuple[list[Job], list[dict[str, str]]]:
    """All cells of the run, and who is missing and why. Raises ValueError for unknown names."""
    cache = images.cache_dir() / "converted"
    cache.mkdir(parents=True, exist_ok=True)
    chosen = _names(options)
    missing = [
        {"contestant": n, "reason": BY_NAME[n].missing(), "install": "" if BY_NAME[n].gpu else BY_NAME[n].install}
        for n in chosen
        if BY_NAME[n].missing()
    ]
    absent = {m["contestant"] for m in missing}
    present = [n for n in chosen if n not in absent]
    everything = ("classic", "strong", "advanced", "eval") if _has_advanced() else ("classic", "strong", "eval")
    asked = _asked(options.recipes, ("classic", "strong", "advanced", "eval"), "--recipes") or (
        ["classic", "strong"] if options.quick else list(everything)
    )
    questions = _asked(options.questions, tuple(QUESTIONS), "--questions") or (
        ["loaders"] if options.quick else list(QUESTIONS)
    )
    jobs: list[Job] = []

    def add(question: str, name: str, recipe: str, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "root": val if recipe in ("eval", "none") else train,
            "batch_size": options.batch_size,
            "workers": options.workers,
            "device": options.device,
            "seed": options.seed,
            "seconds": options.seconds,
            "cold": options.cold,
            "cache": str(cache),
        }
        if name in present and recipe in BY_NAME[name].recipes:
            jobs.append(Job(name, recipe, question=question, **(settings | changes)))

    sweepers = [n for n in ("tv-v1-pil", "tv-v2-tensor", "dali-doc-cpu", "ours-torchvision", "ours-dali-cpu",
                            "ours-dali-gpu") if n in present]  # fmt: skip
    for question in questions:
        if question == "loaders":
            for recipe in asked:
                for name in present:
                    if BY_NAME[name].kind != "ceiling":
                        add(question, name, recipe)
        elif question == "ceilings":
            for name in present:
                if BY_NAME[name].kind == "ceiling":
                    add(question, name, "classic")
        elif question == "modes":
            for recipe in contestants.MODES:
                for name in sweepers:
                    add(question, name, recipe, root=train)
        elif question == "workers":
            for workers in (0, 1, 2, 4, 8):
                for name in sweepers:
                    add(question, name, "strong", workers=workers)
        elif question == "batches":
            for size in (32, 64, 128, 256):
                for name in sweepers:
                    add(question, name, "strong", batch_size=size)
        elif question == "training":
            for name in ("synthetic", *sweepers):
                add(question, name, "strong", model=options.model)
    if not jobs:
        raise ValueError("no contestant can run: see python -m bench --list")
    return jobs, missing


def _has_advanced() -> bool:
    from dali_imagenet import TrainRecipe

    return hasattr(TrainRecipe, "advanced")


def _names(options: argparse.Namespace) -> list[str]:
    everyone = tuple(BY_NAME)
    return _asked(options.only, everyone, "--only") or list(QUICK if options.quick else everyone)


def _asked(text: str, allowed: Sequence[str], option: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in allowed:
            raise ValueError(f"{option} {name!r}: must be among {', '.join(allowed)}")
    return names
