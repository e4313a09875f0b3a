"""Every odd and broken input, on both CPU backends: right pixels, or one sample lost and nothing else."""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from bench.checks.inputs import Input, file_name, inputs
from dali_imagenet import BadImageError, EvalRecipe, SampleIndex, TrainRecipe, image
from tests import helpers
from tests.helpers import BACKENDS, HERE, copied, make_folder, needs_dali, saved

INPUTS = inputs()
EVAL = EvalRecipe(input_size=48, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
TRAIN = TrainRecipe.classic(input_size=32)
load = functools.partial(helpers.load, batch_size=4)


def named(condition: Callable[[Input], bool]) -> list[str]:
    return [name for name, case in INPUTS.items() if condition(case)]


READABLE = named(lambda case: case.readable)
BROKEN = named(lambda case: not case.readable and case.later is None and not case.hidden)
HIDDEN = named(lambda case: case.hidden)
LATER = named(lambda case: case.later is not None)


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a readable input, in the order of READABLE."""
    root = tmp_path_factory.mktemp("readable")
    for n, name in enumerate(READABLE):
        folder = root / f"{n:03d}"
        folder.mkdir()
        INPUTS[name].make(folder / file_name(name))
    return root


def epoch(of: Any) -> tuple[Tensor, Tensor]:
    batches = copied(of)
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize("backend", BACKENDS)
def test_readable_inputs_have_the_pixels_of_imagefolder(readable: Path, backend: str) -> None:
    index = SampleIndex.from_folder(readable)
    assert not index.broken.any()
    recipe = EvalRecipe(input_size=48, resize_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with load(index, recipe, backend=backend, batch_size=7) as ours:
        images, targets = epoch(ours)
        assert ours.failures == {}
    assert targets.tolist() == list(range(len(READABLE)))
    for row, name in enumerate(READABLE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = torch.from_numpy(np.array(INPUTS[name].expected(index.path(row)))).permute(2, 0, 1)
        # resized as a tensor: PIL's resize rounds between its two passes, which is another matter
        expected = v2.functional.center_crop(v2.functional.resize(pixels, [64], antialias=True), [48, 48])
        difference = (images[row] * 255 - expected).abs()
        assert difference.max() < 1.01, f"{name}: {difference.max()}"
        assert difference.mean() < 0.1, f"{name}: {difference.mean()}"


def with_broken(root: Path, names: list[str]) -> tuple[Path, list[Path]]:
    """Healthy images, and after each of the first ones an input of these names."""
    make_folder(root, 4 * len(names), classes=1, low=60, high=100)
    added = []
    for n, name in enumerate(names):
        folder = root / "class_000" / f"{n:05d}.x"  # sorted after the image of that number
        folder.mkdir()
        path = folder / file_name(name)
        INPUTS[name].make(path)
        added.append(path)
    return root, added


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, list[Path]]:
    return with_broken(tmp_path / "data", BROKEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_raise_names_what_is_broken_before_the_first_batch(broken: tuple[Path, list[Path]], backend: str) -> None:
    root, added = broken
    with pytest.raises(BadImageError, match=f"{len(BROKEN)} of {5 * len(BROKEN)} images are broken") as caught:
        load(root, TRAIN, backend=backend)
    named = [path for path in added if f"{path}: " in str(caught.value)]
    assert len(named) == min(10, len(BROKEN))
    assert "on_error='replace'" in str(caught.value)


def test_replace_is_the_same_everywhere_and_counted(
    broken: tuple[Path, list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, added = broken
    index = SampleIndex.from_folder(root)
    options: dict[str, Any] = {"on_error": "replace", "max_broken": 0.5}
    epochs, orders = [], []
    for backend in HERE:
        with caplog.at_level(logging.WARNING, "dali_imagenet"), load(index, TRAIN, backend=backend, **options) as ours:
            epochs.append(epoch(ours))
            orders.append([ours.plan.batch(0, step).source_index.tolist() for step in range(len(ours))])
            assert set(ours.failures) == {str(path) for path in added}
            assert all(ours.failures.values())
            # resumed in the middle: the same batches
            ours.set_epoch(0)
            iteration = iter(ours)
            next(iteration)
            state = saved(ours)
        with load(index, TRAIN, backend=backend, **options) as again:
            again.load_state_dict(state)
            rest = epoch(again)
            assert torch.equal(rest[0], epochs[-1][0][4:])
            assert torch.equal(rest[1], epochs[-1][1][4:])
            again.save_failures(tmp_path / "bad.json")
            again.save_failures(tmp_path / "bad.csv")
    assert all(order == orders[0] for order in orders)
    assert not np.isin(np.concatenate(orders[0]), index.broken.nonzero()[0]).any()
    for images, _ in epochs[1:]:
        assert (images - epochs[0][0]).abs().mean() < 0.02
    listed = json.loads((tmp_path / "bad.json").read_text())
    assert [row["path"] for row in listed] == [index.path(row["sample"]) for row in listed]
    assert sorted(row["path"] for row in listed) == sorted(str(path) for path in added)
    with open(tmp_path / "bad.csv", newline="") as file:
        assert [{**row, "sample": int(row["sample"])} for row in csv.DictReader(file)] == listed
    assert "are broken" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip_counts_exactly(broken: tuple[Path, list[Path]], backend: str) -> None:
    index = SampleIndex.from_folder(broken[0])
    with load(index, EVAL, backend=backend, batch_size=3 * len(BROKEN), on_error="skip", max_broken=0.5) as ours:
        images, targets = epoch(ours)
    assert targets[: len(index)].eq(-100).tolist() == index.broken.tolist()
    assert int((targets >= 0).sum()) == 4 * len(BROKEN)
    assert not images[targets < 0].any()
    assert images[targets >= 0].flatten(1).any(1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_set_share_stops_the_run(broken: tuple[Path, list[Path]], backend: str) -> None:
    with pytest.raises(BadImageError, match=r"more than max_broken=10\.0% allows"):
        load(broken[0], TRAIN, backend=backend, on_error="replace", max_broken=0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Healthy images, of which INPUTS' own one is number 7."""
    root = tmp_path_factory.mktemp("whole") / "data"
    make_folder(root, 24, classes=1, low=60, high=100)
    next(iter(INPUTS.values())).make(root / "class_000" / "00007.JPEG")
    return root


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LATER)
def test_a_file_that_changes_later_loses_that_sample_alone(
    whole: Path, tmp_path: Path, name: str, backend: str
) -> None:
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    index = SampleIndex.from_folder(root, cache=False)
    options: dict[str, Any] = {"on_error": "replace", "max_broken": 0.05}
    with load(index, TRAIN, backend=backend, **options) as ours:
        ours.set_epoch(1)
        before, _ = epoch(ours)
        ours.set_epoch(1)
        rows = [int(i) for step in range(len(ours)) for i in ours.plan.samples(1, step)]
        change = INPUTS[name].later
        assert change is not None
        change(Path(index.path(7)))
        after, _ = epoch(ours)
        assert list(ours.failures) == [index.path(7)]
        assert len(ours.failures[index.path(7)]) > len(index.path(7)) + 10
        at = rows.index(7)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert [row for row, equal in enumerate(same) if not equal] == [at]
        following, _ = epoch(ours)  # the next epoch goes on, too
        assert len(following) == len(before)
    # the substitute is the next sample, with the draws of the one that is lost: what it is on every backend
    plan = ours.plan.batch(1, at // 4, failed=[7])
    assert plan.source_index[at % 4] == 8
    strict = load(index, TRAIN, backend=backend)
    with strict, pytest.raises(BadImageError, match="00007"):
        epoch(strict)


def test_what_only_a_decoder_finds_is_lost_on_every_backend(tmp_path: Path) -> None:
    """In every epoch, whatever the crop, and evaluating too; with the same substitutes."""
    root, added = with_broken(tmp_path / "data", HIDDEN)
    index = SampleIndex.from_folder(root)
    assert not index.broken.any()
    epochs = []
    for backend in HERE:
        with load(index, TRAIN, backend=backend, on_error="replace", max_broken=0.5) as ours:
            epochs.append(torch.cat([epoch(ours)[0] for _ in range(3)]))
            assert set(ours.failures) == {str(path) for path in added}
        with load(index, EVAL, backend=backend, batch_size=5, on_error="skip", max_broken=0.5) as ours:
            _, targets = epoch(ours)
            assert {index.path(int(i)) for i in targets.eq(-100).nonzero()} == {str(path) for path in added}
        with (
            load(index, TRAIN, backend=backend) as ours,
            pytest.raises(BadImageError, match=r"broken data stream|more than 100 scans"),
        ):
            epoch(ours)
    for images in epochs[1:]:
        assert (images - epochs[0]).abs().mean((1, 2, 3)).max() < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_changes_later_counts_towards_the_share(new_folder: Callable[..., Path], backend: str) -> None:
    index = SampleIndex.from_folder(new_folder(20), cache=False)
    with load(index, EVAL, backend=backend, on_error="skip", max_broken=0.1) as ours:
        for sample in (3, 9):
            os.unlink(index.path(sample))
        _, targets = epoch(ours)
        assert (targets == -100).nonzero().flatten().tolist() == [3, 9]
        os.unlink(index.path(10))
        with pytest.raises(BadImageError, match=r"3 of 20 images cannot be read, more than max_broken=10\.0%"):
            epoch(ours)
        assert set(ours.failures) == {index.path(i) for i in (3, 9, 10)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_lost_is_an_error(new_folder: Callable[..., Path], backend: str) -> None:
    index = SampleIndex.from_folder(new_folder(4), cache=False)
    options: dict[str, Any] = {"backend": backend, "batch_size": 2, "max_broken": 1.0}
    for i in range(4):
        os.unlink(index.path(i))
    for recipe, on_error in ((TRAIN, "replace"), (EVAL, "skip")):
        with (
            load(index, recipe, on_error=on_error, **options) as ours,
            pytest.raises(RuntimeError, match="all 4 images are broken"),
        ):
            epoch(ours)


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_that_are_gone_are_not_looked_through(
    new_folder: Callable[..., Path], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was unmounted: the search for the next healthy sample ends with the share that may be broken."""
    index = SampleIndex.from_folder(new_folder(40), cache=False)
    for i in range(40):
        os.unlink(index.path(i))
    read: list[int] = []
    real = image.read_sample

    def reading(index: SampleIndex, sample: int) -> bytes:
        read.append(sample)
        return real(index, sample)

    monkeypatch.setattr(image, "read_sample", reading)
    message = r"5 of 40 images in a row .* max_broken=10\.0% allows\. The last: .*JPEG"
    options: dict[str, Any] = {"backend": backend, "batch_size": 2, "max_broken": 0.1}
    for recipe, on_error in ((TRAIN, "replace"), (EVAL, "skip")):
        read.clear()
        with (
            load(index, recipe, on_error=on_error, **options) as ours,
            pytest.raises(BadImageError, match=message),
        ):
            epoch(ours)
        assert len({*read}) == 5


@needs_dali
def test_what_dali_cannot_decode_but_pillow_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that takes a GIF for a JPEG stands for any file on which the two disagree."""
    root = make_folder(tmp_path / "data", 8, classes=1)
    Image.open(root / "class_000" / "00003.JPEG").quantize().save(root / "class_000" / "00003.JPEG", "GIF")
    true = SampleIndex.from_folder(root, cache=False)
    index = SampleIndex.from_arrays(
        true.labels, true.height, true.width, root=root, paths=[true.relative_path(i) for i in range(8)]
    )
    with (
        load(index, TRAIN, backend="dali", batch_size=8) as ours,
        load(true, TRAIN, batch_size=8) as theirs,
    ):
        (first, _), (again, _), (expected, _) = epoch(ours), epoch(ours), epoch(theirs)
        assert ours.failures == {}
    assert (first - expected).abs().mean() < 0.01
    assert again.shape == first.shape
