"""What is a sample's fault is replaced; where the storage or the memory fails the run stops, and says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import BadImageError, EvalRecipe, SampleIndex, StorageError, TrainRecipe, create_loader, storage
from dali_imagenet import image as image_module
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.data import container, headers
from dali_imagenet.data import folder as folder_module

ENGINES = [("torchvision", 0), ("torchvision", 2), ("reference", 0), *([("dali", 1)] if dali_available()[0] else [])]
TRAIN, EVAL = TrainRecipe.classic(input_size=32), EvalRecipe(input_size=32)
VICTIM = 5

pytestmark = pytest.mark.usefixtures("step_by_step")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(storage.WAITS) < 5
    assert len(storage.WAITS) == 2
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))


@pytest.fixture
def index(new_folder: Callable[..., Path]) -> SampleIndex:
    return SampleIndex.from_folder(new_folder(12), cache=False)


def loader(index: SampleIndex, backend: Any, workers: int, recipe: Any = EVAL, **options: Any) -> Any:
    context = "fork" if workers and backend == "torchvision" else None  # so that workers inherit what is patched
    settings: dict[str, Any] = {"batch_size": 4, "device": "cpu", "max_broken": 0.5, "multiprocessing_context": context}
    return create_loader(index, recipe, backend=backend, num_workers=workers, **settings | options)


def failing(monkeypatch: pytest.MonkeyPatch, index: SampleIndex, number: int, times: int = 10**9) -> list[str]:
    """Every read of one file fails so often with that error; DALI, which reads by itself, finds no file there."""
    real, path, tries = folder_module._open, index.path(VICTIM), list[str]()

    def opened(name: str, flags: int) -> int:
        if name == path:
            tries.append(name)
            if len(tries) <= times:
                raise OSError(number, os.strerror(number), name)
        return real(name, flags)

    monkeypatch.setattr(folder_module, "_open", opened)
    return tries


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE])
def test_storage_that_fails_stops_the_run(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, backend: str, workers: int, number: int
) -> None:
    tries = failing(monkeypatch, index, number)
    os.unlink(index.path(VICTIM))
    for recipe, on_error in ((EVAL, "skip"), (TRAIN, "replace"), (TRAIN, "raise")):
        with loader(index, backend, workers, recipe, on_error=on_error) as ours:
            with pytest.raises(StorageError) as caught:
                list(ours)
            assert not isinstance(caught.value, BadImageError)
            assert ours.failures == {}
        for part in (index.path(VICTIM), os.strerror(number), "the image is not at fault"):
            assert part in str(caught.value)
    if not workers:
        assert len(tries) == 9


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP])
def test_what_is_missing_or_forbidden_is_the_samples_fault(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, backend: str, workers: int, number: int
) -> None:
    tries = failing(monkeypatch, index, number)
    os.unlink(index.path(VICTIM))
    with loader(index, backend, workers, on_error="skip") as ours:
        targets = torch.cat([targets for _, targets in ours])
        assert targets.eq(-100).nonzero().flatten().tolist() == [VICTIM]
        assert os.strerror(number) in ours.failures[index.path(VICTIM)]
    if backend == "torchvision" and not workers:
        assert len(tries) == 1


@pytest.mark.parametrize(("backend", "workers"), [engine for engine in ENGINES if engine[0] != "dali"])
def test_a_third_try_that_succeeds_is_enough(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, backend: str, workers: int
) -> None:
    with loader(index, backend, workers) as ours:
        expected = [images.clone() for images, _ in ours]
    failing(monkeypatch, index, errno.EIO, times=2)
    with loader(index, backend, workers) as ours:
        assert all(map(torch.equal, expected, [images.clone() for images, _ in ours]))


@pytest.mark.parametrize(("backend", "workers"), [("torchvision", 0), ("torchvision", 2)])
def test_a_want_of_memory_is_no_bad_image(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, backend: str, workers: int
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(image_module, "decode", full)
    with loader(index, backend, workers, TRAIN, on_error="replace") as ours:
        with pytest.raises(StorageError, match=r"MemoryError; the memory is full, .* use fewer workers"):
            list(ours)
        assert ours.failures == {}


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("what", ["storage", "sample", "bug"])
def test_the_errors_of_a_source(index: SampleIndex, backend: str, workers: int, what: str) -> None:
    import dataclasses

    errors = {"storage": TimeoutError("no answer"), "sample": ValueError("no member"), "bug": LookupError("a bug")}
    wrong = dataclasses.replace(index, source=Failing(index, errors[what]))
    with loader(wrong, backend, workers, on_error="skip") as ours:
        if what == "sample":
            assert torch.cat([targets for _, targets in ours]).eq(-100).sum() == 1
            assert list(ours.failures) == [f"failing:{VICTIM}"]
            return
        kind, message = (StorageError, "TimeoutError: no answer") if what == "storage" else (LookupError, "a bug")
        with pytest.raises(kind, match=message):
            list(ours)


class Failing:
    """The files of an index; one of them cannot be read."""

    fork_safe = True

    def __init__(self, index: SampleIndex, error: Exception) -> None:
        self.files, self.error = [index.source.read(i) for i in range(len(index))], error

    def __len__(self) -> int:
        return len(self.files)

    def read(self, sample: int) -> bytes:
        if sample == VICTIM:
            raise self.error
        return self.files[sample]

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        from dali_imagenet.data.source import read_each

        return read_each(self, samples)

    def will_read(self, samples: Sequence[int]) -> None:
        pass

    def name(self, sample: int) -> str:
        return f"failing:{sample}"

    def local_path(self, sample: int) -> str | None:
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_sample_that_is_read_later_is_no_failure_any_more(index: SampleIndex, backend: str, workers: int) -> None:
    path = Path(index.path(VICTIM))
    with loader(index, backend, workers, on_error="skip") as ours:
        expected = [images.clone() for images, _ in ours]
        data = path.read_bytes()
        path.unlink()
        list(ours)
        assert list(ours.failures) == [str(path)]
        path.write_bytes(data)
        assert all(map(torch.equal, expected, [images.clone() for images, _ in ours]))
        assert ours.failures == {}


def test_the_index_tries_again_and_remembers_no_failure(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = container.pread, list[int]()

    def read(times: int) -> Callable[[int, int, int], bytes]:
        def pread(fd: int, count: int, offset: int) -> bytes:
            tries.append(fd)
            if len(tries) <= times:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, count, offset)

        return pread

    def scan() -> SampleIndex:
        return SampleIndex.from_folder(index.root, cache_dir=tmp_path / "cache", num_threads=1)

    monkeypatch.setattr(headers, "pread", read(2))
    assert not scan().broken.any()
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    tries.clear()
    monkeypatch.setattr(headers, "pread", read(3))
    found = scan()
    assert found.broken.sum() == 1
    assert found.reason(0) == "cannot be read: Input/output error"
    again = scan()
    assert (again.scan.read, int(again.broken.sum())) == (1, 0)


def test_an_index_on_dead_storage_does_not_wait_for_ever(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def dead(*_: int) -> bytes:
        tries.append(0)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(headers, "pread", dead)
    monkeypatch.setattr(headers, "_PATIENCE", 4)
    assert SampleIndex.from_folder(index.root, cache=False, num_threads=1).broken.all()
    assert len(tries) == 3 * 4 + 8


def test_a_want_of_memory_in_the_index_is_not_remembered(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(headers, "pread", full)
        assert (
            SampleIndex.from_folder(index.root, cache_dir=tmp_path / "cache").reason(0) == "cannot be read: MemoryError"
        )
    assert not SampleIndex.from_folder(index.root, cache_dir=tmp_path / "cache").broken.any()
