"""Fixtures that any test may ask for: small data sets made here, real ones where there are some, quiet threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import make_folder


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
