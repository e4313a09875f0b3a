"""How far a loader scales: few workers measured, many estimated from CPU time, memory traffic and the main process.

Measured: images a second, and CPU time of the workers and of the main process, in interleaved rounds. Estimated for
more workers, each with a core of its own: how many images they make by their CPU time, how many one main process hands
over by its own, and what that asks of the memory. A server's memory is given by its channels; no server was measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .core import PROGRAM, images, machine, page, stats

if TYPE_CHECKING:
    from dali_imagenet import Loader

NAME = "scaling"
HELP = "few workers measured, many estimated"
SCHEMA = "dali-imagenet-scaling/1"
RECIPES = ("classic", "strong", "eval")
MANY = (8, 16, 32, 64)
SIDE = 224
ITEMS = {"float32": 4, "uint8": 1}  # bytes
Results = dict[str, Any]


class Server(NamedTuple):
    """A socket's memory: channels of 8 bytes, and mega-transfers a second, of its maker's specification."""

    name: str
    channels: int
    rate: int

    @property
    def gb_per_s(self) -> float:
        return self.channels * self.rate * 8 / 1000


SERVERS = (
    Server("AMD EPYC 7003 (Milan), 8 x DDR4-3200", 8, 3200),
    Server("Intel Xeon 8480C (of a DGX H100), 8 x DDR5-4800", 8, 4800),
    Server("AMD EPYC 9004 (Genoa), 12 x DDR5-4800", 12, 4800),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    add("--recipes", default="classic,strong", metavar="NAMES", help=f"of {', '.join(RECIPES)} (classic,strong)")
    add("--workers", type=int, nargs="+", metavar="N", default=[1, 2], help="numbers of workers to measure (1 2)")
    add("--batch-size", type=int, metavar="N", default=64, help="images a batch (64)")
    add("--rounds", type=int, metavar="N", default=5, help="measured rounds; one is made before them (5)")
    add("--seconds", type=float, metavar="N", default=4.0, help="measured seconds a round (4)")
    add("--out", type=Path, metavar="FILE", help="a JSON file for the figures, and a page beside it")


def run(options: argparse.Namespace) -> int:
    asked = [name.strip() for name in options.recipes.split(",") if name.strip()]
    wrong = [name for name in asked if name not in RECIPES]
    if wrong or not asked:
        print(f"--recipes {options.recipes!r}: must be among {', '.join(RECIPES)}", file=sys.stderr)
        return 2
    for option, least in (("workers", 1), ("batch_size", 1), ("rounds", 1)):
        given = getattr(options, option)
        if min(given if isinstance(given, list) else [given]) < least:
            print(f"--{option.replace('_', '-')} {given}: must be {least} or more", file=sys.stderr)
            return 2
    logging.getLogger("dali_imagenet").setLevel(logging.WARNING)
    results = measure(options, asked)
    page.say(results, markdown(results), options.out)
    return 0


def measure(options: argparse.Namespace, recipes: list[str]) -> Results:
    from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader

    data = options.data or images.default_data(0)
    root = images.linked(images.split_roots(data)[0], 10_000, 32 * options.batch_size)
    index = SampleIndex.from_folder(root, progress=False)
    cells: dict[tuple[str, int], list[dict[str, float]]] = {
        (recipe, workers): [] for recipe in recipes for workers in options.workers
    }
    for number in range(-1, options.rounds):
        keys = list(cells)
        for recipe, workers in keys[number % len(keys) :] + keys[: number % len(keys)]:
            asked = EvalRecipe() if recipe == "eval" else getattr(TrainRecipe, recipe)()
            loader = create_loader(index, asked, batch_size=options.batch_size, backend="torchvision", device="cpu",
                                   num_workers=workers, drop_last=False)  # fmt: skip
            with loader:
                found = timed(loader, workers, options.seconds)
            if number >= 0:
                cells[recipe, workers].append(found)
    rows = [
        {"recipe": recipe, "workers": workers, "runs": runs}
        | {name: stats.spread([run[name] for run in runs]) for name in runs[0]}
        for (recipe, workers), runs in cells.items()
    ]
    made: Results = {
        "schema": SCHEMA,
        "data": "generated images" if options.data is None else options.data.resolve().name,
        "images": len(images.distinct(images.image_files(root))),
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "load": machine.load(),
        "measured": rows,
        "file_bytes": float(index.file_size.mean()),
    }
    return made | {"estimated": estimated(made)}


def timed(loader: Loader, workers: int, seconds: float) -> dict[str, float]:
    """Images a second, and CPU microseconds: of the workers an image, of the main process a batch."""
    import psutil

    def children() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))

    batches = loader.endless()
    for _ in range(2 * workers + 2):  # what the ring holds before the clock starts
        next(batches)
    count = made = 0
    theirs, own, start = children(), time.process_time(), time.perf_counter()
    # other processes' times are told in hundredths of a second: a short run goes on until there is one
    while time.perf_counter() - start < seconds or made < 2 or children() == theirs:
        count, made = count + len(next(batches)[0]), made + 1
    end, own_end, theirs_end = time.perf_counter(), time.process_time(), children()
    batches.close()
    return {
        "images_per_s": count / (end - start),
        "worker_us": 1e6 * (theirs_end - theirs) / count,
        "main_us": 1e6 * (own_end - own) / made,
    }


def traffic(file_bytes: float, itemsize: int) -> float:
    """Bytes that an image moves through main memory, by a model: the file is read out of the page cache once; the batch
    is fetched when it is written to, written back, and read by whoever takes it. What is decoded and resized stays in
    the worker's own reused memory, which a core's cache holds."""
    return file_bytes + 3 * 3 * SIDE * SIDE * itemsize


def estimated(results: Results) -> list[dict[str, Any]]:
    """Of each recipe and number of workers, from the row with the most workers that was measured."""
    rows = []
    for recipe in dict.fromkeys(row["recipe"] for row in results["measured"]):
        last = max((row for row in results["measured"] if row["recipe"] == recipe), key=lambda row: row["workers"])
        handed = 1e6 * results["batch_size"] / last["main_us"]["median"]
        for workers in MANY:
            made = 1e6 * workers / last["worker_us"]["median"]
            rate = min(made, handed)
            gb = {name: rate * traffic(results["file_bytes"], size) / 1e9 for name, size in ITEMS.items()}
            rows.append({"recipe": recipe, "workers": workers, "workers_make": made, "main_hands_over": handed,
                         "images_per_s": rate, "gb_per_s": gb,
                         "of_memory": {s.name: gb["float32"] / s.gb_per_s for s in SERVERS}})  # fmt: skip
    return rows


def markdown(results: Results) -> str:
    """The page of a run."""
    lines = [
        "# How far it scales",
        "",
        f"`{PROGRAM} {NAME}`: {results['images']} images of {results['data']}, batch {results['batch_size']}, float32, "
        f"torchvision backend, {results['rounds']} interleaved rounds, on {results['machine']['cores']} cores of "
        f"{results['machine']['processor']}, load {results['load']}.",
        "",
        "## Measured",
        "",
        "| recipe | workers | img/s | spread | CPU us an image, workers | CPU us a batch, main process |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['recipe']} | {row['workers']} | {row['images_per_s']['median']:,.0f} "
        f"| ±{50 * row['images_per_s']['iqr_relative']:.0f}% | {row['worker_us']['median']:,.0f} "
        f"| {row['main_us']['median']:,.0f} |"
        for row in results["measured"]
    ]
    names = [server.name.split(",")[0] for server in SERVERS]
    lines += [
        "",
        "## Estimated, not measured",
        "",
        "Each worker has a core of its own, as fast as this one with all cores busy, and files are in the page cache. "
        "Memory traffic by the model of `bench/scaling.py`; the last columns say how much of a socket's peak it is.",
        "",
        "| recipe | workers | img/s | one main process could hand over | GB/s float32 (uint8) | "
        + " | ".join(f"of {server.gb_per_s:.0f} GB/s, {name}" for server, name in zip(SERVERS, names, strict=True))
        + " |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(SERVERS),
    ]
    lines += [
        f"| {row['recipe']} | {row['workers']} | {row['images_per_s']:,.0f} | {row['main_hands_over']:,.0f} "
        f"| {row['gb_per_s']['float32']:.0f} ({row['gb_per_s']['uint8']:.0f}) | "
        + " | ".join(f"{100 * row['of_memory'][server.name]:.0f}%" for server in SERVERS)
        + " |"
        for row in results["estimated"]
    ]
    return "\n".join([*lines, "", ", ".join(f"{n} {v}" for n, v in results["versions"].items()) + ".", ""])
