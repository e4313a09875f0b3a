"""Iterating as people do: nested and abandoned iterations, a look at the first batch, samplers, compiled loops."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFile
from torch.overrides import TorchFunctionMode

from dali_imagenet import EvalRecipe, Loader, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.plan.batch_plan import BatchPlan
from tests.helpers import load as make

PICTURES = Path(__file__).parent / "data" / "pictures"
ENGINES = [("torchvision", 0), ("torchvision", 2), *([("dali", 1)] if dali_available()[0] else [])]
STRONG = TrainRecipe.strong(input_size=32)


@pytest.fixture(scope="module")
def index() -> SampleIndex:
    """The pictures ten times over: 90 samples."""
    once = SampleIndex.from_folder(PICTURES, progress=False, cache=False)
    rows = np.tile(np.arange(len(once)), 10)
    columns = {name: getattr(once, name)[rows] for name in ("height", "width", "components", "format", "file_size")}
    paths = [once.relative_path(int(i)) for i in rows]
    return SampleIndex.from_arrays(once.labels[rows], root=once.root, paths=paths, classes=once.classes, **columns)


def load(index: SampleIndex, backend: Any = "torchvision", workers: int = 0, **options: Any) -> Loader:
    settings: dict[str, Any] = {"recipe": STRONG, "batch_size": 4, "seed": 2, "device": "cpu"} | options
    return create_loader(index, settings.pop("recipe"), backend=backend, num_workers=workers, **settings)


def clones(batches: Any) -> list[Any]:
    return [(images.clone(), targets.clone()) for images, targets in batches]


def same(a: Any, b: Any) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


# ---- one iteration at a time


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_superseded_iteration_never_looks_as_if_it_were_over(index: SampleIndex, backend: str, workers: int) -> None:
    with load(index, backend, workers) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        next(second)
        with pytest.raises(RuntimeError, match="ended by another iter"):
            next(first)
        with pytest.raises(RuntimeError, match="ended by another iter"):
            next(first)
        assert len(list(second)) == len(loader) - 1
        assert list(second) == []  # one that came to its end has ended


def test_a_nested_loop_over_one_loader_is_an_error(index: SampleIndex) -> None:
    def nested(loader: Loader) -> None:
        for _ in loader:
            for _ in loader:
                pass

    with load(index) as loader, pytest.raises(RuntimeError, match="make a second loader"):
        nested(loader)


def test_what_else_ends_an_iteration_is_said(index: SampleIndex) -> None:
    loader = load(index)
    steps = iter(loader)
    next(steps)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(RuntimeError, match="load_state_dict ended this iteration"):
        next(steps)
    steps = iter(loader)
    next(steps)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(steps)


def test_an_epoch_left_at_its_start_is_warned_about_once(index: SampleIndex, caplog: pytest.LogCaptureFixture) -> None:
    with load(index, recipe=TrainRecipe(input_size=8, num_aug_repeats=1), batch_size=1) as loader:
        loader.plan.steps = 500  # as if there were more
        next(iter(loader))
        with caplog.at_level(logging.WARNING):
            next(iter(loader))
        assert "epoch 0 was left after 1 of 500 steps, and this iteration is epoch 1" in caplog.text
        assert "set_epoch(0)" in caplog.text
        caplog.clear()
        next(iter(loader))
        loader.set_epoch(0)
        next(iter(loader))
        assert not caplog.text


# ---- a look at the first batch


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_peek_is_the_first_batch_made_once(
    index: SampleIndex, backend: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(index, backend, workers) as loader:
        expected = clones(loader)
        second = clones(loader)
    with load(index, backend, workers) as loader:
        made: list[tuple[int, int]] = []
        real = loader.plan.batch

        def counting(epoch: int, step: int, *rest: Any) -> BatchPlan:
            made.append((epoch, step))
            return real(epoch, step, *rest)

        monkeypatch.setattr(loader.plan, "batch", counting)
        seen = loader.peek()
        seen[0].zero_()  # a copy
        assert same(loader.peek(), expected[0])
        assert loader.state_dict()["step"] == 0
        found = clones(loader)
        assert all(map(same, found, expected))
        if workers == 0:
            assert made[: len(loader)] == [
                (0, step) for step in range(len(loader))
            ]  # a thread has begun the next epoch
        assert same(loader.peek(), second[0])
        assert all(map(same, clones(loader), second))


def test_peek_follows_the_position(index: SampleIndex) -> None:
    with load(index) as loader:
        epochs = [clones(loader) for _ in range(3)]
        loader.set_epoch(1)
        assert same(loader.peek(), epochs[1][0])
        loader.set_epoch(2)
        assert same(loader.peek(), epochs[2][0])
        loader.mixup_enabled = False
        assert not same(loader.peek(), epochs[2][0])
        loader.mixup_enabled = True
        steps = iter(loader)
        assert same(next(steps), epochs[2][0])
        with pytest.raises(RuntimeError, match="while an iteration runs"):
            loader.peek()
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert same(loader.peek(), epochs[2][1])
        assert same(next(iter(loader)), epochs[2][1])


# ---- samplers


def test_samplers_belong_to_the_epoch_that_they_were_asked_in(index: SampleIndex) -> None:
    recipe = TrainRecipe(input_size=8)
    with load(index, recipe=recipe) as loader:
        for _ in range(2):
            for (_, targets), samples in zip(loader, loader.batch_sampler, strict=True):
                assert targets.tolist() == index.labels[samples].tolist()
            for samples, (_, targets) in zip(loader.batch_sampler, loader, strict=True):
                assert targets.tolist() == index.labels[samples].tolist()
        order, again = iter(loader.sampler), list(loader.sampler)
        next(iter(loader))
        assert list(order) == again


# ---- surroundings


@pytest.mark.parametrize("backend", ["torchvision", "reference-tensor"])
def test_the_model_s_autocast_is_not_the_pixels(folder: Path, backend: str) -> None:
    """A blur is a convolution, which autocast would compute in bfloat16."""
    recipe = TrainRecipe.classic(input_size=32).replace(gaussian_blur_prob=1.0)
    found = []
    for enabled in (False, True):
        with make(folder, recipe, backend=backend) as loader, torch.autocast("cpu", torch.bfloat16, enabled):
            found.append(next(iter(loader))[0].clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", sorted({backend for backend, _ in ENGINES}))
def test_a_compiled_loop_runs(backend: str) -> None:
    code = f"""if True:
        import torch
        from dali_imagenet import TrainRecipe, create_loader

        def main():
            recipe = TrainRecipe.classic(input_size=32)
            options = dict(batch_size=4, num_workers=0, backend={backend!r}, device="cpu")
            loader = create_loader({str(PICTURES)!r}, recipe, **options)

            def total(model):
                found = 0.0
                for images, targets in loader:
                    found = found + torch.nn.functional.cross_entropy(model(images.flatten(1)), targets)
                return found

            torch.manual_seed(0)
            model = torch.nn.Linear(3 * 32 * 32, 3)
            loader.set_epoch(0)
            compiled = float(torch.compile(total, backend="eager")(model).detach())
            loader.set_epoch(0)
            plain = float(total(model).detach())
            assert compiled == plain > 0, (compiled, plain)

        main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("backend", "workers"), [*ENGINES, ("reference", 0)])
def test_default_device_and_dtype_change_nothing(index: SampleIndex, backend: str, workers: int) -> None:
    recipe = TrainRecipe.advanced(input_size=24, color_jitter=(0.4, 0.4, 0.4, 0.1))
    with load(index, backend, workers, recipe=recipe) as loader:
        expected = clones(itertools.islice(loader, 6))
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        with load(index, backend, workers, recipe=recipe) as loader:
            found = clones(itertools.islice(loader, 6))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert (a[0].device.type, a[0].dtype) == ("cpu", torch.float32)
        assert same(a, b)


def test_rows_are_made_outside_of_torch_function_modes(index: SampleIndex) -> None:
    """A mode costs each call of torch some Python; workers inherit the caller's, a default device among them."""

    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for batch_size in (2, 40):
        with load(index, batch_size=batch_size, recipe=TrainRecipe.advanced(input_size=24)) as loader:
            next(iter(loader))
            with Counting() as mode:
                next(iter(loader))
            counts.append(mode.calls)
    assert counts[0] == counts[1]


def test_autocast_changes_no_pixel(index: SampleIndex) -> None:
    recipe = TrainRecipe.advanced(input_size=24)
    with load(index, recipe=recipe) as loader:
        expected = clones(loader)
        loader.set_epoch(0)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(same, clones(loader), expected))


def test_a_loader_says_what_it_is(index: SampleIndex) -> None:
    with load(index, recipe=EvalRecipe(input_size=16), rank=1, world_size=2) as loader:
        steps = iter(loader)
        next(steps)
        text = repr(loader)
    for part in (
        "EvalRecipe",
        "90 images",
        "torchvision on cpu",
        "batch_size=4",
        "rank 1 of 2",
        "epoch 0, step 1 of 12",
    ):
        assert part in text


# ---- arguments


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sampler", "rank and world_size"),
        ("collate_fn", "fields of TrainRecipe"),
        ("pin_memory", "`device`"),
        ("prefetch_factor", "give prefetch"),
        ("batchsize", "it takes data, recipe, batch_size"),
    ],
)
def test_arguments_of_a_dataloader_get_a_sentence(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=f"no argument '{name}': .*{words}"):
        make(PICTURES, STRONG, **{name: 1})


def test_options_of_another_backend_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make(PICTURES, STRONG, roi_decode=True).close()
        make(PICTURES, STRONG, fancy_upsampling=False).close()
    assert "roi_decode=True has no effect: the torchvision backend on cpu does not use it" in caplog.text
    assert "fancy_upsampling=False has no effect" in caplog.text
    caplog.clear()
    make(PICTURES, STRONG, timeout=5, fancy_upsampling=True).close()
    assert not caplog.text


def test_a_state_is_json_whatever_integers_came_in(index: SampleIndex) -> None:
    with make(index, STRONG, batch_size=np.int64(4), seed=np.uint8(3)) as loader:
        loader.set_epoch(int(np.int32(2)))
        state = json.loads(json.dumps(loader.state_dict()))
        assert (state["epoch"], state["seed"], state["global_batch_size"]) == (2, 3, 4)
        with pytest.raises(ValueError, match=r"global_batch_size: saved 8, here 4.*call set_epoch\(n\)"):
            loader.load_state_dict(state | {"global_batch_size": 8})


# ---- workers


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pillows_settings_reach_workers(method: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for picture in (PICTURES / "apple").iterdir():
        data = picture.read_bytes()
        (tmp_path / "a" / picture.name).write_bytes(data[:-40])
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with make(tmp_path, EvalRecipe(input_size=16), num_workers=1, multiprocessing_context=method) as loader:
            assert sum(len(images) for images, _ in loader) == 3
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def test_spawned_workers_leave_dev_shm_alone(index: SampleIndex) -> None:
    """Their ring needs more than the 64 MB that a container has there."""
    shm = Path("/dev/shm")
    if not (shm.is_dir() and hasattr(os, "memfd_create")):
        pytest.skip("no /dev/shm, or no memory without a name here")
    before = os.statvfs(shm).f_bfree
    options: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "spawn", "batch_size": 8}
    with make(index, TrainRecipe(input_size=512), **options) as loader:
        held = list(itertools.islice(loader, 4))
        assert len({images.data_ptr() for images, _ in held}) == 4
        taken = (before - os.statvfs(shm).f_bfree) * os.statvfs(shm).f_frsize
    assert taken < 4 << 20
