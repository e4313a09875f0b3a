"""Do two checkouts make the same batches, bit for bit, in this environment, and what do they cost?

Each checkout (its compiled modules built in place) is imported by a process of its own, which hashes every batch of two
epochs for many recipes, backends and options, from the JPEGs in tests/data of B: compiled, compiled without shortcuts
(DALI_IMAGENET_ORACLE=1), and Python alone. Only public names are used.

With --speed both make the same batches of a folder in turns, and their time is compared turn by turn: CPU time of a
batch that is made in the process itself, or, with --workers, throughput and CPU time of an epoch that workers make,
from one time that all they may make ahead is there to the next. A checkout that remembers the rows of JPEGs does so
in a cache folder of its own: "later" has been through all files, "first" has not seen any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.machine import describe, versions
from ..core.stats import quantile

NAME = "checkouts"
HELP = "are two checkouts' batches the same bits, and how fast?"
SCHEMA = "dali_imagenet checkouts 1"

HASHES = """
import hashlib, json, logging, sys
import numpy as np, torch
from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
logging.disable(logging.WARNING)
torch.set_num_threads(1)

def main():
    index = SampleIndex.from_folder(sys.argv[1], cache=False, progress=False)
    cases = {
        name: getattr(TrainRecipe, name)(input_size=48)
        for name in ("classic", "strong", "advanced", "torchvision_v2", "rsb_a1", "rsb_a3", "deit", "deit3")
    }
    cases["eval"] = EvalRecipe(input_size=40)
    cases["eval, bicubic"] = EvalRecipe(input_size=40, interpolation="bicubic", crop_pct=0.95)
    cases["eval, squash"] = EvalRecipe(input_size=40, crop_mode="squash")
    cases["eval, larger than the images"] = EvalRecipe(input_size=150)
    cases["color_jitter, flips, sizes"] = TrainRecipe(
        input_size=((0, 33), (1, 50)), color_jitter=(0.4,) * 4, vflip=0.5, grayscale_prob=0.3, gaussian_blur_prob=0.5,
    )
    for name in ("autoaugment", "trivialaugment", "augmix", "augmix-m5-w4-d2", "augmix-m3-b1", "v0", "3-augment"):
        cases[name] = TrainRecipe(input_size=48, auto_augment=name)
    for mode in ("pair", "elem"):
        cases["mixing by " + mode] = TrainRecipe.strong(input_size=48, mixup_mode=mode, re_mode="rand", re_prob=0.7)
    options = {
        "": {},
        ", bfloat16": {"dtype": torch.bfloat16},
        ", channels_last": {"memory_format": torch.channels_last},
        ", two workers": {"num_workers": 2, "dtype": torch.float16},
    }
    for backend in ("torchvision", "dali"):
        for name, recipe in cases.items():
            for words, extra in options.items():
                digest = hashlib.sha256()
                with create_loader(
                    index, recipe, batch_size=4, backend=backend, device="cpu", seed=3, **{"num_workers": 0, **extra}
                ) as loader:
                    for epoch in range(2):
                        for images, targets in loader:
                            digest.update(images.contiguous().view(torch.uint8).numpy().tobytes())
                            digest.update(targets.numpy().tobytes())
                print(json.dumps([f"{backend}, {name}{words}", digest.hexdigest()[:16]]), flush=True)

if __name__ == "__main__":
    main()
"""


TURNS = """
import json, logging, sys, tempfile, time
import psutil, torch
from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
logging.disable(logging.WARNING)
torch.set_num_threads(1)
DATA, WORKERS, CACHE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SEEN = []

def cpu(processes):
    # user and system seconds
    return sum(sum(each.cpu_times()[:2]) for each in processes)

def settle(workers):
    # when the workers had made all that they may make ahead
    last, since = cpu(workers), time.perf_counter()
    while workers and time.perf_counter() - since < 0.2:
        time.sleep(0.01)
        now = cpu(workers)
        if now > last + 0.011:  # a tick is not yet work
            since = time.perf_counter()
            last = now
    return since

def open_loader(recipe, dtype, cache):
    index = SampleIndex.from_folder(DATA, progress=False, cache_dir=cache)
    return create_loader(
        index, recipe, batch_size=40, backend="torchvision", device="cpu", num_workers=WORKERS, seed=3,
        dtype=getattr(torch, dtype),
    )

class Case:
    def __init__(self, name, dtype, epoch):
        self.recipe = EvalRecipe() if name == "eval" else getattr(TrainRecipe, name)()
        self.dtype, self.first, self.loader = dtype, epoch == "first", None
        if not self.first and not SEEN:
            SEEN.append(name)
            with open_loader(EvalRecipe(crop_mode="squash"), dtype, CACHE) as loader:
                for _ in loader:
                    pass

    def begin(self):
        # An epoch, of which one batch is there.
        if self.first and self.loader is not None:
            self.loader.close()
            self.loader = None
        if self.loader is None:
            self.loader = open_loader(self.recipe, self.dtype, tempfile.mkdtemp(dir=CACHE) if self.first else CACHE)
        self.batches = iter(self.loader)
        next(self.batches)
        self.workers = psutil.Process().children(recursive=True)
        settle(self.workers)

    def measured(self):
        # (CPU seconds an image, wall seconds an image, sum of the pixels) of a batch, or of an epoch by workers
        if WORKERS or self.loader is None:
            self.begin()
        count, total = 0, 0.0
        while True:
            start, before = time.perf_counter(), time.process_time() + cpu(self.workers)
            batch = next(self.batches, None)
            if batch is None and not WORKERS:
                self.begin()
                continue
            break
        while batch is not None:
            end, after = time.perf_counter(), time.process_time()
            count, total = count + len(batch[0]), total + (batch[0].double().sum().item() if not WORKERS else 0.0)
            batch = next(self.batches, None) if WORKERS else None
        if WORKERS:
            end = settle(self.workers)  # this process only waits
        return (after + cpu(self.workers) - before) / count, (end - start) / count, total

def main():
    cases = {}
    print("ready", flush=True)
    for line in sys.stdin:
        if line not in cases:
            cases[line] = Case(*line.split())
            cases[line].measured()
        print(json.dumps(cases[line].measured()), flush=True)

if __name__ == "__main__":
    main()
"""

WAYS = {"compiled": {}, "oracle": {"DALI_IMAGENET_ORACLE": "1"}, "Python alone": {"DALI_IMAGENET_PURE": "1"}}
CASES = (
    "classic float32 later",
    "strong float32 later",
    "advanced float32 later",
    "eval float32 later",
    "classic float32 first",
)


def revision(checkout: Path) -> str:
    """What git calls it; the folder's name where it does not know."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else checkout.name


def environment(checkout: Path, way: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), **WAYS[way]}


def hashes(checkout: Path, pictures: Path, way: str) -> dict[str, str]:
    """The hash of each case as that checkout makes it."""
    done = subprocess.run(
        [sys.executable, "-c", HASHES, str(pictures)],
        env=environment(checkout, way), cwd=checkout, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return dict(json.loads(line) for line in done.stdout.splitlines())


def turns(
    checkouts: tuple[Path, Path], data: Path, cases: Sequence[str], count: int, workers: int = 0
) -> dict[str, list[Any]]:
    """For each case and turn what A and B answered: CPU seconds an image, wall seconds an image, sum of the pixels."""
    with tempfile.TemporaryDirectory() as caches:
        folders = [Path(tempfile.mkdtemp(dir=caches)) for _ in checkouts]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", TURNS, str(data.resolve()), str(workers), str(folder)],
                env=environment(checkout, "compiled"), cwd=checkout,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for checkout, folder in zip(checkouts, folders, strict=True)
        ]  # fmt: skip
        try:
            return _asked_in_turns(checkouts, processes, cases, count)
        finally:
            for process in processes:
                process.communicate()  # which closes what it reads from: its end


def _asked_in_turns(
    checkouts: Sequence[Path], processes: Sequence[subprocess.Popen[str]], cases: Sequence[str], count: int
) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {case: [] for case in cases}
    for line in ["", *(case for _ in range(count) for case in cases)]:
        answers: list[Any] = [None, None]
        for which in (0, 1) if len(found.get(line, ())) % 2 else (1, 0):
            process = processes[which]
            assert process.stdin is not None
            assert process.stdout is not None
            if line:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            answer = process.stdout.readline().strip()
            if not answer:
                raise RuntimeError(f"{checkouts[which]} ended")
            answers[which] = answer if answer == "ready" else json.loads(answer)
        if line:
            found[line].append(answers)
    return found


def compared_speed(answers: Sequence[Any], which: int) -> dict[str, float]:
    """Medians of A and B in ms an image, and of their ratio, with the middle 95% of what that median may be.

    Args:
        answers: of one case.
        which: of the numbers of an answer.
    """
    a, b = ([1e3 * answer[side][which] for answer in answers] for side in (0, 1))
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    reach = 0.98 * len(ratios) ** 0.5  # the sign test's: places beside the middle one
    low, high = (ratios[min(max(round(len(ratios) / 2 + way * reach), 0), len(ratios) - 1)] for way in (-1, 1))
    return {"A": quantile(a, 0.5), "B": quantile(b, 0.5), "A / B": quantile(ratios, 0.5), "low": low, "high": high}


def report_speed(found: dict[str, list[Any]], workers: int) -> dict[str, Any]:
    """Prints and returns the figures of each case, and how many turns differ in the sum of their pixels."""
    report: dict[str, Any] = {}
    for case, answers in found.items():
        report[case] = {
            "CPU ms an image": compared_speed(answers, 0),
            "wall ms an image": compared_speed(answers, 1),
            "turns": len(answers),
            "differ": sum(answer[0][2] != answer[1][2] for answer in answers),
        }
        for what in ("CPU ms an image", "wall ms an image")[: 2 if workers else 1]:
            f = report[case][what]
            print(
                f"{case}: A {f['A']:.3f}, B {f['B']:.3f} {what}; A / B {f['A / B']:.3f} "
                f"[{f['low']:.3f}, {f['high']:.3f}] over {len(answers)} turns, {report[case]['differ']} differ"
            )
    return report


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", type=Path, metavar="A", help="folder of one checkout")
    p.add_argument("b", type=Path, metavar="B", help="folder of another")
    p.add_argument("--speed", type=Path, metavar="DIR", help="compare CPU time instead, on the images of this folder")
    p.add_argument("--cases", nargs="+", metavar="C", default=CASES, help="as 'eval float16 later', or 'first'")
    p.add_argument(
        "--batches", type=int, metavar="N", default=60, help="of 40 images (with --workers: epochs) a case (60)"
    )
    p.add_argument("--workers", type=int, metavar="N", default=0, help="throughput of epochs by as many workers (0)")
    p.add_argument("--out", type=Path, metavar="FILE", help="the figures as JSON")


def run(options: argparse.Namespace) -> int:
    checkouts = (options.a.resolve(), options.b.resolve())
    pictures = checkouts[1] / "tests" / "data" / "pictures"
    if not pictures.is_dir():
        print(f"{options.b} is no checkout: it has no tests/data/pictures", file=sys.stderr)
        return 2
    if options.speed is not None:
        found = turns(checkouts, options.speed, options.cases, options.batches, options.workers)
        report = report_speed(found, options.workers)
        if options.out is not None:
            about = {"A": revision(checkouts[0]), "B": revision(checkouts[1]), "workers": options.workers}
            about |= {"machine": describe(), "versions": versions()}
            options.out.write_text(json.dumps({"schema": SCHEMA, **about, "cases": report}, indent=1) + "\n")
        return int(any(case["differ"] for case in report.values()))
    other = 0
    made: dict[str, dict[str, str]] = {}
    for way in WAYS:
        a, made[way] = (hashes(checkout, pictures, way) for checkout in checkouts)
        other += compared(way, a, made[way])
    return int(other + compared("B, compiled and oracle", made["compiled"], made["oracle"]) > 0)


def compared(what: str, a: dict[str, str], b: dict[str, str]) -> int:
    """How many cases differ."""
    differ = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    print(f"{what}: {len(a)} cases, {len(differ)} differ", flush=True)
    for name in differ:
        print(f"  {name}: {a.get(name)} {b.get(name)}")
    return len(differ)
