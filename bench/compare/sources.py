"""The same images as a folder, tars, shards, zip, TFRecord, Arrow and Parquet: is it the same, and what does it cost?

Each is loaded in this process, without workers, in interleaved rounds, and CPU time is counted: on a machine with other
programs it varies least. The batches' hash must be one for all. Other libraries read the shards that they are made for.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import logging
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import PROGRAM, containers, images, machine, page
from ..core.range_server import serving
from ..core.stats import quantile

if TYPE_CHECKING:
    from dali_imagenet import SampleIndex

NAME = "sources"
HELP = "what do tars, shards, zips and tables cost?"
FOLDER = "folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    add("--images", type=int, metavar="N", default=800, help="images taken of it (800)")
    add("--only", default="", metavar="KINDS", help=f"separated by commas, of {', '.join(containers.KINDS)}")
    add("--rounds", type=int, metavar="N", default=7, help="measured rounds; one is made before them (7)")
    add("--recipe", choices=("classic", "strong", "eval"), default="classic", help="(classic)")
    add("--backend", choices=("torchvision", "dali"), default="torchvision", help="(torchvision)")
    add("--batch-size", type=int, metavar="N", default=64, help="images a batch (64)")
    add("--latency", type=float, metavar="MS", help="and shards from a web server here that answers so late")
    add("--peers", action="store_true", help="other libraries on the same shards and tables, too")
    add("--out", type=Path, metavar="FILE", help="a JSON file for the figures, and a page beside it")


def run(options: argparse.Namespace) -> int:
    logging.getLogger("dali_imagenet").setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-sources-")))
        results = compare(options, folder, stack)
    page.say(results, markdown(results), options.out)
    return 0 if all(row["same"] for row in results["sources"]) else 1


def compare(options: argparse.Namespace, scratch: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    import torch

    from dali_imagenet import SampleIndex

    torch.set_num_threads(1)  # as in workers; threads that wait for each other would count as work
    root = images.linked(options.data or images.default_data() / "train", options.images, 1)
    index = SampleIndex.from_folder(root, progress=False, cache=False)
    asked = [kind.strip() for kind in options.only.split(",") if kind.strip()] or list(containers.KINDS)
    kinds = [kind for kind in asked if importlib.util.find_spec(containers.NEEDS.get(kind, "json"))]
    places = {kind: containers.KINDS[kind](index, scratch) for kind in kinds}
    indexes, built = {FOLDER: index}, {}
    for kind, place in places.items():
        _, built[kind] = spent(partial(SampleIndex.open, place, progress=False, cache=False, num_threads=1))
        indexes[kind] = SampleIndex.open(place, progress=False, cache=False)
    if options.latency is not None:
        indexes |= remote(index, options.latency, scratch, stack)
    _, built[FOLDER] = spent(lambda: SampleIndex.from_folder(root, progress=False, cache=False, num_threads=1))
    tars = places.get("tar of tars") or containers.tar_of_tars(index, scratch)
    _, tarfile_s = spent(partial(listed, tars))
    _, ours_s = spent(partial(hopped, tars))

    loaders = {kind: ours(one, options) for kind, one in indexes.items()}
    hashes = {kind: digest(load) for kind, load in loaders.items()}
    if options.peers:
        loaders |= peers(root, options, scratch)
    times: dict[str, list[float]] = {kind: [] for kind in loaders}
    names = list(loaders)
    for number in range(-1, options.rounds):
        for kind in names[number % len(names) :] + names[: number % len(names)]:
            count, seconds = spent(partial(count_of, loaders[kind]))
            if number >= 0:
                times[kind].append(1e6 * seconds / max(1, count * options.batch_size))
    rows = []
    for kind in loaders:
        ratios = [a / b for a, b in zip(times[FOLDER], times[kind], strict=True)]
        rows.append(
            {
                "source": kind,
                "same": hashes.get(kind, hashes[FOLDER]) == hashes[FOLDER],
                "ours": kind in hashes,
                "cpu_us": statistics.median(times[kind]),
                "ratio": statistics.median(ratios),
                "interval": [quantile(ratios, 0.1), quantile(ratios, 0.9)],
                "index_images_per_s": len(index) / built[kind] if kind in built else None,
            }
        )
    return {
        "data": "generated images" if options.data is None else options.data.resolve().name,
        "images": len(index),
        "recipe": options.recipe,
        "backend": options.backend,
        "rounds": options.rounds,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "sources": rows,
        "listing_images_per_s": {
            "tarfile": len(index) / tarfile_s,
            "dali-imagenet": len(index) / ours_s,
        },
    }


def spent(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the CPU seconds of this process."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def ours(index: SampleIndex, options: argparse.Namespace) -> Callable[[], Any]:
    from dali_imagenet import EvalRecipe, TrainRecipe, create_loader

    recipe = EvalRecipe() if options.recipe == "eval" else getattr(TrainRecipe, options.recipe)()
    loader = create_loader(
        index, recipe, batch_size=options.batch_size, backend=options.backend, device="cpu", num_workers=0
    )

    def epoch() -> Any:
        loader.set_epoch(0)
        return iter(loader)

    return epoch


def count_of(epoch: Callable[[], Any]) -> int:
    """How many batches it has."""
    return sum(1 for _ in epoch())


def digest(epoch: Callable[[], Any]) -> str:
    """Of all batches."""
    found = hashlib.blake2b(digest_size=16)
    for images_of, targets in epoch():
        found.update(images_of.numpy())
        found.update(targets.numpy())
    return found.hexdigest()


def remote(index: SampleIndex, latency: float, scratch: Path, stack: contextlib.ExitStack) -> dict[str, SampleIndex]:
    """Shards behind a web server, and the same with copies on this disk."""
    from dali_imagenet import SampleIndex

    shards = containers.webdataset(index, scratch / "served")
    address = stack.enter_context(serving(shards, latency))
    names = [f"{address}/{file.name}" for file in sorted(shards.glob("*.tar"))]
    options: dict[str, Any] = {"progress": False, "cache": False, "storage_options": {}}
    return {
        f"http, {latency:g} ms": SampleIndex.open(names, **options),
        "http, local copies": SampleIndex.open(names, **options, local_cache=scratch / "copies"),
    }


def peers(root: Path, options: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], Any]]:
    """Other libraries on shards and tables of the same images, with torchvision's transforms."""
    from ..contestants import BY_NAME
    from ..core.job import Job

    found: dict[str, Callable[[], Any]] = {}
    for name in ("webdataset", "hf-datasets"):
        contestant = BY_NAME.get(name)
        if contestant is None or contestant.missing():
            print(f"left out: {name} ({contestant.missing() if contestant else 'unknown'})", file=sys.stderr)
            continue
        cache = scratch / f"peer-{name}"
        cache.mkdir()
        job = Job(name, options.recipe, str(root), options.batch_size, 0, cache=str(cache))
        loader = contestant.load()(job)
        found[contestant.title] = partial(iter, loader)
    return found


def listed(file: Path) -> int:
    """Python's tarfile, on the tars within, too."""
    count = 0
    with tarfile.open(file) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                count += sum(1 for _ in inner)
    return count


def hopped(file: Path) -> int:
    """What the index does of that; headers of images come on top."""
    from dali_imagenet.data.container import FileReader
    from dali_imagenet.data.tar import tar_members

    reader, count = FileReader(str(file)), 0
    for outer in tar_members(reader.read, "", 0, reader.container.size):
        count += sum(1 for _ in tar_members(reader.read, "", outer.offset, outer.offset + outer.size))
    reader.close()
    return count


def markdown(results: dict[str, Any]) -> str:
    """The page of a run."""
    what = f"{results['images']} images of {results['data']}, {results['backend']} backend in one process"
    lines = [
        f"# Sources: {results['recipe']}",
        "",
        f"`{PROGRAM} {NAME}`, {what}, {results['rounds']} interleaved rounds; CPU time an image of the whole loader, "
        "and the ratio to the folder's (above 1 is cheaper): median, and from the tenth to the ninetieth percentile of "
        "the rounds. The index is built by one thread, headers and end markers of all images included.",
        "",
        "| source | the folder's batches | us an image | folder / source | index, images/s |",
        "|---|---|---:|---:|---:|",
    ]
    for row in results["sources"]:
        low, high = row["interval"]
        same = ("yes, bit for bit" if row["same"] else "**NO**") if row["ours"] else "another library"
        speed = row["index_images_per_s"]
        lines.append(
            f"| {row['source']} | {same} | {row['cpu_us']:,.0f} | {row['ratio']:.3f} [{low:.3f}, {high:.3f}] | "
            f"{f'{speed:,.0f}' if speed else ''} |"
        )
    tars = results["listing_images_per_s"]
    lines += [
        "",
        f"Listing the tar of tars: {tars['dali-imagenet']:,.0f} names/s, "
        f"{tars['dali-imagenet'] / tars['tarfile']:.1f} times Python's tarfile ({tars['tarfile']:,.0f}).",
        "",
        f"{results['machine']['processor']}; " + ", ".join(f"{n} {v}" for n, v in results["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)
