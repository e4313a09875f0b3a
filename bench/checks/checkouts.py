"""Do two checkouts make the same batches, bit for bit, in this environment?

Each checkout (its compiled modules built in place) is imported by a process of its own, which hashes every batch of two
epochs for many recipes, backends and options, from the JPEGs in tests/data of B. Only public names are used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

NAME = "checkouts"
HELP = "do two checkouts make the same batches, bit for bit?"

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


def hashes(checkout: Path, pictures: Path, pure: bool) -> dict[str, str]:
    """The hash of each case as that checkout makes it; without the compiled modules where `pure`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "DALI_IMAGENET_PURE": str(int(pure))}
    done = subprocess.run(
        [sys.executable, "-c", HASHES, str(pictures)],
        env=environment, cwd=checkout, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return dict(json.loads(line) for line in done.stdout.splitlines())


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", type=Path, metavar="A", help="folder of one checkout")
    p.add_argument("b", type=Path, metavar="B", help="folder of another")


def run(options: argparse.Namespace) -> int:
    checkouts = (options.a.resolve(), options.b.resolve())
    pictures = checkouts[1] / "tests" / "data" / "pictures"
    if not pictures.is_dir():
        print(f"{options.b} is no checkout: it has no tests/data/pictures", file=sys.stderr)
        return 2
    other = 0
    for pure in (False, True):
        a, b = (hashes(checkout, pictures, pure) for checkout in checkouts)
        differ = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        other += len(differ)
        print(f"{'Python alone' if pure else 'compiled'}: {len(a)} cases, {len(differ)} differ")
        for name in differ:
            print(f"  {name}: {a.get(name)} {b.get(name)}")
    return int(other > 0)
