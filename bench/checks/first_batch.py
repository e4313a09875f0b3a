"""`python -m bench first-batch`: seconds from create_loader to the first batch, with an index of 1.28 million samples.

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

import numpy as np

from dali_imagenet import SampleIndex, TrainRecipe, create_loader

from ..core.images import default_data
from ..core.stats import spread

CASES = (("torchvision", "fork"), ("torchvision", "spawn"), ("dali", None))


def simulated(folder: Path, count: int) -> SampleIndex:
    """An index of `count` samples whose paths are those of the folder, repeated."""
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


def main(words: list[str]) -> int:
    p = argparse.ArgumentParser(prog="python -m bench first-batch", description=__doc__)
    p.add_argument("--data", type=Path, help="ImageFolder tree; default: generated")
    p.add_argument("--count", type=int, default=1_281_167, help="samples to simulate")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--case", type=int, choices=range(len(CASES)), help=argparse.SUPPRESS)
    options = p.parse_args(words)
    folder = options.data or default_data() / "train"
    if options.case is not None:
        backend, context = CASES[options.case]
        print(once(folder, options.count, options.batch_size, options.workers, backend, context))
        return 0
    answers: dict[str, dict[str, float]] = {}
    for number, (backend, context) in enumerate(CASES):
        seconds = []
        for _ in range(options.rounds):  # a process of its own each, so that nothing is warm
            command = [
                sys.executable,
                "-m",
                f"{__package__}.first_batch",
                *words,
                "--data",
                str(folder),
                "--case",
                str(number),
            ]
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
    sys.exit(main(sys.argv[1:]))
