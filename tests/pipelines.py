"""What compares a pipeline with the recipe that was read from it."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor

from dali_imagenet import Plan, SampleIndex
from dali_imagenet.engine import EngineOptions, make_engine

PICTURES = Path(__file__).parent / "data" / "pictures"
COPIES = 300


@functools.cache
def picture() -> Image.Image:
    """83 x 61, not symmetrical."""
    return Image.open(next(p for p in sorted(PICTURES.rglob("*.*")) if Image.open(p).size == (83, 61))).convert("RGB")


def copies_in(folder: Path) -> SampleIndex:
    """One picture many times."""
    root = folder / "class"
    root.mkdir()
    for i in range(COPIES):
        picture().save(root / f"{i:04d}.png")
    return SampleIndex.from_folder(folder, progress=False, cache=False)


def ours(index: SampleIndex, recipe: Any, seed: int = 1) -> Tensor:
    plan = Plan(index, recipe, batch_size=len(index), seed=seed)
    engine = make_engine("torchvision", plan, EngineOptions(device=torch.device("cpu")))
    try:
        return next(engine.batches(0, 0))[1][0].clone()
    finally:
        engine.close()


def theirs(transform: Any) -> Tensor:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return torch.stack([transform(picture()) for _ in range(COPIES)])


def features(images: Tensor) -> NDArray[Any]:
    """What differs where a draw differs: [N, features]."""
    h, w = images.shape[2:]
    mean, spread = images.mean((2, 3)), images.std((1, 2, 3))
    gray = images.mean(1)
    sides = [
        gray[:, : h // 3].mean((1, 2)) - gray[:, -h // 3 :].mean((1, 2)),
        gray[:, :, : w // 3].mean((1, 2)) - gray[:, :, -w // 3 :].mean((1, 2)),
    ]
    rough = [gray.diff(dim=1).abs().mean((1, 2)), gray.diff(dim=2).abs().mean((1, 2))]
    places = [images[:, c, y, x] for c, y, x in ((0, 0, 0), (1, 0, w - 1), (2, h // 2, w // 2), (0, h - 1, w // 3))]
    colour = [mean[:, 0] - mean[:, 2], mean[:, 0] - mean[:, 1]]
    return torch.stack([*mean.unbind(1), spread, *sides, *rough, *places, *colour], dim=1).double().numpy()


def alike(a: Tensor, b: Tensor) -> float:
    """The least p of the features' Kolmogorov-Smirnov tests; what differs by rounding alone is the same."""
    found = 1.0
    for x, y in zip(features(a).T, features(b).T, strict=True):
        if np.abs(np.sort(x) - np.sort(y)).max() > 0.05:
            found = min(found, float(stats.ks_2samp(x.round(1), y.round(1), method="asymp").pvalue))
    return found


def levels_apart(recipe: Any, transform: Any, engine: str = "torchvision") -> float:
    """How far an evaluation is from the original on average, in 1/255."""
    index = SampleIndex.from_folder(PICTURES, progress=False, cache=False)
    made = make_engine(engine, Plan(index, recipe, batch_size=len(index)), EngineOptions(device=torch.device("cpu")))
    try:
        [images] = next(made.batches(0, 0))[1]
    finally:
        made.close()
    expected = torch.stack([transform(Image.open(index.path(i)).convert("RGB")) for i in range(len(index))])
    assert images.shape == expected.shape
    return float(((images - expected) * torch.tensor(recipe.std).view(3, 1, 1) * 255).abs().mean())
