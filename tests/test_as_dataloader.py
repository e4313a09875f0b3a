"""A loader as a torch DataLoader: its batches, what is rebuilt from it, what is refused, and its state."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from dali_imagenet import EvalRecipe, Loader, TrainRecipe
from tests.helpers import copied, load, same

TRAIN = TrainRecipe.classic(input_size=32)
EVAL = EvalRecipe(input_size=32)


def wrapped(loader: Loader) -> Any:
    """Any: torch's types say less than is there."""
    return loader.as_dataloader()


class Skipping(BatchSampler):
    """As Accelerate's SkipBatchSampler."""

    def __init__(self, batch_sampler: Any, skip: int) -> None:
        self.inner, self.skip = batch_sampler, skip

    def __iter__(self) -> Any:
        yield from itertools.islice(self.inner, self.skip, None)

    def __len__(self) -> int:
        return len(self.inner) - self.skip


class Sharding(Skipping):
    """As Accelerate's BatchSamplerShard: every second batch."""

    def __iter__(self) -> Any:
        yield from itertools.islice(self.inner, self.skip, None, 2)


def rebuilt(dataloader: DataLoader[Any], batch_sampler: Any) -> DataLoader[Any]:
    """As frameworks build a DataLoader anew, from its attributes."""
    return DataLoader(
        dataloader.dataset,
        batch_sampler=batch_sampler,
        collate_fn=dataloader.collate_fn,
        num_workers=dataloader.num_workers,
        generator=dataloader.generator,
        prefetch_factor=dataloader.prefetch_factor,
        persistent_workers=dataloader.persistent_workers,
        timeout=dataloader.timeout,
    )


@pytest.mark.parametrize("recipe", [TRAIN, EVAL], ids=["train", "eval"])
def test_its_batches_are_the_loader_s(folder: Path, recipe: Any) -> None:
    with load(folder, recipe, batch_size=5) as loader:
        expected = [copied(loader) for _ in range(2)]
    with load(folder, recipe, batch_size=5) as loader:
        assert isinstance(loader.as_dataloader(), DataLoader)
        dataloader = wrapped(loader)
        for epoch in expected:
            assert same(copied(dataloader), epoch)
        assert (dataloader.batch_size, dataloader.drop_last, len(dataloader)) == (5, recipe is TRAIN, len(expected[0]))
        assert len(dataloader.dataset) == 24
        assert isinstance(dataloader.sampler, DistributedSampler)
        assert list(dataloader.sampler) == list(loader.sampler)
        assert [list(ticket) for ticket in dataloader.batch_sampler] == list(loader.batch_sampler)
        assert (dataloader.num_workers, dataloader.pin_memory, dataloader.device) == (0, False, torch.device("cpu"))


def test_nothing_global_is_drawn_from(folder: Path) -> None:
    with load(folder, TRAIN) as loader:
        before = torch.get_rng_state()
        list(wrapped(loader))
        assert torch.equal(torch.get_rng_state(), before)


def test_what_is_skipped_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        expected = copied(loader)[3:]
    made: list[int] = []
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = wrapped(loader)
        engine = loader._open_engine()
        batches = engine.batches

        def noted(epoch: int, step: int) -> Any:
            made.append(step)
            return batches(epoch, step)

        monkeypatch.setattr(engine, "batches", noted)
        skipped = rebuilt(dataloader, Skipping(dataloader.batch_sampler, 3))
        assert same(copied(skipped), expected)
        assert made == [3]
        assert len(skipped) == 3
        assert loader.epoch == 1
        assert len(copied(dataloader)) == 6


def test_an_abandoned_iterator_costs_nothing(folder: Path) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = wrapped(loader)
        iter(dataloader)
        next(iter(dataloader.batch_sampler))
        assert loader.epoch == 0
        assert same(copied(dataloader), [*copied_epoch(folder, 0)])
        first = iter(dataloader)
        next(first)
        assert len(list(dataloader)) == 6
        with pytest.raises(RuntimeError, match="ended by another iter"):
            next(first)


def copied_epoch(folder: Path, epoch: int) -> Any:
    with load(folder, TRAIN, batch_size=4) as loader:
        loader.set_epoch(epoch)
        return copied(loader)


@pytest.mark.parametrize("step", [0, 2, 6])
def test_its_state_is_the_loader_s(folder: Path, step: int) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = wrapped(loader)
        list(dataloader)
        batches = iter(dataloader)
        list(itertools.islice(batches, step))
        state = dataloader.state_dict()
        rest = copied(batches)
        after = copied(dataloader)
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = wrapped(loader)
        dataloader.load_state_dict(state)
        if step:
            assert len(dataloader) == 6
        assert same(copied(dataloader), rest if rest else after)


def test_a_framework_s_count_from_0_goes_on_from_a_restored_epoch(folder: Path) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        list(loader)
        state = {**loader.state_dict(), "epoch": 2, "step": 3}
    with load(folder, TRAIN, batch_size=4) as loader:
        sampler: Any = wrapped(loader).sampler
        loader.load_state_dict(state)
        sampler.set_epoch(0)
        assert loader.coming == (2, 3)
        list(loader)
        sampler.set_epoch(1)
        assert loader.coming == (3, 0)
        sampler.set_epoch(0)
        assert loader.coming == (2, 0)
        loader.load_state_dict(state)
        sampler.set_epoch(2)
        assert loader.coming == (2, 3)
        sampler.set_epoch(5)
        assert loader.coming == (5, 0)


def test_a_sequential_sampler_means_the_same_batches_again(folder: Path) -> None:
    """As Lightning's overfit_batches puts one in: it builds the batch sampler and the DataLoader anew."""
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = wrapped(loader)
        sampler = SequentialSampler(dataloader.dataset)
        steps: Any = type(dataloader.batch_sampler)(sampler, batch_size=4, drop_last=False)
        again = type(dataloader)(dataloader.dataset, sampler=None, shuffle=False, batch_sampler=steps, batch_size=1)
        assert same(copied(again), copied(again))
        assert again.batch_size == 4


def test_another_order_is_refused(folder: Path) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = wrapped(loader)
        data: Any = dataloader.dataset
        assert data.classes == loader.dataset.classes
        assert data.index is loader.dataset
        with pytest.raises(TypeError, match="the loader orders the samples"):
            next(iter(DataLoader(data, batch_size=4)))
        with pytest.raises(TypeError, match="one image alone has no place"):
            data[0]
        with pytest.raises(ValueError, match="sampler=RandomSampler: the loader orders the samples"):
            type(dataloader.batch_sampler)(RandomSampler(data))
        with pytest.raises(TypeError, match="dataset=list: make this DataLoader with Loader"):
            type(dataloader)([])
        for first in (0, 1):
            with pytest.raises(RuntimeError, match="the loader orders the samples"):
                list(rebuilt(dataloader, Sharding(dataloader.batch_sampler, first)))
        short = wrapped(load(folder, TRAIN, batch_size=12))
        with pytest.raises(RuntimeError, match="ended after step 0 of 2"):
            list(rebuilt(short, Sharding(short.batch_sampler, 0)))
        short.loader.close()


def test_it_is_no_dataset(folder: Path) -> None:
    data: Any = load(folder, TRAIN)
    with data, pytest.raises(TypeError, match="a Loader is no dataset: iterate it"):
        next(iter(DataLoader(data, batch_sampler=[[0, 1]])))


def test_fastai_asks_for_a_new_one(folder: Path) -> None:
    with load(folder, EVAL, batch_size=5) as loader:
        dataloader = wrapped(loader)
        assert dataloader.new(shuffle=False, drop_last=False) is dataloader
        with pytest.raises(ValueError, match=r"new\(shuffle=True\): make another .* shuffle=False, drop_last"):
            dataloader.new(shuffle=True)
        with pytest.raises(ValueError, match=r"new\(bs=3\)"):
            dataloader.new(bs=3)


def test_other_shapes_go_through(folder: Path) -> None:
    with load(folder, TRAIN, output="dict", with_index=True) as loader:
        assert set(next(iter(wrapped(loader)))) == {"pixel_values", "labels", "index"}


def test_a_closed_loader_says_so(folder: Path) -> None:
    loader: Loader = load(folder, TRAIN)
    dataloader = wrapped(loader)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(iter(dataloader))
