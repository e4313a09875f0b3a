"""Small data sets that the tests make themselves, and where real ones are found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Index caches of the tests stay out of the user's."""
    os.environ["DALI_IMAGENET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other in a busy loop, which costs more than it brings for images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Something with smooth areas and edges, as photographs have."""
    coarse = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int16)
    pixels[height // 3 : height // 2, width // 4 :] //= 2
    pixels += rng.integers(-8, 9, pixels.shape, np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folder(root: Path, count: int, classes: int = 4, seed: int = 0, low: int = 40, high: int = 200) -> Path:
    """An ImageFolder tree of JPEGs of mixed sizes and subsamplings."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        folder = root / f"class_{i % classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = (int(v) for v in rng.integers(low, high, 2))
        options = {"quality": int(rng.integers(80, 97)), "subsampling": int(rng.integers(0, 3))}
        photo(rng, height, width).save(folder / f"{i:05d}.JPEG", "JPEG", **options)
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs in 4 classes."""
    return make_folder(tmp_path_factory.mktemp("images") / "data", 24)


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders that a test may damage."""
    return lambda count=12, **options: make_folder(tmp_path / "data", count, **options)


@pytest.fixture(scope="session")
def sample() -> Path:
    """Real ImageNet images, where the environment says there are some."""
    path = os.environ.get("DALI_IMAGENET_SAMPLE")
    if not path:
        pytest.skip("DALI_IMAGENET_SAMPLE does not name a folder of real images")
    return Path(path)
