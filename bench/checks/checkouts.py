"""Do two checkouts make the same batches, bit for bit, in this environment, and what do they cost?

Each checkout (its compiled modules built in place) is imported by a process of its own, which hashes every batch of two
epochs for many recipes, backends and options, from the JPEGs in tests/data of B: compiled, compiled without shortcuts
(DALI_IMAGENET_ORACLE=1), and Python alone. With --speed both make the same batches of a folder in turns, and their CPU
time is compared batch by batch. Only public names are used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.stats import quantile

NAME = "checkouts"
HELP = "are two checkouts' batches the same bits, and how fast?"

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
import json, logging, sys, time
import torch
from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
logging.disable(logging.WARNING)
torch.set_num_threads(1)

def main():
    index = SampleIndex.from_folder(sys.argv[1], cache=False, progress=False)
    loaders, batches = {}, {}
    print("ready", flush=True)
    for line in sys.stdin:
        name, dtype = line.split()
        if line not in loaders:
            recipe = EvalRecipe() if name == "eval" else getattr(TrainRecipe, name)()
            loaders[line] = create_loader(
                index, recipe, batch_size=40, backend="torchvision", device="cpu", num_workers=0, seed=3,
                dtype=getattr(torch, dtype),
            )
            batches[line] = iter(loaders[line])
            next(batches[line])
        for turn in range(2):
            start = time.process_time()
            batch = next(batches[line], None)
            if batch is not None:
                break
            batches[line] = iter(loaders[line])
        seconds = time.process_time() - start
        print(json.dumps([seconds / len(batch[0]), batch[0].double().sum().item()]), flush=True)

if __name__ == "__main__":
    main()
"""

WAYS = {"compiled": {}, "oracle": {"DALI_IMAGENET_ORACLE": "1"}, "Python alone": {"DALI_IMAGENET_PURE": "1"}}
CASES = ("classic float32", "strong float32", "advanced float32", "eval float32")


def environment(checkout: Path, way: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), **WAYS[way]}


def hashes(checkout: Path, pictures: Path, way: str) -> dict[str, str]:
    """The hash of each case as that checkout makes it."""
    done = subprocess.run(
        [sys.executable, "-c", HASHES, str(pictures)],
        env=environment(checkout, way), cwd=checkout, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return dict(json.loads(line) for line in done.stdout.splitlines())


def turns(checkouts: tuple[Path, Path], data: Path, cases: Sequence[str], batches: int) -> dict[str, list[Any]]:
    """For each case and batch ((seconds an image, sum of the pixels) of A, the same of B)."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TURNS, str(data.resolve())],
            env=environment(checkout, "compiled"), cwd=checkout,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for checkout in checkouts
    ]  # fmt: skip
    found: dict[str, list[Any]] = {case: [] for case in cases}
    try:
        for line in ["", *(case for _ in range(batches) for case in cases)]:
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
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def report_speed(found: dict[str, list[Any]]) -> int:
    """Prints the medians and their ratio, with the interval of the middle 95% of what a median may be; 1 where sums
    of pixels differ."""
    differ = 0
    for case, answers in found.items():
        a, b = ([1e3 * answer[which][0] for answer in answers] for which in (0, 1))
        ratios = sorted(x / y for x, y in zip(a, b, strict=True))
        reach = 0.98 * len(ratios) ** 0.5  # the sign test's: places beside the middle one
        low, high = (ratios[min(max(round(len(ratios) / 2 + way * reach), 0), len(ratios) - 1)] for way in (-1, 1))
        other = sum(answer[0][1] != answer[1][1] for answer in answers)
        differ += other
        print(
            f"{case}: A {quantile(a, 0.5):.3f}, B {quantile(b, 0.5):.3f} ms of CPU time an image; A / B "
            f"{quantile(ratios, 0.5):.3f} [{low:.3f}, {high:.3f}] over {len(ratios)} batches, {other} differ"
        )
    return int(differ > 0)


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", type=Path, metavar="A", help="folder of one checkout")
    p.add_argument("b", type=Path, metavar="B", help="folder of another")
    p.add_argument("--speed", type=Path, metavar="DIR", help="compare CPU time instead, on the images of this folder")
    p.add_argument("--cases", nargs="+", metavar="C", default=CASES, help="'preset dtype', as in 'eval float16'")
    p.add_argument("--batches", type=int, metavar="N", default=60, help="of 40 images, for each case (60)")


def run(options: argparse.Namespace) -> int:
    checkouts = (options.a.resolve(), options.b.resolve())
    pictures = checkouts[1] / "tests" / "data" / "pictures"
    if not pictures.is_dir():
        print(f"{options.b} is no checkout: it has no tests/data/pictures", file=sys.stderr)
        return 2
    if options.speed is not None:
        return report_speed(turns(checkouts, options.speed, options.cases, options.batches))
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
