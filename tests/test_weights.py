"""Weighted draws and epochs of another length: which samples, the same for any ranks and after a resume."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import EvalRecipe, Plan, SampleIndex, TrainRecipe
from tests.helpers import load, saved

RECIPE = TrainRecipe.strong(input_size=32, mixup_alpha=0, cutmix_alpha=0)
INDEX = SampleIndex.from_arrays([0] * 30 + [1] * 10, 300, 400, classes=["many", "few"])


def plan(index: SampleIndex = INDEX, recipe: Any = RECIPE, **options: Any) -> Plan:
    return Plan(index, recipe, **({"batch_size": 8, "seed": 3} | options))


def epoch(of: Plan, number: int = 0) -> np.ndarray[Any, Any]:
    return np.concatenate([of.samples(number, step) for step in range(len(of))])


def test_samples_come_as_often_as_their_weights_say() -> None:
    weights = np.array([0.0, 1, 2, 5, 0] * 8)
    of = plan(weights=weights, epoch_size=80_000, batch_size=1000)
    counts = np.bincount(epoch(of), minlength=40)
    expected = 80_000 * weights / weights.sum()
    assert (counts[weights == 0] == 0).all()
    used = weights > 0
    chi = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert 8 < chi < 50  # 23 degrees of freedom: 5 in 100,000 lie outside
    assert not np.array_equal(epoch(of, 1), epoch(of))


def test_weights_of_classes_are_those_of_their_samples() -> None:
    by_name = epoch(plan(weights={"few": 3, "many": 1}))
    assert np.array_equal(by_name, epoch(plan(weights=[1, 3])))
    assert np.array_equal(by_name, epoch(plan(weights=torch.tensor([1.0] * 30 + [3.0] * 10))))
    equal = plan(weights=1 / np.bincount(INDEX.labels), epoch_size=10_000, batch_size=100)
    assert abs(INDEX.labels[epoch(equal)].mean() - 0.5) < 0.02


@pytest.mark.parametrize("options", [{"weights": {"many": 1, "few": 3}}, {}, {"epoch_size": 99}])
def test_a_copy_within_an_epoch_has_draws_of_its_own(options: Any) -> None:
    few = INDEX.subset([0, 39])
    of = plan(few, **({"epoch_size": 600} | options), drop_last=False, batch_size=16)
    rows = [batch for step in range(len(of)) for batch in [of.batch(0, step)]]
    boxes = np.concatenate([batch.crop_box for batch in rows])
    keys = np.concatenate([batch.noise_key for batch in rows])
    assert len(np.unique(keys)) == len(keys) == of.epoch_size
    assert len(np.unique(boxes, axis=0)) > 0.9 * len(boxes)
    again = plan(few, recipe=RECIPE.replace(num_aug_repeats=3), **({"epoch_size": 600} | options))
    keys = np.concatenate([again.batch(2, step).noise_key for step in range(len(again))])
    assert len(np.unique(keys)) == len(keys)
    assert (epoch(again)[:3] == epoch(again)[0]).all()


@pytest.mark.parametrize("size", [7, 24, 40, 100])
def test_without_weights_all_come_before_one_comes_again(size: int) -> None:
    of = plan(epoch_size=size, drop_last=False, batch_size=1)
    assert len(of) == size
    stream = list(itertools.chain.from_iterable(epoch(of, e).tolist() for e in range(-(-400 // size))))[:400]
    for begin in range(0, 400, 40):
        assert sorted(stream[begin : begin + 40]) == list(range(40))
    assert len({tuple(stream[k : k + 40]) for k in range(0, 400, 40)}) == 10
    if size <= 40:  # what begins where an epoch begins is as ever
        assert stream[:size] == epoch(plan(drop_last=False, batch_size=1)).tolist()[:size]


def test_an_epoch_of_all_samples_is_the_one_without_a_size() -> None:
    assert plan(epoch_size=40).fingerprint == plan().fingerprint
    for step in range(len(plan())):
        a, b = plan().batch(5, step), plan(epoch_size=40).batch(5, step)
        assert np.array_equal(a.crop_box, b.crop_box)
        assert np.array_equal(a.sampled_index, b.sampled_index)
    last = 2**32 - 1  # Python's integers hold the place, whatever the epoch
    assert sorted(epoch(plan(epoch_size=80), last).tolist()) == sorted(2 * list(range(40)))


@pytest.mark.parametrize("options", [{"weights": [1, 3]}, {"weights": [1, 3], "epoch_size": 96}, {"epoch_size": 72}])
def test_any_number_of_ranks_sees_the_same(options: Any) -> None:
    alone = plan(batch_size=24, **options)
    for step in range(len(alone)):
        whole = alone.batch(1, step)
        for ranks in (2, 3):
            parts = [
                plan(batch_size=24 // ranks, rank=r, world_size=ranks, **options).batch(1, step) for r in range(ranks)
            ]
            at = np.concatenate([part.position for part in parts])
            order = np.argsort(at)
            assert np.array_equal(at[order], np.sort(whole.position))
            for name in ("sampled_index", "crop_box", "noise_key", "label"):
                joined = np.concatenate([getattr(part, name) for part in parts])[order]
                assert np.array_equal(joined, getattr(whole, name)[np.argsort(whole.position)]), name


def test_length_of_an_epoch() -> None:
    assert len(plan(epoch_size=100)) == 12
    kept = plan(epoch_size=100, drop_last=False)
    assert len(kept) == 13
    assert len(kept.positions(12)) == 4
    with pytest.raises(ValueError, match=r"larger than the data \(7 images an epoch\)"):
        plan(epoch_size=7)


def test_a_resumed_run_goes_on_exactly(folder: Path) -> None:
    options: dict[str, Any] = {"weights": [1, 2, 0, 4], "epoch_size": 40, "seed": 9}
    with load(folder, RECIPE, **options) as loader:
        state, batches = {}, []
        for step, (images, targets) in enumerate(loader):
            batches.append((images.clone(), targets))
            if step == 2:
                state = saved(loader)
    with load(folder, RECIPE, **options, num_workers=1) as loader:
        loader.load_state_dict(state)
        rest = [(images.clone(), targets) for images, targets in loader]
    assert len(rest) == 2
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(batches[3:], rest, strict=True))
    assert len(batches) == 5
    for other, message in (
        (options | {"weights": [1, 2, 0, 5]}, "weights: saved '[0-9a-f]{32}', here '[0-9a-f]{32}'"),
        (options | {"weights": None}, "weights: saved '[0-9a-f]{32}', here None"),
        (options | {"epoch_size": 48}, "epoch_size: saved 40, here 48"),
        (options | {"epoch_size": None}, "epoch_size: saved 40, here None"),
    ):
        with load(folder, RECIPE, **other) as loader, pytest.raises(ValueError, match=message):
            loader.load_state_dict(state)


def test_a_broken_sample_is_not_replaced_by_one_of_weight_0() -> None:
    broken = SampleIndex.from_arrays([0] * 6, [0, *[300] * 5], [0, *[400] * 5], reasons={0: "gone"})
    of = plan(broken, weights=[1, 0, 0, 1, 0, 0], on_error="replace", epoch_size=80)
    assert {int(i) for step in range(10) for i in of.batch(0, step).source_index} == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, 2, 3]}, r"weights has shape \(3,\): must be one number for each of the 40 images or of the 2"),
        ({"weights": [-1, 2]}, "weights=-1.0: must be finite numbers of at least 0"),
        ({"weights": [np.nan, 2]}, "weights=nan"),
        ({"weights": [0, 0]}, "at least one of them above 0"),
        ({"weights": {"few": 1}}, "weights does not name many"),
        ({"weights": {"few": 1, "many": 1, "none": 2}}, "weights names none"),
        ({"weights": ["a", "b"]}, "numbers of at least 0"),
        ({"epoch_size": 0}, "epoch_size=0"),
        ({"weights": [1, 2], "recipe": EvalRecipe()}, "None in evaluation, which has every sample once"),
        ({"epoch_size": 8, "recipe": EvalRecipe()}, "epoch_size=8: must be None in evaluation"),
    ],
)
def test_what_makes_no_sense_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**options)
