"""Which samples an epoch has, and how many steps: shuffle, steps_per_epoch, accumulate, and epochs without end."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import EvalRecipe, Loader, Plan, SampleIndex, TrainRecipe, save_preview
from dali_imagenet.plan.plan import EPOCHS
from dali_imagenet.state import state_of
from tests import helpers
from tests.helpers import BACKENDS, ENGINES, Batches, copied, make_folder, same, saved

pytestmark = pytest.mark.usefixtures("one_thread")
EVAL = EvalRecipe(input_size=24, resize_size=28)
STRONG = TrainRecipe.strong(input_size=((0, 24), (1, 32), (3, 16)))
load = functools.partial(helpers.load, batch_size=4, seed=5)


def index_of(n: int) -> SampleIndex:
    return SampleIndex.from_arrays([i % 3 for i in range(n)], [300] * n, [400] * n)


def order(n: int, recipe: Any, epoch: int, **options: Any) -> list[list[int]]:
    """The samples of each step over all ranks, sorted, without padding."""
    world = options.get("world_size", 1)
    plans = [Plan(index_of(n), recipe, rank=rank, **options) for rank in range(world)]
    return [
        sorted(int(i) for plan in plans for i in plan.samples(epoch, step) if i >= 0) for step in range(len(plans[0]))
    ]


def equal(one: Any, other: Any, but: tuple[str, ...] = ()) -> bool:
    """Whether two plans of a batch say the same, apart from some fields."""

    def flat(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return [flat(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in but]
        return [flat(part) for part in value] if isinstance(value, tuple) else np.asarray(value).tolist()

    return bool(flat(one) == flat(other))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """26 images: six batches of 4, and a rest."""
    return SampleIndex.from_folder(make_folder(tmp_path_factory.mktemp("schedule") / "data", 26, high=90))


# ---- an evaluation recipe that is shuffled


@pytest.mark.parametrize(("n", "batch", "world"), [(26, 4, 1), (26, 4, 3), (24, 4, 5), (17, 2, 4), (9, 4, 2)])
def test_a_shuffled_evaluation_has_every_sample_once(n: int, batch: int, world: int) -> None:
    epochs = [order(n, EVAL, epoch, batch_size=batch, world_size=world, shuffle=True) for epoch in (0, 0, 1)]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == list(range(n))
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0] != order(n, EVAL, 0, batch_size=batch, world_size=world)
    training = order(n, TrainRecipe(), 0, batch_size=batch * world, drop_last=True)
    dropped = order(n, EVAL, 0, batch_size=batch, world_size=world, shuffle=True, drop_last=True)
    assert dropped == training  # the order of a training with that seed, for any number of ranks


def test_padding_of_a_shuffled_evaluation() -> None:
    options: dict[str, Any] = {"batch_size": 4, "world_size": 5, "shuffle": True}
    plans = [Plan(index_of(24), EVAL, rank=rank, padding="repeat", **options) for rank in range(5)]
    rows = np.concatenate([plan.samples(3, step) for step in range(2) for plan in plans])
    assert len(rows) == 25
    assert sorted({*rows.tolist()}) == list(range(24))
    assert order(24, EVAL, 3, padding="short", **options) == order(24, EVAL, 3, **options)


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_shuffled_evaluation_shows_the_same_images(index: SampleIndex, backend: str, workers: int) -> None:
    with load(index, EVAL, backend=backend) as loader:
        images = torch.cat([images.clone() for images, _ in loader])
    orders = []
    with load(index, EVAL, backend=backend, num_workers=workers, shuffle=True, with_index=True) as loader:
        for _ in range(2):
            orders.append(list[int]())
            for found, targets, at in loader:
                assert torch.equal(found, images[at])
                assert targets.tolist() == [index.targets[i] for i in at]
                orders[-1] += at.tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(26))
    assert orders[0] != orders[1]


def test_the_next_epoch_of_a_shuffled_evaluation_is_made_ahead() -> None:
    plan = Plan(index_of(8), EVAL, batch_size=4, shuffle=True)
    assert list(itertools.islice(plan.schedule(0, 1), 3)) == [(0, 1), (1, 0), (1, 1)]
    assert list(Plan(index_of(8), EVAL, batch_size=4).schedule(0, 1)) == [(0, 1)]


def test_a_shuffled_evaluation_may_draw_by_weight() -> None:
    plan = Plan(index_of(9), EVAL, batch_size=4, shuffle=True, weights=[1, 0, 3], epoch_size=400)
    drawn = np.concatenate([plan.samples(0, step) for step in range(len(plan))])
    counts = np.bincount(drawn % 3, minlength=3)
    assert len(drawn) == 400
    assert counts[1] == 0
    assert 60 < counts[0] < 140  # 100 are expected, with a standard deviation of 9


# ---- training in the data's order


@pytest.mark.parametrize("world", [1, 2, 4])
def test_training_keeps_the_datas_order(world: int) -> None:
    options: dict[str, Any] = {"batch_size": 8 // world, "world_size": world, "shuffle": False}
    for epoch in range(2):
        assert order(26, TrainRecipe(), epoch, **options) == [list(range(at, at + 8)) for at in (0, 8, 16)]
    filled = order(26, TrainRecipe(), 0, drop_last=False, **options)
    assert sorted({*filled[3]}) == [*range(-(-2 // world) * world - 2), 24, 25]
    repeated = Plan(index_of(6), TrainRecipe(num_aug_repeats=2), batch_size=6, shuffle=False)
    assert repeated.samples(0, 0).tolist() == [0, 0, 1, 1, 2, 2]
    part = Plan(index_of(6), TrainRecipe(), batch_size=4, shuffle=False, epoch_size=4)
    assert [part.samples(epoch, 0).tolist() for epoch in range(3)] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_an_ordered_training_augments_as_a_shuffled_one() -> None:
    """A sample's draws are those that it has in the same epoch at another place."""
    plans = [Plan(index_of(16), STRONG, batch_size=16, shuffle=shuffle) for shuffle in (False, True)]
    for epoch in range(2):
        ordered, shuffled = (plan.batch(epoch, 0) for plan in plans)
        again = shuffled.select_rows(np.argsort(shuffled.source_index))
        assert equal(ordered, again, but=("position", "mix"))
    assert not (plans[0].batch(0, 0).crop_box == plans[0].batch(1, 0).crop_box).all(1).any()


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_an_ordered_training_is_the_same_everywhere(index: SampleIndex, backend: str, workers: int) -> None:
    recipe = TrainRecipe.classic(input_size=24)
    with load(index, recipe, shuffle=False) as loader:
        expected = [copied(loader) for _ in range(2)]
    with load(index, recipe, shuffle=False, backend=backend, num_workers=workers) as loader:
        for whole in expected:
            for (images, targets), (reference, right) in zip(loader, whole, strict=True):
                assert torch.equal(targets, right)
                assert float((images - reference).abs().mean()) < 0.02  # the decoders' 1 of 255, normalized
    assert [targets.tolist() for _, targets in expected[0]] == [index.targets[at : at + 4] for at in range(0, 24, 4)]


# ---- a number of steps of one's own

PASSES: list[dict[str, Any]] = [
    {},
    {"drop_last": False},
    {"epoch_size": 17},
    {"weights": [1, 0, 2], "epoch_size": 40},
    {"shuffle": False, "drop_last": False, "rank": 1, "world_size": 2},
    {"recipe": EVAL, "shuffle": True, "rank": 1, "world_size": 2},
    {"recipe": TrainRecipe(num_aug_repeats=3), "rank": 2, "world_size": 3, "batch_size": 2},
]


TAKING = {"recipe": EVAL, "rank": 4, "world_size": 5, "batch_size": 5}  # 26 images: the last step takes four from it


def plan(steps_per_epoch: int | None = None, **options: Any) -> Plan:
    recipe = options.pop("recipe", TrainRecipe.strong(mixup_mode="elem"))
    return Plan(index_of(26), recipe, **({"batch_size": 4} | options), steps_per_epoch=steps_per_epoch)


@pytest.mark.parametrize("options", PASSES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 11])
def test_epochs_cut_the_passes_anew(options: dict[str, Any], k: int) -> None:
    whole, cut = plan(**options), plan(k, **options)
    assert len(cut) == k
    passes = itertools.islice(((turn, at) for turn in itertools.count() for at in range(len(whole))), 3 * len(whole))
    for step, (turn, at) in enumerate(passes):
        assert equal(cut.batch(step // k, step % k), whole.batch(turn, at), but=("epoch", "step"))
        assert (cut.samples(step // k, step % k) == whole.samples(turn, at)).all()
    batch = cut.batch(3, k - 1)
    assert (batch.epoch, batch.step) == (3, k - 1)
    far = divmod(10**8 * k + k - 1, len(whole))
    assert equal(cut.batch(10**8, k - 1), whole.batch(*far), but=("epoch", "step"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_sizes_follow_the_epoch_and_images_the_passes(index: SampleIndex, backend: str, workers: int) -> None:
    plain = STRONG.replace(input_size=32)
    with load(index, plain, backend=backend) as loader:
        passes: Batches = [batch for _ in range(2) for batch in copied(loader)]
    with load(index, STRONG, backend=backend, num_workers=workers, steps_per_epoch=5) as loader:
        epochs = [copied(loader) for _ in range(4)]
    assert [epoch[0][0].shape[-1] for epoch in epochs] == [24, 32, 32, 16]
    assert [len(epoch) for epoch in epochs] == [5] * 4
    assert same(epochs[1], passes[5:10])  # the end of one pass and the beginning of the next


@pytest.mark.parametrize("options", [*PASSES, {"recipe": EVAL}, TAKING], ids=str)
def test_samplers_are_as_long_as_they_say(index: SampleIndex, options: dict[str, Any]) -> None:
    """With batches that are cut, padded, or take from the one before, and epochs that hold two ends of a pass."""
    options = {"recipe": TrainRecipe()} | options
    if isinstance(options.get("weights"), list):
        options["weights"] = [1, 0, 2, 1]
    training = isinstance(options["recipe"], TrainRecipe) or options.get("shuffle")
    for more in ({}, {"steps_per_epoch": 5}, {"steps_per_epoch": 9}, {"accumulate": 2})[: None if training else 1]:
        with load(index, **options, **more) as loader:
            for epoch in range(3):
                loader.set_epoch(epoch)
                samples = list(loader.sampler)
                assert len(samples) == len(loader.sampler) > 0
                assert samples == list(itertools.chain(*loader.batch_sampler))
                assert len(list(loader.batch_sampler)) == len(loader.batch_sampler) == len(loader)


def test_no_draw_has_an_epoch_beyond_the_last() -> None:
    """An epoch of more steps than the data: there are fewer of them."""
    made = plan(17)  # of a pass of 6 steps
    last = EPOCHS * 6 // 17 - 1
    assert list(made.schedule(last, 16)) == [(last, 16)]
    made.batch(last, 16)
    with pytest.raises(ValueError, match=r"epoch \* steps_per_epoch / steps of the data=4294967297"):
        made.batch(last + 1, 16)
    with pytest.raises(IndexError, match=r"step 17: the epoch has steps 0\.\.16"):
        made.batch(0, 17)


# ---- accumulation


@pytest.mark.parametrize("recipe", [TrainRecipe(), EVAL], ids=["train", "eval"])
def test_accumulation_leaves_out_the_last_steps(recipe: Any) -> None:
    options: dict[str, Any] = {"recipe": recipe, "shuffle": True, "drop_last": False}
    whole = plan(**options)
    assert [len(plan(accumulate=m, **options)) for m in (1, 2, 3, 4, 5, 7)] == [7, 6, 6, 4, 5, 7]
    cut = plan(accumulate=4, **options)
    assert all((cut.samples(1, step) == whole.samples(1, step)).all() for step in range(4))
    assert len(plan(12, accumulate=4, **options)) == 12


# ---- epochs without end


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_endless_is_one_epoch_after_the_other(index: SampleIndex, backend: str, workers: int) -> None:
    with load(index, STRONG, backend=backend) as loader:
        expected = [(images.clone(), targets) for _ in range(3) for images, targets in loader]
        steps = len(loader)
    with load(index, STRONG, backend=backend, num_workers=workers) as loader:
        found = []
        for at, (images, targets) in zip(range(2 * steps + 2), loader.endless(), strict=False):
            found.append((images.clone(), targets))
            state = loader.state_dict()
            assert divmod(at + 1, steps) in ((state["epoch"], state["step"]), (state["epoch"] + 1, 0))
        assert same(found, expected[: 2 * steps + 2])
        state = saved(loader)
    with load(index, STRONG, backend=backend, num_workers=workers) as loader:
        loader.load_state_dict(state)
        rest = [(images.clone(), targets) for _, (images, targets) in zip(range(4), loader.endless(), strict=False)]
        assert same(rest, expected[2 * steps + 2 :])


def test_endless_follows_the_loader(index: SampleIndex) -> None:
    with load(index, TrainRecipe.classic(input_size=16), with_index=True) as loader:
        order = [[at.tolist() for _, _, at in loader] for _ in range(6)]
        loader.set_epoch(0)
        endless = loader.endless()
        assert [next(endless)[2].tolist() for _ in order[0]] == order[0]
        loader.set_epoch(4)  # at the end of the epoch: counts for the next
        assert [next(endless)[2].tolist() for _ in order[4]] == order[4]
        assert next(endless)[2].tolist() == order[5][0]
        state = loader.state_dict()
        iter(loader)
        with pytest.raises(RuntimeError, match=r"ended by another iter\(\)"):
            next(endless)
        loader.load_state_dict(state)
        endless = loader.endless()
        assert next(endless)[2].tolist() == order[5][1]
        endless.close()
        assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (5, 2)
        loader.set_epoch(0)
        assert next(loader.endless())[2].tolist() == order[0][0]


# ---- resuming, and what a state says

SCHEDULES: list[dict[str, Any]] = [
    {"recipe": EVAL, "shuffle": True},
    {"recipe": EVAL, "shuffle": True, "steps_per_epoch": 5, "drop_last": True},
    {"shuffle": False},
    {"steps_per_epoch": 4},
    {"steps_per_epoch": 10, "accumulate": 5, "drop_last": False, "epoch_size": 10},
    {"accumulate": 4, "weights": {f"class_{i:03d}": i for i in range(4)}, "shuffle": True},
]


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_position_goes_on_exactly(index: SampleIndex, options: dict[str, Any], backend: str) -> None:
    options = {"recipe": STRONG, "backend": backend} | options
    run: Batches = []
    states = []
    with load(index, **options) as loader:
        steps = len(loader)
        for _, batch in zip(range(3 * steps), loader.endless(), strict=False):
            states.append(saved(loader))
            run.append((batch[0].clone(), batch[1].clone()))
    with load(index, **options, num_workers=2) as loader:
        for at in {0, steps - 2, steps - 1, steps, 2 * steps - 1}:
            loader.load_state_dict(states[at])
            rest = copied(batch for _, batch in zip(range(at + 1, 2 * steps + 1), loader.endless(), strict=False))
            assert same(rest, run[at + 1 : 2 * steps + 1])


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_more_ranks_go_on_where_one_was(index: SampleIndex, options: dict[str, Any]) -> None:
    options = {"recipe": TrainRecipe(), "with_index": True} | options
    with load(index, **options, batch_size=4) as loader:
        endless = loader.endless()
        for _ in range(8):
            next(endless)
        state = saved(loader)
        run = [sorted(next(endless)[2].tolist()) for _ in range(5)]
    shares = []
    for rank in range(2):
        with load(index, **options, batch_size=2, rank=rank, world_size=2) as loader:
            loader.load_state_dict(state)
            shares.append([at.tolist() for _, (_, _, at) in zip(range(5), loader.endless(), strict=False)])
    assert [sorted(i for i in one + other if i >= 0) for one, other in zip(*shares, strict=True)] == run


@pytest.mark.parametrize(
    ("saving", "here", "message"),
    [
        ({"shuffle": False}, {}, "shuffle: saved False, here None"),
        ({}, {"shuffle": False}, "shuffle: saved None, here False"),
        ({"steps_per_epoch": 4}, {"steps_per_epoch": 5}, "steps_per_epoch: saved 4, here 5"),
        ({"steps_per_epoch": 4}, {}, "steps_per_epoch: saved 4, here None"),
        ({"accumulate": 2}, {"accumulate": 3}, "accumulate: saved 2, here 3"),
        ({}, {"accumulate": 3}, "accumulate: saved None, here 3"),
    ],
)
def test_a_state_of_another_schedule_is_refused(index: SampleIndex, saving: Any, here: Any, message: str) -> None:
    state = state_of(Plan(index, STRONG, batch_size=4, seed=5, **saving), 0, 2)
    with load(index, STRONG, **here) as loader, pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    with load(index, STRONG, **saving) as loader:
        loader.load_state_dict(state)


def test_a_state_of_the_usual_schedule_names_none_of_it(index: SampleIndex) -> None:
    """So that those of earlier versions load."""
    for recipe, shuffle in ((STRONG, True), (STRONG, None), (EVAL, False), (EVAL, None)):
        state = state_of(Plan(index, recipe, batch_size=4, shuffle=shuffle), 0, 2)
        assert not {"shuffle", "steps_per_epoch", "accumulate"} & state.keys()


# ---- the rest of the loader


def looked_at(loader: Loader, epoch: int, step: int) -> None:
    """`explain` and `render` show what the batch shows."""
    loader.mixup_enabled = False
    loader.set_epoch(epoch)
    for at, (images, targets, samples) in enumerate(loader):
        if at == step:
            rows = loader.explain(step, epoch)
            assert [row["index"] for row in rows] == samples.tolist()
            shown = [images[1].clone(), targets[1].clone()]
            assert (rows[1]["epoch"], rows[1]["step"]) == (epoch, step)
            break
    assert torch.equal(loader.render(rows[1]), shown[0])
    assert rows[1]["label"] == int(shown[1] if shown[1].dim() == 0 else shown[1].argmax())


@pytest.mark.parametrize(
    "options",
    [{"recipe": STRONG, "steps_per_epoch": 4}, {"recipe": STRONG, "shuffle": False}, {"recipe": EVAL, "shuffle": True}],
    ids=str,
)
def test_explain_peek_and_preview_go_with_it(index: SampleIndex, tmp_path: Path, options: dict[str, Any]) -> None:
    with load(index, with_index=True, **options) as loader:
        looked_at(loader, 1, 3)
        loader.set_epoch(1)
        peeked = loader.peek()[2].tolist()
        assert peeked == loader.plan.samples(1, 0).tolist() == next(iter(loader))[2].tolist()
        save_preview(loader, tmp_path / "grid.png", count=3, epoch=1)
        assert next(iter(loader))[2].tolist() == peeked


def test_a_loader_says_its_schedule(index: SampleIndex) -> None:
    with load(index, STRONG, shuffle=True, steps_per_epoch=6, accumulate=3) as loader:
        assert "batch_size=4, shuffle=True, steps_per_epoch=6, accumulate=3, ranks not looked up yet" in repr(loader)


def test_ranks_compare_it(index: SampleIndex) -> None:
    fingerprints = [
        Plan(index, STRONG, batch_size=4, **options).fingerprint
        for options in ({}, {"shuffle": False}, {"steps_per_epoch": 6}, {"accumulate": 3})
    ]
    assert all(one != other for one, other in itertools.combinations(fingerprints, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": 1}, "shuffle=1: must be True or False"),
        ({"shuffle": False, "weights": [1, 1, 1, 2]}, "shuffle=False: must be True or None with weights"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0: must be a whole number of at least 1"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"accumulate": 7}, "accumulate=7: must be at most 6, the steps of an epoch"),
        ({"steps_per_epoch": 10, "accumulate": 4}, "steps_per_epoch=10: must be a multiple of accumulate=4"),
        ({"recipe": EVAL, "accumulate": 2}, "accumulate=2: must be 1 in evaluation"),
        ({"recipe": EVAL, "steps_per_epoch": 2}, "steps_per_epoch=2: must be None in evaluation"),
        ({"recipe": EVAL, "shuffle": False, "epoch_size": 2}, "epoch_size=2: must be None in evaluation"),
    ],
)
def test_what_makes_no_sense_is_refused(index: SampleIndex, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(index, **({"recipe": STRONG} | options))
