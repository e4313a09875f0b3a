"""Fixtures that any test may ask for: small data sets made here, real ones where there are some, quiet threads."""

from __future__ import annotations

import logging
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from dali_imagenet import SampleIndex, plain_rows
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


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """The command sets the level of the package's logger, and its handler."""
    log, root = logging.getLogger("dali_imagenet"), logging.getLogger()
    before, handlers = log.level, list(root.handlers)
    yield
    log.setLevel(before)
    for handler in root.handlers:
        if handler not in handlers and type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other in a busy loop, which costs more than it brings for images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def step_by_step() -> Iterator[None]:
    """No row is made in one call, so that what reads and decodes it can be replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_rows, "region_decoder", lambda: None)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 JPEGs in 4 classes."""
    return make_folder(tmp_path_factory.mktemp("images") / "data", 24)


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders that a test may damage."""
    return lambda count=12, **options: make_folder(tmp_path / "data", count, **options)


@pytest.fixture
def fuzz() -> Callable[[Path, Sequence[int], Callable[[], SampleIndex]], None]:
    """Opens a container again and again, each time with other damage in some of the bytes that say where things are.

    It may be refused with a ValueError, or have broken images; healthy ones can be read and lie within the file.
    """

    def run(file: Path, spots: Sequence[int], open_it: Callable[[], SampleIndex], rounds: int = 150) -> None:
        whole, draw = file.read_bytes(), random.Random(0)
        outcomes: set[type] = set()
        for _ in range(rounds):
            data = bytearray(whole)
            for spot in draw.sample(list(spots), draw.choice((1, 1, 2, 8))):
                data[spot] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, data[spot] ^ 1 << draw.randrange(8)))
            file.write_bytes(data[: len(data) - draw.choice((0, 0, 0, 1, draw.randrange(len(data))))])
            tracemalloc.start()
            try:
                index = open_it()
            except (ValueError, FileNotFoundError) as error:
                outcomes.add(type(error))
            else:
                outcomes.add(SampleIndex)
                for i in range(len(index)):
                    assert index.broken[i] or len(index.source.read(i)) == index.file_size[i]
            assert tracemalloc.get_traced_memory()[1] < 100e6
            tracemalloc.stop()
        assert {ValueError, SampleIndex} <= outcomes

    return run


@pytest.fixture(scope="session")
def sample() -> Path:
    """Real ImageNet images, where the environment says there are some."""
    path = os.environ.get("DALI_IMAGENET_SAMPLE")
    if not path:
        pytest.skip("DALI_IMAGENET_SAMPLE does not name a folder of real images")
    return Path(path)
