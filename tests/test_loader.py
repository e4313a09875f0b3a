"""create_loader and Loader: what a training script relies on."""

from __future__ import annotations

import gc
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import BadImageError, EvalRecipe, Loader, SampleIndex, TrainRecipe
from dali_imagenet.decode.decode import decoder_name
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import Plan
from tests.helpers import BACKENDS, DTYPES, MEMORY_FORMATS, Batches, copied, load, needs_dali, same, saved, script

STRONG = TrainRecipe.strong(input_size=32)
CLASSIC = TrainRecipe.classic(input_size=32)
EVAL = EvalRecipe(input_size=32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("recipe", [STRONG, CLASSIC, EVAL])
def test_what_is_yielded(
    folder: Path, backend: str, dtype: torch.dtype, memory_format: torch.memory_format, recipe: object
) -> None:
    with load(folder, recipe, backend=backend, dtype=dtype, memory_format=memory_format) as loader:
        assert len(loader) == 3
        for images, targets in loader:
            assert images.shape == (8, 3, 32, 32)
            assert images.dtype == dtype
            assert images.is_contiguous(memory_format=memory_format)
            assert torch.isfinite(images.float()).all()
            if recipe is STRONG:
                assert targets.shape == (8, 4)
                assert targets.dtype == torch.float32
                assert torch.allclose(targets.sum(1), torch.ones(8))
            else:
                assert targets.shape == (8,)
                assert targets.dtype == torch.int64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_backends_and_workers_agree(folder: Path, backend: str, workers: int) -> None:
    for recipe in (STRONG, CLASSIC, EVAL, TrainRecipe.advanced(input_size=32), TrainRecipe.deit3(input_size=32)):
        reference = copied(load(folder, recipe))
        with load(folder, recipe, backend=backend, num_workers=workers) as loader:
            for (images, targets), (expected, labels) in zip(loader, reference, strict=True):
                assert torch.equal(targets, labels)
                if backend == "torchvision":
                    assert torch.equal(images, expected)
                else:
                    assert (images - expected).abs().mean() * 255 * 0.225 < 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_epochs(folder: Path, backend: str) -> None:
    with load(folder, CLASSIC, backend=backend) as loader:
        first, second = copied(loader), copied(loader)
        assert not torch.equal(first[0][0], second[0][0])
        loader.set_epoch(0)
        assert same(first, copied(loader))
        loader.sampler.set_epoch(1)
        assert same(second, copied(loader))
        assert loader.epoch == 2
        with pytest.raises(ValueError, match="epoch=-1"):
            loader.set_epoch(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_break_and_again(folder: Path, backend: str, workers: int) -> None:
    with load(folder, CLASSIC, backend=backend, num_workers=workers) as loader:
        whole = copied(loader)
        loader.set_epoch(0)
        for images, _ in loader:
            assert torch.equal(images, whole[0][0])
            break
        loader.set_epoch(0)
        assert same(whole, copied(loader))
        old = iter(loader)
        next(old)
        new = iter(loader)
        with pytest.raises(RuntimeError, match="ended by another iter"):
            next(old)
        assert len(list(new)) == 3
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_belong_to_whoever_holds_them(folder: Path, backend: str, workers: int) -> None:
    """Held and overwritten while the next ones are made; a view keeps the memory, too."""
    with load(folder, CLASSIC, backend=backend, num_workers=workers, batch_size=2) as loader:
        expected = copied(loader)
        for _ in range(3):
            loader.set_epoch(0)
            held = list(loader)
            assert same(held, expected)
            views = [images[1:, :, 3:5] for images, _ in held]
            copies = [view.clone() for view in views]
            del held
            for images, _ in loader:
                images.zero_()
            assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


def test_slots_of_the_ring_are_used_again(folder: Path) -> None:
    with load(folder, CLASSIC, num_workers=1, batch_size=2) as loader:
        pointers = set()
        for _ in range(3):
            for images, _ in loader:
                pointers.add(images.data_ptr())
                del images
        assert len(pointers) <= 4  # one worker, two in hand, two beside


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux")
def test_batches_that_are_held_come_from_the_ring(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more than in hand and exchanged; what is held beyond them comes through DataLoader's own sharing."""
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", "0")  # a slot more
    with load(folder, CLASSIC, num_workers=1, batch_size=2, multiprocessing_context="fork") as loader:
        engine: Any = loader._open_engine()
        ring = {memory.data_ptr() for memory in engine._workers._ring}
        held = [images for images, _ in itertools.islice(endless(loader), 8)]
        assert len({images.data_ptr() for images in held}) == 8
        assert sum(images.data_ptr() in ring for images in held) == len(ring) == 6
        assert all(images.data_ptr() in ring for images in held[:4])


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


@pytest.mark.parametrize("workers", [0, 2])
def test_garbage_collection_stops_the_workers(folder: Path, workers: int) -> None:
    before = set(active_children())
    loader = load(folder, CLASSIC, num_workers=workers)
    iterator = iter(loader)
    next(iterator)
    assert len(active_children()) == len(before) + workers
    gc.disable()  # reference counts alone must do
    try:
        del loader, iterator
        assert set(active_children()) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("leave", ["del", "close"])
def test_nothing_is_left_between_epochs(folder: Path, leave: str) -> None:
    """Although the workers have the next epoch in hand."""
    before = set(active_children())
    loader = load(folder, CLASSIC, num_workers=2)
    list(loader)
    assert len(active_children()) == len(before) + 2
    gc.disable()
    try:
        if leave == "close":
            loader.close()
        else:
            del loader
        assert set(active_children()) == before
    finally:
        gc.enable()


def handed_over(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where (epoch, step) of what the engine gives to its workers, or to DALI, will be found, in that order."""
    from dali_imagenet.dali.engine import DaliEngine
    from torchvision_fallback import workers

    found: list[tuple[int, int]] = []
    engine = loader._open_engine()
    if isinstance(engine, DaliEngine):
        submit = engine._stage.submit

        def submitted(plan: BatchPlan, *rest: Any) -> None:
            found.append((plan.epoch, plan.step))
            submit(plan, *rest)

        monkeypatch.setattr(engine._stage, "submit", submitted)
    else:
        real = workers._Tasks.__iter__

        def tasks(self: workers._Tasks) -> Iterator[workers.WorkerTask]:
            for task in real(self):
                found.append((task.epoch, task.step))
                yield task

        monkeypatch.setattr(workers._Tasks, "__iter__", tasks)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [4, 24])
def test_the_next_epoch_is_begun_before_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, batch_size: int
) -> None:
    """Also where all that is in flight is more than an epoch; and nothing is made twice."""
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", "0")  # one more then, at any time
    with load(folder, CLASSIC, backend=backend, num_workers=2, batch_size=batch_size) as loader:
        handed = handed_over(loader, monkeypatch)
        steps = len(loader)
        ahead = 2 if backend == "dali" else 4
        expected = [(epoch, step) for epoch in range(12) for step in range(steps)]
        for epoch in range(3):
            for step, _ in enumerate(loader):
                assert handed == expected[: epoch * steps + step + 1 + ahead]
        loader.set_epoch(7)
        next(iter(loader))  # is elsewhere: what was made ahead is dropped
        assert handed[3 * steps + ahead :] == expected[7 * steps :][: 1 + ahead]


@pytest.mark.parametrize(
    ("backend", "recipe", "workers"),
    [("torchvision", EVAL, 2), pytest.param("dali", EVAL, 2, marks=needs_dali), ("torchvision", CLASSIC, 0)],
)
def test_evaluation_and_in_process_work_make_nothing_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, recipe: object, workers: int
) -> None:
    with load(folder, recipe, backend=backend, num_workers=workers) as loader:
        handed = handed_over(loader, monkeypatch)
        for epoch in range(2):
            list(loader)
            assert handed == [(e, step) for e in range(epoch + 1) for step in range(3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_made_after_the_last_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    with load(folder, CLASSIC, backend=backend, num_workers=1) as loader:
        handed = handed_over(loader, monkeypatch)
        loader.set_epoch(2**32 - 1)
        assert len(list(loader)) == 3
        assert handed == [(2**32 - 1, step) for step in range(3)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_made_ahead_changes_no_bit(folder: Path, backend: str, workers: int) -> None:
    """Wherever the user goes on after an epoch, with a size for each epoch: the batches of a new loader."""
    recipe = STRONG.replace(input_size=((0, 32), (1, 48), (2, 24), (3, 40)))

    def new(epoch: int, mixed: bool = True) -> Batches:
        with load(folder, recipe, backend=backend, batch_size=4) as loader:
            loader.mixup_enabled = mixed
            loader.set_epoch(epoch)
            return copied(loader)

    mixed = [new(epoch) for epoch in range(5)]
    with load(folder, recipe, backend=backend, batch_size=4, num_workers=workers) as loader:
        held = [list(loader) for _ in range(3)]  # no slot comes back meanwhile
        assert all(map(same, held, mixed))
        del held
        for epoch in (0, 0, 3, 1):
            loader.set_epoch(epoch)
            assert same(list(loader), mixed[epoch])
        for at in (1, 4, 6):  # epoch 2 is left half-way, and after its last batch
            loader.set_epoch(2)
            assert same([batch for _, batch in zip(range(at), loader, strict=False)], mixed[2][:at])
            state = loader.state_dict()
            assert same(list(loader), mixed[3])
            loader.load_state_dict(state)
            if at < 6:
                assert same(list(loader), mixed[2][at:])
            assert same(list(loader), mixed[3])
            loader.set_epoch(2)
            assert same([batch for _, batch in zip(range(at), loader, strict=False)], mixed[2][:at])
            loader.load_state_dict(loader.state_dict())  # where it is
            if at < 6:
                assert same(list(loader), mixed[2][at:])
            assert same(list(loader), mixed[3])
        loader.set_epoch(0)
        list(loader)
        loader.mixup_enabled = False
        assert same(list(loader), new(1, mixed=False))
        loader.mixup_enabled = True
        assert same(list(loader), mixed[2])
        loader.mixup_enabled = False
        loader.mixup_enabled = True
        assert same(list(loader), mixed[3])
        if backend == "torchvision":
            engine: Any = loader._open_engine()
            if loader._ahead is not None:
                loader._ahead.close()  # which holds a batch
            gc.collect()
            tasks = engine._workers._tasks
            in_flight = [task.slot for task in tasks.in_flight if task.slot >= 0]
            assert sorted(tasks.free + in_flight) == list(range(len(engine._workers._ring)))  # none is lost


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_what_is_made_ahead_waits_until_it_is_asked_for(
    new_folder: Callable[..., Path], backend: str, workers: int
) -> None:
    index = SampleIndex.from_folder(new_folder(13))

    def first_seen(seed: int) -> set[int]:
        """What the first batch of epoch 1 has and epoch 0 has not."""
        plan = Plan(index, CLASSIC, batch_size=4, seed=seed)
        return set(plan.samples(1, 0).tolist()) - {int(i) for step in range(3) for i in plan.samples(0, step)}

    seed = next(seed for seed in range(100) if first_seen(seed))
    path = Path(index.path(first_seen(seed).pop()))
    path.write_bytes(b"\xff\xd8 gone")
    with load(index, CLASSIC, backend=backend, batch_size=4, num_workers=workers, seed=seed) as loader:
        whole = copied(loader)
        assert len(whole) == 3
        for _ in range(2):
            iterator = iter(loader)
            with pytest.raises(BadImageError, match=path.name):
                next(iterator)
            loader.set_epoch(0)
            assert same(whole, copied(loader))


def test_mixup_enabled_takes_effect_with_the_next_batch(folder: Path) -> None:
    with load(folder, STRONG, num_workers=1, batch_size=4) as loader:
        iterator = iter(loader)
        next(iterator)
        loader.mixup_enabled = False
        for _, targets in iterator:
            assert targets.dtype == torch.float32
            top, rest = targets.max(1).values, targets.min(1).values
            assert torch.allclose(top, torch.full((4,), 0.9 + 0.1 / 4))
            assert torch.allclose(rest, torch.full((4,), 0.1 / 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_mixup_switched_back_and_forth_changes_nothing_else(folder: Path, workers: int) -> None:
    """What the workers had in flight is made again: no batch is lost, repeated or half-mixed."""
    expected = {}
    for enabled in (False, True):
        with load(folder, STRONG, batch_size=2) as loader:
            loader.mixup_enabled = enabled
            expected[enabled] = list(loader)
    with load(folder, STRONG, batch_size=2, num_workers=workers) as loader:
        for _ in range(4):
            loader.set_epoch(0)
            count = 0
            for step, (images, targets) in enumerate(loader):
                for ours, right in zip((images, targets), expected[loader.mixup_enabled][step], strict=True):
                    assert torch.equal(ours, right)
                loader.mixup_enabled = step % 3 != 1
                count += 1
            assert count == len(loader)


def test_soft_labels_feed_cross_entropy(folder: Path) -> None:
    for images, targets in load(folder, STRONG):
        loss = torch.nn.functional.cross_entropy(images.mean((2, 3)) @ torch.ones(3, 4), targets)
        assert torch.isfinite(loss)


def test_what_a_dataloader_has(folder: Path) -> None:
    loader = load(folder, CLASSIC, batch_size=7)
    assert len(loader) == len(loader.batch_sampler) == 3
    assert (loader.batch_size, loader.drop_last, loader.backend) == (7, True, "torchvision")
    assert len(loader.dataset) == 24
    assert loader.dataset.classes == tuple(f"class_{i:03d}" for i in range(4))
    order = list(loader.sampler)
    assert len(order) == len(loader.sampler) == 21
    assert [i for batch in loader.batch_sampler for i in batch] == order
    labels = [int(t) for _, targets in loader for t in targets]
    assert labels == [int(loader.dataset.labels[i]) for i in order]
    evaluation = load(folder, EVAL, batch_size=7)
    assert (len(evaluation), evaluation.drop_last) == (4, False)
    assert [len(t) for _, t in evaluation] == [7, 7, 7, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_state(folder: Path, backend: str) -> None:
    with load(folder, STRONG, backend=backend) as loader:
        assert loader.state_dict()["step"] == 0
        whole = copied(loader) + copied(loader)
        state = saved(loader)
        assert (state["epoch"], state["step"]) == (1, 3)
    for seen in range(7):
        with load(folder, STRONG, backend=backend) as loader:
            for _ in range(seen // 3):
                copied(loader)
            iterator = iter(loader)
            for _ in range(seen % 3):
                next(iterator)
            state = saved(loader)
        with load(folder, STRONG, backend=backend) as resumed:
            resumed.load_state_dict(state)
            rest = copied(resumed)
            while len(rest) + seen < 6:
                rest += copied(resumed)
            expected = whole[seen:]
            assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(rest, expected, strict=False))


def test_set_epoch_after_loading_keeps_the_position(folder: Path) -> None:
    with load(folder, CLASSIC) as loader:
        next(iter(loader))
        state = loader.state_dict()
        loader.load_state_dict(state)
        loader.set_epoch(0)
        assert len(list(loader)) == 2
        loader.load_state_dict(state)
        loader.set_epoch(1)
        assert len(list(loader)) == 3
        finished = loader.state_dict()
        loader.load_state_dict(finished)
        loader.set_epoch(1)
        assert list(loader) == []
        loader.load_state_dict(finished)
        assert loader.epoch == 2


def test_foreign_states_are_refused_with_both_values(folder: Path) -> None:
    with load(folder, CLASSIC, seed=1) as loader:
        state = loader.state_dict()
        with pytest.raises(ValueError, match=r"seed: saved 2, here 1"):
            loader.load_state_dict(state | {"seed": 2})
        with pytest.raises(ValueError, match=r"recipe: label_smoothing: saved 0.1, here 0.0"):
            loader.load_state_dict(load(folder, STRONG, seed=1).state_dict())
        with pytest.raises(ValueError, match=r"global_batch_size: saved 4, here 8"):
            loader.load_state_dict(load(folder, CLASSIC, seed=1, batch_size=4).state_dict())
        with pytest.raises(ValueError, match="version: saved 99, here 2"):
            loader.load_state_dict(state | {"version": 99})
        with pytest.raises(ValueError, match="step 4"):
            loader.load_state_dict(state | {"step": 4})


def test_splits(tmp_path: Path, new_folder: Callable[..., Path]) -> None:
    new_folder(12).rename(tmp_path / "train")
    new_folder(6, classes=2).rename(tmp_path / "val")
    assert len(load(tmp_path, CLASSIC).dataset) == 12
    assert len(load(tmp_path, EVAL).dataset) == 6
    assert len(load(tmp_path / "val", CLASSIC, batch_size=2).dataset) == 6


def test_the_choice_is_logged_at_once_and_the_rank_when_it_is_known(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = SampleIndex.from_folder(folder)
    with caplog.at_level(logging.INFO, logger="dali_imagenet"):
        with load(index, CLASSIC, backend="auto", rank=1, world_size=2) as loader:
            [choice] = caplog.messages
            assert choice.startswith("backend torchvision on cpu: auto takes it on the CPU")
            iter(loader)
            len(loader)
            iter(loader)
        said = [message for message in caplog.messages[1:] if "will hold where the rows" not in message]
        assert said == [f"{decoder_name()} decodes JPEGs, num_workers=0, rank 1 of 2"]
        caplog.clear()
        load(index, CLASSIC, backend="reference").close()
        assert caplog.messages == ["backend reference on cpu: asked for"]


def test_errors_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "a").mkdir(parents=True)
    index = SampleIndex.from_folder(folder)
    wrong: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (FileNotFoundError, "missing", tmp_path / "missing", {}),
        (FileNotFoundError, "empty", tmp_path / "empty", {}),
        (FileNotFoundError, "a", tmp_path / "half", {}),
        (ValueError, "larger than the data", index, {"batch_size": 64}),
        (ValueError, "backend='tf'", index, {"backend": "tf"}),
        (ValueError, "on_error='ignore'", index, {"on_error": "ignore"}),
        (ValueError, "dtype", index, {"dtype": torch.uint8}),
        (ValueError, "memory_format", index, {"memory_format": torch.preserve_format}),
        (ValueError, "device='meta'", index, {"device": "meta"}),
        (ValueError, "num_workers=-1", index, {"num_workers": -1}),
    ]
    for error, message, data, options in wrong:
        with pytest.raises(error, match=message):
            load(data, CLASSIC, **options)
    with pytest.raises(ValueError, match="num_classes=3"):
        load(index, STRONG.replace(num_classes=3))
    with pytest.raises(TypeError, match="TrainRecipe"):
        load(index, "classic")
    for data in (None, b"x" * 100_000, 3):
        with pytest.raises(ValueError, match=r"^data=.*: must be a folder of images, tars") as caught:
            load(data, CLASSIC)
        assert len(str(caught.value)) < 450
    with load(index, CLASSIC) as loader:
        for epoch in (-1, 2**32, True, "1"):
            with pytest.raises(ValueError, match=f"epoch={epoch!r}: must be a whole number in"):
                loader.explain(0, epoch)  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(IndexError, match=r"step 99: the epoch has steps 0\.\."):
            loader.explain(99)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_cuda_where_there_is_none(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="use device='cpu'"):
        load(folder, CLASSIC, device="cuda")


@pytest.mark.parametrize("backend", BACKENDS)
def test_broken_images(new_folder: Callable[..., Path], backend: str) -> None:
    data = new_folder(12)
    paths = sorted(data.rglob("*.JPEG"))
    paths[2].write_text("not an image")
    paths[5].write_bytes(paths[5].read_bytes()[:200])
    with pytest.raises(BadImageError, match=paths[2].name) as caught:
        load(data, CLASSIC, backend=backend, batch_size=4)
    assert paths[5].name in str(caught.value)
    with pytest.raises(BadImageError, match="max_broken"):
        load(data, CLASSIC, backend=backend, batch_size=4, on_error="replace")
    with load(data, CLASSIC, backend=backend, batch_size=4, on_error="replace", max_broken=0.5) as loader:
        assert len(list(loader)) == 3
        assert set(loader.failures) == {str(paths[2]), str(paths[5])}
    with load(data, EVAL, backend=backend, batch_size=4, on_error="skip", max_broken=0.5) as loader:
        targets = torch.cat([t for _, t in loader])
        assert (targets == -100).nonzero().flatten().tolist() == [2, 5]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_break_after_they_were_indexed(new_folder: Callable[..., Path], backend: str, workers: int) -> None:
    """One sample is lost; the rest of its batch and of the epoch stay bit for bit what they were."""
    data = new_folder(12)
    index = SampleIndex.from_folder(data)
    options = {"backend": backend, "batch_size": 4, "num_workers": workers, "max_broken": 0.5}
    with load(index, CLASSIC, **options) as loader:
        order = list(loader.sampler)
        whole = torch.cat([images.clone() for images, _ in loader])
    Path(index.path(7)).write_bytes(b"\xff\xd8 gone")
    with load(index, CLASSIC, **options) as loader, pytest.raises(BadImageError, match=Path(index.path(7)).name):
        list(loader)
    with load(index, CLASSIC, on_error="replace", **options) as loader:
        again = torch.cat([images.clone() for images, _ in loader])
        assert list(loader.failures) == [index.path(7)]
        same = [bool(torch.equal(a, b)) for a, b in zip(whole, again, strict=True)]
        assert same == [i != 7 for i in order]
    with load(index, EVAL, on_error="skip", **options) as loader:
        assert (torch.cat([t for _, t in loader]) == -100).nonzero().flatten().tolist() == [7]


def test_statistics_of_a_classic_epoch(folder: Path) -> None:
    """Normalized pixels have the mean and deviation that the data set's own pixels say."""
    loader = load(folder, EvalRecipe(input_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    raw = torch.cat([images for images, _ in loader])
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    recipe = EvalRecipe(input_size=32, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    normal = torch.cat([images for images, _ in load(folder, recipe)])
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(normal.std((0, 2, 3)), torch.ones(3), atol=1e-4)


@needs_dali
def test_colours_that_the_index_does_not_know_of(tmp_path: Path) -> None:
    """An index made from arrays takes files for RGB; DALI shows CMYK without Adobe's segment otherwise than Pillow."""
    from bench.checks.inputs import encoded, segment

    data = encoded("CMYK")
    at, length = segment(data, 0xEE)
    (tmp_path / "x.jpg").write_bytes(data[:at] + data[at + length :])
    index = SampleIndex.from_arrays([0], [70], [90], root=tmp_path, paths=["x.jpg"])
    ours, theirs = (
        next(iter(load(index, EvalRecipe(input_size=64), batch_size=1, backend=backend)))[0]
        for backend in ("torchvision", "dali")
    )
    assert torch.equal(ours, theirs)


def test_global_generators_are_left_alone(folder: Path) -> None:
    import random

    loader = load(folder, STRONG, num_workers=1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    list(loader)
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_import_is_light() -> None:
    done = script(
        """
        import sys, dali_imagenet
        heavy = [m for m in ("torch", "torchvision", "timm", "nvidia.dali", "PIL", "numpy") if m in sys.modules]
        assert not heavy, heavy
        dir(dali_imagenet), dali_imagenet.__version__
        """,
    )
    assert done.returncode == 0, done.stderr


def test_everything_works_where_dali_cannot_be_imported(folder: Path) -> None:
    done = script(
        """
        import sys

        class NoNvidia:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "nvidia":
                    raise ImportError("nvidia cannot be imported here")

        sys.meta_path.insert(0, NoNvidia())
        from dali_imagenet import TrainRecipe, create_loader

        if __name__ == "__main__":
            options = {"batch_size": 8, "device": "cpu", "num_workers": 2, "multiprocessing_context": "fork"}
            loader = create_loader(sys.argv[1], TrainRecipe.strong(input_size=32), **options)
            assert loader.backend == "torchvision"
            print(sum(len(images) for images, targets in loader), "images")
            try:
                create_loader(sys.argv[1], TrainRecipe.classic(), batch_size=8, device="cpu", backend="dali")
            except RuntimeError as error:
                print(error)
        """,
        str(folder),
    )
    assert "24 images" in done.stdout, done.stderr
    assert "use backend='torchvision'" in done.stdout


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_start_methods(folder: Path, context: str) -> None:
    expected = copied(load(folder, STRONG))
    with load(folder, STRONG, num_workers=2, multiprocessing_context=context) as loader:
        assert same(list(loader), expected)


def test_the_start_method_is_left_to_the_user(folder: Path, tmp_path: Path) -> None:
    """Neither indexing, with and without its bar, nor a loader that has no workers yet decides on one."""
    done = script(
        """
        import multiprocessing, sys
        from dali_imagenet import SampleIndex, TrainRecipe, create_loader
        for progress in (False, True):
            index = SampleIndex.from_folder(sys.argv[1], progress=progress, cache_dir=sys.argv[2] + str(progress))
        with create_loader(index, TrainRecipe.classic(input_size=32), batch_size=8, device="cpu", num_workers=2):
            multiprocessing.set_start_method("spawn")
        """,
        str(folder),
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
