"""A source of another kind than files, on every engine: the same batches as the folder that it was filled from."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dali_imagenet import BadImageError, EvalRecipe, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.data.source import Source, read_each
from tests.helpers import needs_dali

PICTURES = Path(__file__).parent / "data" / "pictures"
ENGINES = [("torchvision", 0), ("torchvision", 2), ("reference", 0), *([("dali", 1)] if dali_available()[0] else [])]
STRONG = TrainRecipe.strong(input_size=40)


class Memory:
    """Images in memory, in place of a container."""

    fork_safe = True

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = list(files)
        self.hints: list[int] = []
        self.closed = 0

    def __len__(self) -> int:
        return len(self.files)

    def read(self, sample: int) -> bytes:
        if not self.files[sample]:
            raise FileNotFoundError(f"nothing at {sample}")
        return self.files[sample]

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        return read_each(self, samples)

    def will_read(self, samples: Sequence[int]) -> None:
        self.hints += samples

    def name(self, sample: int) -> str:
        return f"memory:{sample}"

    def local_path(self, sample: int) -> str | None:
        return None

    def close(self) -> None:
        self.closed += 1


class Spawned(Memory):
    """One that a forked worker must not go on with."""

    fork_safe = False

    def read(self, sample: int) -> bytes:
        assert os.environ.get("IN_PARENT") != str(os.getpid())
        return super().read(sample)


@pytest.fixture(scope="module")
def folder_index() -> SampleIndex:
    return SampleIndex.from_folder(PICTURES, progress=False, cache=False)


def in_memory(index: SampleIndex, kind: type[Memory] = Memory) -> tuple[SampleIndex, Memory]:
    source = kind([index.source.read(i) for i in range(len(index))])
    checked: Source = source
    return dataclasses.replace(index, source=checked), source


def batches(index: SampleIndex, recipe: Any, backend: Any, workers: int, **options: Any) -> list[tuple[Tensor, Tensor]]:
    settings: dict[str, Any] = {"batch_size": 4, "seed": 5, "device": "cpu"} | options
    with create_loader(index, recipe, backend=backend, num_workers=workers, **settings) as loader:
        return [(images.clone(), targets) for _ in range(2) for images, targets in loader]


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("recipe", [STRONG, EvalRecipe(input_size=40)], ids=["strong", "eval"])
def test_batches_are_those_of_the_folder(folder_index: SampleIndex, recipe: Any, backend: str, workers: int) -> None:
    index, source = in_memory(folder_index)
    assert index.fingerprint == folder_index.fingerprint
    found = batches(index, recipe, backend, workers)
    for (a, b), (c, d) in zip(found, batches(folder_index, recipe, backend, workers), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert source.closed == 1
    if backend == "dali":
        assert set(source.hints) == set(range(len(index)))


class Files(Memory):
    """One that reads one after the other."""

    one_by_one = True


@needs_dali
@pytest.mark.parametrize(("kind", "parts"), [(Files, [14, 16]), (Memory, [30])])
def test_dali_is_fed_by_several_threads_or_by_what_asks_for_many_at_once(
    folder_index: SampleIndex, monkeypatch: pytest.MonkeyPatch, kind: type[Memory], parts: list[int]
) -> None:
    index, _ = in_memory(folder_index, kind)
    index = index.repeat(-(-40 // len(index)))  # 30 of 40 are JPEGs, which are DALI's
    asked: list[tuple[int, str]] = []

    def read_many(self: Memory, samples: Sequence[int]) -> list[bytes | Exception]:
        asked.append((len(samples), threading.current_thread().name))
        return read_each(self, samples)

    monkeypatch.setattr(kind, "read_many", read_many)
    options: dict[str, Any] = {"batch_size": 40, "shuffle": False, "device": "cpu", "num_workers": 2}
    with create_loader(index, STRONG, backend="dali", **options) as loader:
        next(iter(loader))
    assert sorted(size for size, _ in asked[: len(parts)]) == parts
    assert all(name.startswith("dali-imagenet_") is (kind is Files) for _, name in asked)


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_what_it_cannot_read_is_named(folder_index: SampleIndex, backend: Any, workers: int) -> None:
    index, source = in_memory(folder_index)
    source.files[2] = b""
    recipe = EvalRecipe(input_size=40)
    with pytest.raises(BadImageError, match="memory:2: FileNotFoundError: nothing at 2"):
        batches(index, recipe, backend, workers)
    settings: dict[str, Any] = {"batch_size": 4, "device": "cpu", "on_error": "skip", "max_broken": 0.5}
    with create_loader(index, recipe, backend=backend, num_workers=workers, **settings) as loader:
        targets = torch.cat([targets for _, targets in loader])
        assert (targets == -100).nonzero().flatten().tolist()[0] == 2
        assert list(loader.failures) == ["memory:2"]


def test_workers_are_spawned_for_what_no_fork_goes_on_with(
    folder_index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = in_memory(folder_index, Spawned)
    monkeypatch.setenv("IN_PARENT", str(os.getpid()))
    found = batches(index, STRONG, "torchvision", 1)
    expected = batches(folder_index, STRONG, "torchvision", 0)
    assert all(torch.equal(a, c) for (a, _), (c, _) in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="multiprocessing_context='fork': must be 'spawn' or 'forkserver' for Spawned"):
        create_loader(index, STRONG, batch_size=4, num_workers=1, device="cpu", multiprocessing_context="fork")
