"""Seconds from create_loader to the first batch, with an index of 1.28 million samples.

The samples are simulated: the paths of a small data set, again and again. What is timed is everything behind the index:
planning, starting the workers or the pipeline, and one batch. Loading the index of a real tree comes on top: its cache
is compared with the folders' listing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.images import default_data
from ..core.stats import spread

if TYPE_CHECKING:
    from dali_imagenet import SampleIndex

NAME = "first-batch"
HELP = "seconds to the first batch of an ImageNet-sized index"
CASES = (("torchvision", "fork"), ("torchvision", "spawn"), ("dali", None))


def simulated(folder: Path, count: int) -> SampleIndex:
    """An index of `count` samples whose paths are those of the folder, repeated."""
    import numpy as np

    from dali_imagenet import SampleIndex

    real = SampleIndex.from_folder(folder, progress=False)
    which = np.arange(count) % len(real)
    names = [real.relative_path(i) for i in range(len(real))]
    return SampleIndex.from_arrays(
        real.labels[which],
        real.height[which],
        real.width[which],
        root=real.root,
        paths=[names[i] for i in which],
        classes=real.classes,
        components=real.components[which],
        format=real.format[which],
    )


def once(folder: Path, count: int, batch_size: int, workers: int, backend: str, context: str | None) -> float:
    """Seconds from create_loader to the first batch, in this process."""
    from dali_imagenet import TrainRecipe, create_loader

    index = simulated(folder, count)
    recipe = TrainRecipe.strong()
    started = time.perf_counter()
    with create_loader(
        index,
        recipe,
        batch_size=batch_size,
        device="cpu",
        num_workers=workers,
        backend=backend,  # type: ignore[arg-type]  # a str; create_loader checks it
        multiprocessing_context=context,
    ) as loader:
        next(iter(loader))
        return time.perf_counter() - started


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated")
    p.add_argument("--count", type=int, metavar="N", default=1_281_167, help="samples to simulate (1281167)")
    p.add_argument("--batch-size", type=int, metavar="N", default=64, help="images a batch (64)")
    p.add_argument("--workers", type=int, metavar="N", default=2, help="workers or threads (2)")
    p.add_argument("--rounds", type=int, metavar="N", default=3, help="of each case (3)")


def run(options: argparse.Namespace) -> int:
    folder = options.data or default_data() / "train"
    answers: dict[str, dict[str, float]] = {}
    for number, (backend, context) in enumerate(CASES):
        seconds = []
        for _ in range(options.rounds):  # a process of its own each, so that nothing is warm
            words = [str(folder), *map(str, (options.count, options.batch_size, options.workers, number))]
            command = [sys.executable, "-m", f"{__package__}.first_batch", *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                print(f"{backend}: {done.stderr.strip().splitlines()[-1]}")
                break
            seconds.append(float(done.stdout))
        else:
            name = backend if context is None else f"{backend} ({context})"
            a = answers[name] = spread(seconds)
            print(f"{name:22} {a['median']:6.2f} s  ({a['q1']:.2f} to {a['q3']:.2f})")
    print(json.dumps({"samples": options.count, "batch_size": options.batch_size, "seconds": answers}))
    return 0


if __name__ == "__main__":
    count, batch_size, workers, number = map(int, sys.argv[2:])
    print(once(Path(sys.argv[1]), count, batch_size, workers, *CASES[number]))
