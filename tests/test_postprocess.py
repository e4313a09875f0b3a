"""The batch stage: image by image and batched against each other, timm, torchvision, and what torchvision draws."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import mixup as timm_mixup
from timm.data.auto_augment import AugMixAugment
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dali_imagenet import Plan, SampleIndex, TrainRecipe
from dali_imagenet.ops import Op
from dali_imagenet.plan.batch_plan import BatchPlan, MixPlan
from dali_imagenet.policy import AugMix, AugMixPlan, OpPlan, TimmAugMix
from dali_imagenet.transforms import normalize_erase
from dali_imagenet.transforms.pixel_ops import Workspace, apply_ops_image
from dali_imagenet.transforms.pixel_ops_batched import apply_ops_batch
from dali_imagenet.transforms.postprocess import Postprocess, mix_, soft_targets, zero_padding_
from tests.helpers import DTYPES, NoHostReads, load, photo

CLASSES = 7
UNSCALED: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(params=["one by one", "batched"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of working on a batch; the batched one, which GPUs take, runs on CPU tensors here."""
    if request.param == "batched":
        monkeypatch.setattr(normalize_erase, "per_image", lambda images: False)
    return str(request.param)


def plan_of(recipe: TrainRecipe, rows: int, step: int = 0) -> BatchPlan:
    index = SampleIndex.from_arrays(np.arange(4 * rows) % CLASSES, 300, 400)
    return Plan(index, recipe, batch_size=rows, seed=5).batch(1, step)


def photos(rows: int, height: int, width: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.stack([F.pil_to_tensor(photo(rng, height, width)) for _ in range(rows)])


# ---- mixing ----


MIXING: dict[str, dict[str, Any]] = {
    "mixup": {"mixup_alpha": 0.8},
    "cutmix": {"cutmix_alpha": 1.0},
    "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "sometimes": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mixup_prob": 0.5},
    "minmax": {"cutmix_minmax": (0.2, 0.8)},
    "uncorrected": {"cutmix_alpha": 1.0, "correct_lam": False},
}


class Driven(timm_mixup.Mixup):
    """timm's Mixup with our draws."""

    def __init__(self, recipe: TrainRecipe, mix: MixPlan, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(recipe.mixup_alpha, recipe.cutmix_alpha, recipe.cutmix_minmax, mode=recipe.mixup_mode,
                         correct_lam=recipe.correct_lam, label_smoothing=0.1, num_classes=CLASSES)  # fmt: skip
        self.mix = mix
        rows = {"batch": 1, "pair": len(mix.lam) // 2, "elem": len(mix.lam)}[recipe.mixup_mode]
        boxes = iter(mix.box[i] for i in range(rows) if mix.use_cutmix[i] and mix.lam[i] != 1)
        for name in ("rand_bbox", "rand_bbox_minmax"):
            monkeypatch.setattr(timm_mixup, name, lambda *_, **__: next(boxes))

    def _params_per_batch(self) -> tuple[float, bool]:
        return float(self.mix.lam[0]), bool(self.mix.use_cutmix[0])

    def _params_per_elem(self, batch_size: int) -> tuple[Any, Any]:
        return self.mix.lam[:batch_size].copy(), self.mix.use_cutmix[:batch_size]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", MIXING)
def test_mixing_equals_timm(
    kind: str, mode: Any, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(input_size=21, mixup_mode=mode, label_smoothing=0.1, **MIXING[kind])
    cuts = 0
    for step in range(4):
        plan = plan_of(recipe, 6, step)
        assert plan.mix is not None
        cuts += int(plan.mix.use_cutmix.sum())
        original = torch.randn(6, 3, 21, 21, generator=torch.Generator().manual_seed(step)).to(dtype)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            images = original.clone().contiguous(memory_format=memory_format)
            strides, place = images.stride(), images.data_ptr()
            mix_(images, plan.mix)
            assert (images.stride(), images.data_ptr()) == (strides, place)
            timm = Driven(recipe, plan.mix, monkeypatch)
            expected, expected_targets = timm(original.clone(), torch.from_numpy(plan.label))
            if way == "batched":
                assert torch.equal(images, expected)
            else:  # the sum of two products is rounded once less
                ulp = torch.finfo(dtype).eps
                torch.testing.assert_close(images, expected, atol=4 * ulp, rtol=ulp)
        targets = torch.from_numpy(soft_targets(plan.label, plan.mix.lam, CLASSES, 0.1))
        # timm keeps lambda in the images' type
        torch.testing.assert_close(targets, expected_targets.float(), atol=torch.finfo(dtype).eps, rtol=0)
        lam = torch.from_numpy(plan.mix.lam)[:, None]
        exact = timm_mixup.mixup_target(torch.from_numpy(plan.label), CLASSES, lam, 0.1)
        torch.testing.assert_close(targets, exact, atol=1e-6, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(6), atol=1e-6, rtol=0)
    assert (cuts > 0) == (kind != "mixup")


def test_mixing_of_any_shape(way: str) -> None:
    """Oblong images and an odd batch, row by row against the definition; the middle row stays as it is."""
    original = torch.randn(5, 3, 9, 16)
    box = np.zeros((5, 4), np.int32)
    box[[1, 2]] = [[2, 9, 10, 16], [0, 9, 0, 16]]
    lam = np.array([0.3, 0.5, 0.4, 1.0, 0.9], np.float32)
    mix = MixPlan(lam, np.array([False, True, True, False, False]), box)
    images = original.clone()
    mix_(images, mix)
    expected = original.clone()
    expected[0] = 0.3 * original[0] + 0.7 * original[4]
    expected[4] = 0.9 * original[4] + 0.1 * original[0]
    expected[1, :, 2:9, 10:16] = original[3, :, 2:9, 10:16]
    torch.testing.assert_close(images, expected)
    assert torch.equal(images[2:4], original[2:4])


def test_a_batch_that_is_not_mixed_is_not_touched(way: str) -> None:
    images = torch.full((4, 3, 5, 5), torch.nan)
    images[2:] = 1.0
    nothing = MixPlan(np.ones(4, np.float32), np.zeros(4, np.bool_), np.zeros((4, 4), np.int32))
    mix_(images, nothing)
    assert bool(images[:2].isnan().all())
    assert bool((images[2:] == 1).all())


def test_odd_batches_are_refused_by_the_plan() -> None:
    index = SampleIndex.from_arrays(np.zeros(10, np.int64), 30, 30)
    with pytest.raises(ValueError, match="must be even"):
        Plan(index, TrainRecipe.strong(), batch_size=5)


def test_targets() -> None:
    labels = np.array([3, 1, 1, 3], np.int64)  # row 0 meets row 3, of the same class
    lam = np.array([0.25, 0.5, 0.75, 1.0], np.float32)
    mixed = soft_targets(labels, lam, CLASSES, 0.0)
    assert np.array_equal(mixed.argmax(1), labels)
    assert (mixed.max(1) == 1).all()  # an assignment in place of the sum would lose the own share
    assert mixed.dtype == np.float32
    smooth = soft_targets(labels, None, CLASSES, 0.1)
    assert smooth[0, 3] == pytest.approx(0.9 + 0.1 / CLASSES)
    assert smooth[0, 0] == pytest.approx(0.1 / CLASSES)
    assert smooth.sum(1) == pytest.approx(np.ones(4))


@pytest.mark.parametrize("lam", [None, np.full(4, 0.5, np.float32)])
def test_padding_has_no_target(lam: Any) -> None:
    labels = np.array([2, -100, 5, 0], np.int64)
    targets = soft_targets(labels, lam, CLASSES, 0.1)
    assert (targets[1] == 0).all()
    assert targets[[0, 3]].sum(1) == pytest.approx(np.ones(2))
    assert (targets >= 0).all()


def test_multi_label_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="one class an image"):
        soft_targets(np.zeros((4, CLASSES), np.int64), None, CLASSES, 0.1)
    with pytest.raises(ValueError, match="must be 28 integers, or one for all images"):
        SampleIndex.from_arrays(np.zeros((4, CLASSES), np.int64), 30, 30)


# ---- bilinear warps ----


@pytest.mark.parametrize("fill", [None, (124, 116, 104)])
@pytest.mark.parametrize("size", [(33, 20), (2, 5), (1, 1)])
def test_bilinear_warps_equal_torchvision(size: tuple[int, int], fill: Any) -> None:
    shear = float(np.float32(0.3))
    tilt = math.degrees(math.atan(shear))
    cases: list[tuple[Op, float, dict[str, Any]]] = [
        (Op.SHEAR_X, shear, {"shear": [tilt, 0.0], "center": [0, 0]}),
        (Op.SHEAR_Y, -shear, {"shear": [0.0, -tilt], "center": [0, 0]}),
        (Op.TRANSLATE_X, -4.0, {"translate": [-4, 0]}),
        (Op.TRANSLATE_Y, 40.0, {"translate": [0, 40]}),
        (Op.ROTATE, 30.0, {"angle": -30.0}),  # rotate turns the other way
        (Op.ROTATE, 180.0, {"angle": 180.0}),
    ]
    images = photos(1, *size).expand(len(cases), -1, -1, -1)
    column = np.array([[op] for op, _, _ in cases], np.int16), np.array([[a] for _, a, _ in cases], np.float32)
    batch = apply_ops_batch(images, *column, np.full((len(cases), 1), 2, np.int16), fill)
    for row, (op, arg, changed) in enumerate(cases):
        fixed: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        colour = fill and [float(f) for f in fill]
        expected = F.affine(images[0], **(fixed | changed), fill=colour, interpolation=v2.InterpolationMode.BILINEAR)
        single = apply_ops_image(images[0], [op], [arg], [2], fill)
        assert torch.equal(single, batch[row])
        difference = (single.int() - expected.int()).abs()
        assert int(difference.max()) <= 1, op  # where a value lies on a half and the CPU's matrix product fuses
        assert float((difference > 0).float().mean()) <= 1e-3
    with pytest.raises(ValueError, match="bilinear"):
        apply_ops_image(images[0], [Op.ROTATE], [1.0], [3])


# ---- AugMix ----


def augmix_draw(policy: AugMix | TimmAugMix, rows: int, size: tuple[int, int]) -> AugMixPlan:
    u = np.random.default_rng(3).random((rows, policy.num_uniforms))
    return policy.draw(u, size)


def executed(images: Tensor, part: AugMixPlan, fill: Any = None) -> Tensor:
    """One part of a program by the batch stage; values as they are."""
    size = int(images.shape[-1])
    recipe = TrainRecipe(input_size=size, auto_augment=AugMix() if fill is None else TimmAugMix(fill=fill), **UNSCALED)
    plan = dataclasses.replace(plan_of(recipe, len(images)), ops=(part,))
    return Postprocess().finish_batch(images, plan).mul(255).round().to(torch.uint8)


class DrivenAugMix(v2.AugMix):
    """torchvision's AugMix with the draws of one row."""

    def __init__(self, part: AugMixPlan, row: int) -> None:
        super().__init__(mixture_width=part.op.shape[1], chain_depth=part.op.shape[2])
        m = float(part.m[row])
        self.dirichlet = iter([torch.tensor([[1 - m, m]]), torch.from_numpy(part.weights[row])[None]])
        self.sampled_index = iter(zip(part.op[row].flat, part.arg[row].flat, strict=True))

    def _sample_dirichlet(self, params: Tensor) -> Tensor:
        return next(self.dirichlet)

    def _apply_image_or_video_transform(self, image: Any, *_: Any, **options: Any) -> Any:
        op, arg = next(self.sampled_index)
        name, magnitude = Op(op).name.title().replace("_", ""), float(arg)
        if op == Op.SOLARIZE:
            return F.solarize(image, magnitude)
        if op in (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS):
            magnitude -= 1.0
        return super()._apply_image_or_video_transform(image, name, magnitude, **options)


@pytest.mark.parametrize("size", [(32, 32), (19, 28)])
def test_augmix_equals_torchvision(size: tuple[int, int], way: str) -> None:
    images = photos(24, *size)
    part = augmix_draw(AugMix(severity=9), 24, size)
    assert set(part.aux[(part.op >= Op.SHEAR_X) & (part.op <= Op.ROTATE)].tolist()) == {2}  # v2's default: bilinear
    result = executed(images, part)
    expected = torch.stack([DrivenAugMix(part, row)(image) for row, image in enumerate(images)])
    difference = (result.int() - expected.int()).abs()
    # Truncated: a value that lies on a whole number may fall to either side.
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) <= 2e-3


def timm_augmix(image: Tensor, part: AugMixPlan, row: int, fill: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """timm's own mixing of one image; part holds the weights before blending. Its operations are tested elsewhere."""
    triples = zip(part.op[row].flat, part.arg[row].flat, part.aux[row].flat, strict=True)

    def apply(pil: Image.Image, op: int, arg: float, aux: int) -> Any:
        return F.to_pil_image(apply_ops_image(F.pil_to_tensor(pil), [op], [arg], [aux], fill))

    def chains() -> Iterator[list[Any]]:
        for _ in range(part.op.shape[1]):
            chain = [next(triples) for _ in range(part.op.shape[2])]
            yield [lambda pil, o=o, a=a, x=x: apply(pil, o, a, x) for o, a, x in chain]

    drawn = chains()
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "choice", lambda *_, **__: next(drawn))
        theirs = AugMixAugment([], width=part.op.shape[1], depth=part.op.shape[2])
        mix = theirs._apply_basic if part.mode == "timm" else theirs._apply_blended
        mixed: Tensor = F.pil_to_tensor(mix(F.to_pil_image(image), part.weights[row], part.m[row]))
        return mixed


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("interpolation", ["nearest", "bicubic"])
def test_augmix_equals_timm(blended: bool, interpolation: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(24, 32, 32)
    fill = (124, 116, 104)
    policy = TimmAugMix(magnitude=6, interpolation=interpolation, fill=fill)
    drawn = augmix_draw(policy, 24, (32, 32))
    part = augmix_draw(dataclasses.replace(policy, blended=blended), 24, (32, 32))
    reference = drawn._replace(mode=part.mode)
    result = executed(images, part, fill)
    expected = torch.stack([timm_augmix(i, reference, r, fill, monkeypatch) for r, i in enumerate(images)])
    difference = (result.int() - expected.int()).abs().float()
    if way == "one by one" or interpolation == "nearest":
        assert int(difference.max()) == 0
    else:  # the batched bicubic warp may be off by 1, which a table that follows can spread
        assert float(difference.mean()) <= 0.02
        assert float((difference > 1).float().mean()) <= 0.005


# ---- both ways are one contract ----


RECIPES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "randaugment": {"auto_augment": "randaugment"},
    "trivialaugment": {"auto_augment": "trivialaugment"},
    "autoaugment": {"auto_augment": "autoaugment"},
    "jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.1), "auto_augment": "randaugment"},
    "filters": {"grayscale_prob": 0.5, "gaussian_blur_prob": 0.5, "gaussian_blur_kernel": 9},
    "several parts": {
        "color_jitter": (0.3, 0.3, 0.3, 0.0),
        "auto_augment": "augmix",
        "grayscale_prob": 0.5,
        "gaussian_blur_prob": 0.5,
        "gaussian_blur_kernel": 5,
    },
    "timm": {"auto_augment": "rand-m9-mstd0.5-inc1"},
    "timm augmix": {"auto_augment": "augmix-m5-w3", "grayscale_prob": 0.5},
    "3-augment": {"auto_augment": "3-augment"},
}


def alone(image: Tensor, plan: BatchPlan, row: int, fill: Any) -> Tensor:
    """A plan's program on one image, every intermediate result in memory of its own."""
    for part in plan.ops:
        if isinstance(part, OpPlan):
            image = apply_ops_image(image, part.op[row], part.arg[row], part.aux[row], fill, Workspace()).clone()
        else:
            triples = zip(part.op[row], part.arg[row], part.aux[row], strict=True)
            chains = [apply_ops_image(image, o, a, x, fill, Workspace()).clone() for o, a, x in triples]
            m, weights = torch.tensor(part.m[row]), torch.from_numpy(part.weights[row])
            shares = weights * m if part.mode == "torchvision" else weights
            mixed = sum((c.float() * w for c, w in zip(chains, shares, strict=True)), torch.zeros(image.shape))
            if part.mode == "torchvision":
                image = (image.float() * (1 - m) + mixed).to(torch.uint8)
            else:
                image = (image.float() + m * (mixed.floor() - image.float())).to(torch.uint8)
    return image


@pytest.mark.parametrize("size", [(24, 24), (21, 21), (17, 30)])
@pytest.mark.parametrize("name", RECIPES)
def test_programs(name: str, size: tuple[int, int], way: str) -> None:
    """Memory that is used again spoils nothing, and both ways give the same uint8."""
    recipe = TrainRecipe(input_size=size[0], **RECIPES[name], **UNSCALED)
    images = photos(16, *size)
    before = images.clone()
    plan = plan_of(recipe, 16)
    stage = Postprocess()
    result = stage.finish_batch(images, plan)
    assert torch.equal(images, before)
    assert result.data_ptr() != images.data_ptr()
    expected = torch.stack([alone(image, plan, row, plan.fill) for row, image in enumerate(images)])
    difference = (result.mul(255) - expected).abs()
    if way == "one by one" or "timm" not in name:
        # the order of AugMix's sums moves values on a whole number
        assert float((difference > 1e-3).float().mean()) <= (1e-3 if "augmix" in str(recipe.auto_augment) else 0)
        assert float(difference.max()) <= (1.001 if len(plan.ops) == 1 else 255)
    else:
        assert float(difference.mean()) <= 0.02
    if name != "nothing":
        assert not torch.equal(expected, images)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_finished_values(mode: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalized and erased: the same from finish_image, from finish_batch, and from the batched way."""
    recipe = TrainRecipe.strong(input_size=27, re_mode=mode, re_prob=1.0, re_count=(1, 3))
    plan = plan_of(recipe, 8)
    plan = dataclasses.replace(plan, source_index=np.where(np.arange(8) == 5, -1, plan.source_index))
    images = photos(8, 27, 27)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        stage = Postprocess(dtype=dtype, memory_format=memory_format)
        first = stage.finish_batch(images, plan)
        single = torch.empty(8, 3, 27, 27, dtype=dtype)
        for row in range(8):
            stage.finish_image(images[row], plan, row, single[row])
        single[5] = 0
        with monkeypatch.context() as patch:
            patch.setattr(normalize_erase, "per_image", lambda images: False)
            batched = stage.finish_batch(images, plan)
        for result in (first, batched):
            zero_padding_(result, plan)
            assert result.dtype == dtype
            assert result.is_contiguous(memory_format=memory_format)
            assert bool((result[5] == 0).all())
        assert torch.equal(first, single)
        torch.testing.assert_close(batched, first, atol=2e-6, rtol=torch.finfo(dtype).eps)
        assert plan.erase is not None
        top, left, height, width = plan.erase[0, 0].tolist()
        erased = first[0, :, top : top + height, left : left + width]
        if mode == "const":
            assert bool((erased == 0).all())
        elif (plan.erase[0, 1:, 2] == 0).all():
            assert (erased.flatten(1).std(1) > 0).all() == (mode == "pixel")


def test_what_the_image_stage_has_normalized_is_only_erased(way: str) -> None:
    recipe = TrainRecipe(input_size=16, re_prob=1.0)
    plan = plan_of(recipe, 4)
    images = torch.ones(4, 3, 16, 16)
    result = Postprocess().finish_batch(images, plan)
    assert result is images
    assert plan.erase is not None
    area = (plan.erase[:, 0, 2] * plan.erase[:, 0, 3]).tolist()
    assert (result == 0).all(1).sum(dim=(1, 2)).tolist() == area


def test_a_batch_of_one(way: str) -> None:
    recipe = TrainRecipe.advanced(input_size=25, mixup_alpha=0.0, cutmix_alpha=0.0)
    images = photos(1, 25, 25)
    result = Postprocess().finish_batch(images, plan_of(recipe, 1))
    assert result.shape == (1, 3, 25, 25)
    assert bool(result.isfinite().all())


# ---- nothing waits ----


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_batched_stage_never_waits(name: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalize_erase, "per_image", lambda images: False)
    recipe = TrainRecipe(input_size=24, **RECIPES[name], re_prob=0.5, re_mode=mode, mixup_alpha=0.8, cutmix_alpha=1.0,
                         mixup_mode="elem")  # fmt: skip
    plan = plan_of(recipe, 16)
    plan = dataclasses.replace(plan, source_index=np.where(np.arange(16) == 5, -1, plan.source_index))
    assert plan.mix is not None
    images = photos(16, 24, 24)
    stage = Postprocess(dtype=torch.float16)
    with NoHostReads():
        mix_(stage.finish_batch(images, plan), plan.mix)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_gives_the_same_without_waiting(name: str) -> None:
    recipe = TrainRecipe(input_size=64, **RECIPES[name], re_prob=0.5, re_mode="pixel", mixup_alpha=0.8,
                         cutmix_alpha=1.0, mixup_mode="elem")  # fmt: skip
    plan, images = plan_of(recipe, 32), photos(32, 64, 64)
    stage = Postprocess()

    def finished(pixels: Tensor) -> Tensor:
        result = stage.finish_batch(pixels, plan)
        assert plan.mix is not None
        mix_(result, plan.mix)
        return result

    there = images.cuda()
    finished(there)  # the first call may set up libraries, and copies the constants
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = finished(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float((result.cpu() - finished(images)).abs().mean()) < 0.02


# ---- what comes out, as a distribution ----


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 names of one image."""
    folder = tmp_path_factory.mktemp("copies") / "only"
    folder.mkdir()
    photo(np.random.default_rng(1), 96, 128).save(folder / "0000.png")
    for i in range(1, 1000):
        os.link(folder / "0000.png", folder / f"{i:04d}.png")
    return folder.parent


UNMIXED = TrainRecipe.strong(input_size=48, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0)


def test_copies_of_one_image_are_different_images(copies: Path) -> None:
    with load(copies, UNMIXED, batch_size=64) as loader:
        batches = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            batches.append(next(iter(loader))[0])
    for images in batches:
        assert len(torch.unique(images.flatten(1), dim=0)) == 64
    assert len(torch.unique(torch.cat(batches).flatten(1), dim=0)) == 128


def numbers(images: Tensor) -> dict[str, Any]:
    """Per image: mean, deviation, gradient energy of the normalized values, and the erased share."""
    across, down = images.diff(dim=3).square().mean((1, 2, 3)), images.diff(dim=2).square().mean((1, 2, 3))
    found = {
        "mean": images.mean((1, 2, 3)),
        "deviation": images.std((1, 2, 3)),
        "gradient": across + down,
        # no uint8 value normalizes to 0
        "erased": (images == 0).all(1).float().mean((1, 2)),
    }
    return {name: values.numpy() for name, values in found.items()}


def test_a_strong_recipe_has_torchvisions_distribution(copies: Path) -> None:
    jitter = (0.4, 0.4, 0.4, 0.1)
    recipe = UNMIXED.replace(color_twist=None, color_jitter=jitter)
    with load(copies, recipe, batch_size=100) as loader:
        ours = numbers(torch.cat([images for images, _ in loader]))
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(48, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(*jitter),
            v2.RandAugment(2, 9),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(recipe.mean, recipe.std),
            v2.RandomErasing(0.25, scale=(0.02, 0.33), ratio=(0.3, 1 / 0.3)),
        ]
    )
    image = F.pil_to_tensor(Image.open(copies / "only" / "0000.png"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = numbers(torch.stack([reference(image) for _ in range(1000)]))
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > 0.001, name
    assert 0.2 < (ours["erased"] > 0).mean() < 0.3
