"""What a batch is handed out as: tuples and dictionaries, index and path, targets and a transform of the user's own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dali_imagenet import Accuracy, EvalRecipe, SampleIndex, TrainRecipe, save_preview
from dali_imagenet.output import tensors_of
from tests import helpers
from tests.helpers import BACKENDS, copied, same, saved

pytestmark = pytest.mark.usefixtures("one_thread")
EVAL = EvalRecipe(input_size=32, resize_size=36)
MIXED = TrainRecipe.strong(input_size=32, label_smoothing=0.0)
LAST_OF_FIVE: dict[str, Any] = {"rank": 4, "world_size": 5}  # of 24 images it sees 16, 17, 18, padding; then 23
load = functools.partial(helpers.load, batch_size=4)


@pytest.fixture(scope="module")
def index(folder: Path) -> SampleIndex:
    return SampleIndex.from_folder(folder)


# ---- tuples and dictionaries


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", [MIXED, EVAL], ids=["mixed", "eval"])
def test_every_form_holds_the_same(index: SampleIndex, recipe: Any, backend: str) -> None:
    with load(index, recipe, backend=backend) as loader:
        plain = copied(loader)
        shown = [loader.plan.batch(0, step).source_index for step in range(len(loader))]
    with load(index, recipe, backend=backend, with_index=True, with_path=True) as loader:
        batches = list(loader)
    assert same([(images, targets) for images, targets, _, _ in batches], plain)
    for (_, _, at, paths), samples in zip(batches, shown, strict=True):
        assert at.dtype == torch.int64
        assert at.tolist() == samples.tolist()
        assert paths == [index.path(int(i)) for i in samples]
    options: dict[str, Any] = {"output": "dict", "output_names": ("x", "y"), "with_index": True, "with_path": True}
    with load(index, recipe, backend=backend, **options) as loader:
        assert (loader.output, loader.output_names) == ("dict", ("x", "y"))
        named = list(loader)
    assert all(list(batch) == ["x", "y", "index", "path"] for batch in named)
    assert same([(batch["x"], batch["y"]) for batch in named], plain)
    assert [batch["index"].tolist() for batch in named] == [samples.tolist() for samples in shown]


def test_what_was_not_asked_for_is_not_there(index: SampleIndex) -> None:
    with load(index, EVAL, output="dict") as loader:
        assert list(next(iter(loader))) == ["pixel_values", "labels"]
    with load(index, EVAL, with_path=True) as loader:
        _, _, paths = next(iter(loader))
        assert paths[0] == index.path(0)


@pytest.mark.parametrize("padding", ["ignore", "repeat", "short"])
def test_padding_has_no_index_and_no_path(index: SampleIndex, padding: Any) -> None:
    """24 images on 5 ranks of 4: the last step has 4 places, so that the last ranks have none but one."""
    seen, rows = [], 0
    for rank in range(5):
        options = {"rank": rank, "world_size": 5, "padding": padding, "with_index": True, "with_path": True}
        with load(index, EVAL, **options) as loader:
            for images, targets, at, paths in loader:
                rows += len(images)
                assert len(images) == len(targets) == len(at) == len(paths)
                assert [path == "" for path in paths] == (at == -1).tolist() == (targets == -100).tolist()
                seen += at[at >= 0].tolist()
    assert sorted(set(seen)) == list(range(24))
    assert (len(seen), rows) == {"ignore": (24, 25), "short": (24, 24), "repeat": (25, 25)}[padding]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_substitute_has_its_own_index_path_and_target(
    new_folder: Callable[..., Path], backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage that the index knows of, and damage that is found when the image is decoded."""
    root = new_folder(8, classes=2)
    files = sorted(root.rglob("*.JPEG"))
    files[1].write_bytes(b"nothing")
    index = SampleIndex.from_folder(root)
    data = files[4].read_bytes()
    files[4].write_bytes(data[: len(data) // 2])
    own = torch.arange(8) * 10
    options = {"on_error": "replace", "max_broken": 0.5, "with_index": True, "with_path": True, "targets": own}
    with load(index, EVAL, backend=backend, **options) as loader:
        batches = list(loader)
        assert sorted(loader.failures) == [str(files[1]), str(files[4])]
    assert torch.cat([at for _, _, at, _ in batches]).tolist() == [0, 2, 2, 3, 5, 5, 6, 7]
    assert torch.cat([targets for _, targets, _, _ in batches]).tolist() == [0, 20, 20, 30, 50, 50, 60, 70]
    assert batches[1][3][0] == str(files[5])


# ---- targets of one's own


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_floats_mix_as_labels_do(index: SampleIndex, dtype: torch.dtype) -> None:
    own = torch.nn.functional.one_hot(torch.tensor(index.targets), 4).to(dtype)
    with load(index, MIXED) as loader:
        expected = torch.cat([targets for _, targets in loader])
        loader.mixup_enabled = False
        unmixed = torch.cat([targets for _, targets in loader])
    with load(index, MIXED, targets=own) as loader:
        found = torch.cat([targets for _, targets in loader])
        assert found.dtype == dtype
        assert torch.equal(found.float(), expected.to(dtype).float())
        loader.mixup_enabled = False
        assert torch.equal(torch.cat([targets for _, targets in loader]), unmixed.to(dtype))


def test_targets_have_any_shape(index: SampleIndex) -> None:
    own = torch.rand(24, 2, 3)
    with load(index, MIXED, targets=own, with_index=True) as loader:
        for step, (_, targets, at) in enumerate(loader):
            mix = loader.plan.batch(0, step).mix
            assert mix is not None
            lam = torch.from_numpy(mix.lam)[:, None, None]
            assert torch.allclose(targets, own[at] * lam + own[at.flip(0)] * (1 - lam))


def test_integers_are_class_numbers_of_any_width(index: SampleIndex) -> None:
    own = torch.arange(24, dtype=torch.uint8) % 3
    with load(index, EVAL, targets=own, **LAST_OF_FIVE) as loader:
        targets = [targets for _, targets in loader]
    assert [batch.dtype for batch in targets] == [torch.int64] * 2
    assert [batch.tolist() for batch in targets] == [[1, 2, 0, -100], [2]]
    accuracy = Accuracy()
    for batch in targets:
        accuracy.update(torch.nn.functional.one_hot(batch.clamp(min=0), 3).float(), batch)
    assert accuracy.compute() == ({1: 1.0}, 4)


def test_padding_rows_of_floats_are_0_and_said(index: SampleIndex, caplog: pytest.LogCaptureFixture) -> None:
    own = torch.rand(24, 5) + 1
    options = {"targets": own, **LAST_OF_FIVE}
    for more, warnings in (({}, 1), ({"with_index": True}, 0), ({"padding": "short"}, 0)):
        caplog.clear()
        with load(index, EVAL, **options, **more) as loader, caplog.at_level(logging.WARNING):
            for _ in range(2):
                first = next(iter(loader))[1]
        assert torch.equal(first[:3], own[16:19])
        assert not first[3:].any()
        assert caplog.text.count("padding rows, whose targets are 0") == warnings


def test_targets_are_read_when_a_batch_is_handed_out(index: SampleIndex) -> None:
    own = torch.zeros(24)
    with load(index, EVAL, targets=own) as loader:
        batches = iter(loader)
        assert not next(batches)[1].any()
        own += 1
        assert next(batches)[1].all()


def test_targets_are_no_part_of_a_state_but_ranks_compare_them(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr("dali_imagenet.loader.check_agreement", lambda rank, world, fields, _: compared.append(fields))
    for own in (torch.zeros(24), torch.ones(24), torch.ones(24), torch.ones(24, 1)):
        with load(index, EVAL, targets=own, rank=0, world_size=2) as loader:
            assert "targets" not in saved(loader)
            next(iter(loader))
    said = [fields["targets"] for fields in compared]
    assert said[1] == said[2]
    assert len(set(said)) == 3


# ---- a transform of one's own


def _halved(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return images / 2, targets + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_transform_returns_goes_out(index: SampleIndex, backend: str) -> None:
    with load(index, EVAL, backend=backend) as loader:
        expected = [(images / 2, targets + 1) for images, targets in loader]
    with load(index, EVAL, backend=backend, transform=_halved) as loader:
        assert same(list(loader), expected)
    options: dict[str, Any] = {"output": "dict", "with_index": True, "transform": lambda x, y: [{"a": x}, None]}
    with load(index, EVAL, backend=backend, **options) as loader:
        batch = loader.peek()
        assert (batch["labels"], batch["index"].tolist()) == (None, [0, 1, 2, 3])
        assert torch.equal(batch["pixel_values"]["a"], expected[0][0] * 2)
        assert torch.equal(next(iter(loader))["pixel_values"]["a"], batch["pixel_values"]["a"])


def test_a_look_ahead_transforms_once_and_gives_a_copy(index: SampleIndex) -> None:
    calls = []

    def counted(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        return images, targets

    with load(index, MIXED, transform=counted, with_index=True) as loader:
        looked = loader.peek()
        looked[0].zero_()
        assert len(calls) == 1
        images, _, at = next(iter(loader))
        assert len(calls) == 1
        assert images.any()
        assert torch.equal(at, looked[2])


def test_a_transform_runs_in_the_mode_of_the_loop(index: SampleIndex) -> None:
    """A network in it must not gather a graph under no_grad."""
    weight = torch.nn.Parameter(torch.ones(1))
    with load(index, EVAL, transform=lambda images, targets: (images * weight, targets)) as loader:
        batches = iter(loader)
        with torch.no_grad():
            assert not next(batches)[0].requires_grad
        assert next(batches)[0].requires_grad


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_through_and_loses_no_batch(index: SampleIndex, workers: int) -> None:
    fail = [False]

    def failing(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if fail[0]:
            raise _OwnError("mine")
        return images, targets

    with load(index, MIXED) as loader:
        expected = copied(loader)
    with load(index, MIXED, transform=failing, num_workers=workers) as loader:
        batches = iter(loader)
        next(batches)
        fail[0] = True
        with pytest.raises(_OwnError, match=r"^mine$"):
            next(batches)
        state = saved(loader)
        assert state["step"] == 1  # what was not handed out counts as not seen
        loader.set_epoch(0)
        with pytest.raises(_OwnError):
            loader.peek()
        fail[0] = False
        loader.load_state_dict(state)
        assert same(list(loader), expected[1:])


# ---- the rest of the loader


def test_a_resumed_run_goes_on_in_the_same_form(index: SampleIndex) -> None:
    options: dict[str, Any] = {"output": "dict", "with_index": True, "with_path": True, "targets": torch.rand(24, 3)}
    with load(index, MIXED, **options) as loader:
        whole = []
        for step, batch in enumerate(loader):
            whole.append({name: part.clone() if isinstance(part, Tensor) else part for name, part in batch.items()})
            if step == 2:
                state = saved(loader)
    with load(index, MIXED, num_workers=2, **options) as loader:
        loader.load_state_dict(state)
        for batch, before in zip(loader, whole[3:], strict=True):
            assert batch["path"] == before["path"]
            assert all(torch.equal(batch[name], before[name]) for name in ("pixel_values", "labels", "index"))


def test_a_preview_shows_recipe_and_index(index: SampleIndex, tmp_path: Path) -> None:
    with load(index, MIXED) as loader:
        save_preview(loader, tmp_path / "plain.png", count=4)
    options: dict[str, Any] = {"output": "dict", "targets": torch.rand(24, 9), "transform": lambda x, y: (None, None)}
    with load(index, MIXED, **options) as loader:
        loader.peek()
        save_preview(loader, tmp_path / "other.png", count=4)
        assert next(iter(loader)) == {"pixel_values": None, "labels": None}
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "other.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "list"}, ValueError, "output='list': must be one of 'tuple', 'dict'"),
        ({"output_names": ("x",)}, ValueError, r"output_names=\('x',\): must be two different names"),
        ({"output_names": ("x", "x")}, ValueError, "two different names"),
        ({"output_names": "xy"}, ValueError, "two different names"),
        ({"output_names": ([], 1)}, ValueError, "two different names"),
        ({"output_names": ("x", "path"), "with_path": True}, ValueError, r"none of \['path'\]"),
        ({"with_index": 1}, ValueError, "with_index=1: must be True or False"),
        ({"transform": 3}, TypeError, "transform=3: must be a function"),
        ({"targets": [0] * 24}, TypeError, "targets=list: must be a tensor"),
        ({"targets": torch.zeros(23)}, ValueError, r"torch.float32 \[23\]'*: must be \[24, ...\]"),
        ({"targets": torch.zeros(24, 2, dtype=torch.bool)}, ValueError, r"of booleans, targets.float\(\)"),
        ({"targets": torch.zeros(())}, ValueError, "must be integers or floats"),
        ({"targets": torch.zeros(24, dtype=torch.int64), "recipe": MIXED}, ValueError, "floats where the recipe mixes"),
        ({"targets": torch.zeros(24), "recipe": TrainRecipe.strong()}, ValueError, "label_smoothing=0.1: must be 0"),
        ({"target_transform": int}, TypeError, "has no argument 'target_transform': give classes"),
    ],
)
def test_what_makes_no_sense_is_refused(index: SampleIndex, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        load(index, options.pop("recipe", EVAL), **options)


@pytest.mark.parametrize("returned", [None, torch.zeros(2), (1, 2, 3)])
def test_a_transform_returns_images_and_targets(index: SampleIndex, returned: Any) -> None:
    with (
        load(index, EVAL, transform=lambda *_: returned) as loader,
        pytest.raises(TypeError, match=r"must return \(images, targets\)"),
    ):
        next(iter(loader))


def test_nothing_makes_the_host_wait(index: SampleIndex) -> None:
    """On a GPU; operators are looked at on the CPU."""
    from dali_imagenet.output import own_targets

    with load(index, EVAL, **LAST_OF_FIVE) as loader:
        plan = loader.plan.batch(0, 0)
    lam = np.full(4, 0.3, np.float32)
    with helpers.NoHostReads():
        found = own_targets(torch.rand(24, 3), plan, lam, torch.device("cpu"))
    assert found.shape == (4, 3)


def test_all_tensors_of_a_batch_are_found() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.zeros(3)
    assert list(map(len, tensors_of(([a, {"b": b, "path": ["x", "y"]}], c, None, 3)))) == [1, 2, 3]
