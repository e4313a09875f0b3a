"""Crops, filters, orders and erased colours as their sources have them: the draws, and the pixels of every executor."""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from timm.data.transforms import RandomCropOrPad, RandomResizedCropAndInterpolation, ResizeKeepRatio, center_crop_or_pad
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dali_imagenet import EvalRecipe, Op, Plan, SampleIndex, TrainRecipe
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.engine import EngineOptions, make_engine
from dali_imagenet.explain import explain, to_plan
from dali_imagenet.ops import FILTERS
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.policy import Apply, Choice, Jitter, OpPlan, RandAugment, Shuffled
from dali_imagenet.transforms.resize import reflect_
from tests.helpers import NoHostReads

PICTURES = Path(__file__).parent / "data" / "pictures"
ROWS = 20_000


def drawn(recipe: TrainRecipe, height: int = 300, width: int = 460, rows: int = ROWS) -> BatchPlan:
    return Plan(SampleIndex.from_arrays(np.zeros(rows, int), height, width), recipe, batch_size=rows).batch(0, 0)


def same_distribution(ours: NDArray[Any], theirs: Any) -> bool:
    return float(stats.ks_2samp(ours, np.asarray(theirs)).pvalue) > 1e-4


def one(plan: BatchPlan) -> OpPlan:
    [part] = plan.ops
    assert isinstance(part, OpPlan)
    return part


# ---- interpolation


def test_the_filter_is_drawn_with_even_odds_and_moves_no_other_draw() -> None:
    recipe = TrainRecipe.deit(interpolation="random", auto_augment="rand-m9-mstd0.5")
    plan, plain = drawn(recipe), drawn(recipe.replace(interpolation="bicubic"))
    names, counts = np.unique(plan.interpolation, return_counts=True)
    assert names.tolist() == [FILTERS["bilinear"], FILTERS["bicubic"]]
    assert stats.binomtest(int(counts[0]), ROWS, 0.5).pvalue > 1e-4
    assert (plan.crop_box == plain.crop_box).all()
    assert (plan.hflip == plain.hflip).all()
    first = np.where(plan.interpolation == FILTERS["bilinear"], plan.crop_box[:, 2], -1)
    assert abs(np.corrcoef(first[first > 0], np.arange((first > 0).sum()))[0, 1]) < 0.05
    theirs = RandomResizedCropAndInterpolation(224, interpolation="random").interpolation
    assert [mode.value for mode in theirs] == ["bilinear", "bicubic"]
    assert recipe.policy is not None
    assert recipe.policy.fingerprint["fields"].get("interpolation") is None  # draws for each move, as timm


# ---- crops


@pytest.mark.parametrize("mode", ["rkrc", "rkrr"])
@pytest.mark.parametrize("size", [(224, 224), (160, 256)])
def test_timms_other_crops_have_its_distribution(mode: str, size: tuple[int, int]) -> None:
    scale, ratio = (0.5, 1.0), (0.6, 1.5)
    recipe = TrainRecipe(input_size=size, crop=mode, scale=scale, ratio=ratio)  # type: ignore[arg-type]  # a word
    plan = drawn(recipe)
    random.seed(0)
    image = Image.new("L", (460, 300))
    resized, windows = [], []
    for _ in range(4000):
        options = {"random_scale_prob": 0.5, "random_aspect_prob": 0.5, "random_scale_area": True}
        found: Any = ResizeKeepRatio.get_params(
            image, size, 0.0, random_scale_range=scale, random_aspect_range=ratio, **options
        )
        resized.append(found)
        grid = torch.zeros(1, *found)
        if mode == "rkrr":
            windows.append(RandomCropOrPad.get_params(grid, size))
        else:
            rows, columns = (torch.arange(n).view(1, -1, 1).expand(1, -1, 4) for n in found)
            sides = [center_crop_or_pad(rows + 1, [size[0], 4]), center_crop_or_pad(columns + 1, [size[1], 4])]
            at = [int((side[0, :, 0] > 0).int().argmax()) for side in sides]
            windows.append([int(side[0, a, 0]) - 1 - a for a, side in zip(at, sides, strict=True)])
    for axis in range(2):
        assert same_distribution(plan.resize[:, axis], np.array(resized)[:, axis])
        assert same_distribution(plan.window[:, axis], np.array(windows)[:, axis])
    if mode == "rkrc":  # the window follows from the size: the same for the same
        ours = {tuple(r): tuple(w) for r, w in zip(plan.resize.tolist(), plan.window.tolist(), strict=True)}
        shared = [(ours[tuple(r)], tuple(w)) for r, w in zip(resized, windows, strict=True) if tuple(r) in ours]
        assert len(shared) > 2000
        assert all(a == b for a, b in shared)
    assert (plan.crop_box == [0, 0, 300, 460]).all()
    assert (plan.window < 0).any()


@pytest.mark.parametrize(
    ("padding", "shape", "resize"),
    [(4, (32, 32), None), ((3, 9, 0, 1), (40, 33), None), (0, (300, 460), 64), (2, (20, 50), None), (0, (50, 90), 20)],
)
def test_random_crops_are_torchvisions(padding: Any, shape: tuple[int, int], resize: int | None) -> None:
    recipe = TrainRecipe(input_size=32, crop="random", crop_padding=padding, resize_size=resize, hflip=0)
    plan = drawn(recipe, *shape)
    if resize is not None:
        shape = (int(plan.resize[0, 0]), int(plan.resize[0, 1]))
        assert list(shape) == list(v2.Resize(resize, antialias=True)(torch.zeros(1, *plan.source_size[0])).shape[1:])
    sides = list(padding) if isinstance(padding, tuple) else padding
    crop = v1.RandomCrop(32, sides, pad_if_needed=True)
    torch.manual_seed(0)
    rows = torch.arange(shape[0])[:, None].expand(shape) + 1
    columns = torch.arange(shape[1])[None].expand(shape) + 1
    theirs = []
    for _ in range(3000):
        found = crop(torch.stack([rows, columns]))
        [y, x] = (found[0] > 0).nonzero()[0].tolist()
        theirs.append([int(found[0, y, x]) - 1 - y, int(found[1, y, x]) - 1 - x])
    ours = plan.window if resize is not None else plan.window + np.maximum(plan.crop_box[:, :2], 0)
    for axis in range(2):
        assert {*ours[:, axis].tolist()} == {row[axis] for row in theirs}
        assert same_distribution(ours[:, axis], np.array(theirs)[:, axis])


def test_a_random_crop_decodes_no_more_than_it_shows() -> None:
    plan = drawn(TrainRecipe(input_size=32, crop="random", crop_padding=5), 100, 200)
    assert plan.crop_box[:, 2:].max() == 32
    ends = plan.crop_box[:, :2] + plan.crop_box[:, 2:]
    assert (plan.crop_box[:, :2] >= 0).all()
    assert (ends <= [100, 200]).all()
    assert (plan.crop_box[:, 2:] >= 27).all()


# ---- orders


def test_the_jitter_goes_behind_the_policy() -> None:
    after = TrainRecipe.deit3(input_size=48)
    before = after.replace(color_order="before_policy")
    a, b = one(drawn(before, rows=200)), one(drawn(after, rows=200))
    policy = a.op.shape[1] - 4
    for name in ("op", "arg", "aux"):
        first: NDArray[Any] = getattr(a, name)
        assert (np.roll(first, policy, axis=1) == getattr(b, name)).all()
    with_filters = one(drawn(after.replace(grayscale_prob=1.0), rows=50))
    assert (with_filters.op[:, -2] == Op.GRAYSCALE).all()


def test_a_program_is_drawn_as_torchvision_draws() -> None:
    ranges = {"brightness": (0.3, 1.9), "contrast": (0.5, 1.5), "saturation": (0.0, 2.5), "hue": (-0.1, 0.4)}
    jitter = Jitter(**ranges)  # type: ignore[arg-type]  # ranges
    program = (Apply(parts=(jitter,), probability=0.8), (Op.ROTATE, 0.3, (-10, 30)), (Op.POSTERIZE, 0.4, 3))
    plan = one(drawn(TrainRecipe(program=program)))
    assert plan.op.shape[1] == 6
    applied = plan.op[:, :4].any(axis=1)
    assert stats.binomtest(int(applied.sum()), ROWS, 0.8).pvalue > 1e-4
    reference: Any = v2.ColorJitter(**ranges)
    torch.manual_seed(0)
    theirs = [reference.make_params([]) for _ in range(4000)]
    ops = {Op.BRIGHTNESS: "brightness_factor", Op.CONTRAST: "contrast_factor", Op.COLOR: "saturation_factor",
           Op.HUE: "hue_factor"}  # fmt: skip
    for number, (op, name) in enumerate(ops.items()):
        row, place = np.nonzero(plan.op[:, :4] == op)
        assert len(row) == applied.sum()
        assert same_distribution(plan.arg[row, place], [each[name] for each in theirs])
        places = [int((each["fn_idx"] == number).nonzero()) for each in theirs]
        assert same_distribution(place, places)
    rotated = plan.op[:, 4] == Op.ROTATE
    assert stats.binomtest(int(rotated.sum()), ROWS, 0.3).pvalue > 1e-4
    assert same_distribution(plan.arg[rotated, 4], np.random.default_rng(0).uniform(-10, 30, 5000))
    assert abs(np.corrcoef(rotated, plan.op[:, 5] == Op.POSTERIZE)[0, 1]) < 0.03
    assert abs(np.corrcoef(rotated, applied)[0, 1]) < 0.03


def test_choices_and_orders_are_drawn() -> None:
    parts = ((Op.INVERT,), (Op.EQUALIZE,), Apply(parts=((Op.SOLARIZE, 1, 9), (Op.POSTERIZE, 1, 3)), probability=1))
    plan = one(drawn(TrainRecipe(program=(Choice(parts=parts, weights=(1, 2, 5)),))))
    assert plan.op.shape[1] == 2
    kinds, counts = np.unique(plan.op, axis=0, return_counts=True)
    assert kinds.tolist() == [[11, 10], [13, 0], [14, 0]]
    assert stats.chisquare(counts, np.array([5, 2, 1]) / 8 * ROWS).pvalue > 1e-4

    plan = one(drawn(TrainRecipe(program=(Shuffled(parts=parts),))))
    kinds, counts = np.unique(plan.op, axis=0, return_counts=True)
    assert plan.op.shape[1] == 6
    orders = {tuple(op for op in kind if op) for kind in kinds.tolist()}
    assert orders == {(14, 13, 11, 10), (13, 14, 11, 10), (14, 11, 10, 13), (13, 11, 10, 14), (11, 10, 14, 13),
                      (11, 10, 13, 14)}  # fmt: skip
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_program_equals_the_fields_where_both_can_say_it() -> None:
    """The same policy draws the same distribution, and fills with its colour."""
    fill = (9, 8, 7)
    fields = drawn(TrainRecipe(auto_augment=RandAugment(fill=fill)))
    program = drawn(TrainRecipe(program=(RandAugment(fill=fill), Jitter(hue=(0.1, 0.1)))))
    assert fields.fill == program.fill == fill
    for slot in range(2):
        assert same_distribution(one(fields).op[:, slot], one(program).op[:, slot])
        assert same_distribution(one(fields).arg[:, slot], one(program).arg[:, slot])
    assert not (one(fields).op == one(program).op[:, :2]).all()  # a stream of its own


# ---- pixels


@functools.cache
def pictures() -> SampleIndex:
    return SampleIndex.from_folder(PICTURES, progress=False, cache=False)


def made(recipe: Any, engine: str, in_graph: bool | None = None, **options: Any) -> Tensor:
    plan = Plan(pictures(), recipe, batch_size=len(pictures()), seed=3)
    maker = make_engine(engine, plan, EngineOptions(device=torch.device("cpu"), in_graph=in_graph, **options))
    try:
        _, [images], failures = next(maker.batches(0, 0))
        assert not failures
        return images.clone()
    finally:
        maker.close()


def levels(a: Tensor, b: Tensor) -> Tensor:
    std = torch.tensor(TrainRecipe().std).view(3, 1, 1)
    return ((a.double() - b.double()) * std * 255).abs()


GRAPH = {
    "any filter": TrainRecipe(input_size=48, interpolation="random"),
    "nearest": TrainRecipe(input_size=48, interpolation="nearest"),
    "lanczos": TrainRecipe(input_size=48, interpolation="lanczos"),
    "eval, lanczos": EvalRecipe(input_size=40, interpolation="lanczos"),
    "rkrc": TrainRecipe(input_size=(40, 56), crop="rkrc", scale=(0.8, 1), ratio=(0.5, 2), vflip=0.5),
    "rkrr": TrainRecipe(input_size=48, crop="rkrr", scale=(0.8, 1), ratio=(0.7, 1.4), color_twist=(0.4,) * 4),
    "crop": TrainRecipe(input_size=48, crop="random", crop_padding=(9, 4, 2, 30), crop_fill=(9, 200, 80)),
    "crop of a reflection": TrainRecipe(input_size=64, crop="random", crop_padding=20, crop_padding_mode="reflect"),
    "crop behind a resize": TrainRecipe(input_size=48, crop="random", resize_size=56, interpolation="bicubic"),
    "erasing to a colour": TrainRecipe(input_size=48, re_prob=1.0, re_value=(0.0, 0.5, 1.0)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("roi_decode", [False, True])
@pytest.mark.parametrize("name", GRAPH if dali_available()[0] else [])
def test_the_graph_of_dali_shows_the_same(name: str, roi_decode: bool, channels_last: bool) -> None:
    """DALI resizes its own way: another place or colour would be tens."""
    options = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    found = made(GRAPH[name], "dali", True, roi_decode=roi_decode, **options)
    expected = made(GRAPH[name], "reference-tensor")
    assert levels(found, expected).mean() < 0.4


def test_a_batch_is_reflected_as_torchvision_reflects() -> None:
    recipe = TrainRecipe(input_size=64, crop="random", crop_padding=20, crop_padding_mode="reflect", vflip=0.5)
    plan = Plan(pictures(), recipe, batch_size=9, seed=1).batch(0, 0)
    images = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8)
    with NoHostReads():
        found = reflect_(images.clone(), plan)
    for row in range(9):
        image = F.vertical_flip(images[row]) if plan.vflip[row] else images[row]
        image = F.horizontal_flip(image) if plan.hflip[row] else image
        (top, left), (height, width) = -plan.window[row].clip(max=0), plan.resize[row]
        inside = image[:, top : top + height, left : left + width]
        below, right = 64 - top - inside.shape[1], 64 - left - inside.shape[2]
        expected = F.pad(inside, [int(left), int(top), int(right), int(below)], padding_mode="reflect")
        expected = F.horizontal_flip(expected) if plan.hflip[row] else expected
        assert torch.equal(found[row], F.vertical_flip(expected) if plan.vflip[row] else expected)


@pytest.mark.parametrize("engine", ["torchvision", "reference", *(["dali"] if dali_available()[0] else [])])
def test_erasing_before_normalize_is_torchvisions(engine: str) -> None:
    value = (0.0, 0.25, 1.0)
    recipe = TrainRecipe(input_size=48, re_prob=1.0, re_value=value)
    plan = Plan(pictures(), recipe, batch_size=9, seed=3).batch(0, 0)
    assert plan.erase is not None
    plain = made(recipe.replace(re_prob=0.0, re_value=None), engine)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    for row, image in enumerate(plain):
        pixels = image * std + mean
        for top, left, height, width in plan.erase[row].tolist():
            pixels = F.erase(pixels, top, left, height, width, torch.tensor(value).view(3, 1, 1))
        assert levels(made(recipe, engine)[row], (pixels - mean) / std).max() < 1e-2


def test_what_is_explained_is_the_plan() -> None:
    fields: dict[str, Any] = {"crop": "random", "crop_padding": 9, "crop_padding_mode": "reflect"}
    recipe = TrainRecipe(input_size=64, re_prob=1, re_value=0, **fields)
    rows = explain(Plan(pictures(), recipe.replace(interpolation="random"), batch_size=9, seed=3), 0, 0)
    assert {row["interpolation"] for row in rows} == {"bilinear", "bicubic"}
    assert rows[0]["crop_beside"] == "reflect"
    assert rows[0]["erase_value"] == pytest.approx([-m / s for m, s in zip(recipe.mean, recipe.std, strict=True)])
    again = to_plan(rows[0])
    assert (again.window_mode, again.erase_value) == ("reflect", recipe.erase_value)
    for name in ("crop_beside", "erase_value"):
        del rows[0][name]  # as it was written before
    assert (to_plan(rows[0]).window_mode, to_plan(rows[0]).erase_value) == ("constant", (0.0, 0.0, 0.0))


def test_timms_scale_is_an_area() -> None:
    """The arithmetic of the zoom, by hand: half of the area is 1 / sqrt(0.5) times the size."""
    plan = drawn(TrainRecipe(crop="rkrc", scale=(0.5, 0.5), ratio=(1, 1)), 300, 460, 1000)
    assert {tuple(r) for r in plan.resize.tolist()} == {
        tuple(round(x * f / (300 / 224)) for x in (300, 460)) for f in (1, 1 / math.sqrt(0.5))
    }
