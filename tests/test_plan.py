"""The draws: their distributions, and that they depend on (seed, epoch, sample) alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from dali_imagenet import BadImageError, EvalRecipe, Plan, SampleIndex, TrainRecipe, rng
from dali_imagenet.plan.geometry import random_resized_crop
from dali_imagenet.plan.program import color_matrix

STRONG = TrainRecipe.strong()


def index_of(count: int, classes: int = 10, seed: int = 0, height: Any = None, width: Any = None) -> SampleIndex:
    rng = np.random.default_rng(seed)
    return SampleIndex.from_arrays(
        labels=np.sort(rng.integers(0, classes, count)),
        height=rng.integers(50, 600, count) if height is None else np.full(count, height),
        width=rng.integers(50, 600, count) if width is None else np.full(count, width),
        classes=[f"c{i}" for i in range(classes)],
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123, kat_vectors: philox4x32 10
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: tuple[int, ...], key: int, expected: str) -> None:
    assert " ".join(f"{int(w):08x}" for w in rng.philox(key, *counter)) == expected


def test_what_a_seed_means_does_not_change() -> None:
    """A change here breaks every seed, every saved position and every published run: do not update the numbers."""
    plan = Plan(index_of(1000, height=375, width=500), STRONG, batch_size=4, seed=7)
    batch = plan.batch(3, 5)
    assert batch.source_index.tolist() == EXPECTED["index"]
    assert batch.crop_box.tolist() == EXPECTED["box"]
    assert batch.hflip.tolist() == EXPECTED["hflip"]
    assert batch.ops[0].op.tolist() == EXPECTED["op"]
    assert batch.erase is not None
    assert batch.erase[:, 0].tolist() == EXPECTED["erase"]
    assert batch.mix is not None
    assert batch.mix.lam.tolist() == pytest.approx(EXPECTED["lam"])


EXPECTED: dict[str, Any] = {
    "index": [459, 436, 964, 736],
    "box": [[45, 159, 317, 279], [59, 60, 241, 304], [13, 118, 304, 325], [15, 74, 296, 377]],
    "hflip": [True, False, True, False],
    "op": [[6, 8], [7, 5], [4, 3], [6, 8]],
    "erase": [[0, 0, 0, 0], [93, 71, 114, 102], [0, 0, 0, 0], [183, 65, 30, 71]],
    "lam": [0.5024713277816772] * 4,
}


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000, 65536, 100_003])
def test_the_permutation_is_one(n: int) -> None:
    order = rng.Permutation(n, seed=1, epoch=2)(np.arange(n))
    assert np.array_equal(np.sort(order), np.arange(n))
    if n > 50:
        other = rng.Permutation(n, seed=1, epoch=3)(np.arange(n))
        assert (order == other).mean() < 0.1
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(order, other)[0, 1]) < 5 / np.sqrt(n)


def test_small_permutations_are_uniform() -> None:
    seen = [tuple(rng.Permutation(4, seed=9, epoch=e)(np.arange(4)).tolist()) for e in range(4800)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-4


def test_streams_samples_and_epochs_are_uncorrelated() -> None:
    n = 50_000
    base = rng.uniforms(1, 0, 1, np.arange(n), 8)
    assert stats.kstest(base.ravel(), "uniform").pvalue > 1e-4
    others = {
        "epoch": rng.uniforms(1, 1, 1, np.arange(n), 8),
        "seed": rng.uniforms(2, 0, 1, np.arange(n), 8),
        "stream": rng.uniforms(1, 0, 2, np.arange(n), 8),
        "sample": rng.uniforms(1, 0, 1, np.arange(1, n + 1), 8),
        "repeat": rng.uniforms(1, 0, 1, np.arange(n), 8, repeat=1),
    }
    for name, other in others.items():
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(base.size), name
    within = np.corrcoef(base.T) - np.eye(8)
    assert np.abs(within).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 2.0, 8.0])
def test_beta_draws(alpha: float) -> None:
    values = rng.betas(rng.uniforms(0, 0, rng.STREAM_MIX, np.arange(100_000), 32), alpha)
    theirs = np.random.default_rng(0).beta(alpha, alpha, 100_000)  # not the exact CDF: doubles round to 1 as well
    assert stats.ks_2samp(values, theirs).pvalue > 1e-4


def test_random_resized_crop_has_torchvisions_distribution() -> None:
    height, width = 300, 460
    reference = v2.RandomResizedCrop(224, scale=(0.08, 1.0))
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array([tuple(reference.make_params([image]).values()) for _ in range(6000)])
    n = 100_000
    u = rng.uniforms(0, 0, rng.STREAM_CROP, np.arange(n), 22)
    ours = random_resized_crop(np.tile(np.array([height, width], np.int32), (n, 1)), (0.08, 1.0), (3 / 4, 4 / 3), u)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    for part in (ours[:, 2] * ours[:, 3], ours[:, 3] / ours[:, 2]):
        assert part.min() > 0
    area = (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert stats.ks_2samp(*area).pvalue > 1e-4
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize("shape", [(1000, 40), (40, 1000), (1, 1), (1, 5000), (100, 120)])
def test_the_fallback_crop_is_torchvisions(shape: tuple[int, int]) -> None:
    """Uniforms that make every try miss leave the central crop."""
    reference = v2.RandomResizedCrop(224, scale=(0.08, 1.0))
    u = np.full((1, 22), 0.999999)  # the largest area at the widest ratio
    ours = random_resized_crop(np.array([shape], np.int32), (1.0, 1.0), (3 / 4, 4 / 3), u)[0]
    reference.scale = (5.0, 5.0)  # never fits
    theirs = tuple(reference.make_params([torch.zeros(1, *shape)]).values())
    if shape not in [(1, 1), (100, 120)]:
        assert tuple(ours.tolist()) == theirs
    assert ours[2] >= 1
    assert ours[3] >= 1


@pytest.mark.parametrize("count", [(1, 1), (1, 3)])
def test_erasing_has_timms_distribution(count: tuple[int, int]) -> None:
    import random

    recipe = TrainRecipe(re_prob=0.6, re_scale=(0.02, 0.33), re_count=count, re_ratio=(0.3, 3.3))
    plan = Plan(index_of(20_000), recipe, batch_size=20_000)
    erase = plan.batch(0, 0).erase
    assert erase is not None
    assert erase.shape == (20_000, count[1], 4)
    areas = (erase[..., 2] * erase[..., 3]).sum(1)
    random.seed(0)
    reference = RandomErasing(
        probability=0.6,
        min_area=0.02,
        max_area=0.33,
        min_aspect=0.3,
        max_aspect=3.3,
        min_count=count[0],
        max_count=count[1],
        device="cpu",
    )
    theirs = []
    for _ in range(1500):
        boxes: list[int] = []
        image = _Recorder(boxes)
        reference._erase(image, 3, 224, 224, torch.float32)
        theirs.append(sum(boxes))
    assert stats.ks_2samp(areas, theirs).pvalue > 1e-4
    inside = erase[erase[..., 2] > 0]
    assert (inside[:, 0] + inside[:, 2] <= 224).all()
    assert (inside[:, 1] + inside[:, 3] <= 224).all()
    assert (inside[:, :2] >= 0).all()


class _Recorder:
    """Stands in for an image and notes the areas that are assigned to it."""

    def __init__(self, areas: list[int]) -> None:
        self.areas = areas

    def __setitem__(self, where: Any, value: Any) -> None:
        _, rows, columns = where
        self.areas.append((rows.stop - rows.start) * (columns.stop - columns.start))


@pytest.mark.parametrize("recipe", [EvalRecipe(), EvalRecipe(input_size=97, crop_pct=0.9), EvalRecipe(resize_size=232)])
def test_evaluation_geometry_is_torchvisions(recipe: EvalRecipe) -> None:
    index = index_of(300)
    plan = Plan(index, recipe, batch_size=300)
    batch = plan.batch(0, 0)
    for row in range(300):
        shape = (int(index.height[row]), int(index.width[row]))
        resized = torch.empty(1, *_resized(shape, recipe))
        assert batch.resize[row].tolist() == list(resized.shape[1:])
        grid = torch.arange(resized[0].numel()).view(1, *resized.shape[1:])
        window = v2.functional.center_crop(grid, [recipe.input_size, recipe.input_size])
        top, left = divmod(int(window[0, 0, 0]), resized.shape[2])
        assert batch.window[row].tolist() == [top, left]


def _resized(shape: tuple[int, int], recipe: EvalRecipe) -> list[int]:
    from torchvision.transforms.functional import _compute_resized_output_size

    return list(_compute_resized_output_size(shape, [recipe.scale_size[0]]))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cutmix_alpha": 0.0},
        {"mixup_alpha": 0.0},
        {"cutmix_minmax": (0.2, 0.8)},
        {"correct_lam": False},
        {"mixup_prob": 0.5},
    ],
)
def test_mixing_draws_have_timms_distribution(mode: str, options: dict[str, Any]) -> None:
    recipe = STRONG.replace(mixup_mode=mode, input_size=32, mixup_alpha=0.8).replace(**options)
    steps = 2500
    plan = Plan(index_of(steps * 4), recipe, batch_size=4, seed=5)
    mixes = [plan.batch(0, step).mix for step in range(steps)]
    lam = np.concatenate([m.lam[: {"batch": 1, "pair": 2, "elem": 4}[mode]] for m in mixes if m is not None])
    cut = np.concatenate([m.use_cutmix[: {"batch": 1, "pair": 2, "elem": 4}[mode]] for m in mixes if m is not None])
    np.random.seed(0)  # timm draws from the global generator
    reference = Mixup(
        mixup_alpha=recipe.mixup_alpha,
        cutmix_alpha=recipe.cutmix_alpha,
        cutmix_minmax=recipe.cutmix_minmax,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=mode,
        correct_lam=recipe.correct_lam,
        num_classes=2,
        label_smoothing=0,
    )
    theirs = []
    for _ in range(1500):
        targets = reference(torch.zeros(4, 3, 32, 32), torch.tensor([0, 0, 1, 1]))[1]
        theirs += targets[:1, 0].tolist() if mode == "batch" else targets[:2, 0].tolist()
    assert stats.ks_2samp(np.round(lam, 4), np.round(theirs, 4)).pvalue > 1e-4
    if recipe.cutmix_alpha > 0 and recipe.mixup_alpha > 0:
        expected = recipe.mixup_switch_prob * recipe.mixup_prob
        assert abs(cut.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(cut)) + 0.01
    if mode != "elem":
        assert all(np.array_equal(m.lam, m.lam[::-1]) for m in mixes if m is not None)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_together_see_what_one_process_sees(mode: str, repeats: int) -> None:
    """The same samples, draws, partners and lambda for every world size that makes the same global batch."""
    index = index_of(121)
    recipe = STRONG.replace(mixup_mode=mode, input_size=64, num_aug_repeats=repeats, re_prob=0.5)
    whole = Plan(index, recipe, batch_size=24, seed=3)
    for step in range(len(whole)):
        one = whole.batch(2, step)
        expected = {int(p): _row(one, r) for r, p in enumerate(one.position)}
        for world in (2, 3, 4):
            found: dict[int, Any] = {}
            for rank in range(world):
                part = Plan(index, recipe, batch_size=24 // world, seed=3, rank=rank, world_size=world)
                assert len(part) == len(whole)
                batch = part.batch(2, step)
                assert (np.diff(batch.position) > 0).all()
                found |= {int(p): _row(batch, r) for r, p in enumerate(batch.position)}
            assert found == expected


def _row(batch: Any, row: int) -> Any:
    fields = [
        batch.source_index,
        batch.sampled_index,
        batch.repeat,
        batch.label,
        batch.crop_box,
        batch.hflip,
        batch.color,
        batch.erase,
    ]
    fields += [batch.noise_key, batch.ops[0].op, batch.ops[0].arg, batch.mix.lam, batch.mix.use_cutmix, batch.mix.box]
    partner = int(batch.source_index[len(batch) - 1 - row])
    return [np.asarray(f[row]).tolist() for f in fields] + [partner]


@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_has_every_sample_once(drop_last: bool) -> None:
    index = index_of(100)
    plan = Plan(index, TrainRecipe.classic(), batch_size=7, drop_last=drop_last)
    for epoch in range(3):
        seen = np.concatenate([plan.batch(epoch, step).source_index for step in range(len(plan))])
        assert len(seen) == (98 if drop_last else 100)
        assert len(set(seen.tolist())) == len(seen)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13, 31])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_evaluation_counts_every_sample_once(count: int, world: int, batch_size: int) -> None:
    index = index_of(count)
    if count < world:
        with pytest.raises(ValueError, match=f"{count} images for {world} ranks"):
            Plan(index, EvalRecipe(), batch_size=batch_size, world_size=world)
        return
    plans = [Plan(index, EvalRecipe(), batch_size=batch_size, rank=r, world_size=world) for r in range(world)]
    assert len({len(p) for p in plans}) == 1
    seen: list[int] = []
    for step in range(len(plans[0])):
        batches = [p.batch(0, step) for p in plans]
        assert len({len(b) for b in batches}) == 1
        for batch in batches:
            assert ((batch.label == -100) == (batch.source_index == -1)).all()
            real = batch.source_index[batch.source_index >= 0]
            assert (batch.label[batch.source_index >= 0] == index.labels[real]).all()
            seen += real.tolist()
    assert sorted(seen) == list(range(count))


def test_repeats_are_neighbours_with_their_own_draws() -> None:
    plan = Plan(index_of(60), STRONG.replace(num_aug_repeats=3), batch_size=6)
    one = plan.batch(0, 0)
    assert len(set(one.source_index.tolist())) == 2
    assert len({tuple(box) for box in one.crop_box.tolist()}) == 6
    assert one.repeat.tolist() == [0, 1, 2, 0, 1, 2]


def test_draws_do_not_depend_on_other_stages_or_the_batch() -> None:
    """Adding a stage moves no other draw."""
    index = index_of(64)
    alone = Plan(index, TrainRecipe.classic(), batch_size=64).batch(1, 0)
    strong = Plan(index, STRONG, batch_size=64).batch(1, 0)
    assert np.array_equal(alone.source_index, strong.source_index)
    assert np.array_equal(alone.crop_box, strong.crop_box)
    assert np.array_equal(alone.hflip, strong.hflip)
    small = Plan(index, STRONG, batch_size=2)
    for step in range(3):
        batch = small.batch(1, step)
        rows = np.flatnonzero(np.isin(strong.source_index, batch.source_index))
        assert strong.crop_box[rows].tolist() == batch.crop_box.tolist()


def test_broken_samples_are_replaced_by_a_neighbour() -> None:
    index = index_of(20)
    rows = index.rows.replace(dict.fromkeys((3, 4, 19), "damaged"), broken=np.isin(np.arange(20), (3, 4, 19)))
    damaged = dataclasses.replace(index, rows=rows)
    whole = Plan(damaged, TrainRecipe.classic(), batch_size=20, on_error="replace").batch(0, 0)
    for drawn, read in zip(whole.sampled_index.tolist(), whole.source_index.tolist(), strict=True):
        assert read == {3: 5, 4: 5, 19: 0}.get(drawn, drawn)
    again = Plan(damaged, TrainRecipe.classic(), batch_size=20, on_error="replace").batch(0, 0, failed={5})
    assert again.source_index[again.sampled_index == 3].tolist() == [6]
    skipped = Plan(damaged, EvalRecipe(), batch_size=20, on_error="skip").batch(0, 0)
    assert np.flatnonzero(skipped.label == -100).tolist() == [3, 4, 19]


@pytest.mark.parametrize("order", [range(8), [0, 7, 1, 6, 2, 5, 3, 4]])
def test_a_sample_that_fails_for_one_row_alone_is_replaced_in_all(order: Any) -> None:
    """A flaky read: no row keeps the picture of one sample and the label of another."""
    plan = Plan(index_of(30), TrainRecipe.classic(num_aug_repeats=4), batch_size=8, on_error="replace")
    first = plan.batch(0, 0)
    flaky = int(first.source_index[order[-1]])
    made, calls = dict[int, int](), 0

    def make(batch: Any, row: int) -> None:
        nonlocal calls
        if batch.source_index[row] == flaky:
            calls += 1
            if calls == 3:
                raise BadImageError("gone for a moment")
        made[row] = int(batch.source_index[row])

    batch, failures = plan.execute_rows(first, make, order)
    assert failures == {flaky: "gone for a moment"}
    assert flaky not in batch.source_index
    assert [made[row] for row in range(8)] == batch.source_index.tolist()


def test_color_matrix_is_dalis_formula() -> None:
    brightness, contrast, saturation, degrees = factors = (1.2, 0.7, 1.3, 20.0)
    matrix = color_matrix(np.array([factors], np.float32))[0].astype(np.float64)
    a = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    turn = np.deg2rad(degrees)
    hue = np.array([[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]])
    expected = brightness * contrast * np.linalg.inv(a) @ hue @ np.diag([1, saturation, saturation]) @ a
    assert np.allclose(matrix[:, :3], expected, atol=1e-5)
    assert np.allclose(matrix[:, 3], brightness * 128 * (1 - contrast), atol=1e-4)


def test_progressive_size() -> None:
    plan = Plan(index_of(8), TrainRecipe(input_size=((0, 128), (3, 160), (6, 224))), batch_size=4)
    assert [plan.batch(epoch, 0).size[0] for epoch in (0, 2, 3, 5, 6, 90)] == [128, 128, 160, 160, 224, 224]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 7}, "even"),
        ({"batch_size": 64}, "larger than the data"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
        ({"batch_size": 4, "on_error": "skip"}, "skip"),
        ({"batch_size": 8, "padding": "short"}, "padding='short'"),
    ],
)
def test_plans_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(index_of(21), STRONG, **options)
