"""Every backend against the reference: torchvision's and timm's own functions, given the same plan."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.ops import OPS, Op
from dali_imagenet.policy import Apply, Choice, Jitter, Shuffled, TablePolicy
from dali_imagenet.presets import PRESETS

PICTURES = Path(__file__).parent / "data" / "pictures"
BACKENDS = ["torchvision", *(["dali"] if dali_available()[0] else [])]

EVAL = {
    "eval": EvalRecipe(input_size=40),
    "eval, bicubic": EvalRecipe(input_size=40, interpolation="bicubic"),
    "eval, nearest": EvalRecipe(input_size=40, interpolation="nearest"),
    "eval, lanczos": EvalRecipe(input_size=40, interpolation="lanczos"),
    "eval, squash": EvalRecipe(input_size=40, crop_pct=0.95, crop_mode="squash"),
    "eval, larger than the images": EvalRecipe(input_size=130, resize_size=131),
    "eval, oblong": EvalRecipe(input_size=(36, 56), interpolation="bicubic"),
    "eval, oblong, short side": EvalRecipe(input_size=(36, 56), resize_size=60),
}
ROUGH = (0.4, 0.4, 0.4, 0.1)
PROGRAM = (
    (Op.ROTATE, 0.7, (-20, 20), False, 2),
    "randaugment",
    Apply(parts=(Jitter(brightness=(0.5, 1.5), hue=(-0.1, 0.2)), (Op.GRAYSCALE, 0.2)), probability=0.8),
    Shuffled(parts=((Op.INVERT, 0.5), Choice(parts=((Op.SOLARIZE, 1, (0, 255)), (Op.PIL_EQUALIZE,))))),
    (Op.GAUSSIAN_BLUR, 0.5, (0.1, 2.0), False, 7),
)
AFFINE = tuple(
    Apply(parts=((Op.AFFINE_X, 1, (-9, 9)), (Op.AFFINE_SCALE, 0.5, (0.5, 2)), (Op.AFFINE_SHEAR_Y, 1, (-20, 20)), warp))
    for warp in ((Op.AFFINE, 1, (-50, 50)), (Op.PIL_AFFINE, 1, (-50, 50), False, 3))
)
TRAIN = {
    **{name: TrainRecipe(**{**PRESETS[name].fields, "input_size": 48}) for name in PRESETS},
    "oblong": TrainRecipe.strong(input_size=(40, 64), mixup_mode="elem", re_prob=0.8),
    "oblong, by timm": TrainRecipe.deit(input_size=(56, 32)),
    "mixing by pair": TrainRecipe(input_size=48, mixup_alpha=0.8, cutmix_alpha=1.0, mixup_mode="pair"),
    "cutmix minmax": TrainRecipe(input_size=48, cutmix_minmax=(0.2, 0.8), mixup_mode="elem"),
    "color_jitter": TrainRecipe(input_size=48, color_jitter=ROUGH, vflip=0.5),
    "jitter behind the policy": TrainRecipe.deit3(input_size=48),
    "program": TrainRecipe(input_size=48, program=PROGRAM),
    "program with augmix": TrainRecipe(input_size=48, program=((Op.INVERT, 0.3), "augmix", (Op.EQUALIZE, 0.5))),
    "affine": TrainRecipe(input_size=48, program=AFFINE),
    "any filter": TrainRecipe(input_size=48, interpolation="random", vflip=0.5),
    "nearest": TrainRecipe(input_size=48, interpolation="nearest", crop="random", resize_size=60),
    "lanczos": TrainRecipe(input_size=48, interpolation="lanczos"),
    "rkrc": TrainRecipe(input_size=(40, 56), crop="rkrc", scale=(0.8, 1), ratio=(0.5, 2), vflip=0.5),
    "rkrr": TrainRecipe.strong(input_size=48, crop="rkrr", scale=(0.8, 1), ratio=(0.7, 1.4)),
    "crop": TrainRecipe.strong(input_size=48, crop="random", crop_padding=(9, 4, 2, 30), crop_fill=(9, 200, 80)),
    "crop and both flips": TrainRecipe(
        input_size=48, vflip=0.5, crop="random", crop_padding=(9, 4, 2, 30), crop_fill=7
    ),
    "crop of a reflection": TrainRecipe(
        input_size=64, vflip=0.5, crop="random", crop_padding=20, crop_padding_mode="reflect"
    ),
    "crop of a smaller image": TrainRecipe(input_size=160, crop="random"),
    "the middle": TrainRecipe(input_size=(48, 96), crop="center", resize_size=60, crop_fill=99),
    "squashed": TrainRecipe(input_size=48, crop="center", resize_size=(56, 56), interpolation="bicubic"),
    "crop behind a resize": TrainRecipe(input_size=48, crop="random", resize_size=(56, 64), interpolation="bicubic"),
    "erasing to a colour": TrainRecipe(input_size=48, re_prob=1.0, re_value=(0.0, 0.5, 1.0)),
    "filters": TrainRecipe(input_size=48, grayscale_prob=0.5, gaussian_blur_prob=0.7, gaussian_blur_kernel=7),
    "noise": TrainRecipe(input_size=48, re_prob=1.0, re_mode="rand", re_count=(1, 3)),
    **{
        name: TrainRecipe(input_size=48, auto_augment=name)
        for name in ("autoaugment", "augmix", "augmix-m5-w4-d2", "augmix-m3-b1", "v0", "rand-m9-mstd101")
    },
}
# grey levels of 255 between uint8 tensors by torchvision and ours, mean over all values of a batch
BOUND = 0.05


def batches(recipe: Any, backend: Any, **options: Any) -> list[tuple[Tensor, Tensor]]:
    index = SampleIndex.from_folder(PICTURES, progress=False, cache=False)
    settings: dict[str, Any] = {"batch_size": 4, "seed": 3, "device": "cpu", "num_workers": 0, "drop_last": True}
    with create_loader(index, recipe, backend=backend, **(settings | options)) as loader:
        found = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found += [(images.clone(), targets) for images, targets in loader]
    return found


def levels(a: Tensor, b: Tensor) -> Tensor:
    """Difference of normalized images in grey levels."""
    std = torch.tensor(TrainRecipe().std).view(3, 1, 1)
    return ((a.double() - b.double()) * std * 255).abs()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*EVAL, *TRAIN])
def test_backends_agree_with_the_reference_on_tensors(name: str, backend: str) -> None:
    recipe = (EVAL | TRAIN)[name]
    for (images, targets), (expected, labels) in zip(
        batches(recipe, backend), batches(recipe, "reference-tensor"), strict=True
    ):
        assert images.shape[2:] == recipe.size_at(0)
        assert torch.equal(targets, labels)
        assert float(levels(images, expected).mean()) < BOUND


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EVAL)
def test_evaluation_is_torchvisions_on_pil(name: str, backend: str) -> None:
    for (images, targets), (expected, labels) in zip(
        batches(EVAL[name], backend), batches(EVAL[name], "reference"), strict=True
    ):
        assert torch.equal(targets, labels)
        assert float(levels(images, expected).mean()) < 0.2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["classic", "strong"])
def test_training_is_close_to_torchvision_on_pil(name: str, backend: str) -> None:
    for (images, _), (expected, _) in zip(
        batches(TRAIN[name], backend), batches(TRAIN[name], "reference"), strict=True
    ):
        assert float(levels(images, expected).mean()) < 0.5


@pytest.mark.parametrize("op", [op for op in Op if op != Op.IDENTITY], ids=lambda op: op.name)
def test_the_reference_has_every_operation(op: Op) -> None:
    aux = OPS[op].default_aux
    arg = {"SOLARIZE_ADD": 50.0, "SOLARIZE": 99.0, "POSTERIZE": 3.0, "TRANSLATE_X": 5.0, "TRANSLATE_Y": 5.0}
    step = (op, 1.0, arg.get(op.name.removeprefix("PIL_"), 0.4), False, 5 if aux is None else aux)
    recipe = TrainRecipe(input_size=32, auto_augment=TablePolicy(sub_policies=[[step]]))
    ours, plain = batches(recipe, "torchvision"), batches(recipe.replace(auto_augment=None), "torchvision")
    for (a, _), (b, _), (c, _) in zip(ours, batches(recipe, "reference-tensor"), plain, strict=True):
        assert float(levels(a, b).mean()) < 0.1
        assert not torch.equal(b, c)


def test_the_reference_touches_no_global_generator() -> None:
    before = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    batches(TRAIN["oblong"], "reference")
    assert random.getstate() == before[0]
    assert repr(np.random.get_state()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_broken_image_is_the_reference_s_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for picture in (PICTURES / "apple").iterdir():
            (tmp_path / name / picture.name).write_bytes(picture.read_bytes())
    index = SampleIndex.from_folder(tmp_path, progress=False, cache=False)
    Path(index.path(1)).write_bytes(b"no image")
    recipe = EvalRecipe(input_size=32)
    options: dict[str, Any] = {"batch_size": 6, "device": "cpu", "on_error": "replace", "max_broken": 1.0}
    found = []
    for backend in ("torchvision", "reference-tensor"):
        with create_loader(index, recipe, backend=backend, num_workers=0, **options) as loader:
            [(images, targets)] = list(loader)
            assert list(loader.failures) == [index.path(1)]
            found.append((images, targets))
    assert torch.equal(found[0][1], found[1][1])
    assert float(levels(found[0][0], found[1][0]).mean()) < 0.1
