"""What a seed means: the draws of today's plans against those of the version that is recorded in tests/golden.

Read through `explain`, so by their meaning. Whole numbers, booleans and words are compared exactly, floats to 1e-6.
`python tests/test_golden_plans.py` records anew: a breaking change, which CHANGELOG.md has to name.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali_imagenet import EvalRecipe, Op, Plan, SampleIndex, TrainRecipe
from dali_imagenet.explain import explain
from dali_imagenet.policy import TablePolicy

GOLDEN = Path(__file__).parent / "golden" / "plans.json.gz"
PRESETS = (
    *("classic", "strong", "advanced", "torchvision_v2", "rsb_a1", "rsb_a2", "rsb_a3"),
    *("deit", "deit3", "convnext", "swin"),
)
POLICIES = (
    *("randaugment", "randaugment-n3-m5", "trivialaugment", "autoaugment", "autoaugment-cifar10", "autoaugment-svhn"),
    *("augmix", "rand", "rand-m9-n3-mstd0.5", "rand-m7-mstd101-inc1", "rand-m9-tweights", "rand-m8-t3aw", "rand-m9-w0"),
    *("original", "originalr-mstd0.5", "v0", "v0r", "3a", "3-augment", "augmix-m5-w4-d2", "augmix-m3-b1"),
)
TABLE = TablePolicy(
    sub_policies=[
        [(Op.ROTATE, 0.7, (0, 30), True), (Op.EQUALIZE, 0.5)],
        [(Op.COLOR, 1.0, 1.4), (Op.PIL_TRANSLATE_X, 0.5, (0, 9), True)],
    ],
    weights=[2, 1],
)

RECIPES: dict[str, TrainRecipe | EvalRecipe] = {
    **{name: getattr(TrainRecipe, name)() for name in PRESETS},
    **{f"policy {name}": TrainRecipe(auto_augment=name, input_size=64) for name in POLICIES},
    "policy of a table": TrainRecipe(auto_augment=TABLE),
    "mix pair": TrainRecipe.strong(mixup_mode="pair"),
    "mix elem": TrainRecipe.strong(mixup_mode="elem", mixup_prob=0.7),
    "mixup alone": TrainRecipe(mixup_alpha=0.8, mixup_prob=0.9),
    "mixup, a large alpha": TrainRecipe(mixup_alpha=3.5, mixup_mode="elem"),
    "cutmix alone": TrainRecipe(cutmix_alpha=1.0, correct_lam=False, mixup_mode="pair"),
    "cutmix minmax": TrainRecipe(cutmix_minmax=(0.2, 0.8), mixup_alpha=0.3, mixup_mode="elem"),
    "color_jitter": TrainRecipe(color_jitter=(0.4, 0.3, 0.2, 0.1), color_jitter_prob=0.8),
    "color_twist": TrainRecipe(color_twist=(0.4, 0.3, 0.2, 0.1), vflip=0.3, hflip=0.1),
    "filters": TrainRecipe(grayscale_prob=0.4, gaussian_blur_prob=0.6, color_jitter=(0.4, 0.0, 0.4, 0.0)),
    "erasing": TrainRecipe(re_prob=0.9, re_mode="pixel", re_count=(1, 3), re_scale=(0.02, 0.4)),
    "narrow crops": TrainRecipe(scale=(0.9, 1.0), ratio=(0.2, 0.3)),
    "sizes by epoch": TrainRecipe.strong(input_size=((0, 32), (2, 48), (3, 64))),
    "eval": EvalRecipe(),
    "eval, squash": EvalRecipe(input_size=96, crop_pct=0.9, crop_mode="squash", interpolation="bicubic"),
    "eval, resize_size": EvalRecipe(input_size=100, resize_size=133),
}
DRAWN = (  # of what `explain` tells; the rest is the recipe's own, or a path
    *("epoch", "step", "row", "size", "position", "index", "drawn", "repeat", "label", "class", "source_size"),
    *("box", "resize", "crop", "hflip", "vflip", "color", "program", "erase", "noise_key", "mix"),
)
BATCHES = [  # seed, epoch, step, rank, world_size
    (0, 0, 0, 0, 1),
    (1234567890123, 3, 2, 1, 2),
]


def made_up_index(broken: bool = False) -> SampleIndex:
    i = np.arange(101)
    reasons = {int(k): "made up" for k in i[5::9]} if broken else None
    return SampleIndex.from_arrays(i * 7 % 10, 40 + i * 37 % 461, 40 + i * 53 % 613, reasons=reasons)


def cases() -> dict[str, tuple[Plan, int, int]]:
    """Plan, epoch and step by name."""
    index = made_up_index()
    found = {}
    for name, recipe in RECIPES.items():
        for seed, epoch, step, rank, world in BATCHES:
            plan = Plan(index, recipe, batch_size=16 // world, seed=seed, rank=rank, world_size=world)
            found[f"{name} | seed {seed} epoch {epoch} step {step} rank {rank} of {world}"] = plan, epoch, step
    for name in ("strong", "eval"):
        plan = Plan(made_up_index(broken=True), RECIPES[name], batch_size=16, seed=5, on_error="replace")
        found[f"{name}, broken images replaced"] = plan, 1, 3
    plan = Plan(index, RECIPES["eval"], batch_size=16, rank=3, world_size=4)
    found["eval, last step of four ranks"] = plan, 0, len(plan) - 1
    plan = Plan(index.from_arrays(0, np.full(96, 50), 70), RECIPES["classic"], batch_size=10, drop_last=False)
    found["classic, last step without drop_last"] = plan, 2, len(plan) - 1
    return found


CASES = cases()


def split(value: Any, floats: list[float]) -> Any:
    """The value with its floats taken out, in order."""
    if isinstance(value, float):
        floats.append(value)
        return "float"
    if isinstance(value, dict):
        return {key: split(part, floats) for key, part in value.items()}
    return [split(part, floats) for part in value] if isinstance(value, list) else value


def drawn(plan: Plan, epoch: int, step: int) -> dict[str, Any]:
    """What is compared of one batch."""
    floats: list[float] = []
    rows = [split({key: row[key] for key in DRAWN}, floats) for row in explain(plan, epoch, step)]
    for row in rows:  # recorded when outputs were square, and their side was a number
        row["size"] = row["size"][0]
    exact = {key: hashlib.sha256(json.dumps([row[key] for row in rows]).encode()).hexdigest()[:16] for key in DRAWN}
    return {"exact": exact, "floats": floats}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    return recorded


def test_every_case_is_recorded(golden: dict[str, Any]) -> None:
    assert golden.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_draws_are_those_recorded(name: str, golden: dict[str, Any]) -> None:
    found, expected = drawn(*CASES[name]), golden[name]
    other = [key for key, value in found["exact"].items() if expected["exact"][key] != value]
    assert not other, f"a seed means something else now: {other}"
    np.testing.assert_allclose(found["floats"], expected["floats"], rtol=0, atol=1e-6)


if __name__ == "__main__":
    text = json.dumps({name: drawn(*case) for name, case in CASES.items()})
    GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))
