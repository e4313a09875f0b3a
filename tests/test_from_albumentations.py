"""Recipes from Albumentations' pipelines: the same distribution, evaluation as near as OpenCV is, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, UntranslatableError
from dali_imagenet.integrations.transforms import translate
from tests.pipelines import alike, copies_in, levels_apart, ours, picture, theirs

A: Any = pytest.importorskip("albumentations")
ToTensorV2: Any = pytest.importorskip("albumentations.pytorch").ToTensorV2

SIDE = 48
END = [A.Normalize(), ToTensorV2()]
RRC = A.RandomResizedCrop((SIDE, SIDE), scale=(0.1, 0.3))  # of fewer pixels: there OpenCV's filter is the same


def pipeline(*steps: Any, crop: Any = None) -> Any:
    # of 83 x 61 pixels, so that the middle is the same: OpenCV rounds it down
    return A.Compose([crop or A.CenterCrop(49, 49), *steps, *END], seed=0)


def called(transform: Any) -> Callable[[Any], Any]:
    return lambda image: transform(image=np.asarray(image))["image"]


TRAIN = {
    "classic": pipeline(A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.2), crop=RRC),
    "crop": pipeline(crop=A.RandomCrop(40, 44)),
    "jitter": pipeline(A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (0, 0), p=0.8)),
    "hue": pipeline(A.ColorJitter((1, 1), (1, 1), (1, 1), (-0.3, 0.3), p=1)),
    "contrast": pipeline(A.RandomBrightnessContrast(0, 0.5, p=0.5)),
    "points": pipeline(A.InvertImg(p=0.3), A.Solarize((0.4, 0.4), p=0.3), A.Posterize(2, p=0.3)),
    "gray, blurred": pipeline(
        A.RandomBrightnessContrast(0, 0.4, p=1), A.ToGray(p=0.5), A.GaussianBlur((5, 5), (0.5, 2), p=0.5)
    ),
    "turned": pipeline(A.Rotate((10, 50), p=0.7)),
    "turned, shifted, scaled": pipeline(
        A.Affine(scale=(0.6, 1.3), translate_percent=(-0.2, 0.2), rotate=(-40, 10), keep_ratio=True, fill=200, p=0.9)
    ),
    "one of": pipeline(
        A.OneOf([A.InvertImg(p=0.5), A.NoOp(p=1), A.Sequential([A.ToGray(p=0.5), A.Solarize(p=1)], p=0.1)], p=0.8)
    ),
    "as on Kaggle": pipeline(
        A.HorizontalFlip(p=0.5),
        A.ShiftScaleRotate(shift_limit=0.1, scale_limit=0, rotate_limit=20, p=0.5),
        A.OneOf([A.GaussianBlur((3, 3), p=1), A.ColorJitter(hue=0, p=1)], p=0.5),
        crop=RRC,
    ),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return copies_in(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("name", TRAIN)
def test_training_has_the_distribution_of_the_original(name: str, copies: SampleIndex) -> None:
    recipe = TrainRecipe.from_transforms(TRAIN[name])
    assert alike(ours(copies, recipe), theirs(called(TRAIN[name]))) > 1e-4


@pytest.mark.parametrize(("a", "b"), [("turned", "turned, shifted, scaled"), ("points", "one of"), ("hue", "jitter")])
def test_other_pipelines_have_other_distributions(a: str, b: str, copies: SampleIndex) -> None:
    assert alike(ours(copies, TrainRecipe.from_transforms(TRAIN[a])), theirs(called(TRAIN[b]))) < 1e-4


@pytest.mark.parametrize(
    ("steps", "apart"),
    [
        ([A.SmallestMaxSize(128), A.CenterCrop(112, 112)], 1.0),  # larger, where the filters are the same
        ([A.Resize(112, 112, interpolation=2)], 1.0),
        ([A.SmallestMaxSize(40), A.CenterCrop(32, 32)], 12.0),  # smaller: how far apart, the docs say
    ],
)
def test_evaluation_is_as_near_as_opencv_is(steps: list[Any], apart: float) -> None:
    transform = A.Compose([*steps, *END])
    assert levels_apart(EvalRecipe.from_transforms(transform), called(transform)) < apart


def test_equalized_images_are_near() -> None:
    crop = A.SmallestMaxSize(61)  # of one picture, as it is
    image = np.array(picture())
    [row] = [row for row in translate(TrainRecipe, pipeline(A.Equalize("pil", p=1))).rows if "Equalize" in row.yours]
    assert not row.exact
    assert "EQUALIZE" in row.ours
    theirs = torch.from_numpy(A.Compose([crop, A.Equalize("pil", p=1)])(image=image)["image"])
    apart = (F.equalize(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).int() - theirs.int()).abs()
    assert 0 < int(apart.max()) <= 8


def test_rows_say_what_is_not_exact() -> None:
    found = translate(TrainRecipe, TRAIN["as on Kaggle"])
    assert [row.exact for row in found.rows] == [False, True, False, True, True, True]
    assert "does not antialias" in found.rows[0].note
    assert "1/32" in found.rows[2].note
    assert found.rows[3].yours.startswith("OneOf([")


@pytest.mark.parametrize(
    ("steps", "what", "message"),
    [
        ([A.CoarseDropout()], "CoarseDropout", "pass re_prob="),
        ([A.GridDistortion()], "GridDistortion", "there is no counterpart"),
        ([A.Rotate(border_mode=1)], "Rotate", "BORDER_CONSTANT"),
        ([A.Rotate(crop_border=True)], "Rotate", "crop_border"),
        ([A.ShiftScaleRotate()], "ShiftScaleRotate", "keep_ratio=True"),
        ([A.Affine(shear=(-9, 9))], "Affine", "leave shear out"),
        ([A.Affine(translate_px=(0, 9))], "Affine", "moves by pixels"),
        ([A.RandomBrightnessContrast()], "RandomBrightnessContrast", "adds a brightness"),
        ([A.ToGray(method="max")], "ToGray", "weighted average"),
        ([A.Equalize()], "Equalize", "mode='pil'"),
        ([A.GaussianBlur((3, 7))], "GaussianBlur", "one blur_limit"),
        ([A.Solarize((0.1, 0.5))], "Solarize", "one threshold_range"),
        ([A.Posterize((1, 4))], "Posterize", "one num_bits"),
        ([A.OneOf([A.HorizontalFlip(), A.ToGray()])], "OneOf", "cannot be drawn within another"),
        ([A.CenterCrop(9, 9)], "CenterCrop", "there is a crop already"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_line(steps: list[Any], what: str, message: str) -> None:
    with pytest.raises(UntranslatableError, match=message) as caught:
        TrainRecipe.from_transforms(pipeline(*steps))
    assert caught.value.what.startswith(what)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.Compose([A.Resize(9, 9, p=0.5), *END]), "applied to some images only"),
        (A.Compose([A.Resize(9, 9), *END], p=0.5), "give it p=1"),
        (A.Compose([A.Resize(9, 9, interpolation=3), *END]), "averages areas"),
        (A.Compose([A.SmallestMaxSize([8, 9]), *END]), "one max_size"),
        (A.Compose([A.Resize(9, 9), A.Normalize(normalization="image")]), "give it mean, std"),
        (A.Compose([A.Resize(9, 9), ToTensorV2()]), "8-bit values"),
        (A.Compose([A.RandomCrop(9, 9, pad_if_needed=True), *END]), "pad_if_needed=False"),
    ],
)
def test_pipelines_of_no_one_size_or_value_are_refused(transform: Any, message: str) -> None:
    with pytest.raises(UntranslatableError, match=message):
        TrainRecipe.from_transforms(transform)
