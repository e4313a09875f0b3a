"""Recipes from other people's transforms: the same distribution, the same evaluation, and what is refused."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import timm.data.transforms as timm_transforms
import torch
from timm.data.auto_augment import AugmentOp, AugMixAugment
from timm.data.auto_augment import AutoAugment as TimmAuto
from timm.data.auto_augment import RandAugment as TimmRand
from timm.data.random_erasing import RandomErasing as TimmErasing
from timm.data.transforms_factory import create_transform
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from dali_imagenet import EvalRecipe, Op, SampleIndex, TrainRecipe, UntranslatableError, create_loader
from dali_imagenet.integrations.transforms import translate
from dali_imagenet.policy import (
    Apply,
    AugMix,
    AutoAugment,
    Choice,
    Jitter,
    RandAugment,
    Shuffled,
    TrivialAugmentWide,
    resolve,
)
from tests.pipelines import PICTURES, alike, copies_in, levels_apart, ours, theirs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 24
END = [v1.ToTensor(), v1.Normalize(MEAN, STD)]
END2 = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
CUBIC = InterpolationMode.BICUBIC


def train(*steps: Any, crop: Any = None) -> v1.Compose:
    """A pipeline as people write it."""
    return v1.Compose([crop or v1.RandomResizedCrop(SIDE), v1.RandomHorizontalFlip(), *steps, *END])


def train2(*steps: Any, crop: Any = None) -> v2.Compose:
    return v2.Compose([crop or v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), *steps, *END2])


JITTER = v1.ColorJitter(0.4, 0.4, 0.4, 0.1)
SIMCLR = [
    v1.RandomApply([v1.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
    v1.RandomGrayscale(p=0.2),
    v1.RandomApply([v1.GaussianBlur(3, (0.1, 2.0))], p=0.5),
]
TRAIN: dict[str, Any] = {
    "classic": train(),
    "classic, v2": v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip(), *END2[1:]]
    ),
    "flip before the crop": v1.Compose(
        [
            v1.RandomHorizontalFlip(0.3),
            v1.RandomVerticalFlip(0.7),
            v1.RandomResizedCrop(SIDE, (0.5, 1), interpolation=CUBIC),
            *END,
        ]
    ),
    "cifar": v1.Compose([v1.RandomCrop(56, padding=4), v1.RandomHorizontalFlip(), *END]),
    "cifar, reflected": v2.Compose([v2.RandomCrop(40, padding=9, padding_mode="reflect", fill=7), *END2]),
    "a colour around": v1.Compose([v1.RandomCrop(64, padding=(9, 2), fill=(9, 99, 200), pad_if_needed=True), *END]),
    "older": v1.Compose([v1.Resize(32), v1.RandomCrop(SIDE), v1.RandomHorizontalFlip(), *END]),
    "no augmentation": v1.Compose([v1.Resize(30), v1.CenterCrop(SIDE), *END]),
    "squashed": v1.Compose([v1.Resize((SIDE, 30)), v1.RandomHorizontalFlip(), JITTER, *END]),
    "jitter": train(JITTER),
    "jitter behind RandAugment": train(v1.RandAugment(), JITTER),
    "jitter before RandAugment": train2(v2.ColorJitter(0.4, 0.4, 0.4), v2.RandAugment(3, 7)),
    "wide jitter": train(v1.ColorJitter(brightness=(0.2, 3.0), hue=(0.1, 0.3))),
    "SimCLR": train(*SIMCLR, crop=v1.RandomResizedCrop(SIDE, scale=(0.2, 1.0))),
    "BYOL": train(*SIMCLR, v1.RandomSolarize(128, p=0.4)),
    "blur, then gray": train(v1.GaussianBlur(5), v1.RandomGrayscale(0.5)),
    "AutoAugment": train(v1.AutoAugment(v1.AutoAugmentPolicy.CIFAR10)),
    "TrivialAugment": train2(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=(9, 99, 200))),
    "AugMix": train2(v2.AugMix(severity=5)),
    "rotation": train(v1.RandomRotation(30, interpolation=InterpolationMode.BILINEAR, fill=(200, 9, 99))),
    "rotation on tensors": v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop(SIDE), v2.RandomRotation((10, 60)), *END2[1:]]
    ),
    "affine": train(v1.RandomAffine((10, 40)), crop=v1.CenterCrop(50)),
    "affine with all": train(
        v1.RandomAffine(20, translate=(0.2, 0.1), scale=(0.6, 1.2), shear=(-20, 20, -5, 15), fill=(9, 99, 200)),
        crop=v1.CenterCrop(50),
    ),
    "affine of tensors": v2.Compose(
        [v2.ToImage(), v2.CenterCrop(50), v2.RandomAffine(0, scale=(0.5, 0.9), shear=(5, 30)), *END2[1:]]
    ),
    "affine or not": train2(
        v2.RandomApply([v2.RandomAffine((-40, 0), scale=(1.1, 1.9), interpolation=InterpolationMode.BILINEAR)], 0.7),
        crop=v2.CenterCrop(50),
    ),
    "shift": train(v1.RandomAffine(0, translate=(0.2, 0.4)), crop=v1.CenterCrop(50)),
    "points": train(v1.RandomPosterize(2, 0.5), v1.RandomInvert(0.3), v1.RandomSolarize(99.5, 0.3)),
    "histograms": train2(v2.RandomEqualize(0.5), v2.RandomAutocontrast(0.6), v2.RandomAdjustSharpness(4.0, 0.6)),
    "histograms on tensors": v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(SIDE),
            v2.RandomEqualize(0.5),
            v2.RandomAdjustSharpness(4.0, 0.6),
            v2.RandomInvert(0.2),
            *END2[1:],
        ]
    ),
    "choice": train(v1.RandomChoice([v1.RandomInvert(1), v1.RandomSolarize(60, 1), v1.Compose(SIMCLR)])),
    "weighted choice": train2(v2.RandomChoice([v2.RandomInvert(1), v2.Identity()], p=[1, 3])),
    "order": train(v1.RandomOrder([v1.RandomInvert(1), v1.RandomSolarize(99, 1), v1.RandomPosterize(1, 1)])),
    "erasing": v1.Compose([v1.RandomResizedCrop(SIDE), *END, v1.RandomErasing(0.7)]),
    "erasing with noise": v1.Compose([v1.RandomResizedCrop(SIDE), *END, v1.RandomErasing(0.9, value="random")]),
    "erasing before normalize": v2.Compose(
        [v2.RandomResizedCrop(SIDE), *END2[:2], v2.RandomErasing(0.9, value=[0, 1, 0]), END2[2]]
    ),
    "erasing of bytes": v2.Compose(
        [v2.RandomResizedCrop(SIDE), END2[0], v2.RandomErasing(0.9, value=200.0), *END2[1:]]
    ),
    "without Normalize": v1.Compose([v1.RandomResizedCrop(SIDE), v1.ToTensor()]),
    "flip behind all": v1.Compose([v1.RandomResizedCrop(SIDE), v1.RandAugment(), *END, v1.RandomHorizontalFlip(0.2)]),
    "jitter of floats": v1.Compose([v1.RandomResizedCrop(SIDE), v1.ToTensor(), JITTER, v1.Normalize(MEAN, STD)]),
    **{
        f"timm, {name}": create_transform((3, SIDE, SIDE), is_training=True, **options)
        for name, options in dict[str, dict[str, Any]](
            {
                "defaults": {"interpolation": "random"},
                "RandAugment": {
                    "auto_augment": "rand-m9-mstd0.5-inc1",
                    "interpolation": "bicubic",
                    "re_prob": 0.5,
                    "re_mode": "pixel",
                    "re_count": 3,
                },
                "AugMix": {"auto_augment": "augmix-m5-w4-d2"},
                "3a": {"auto_augment": "3a", "color_jitter": 0.3, "vflip": 0.5},
                "SimCLR": {
                    "color_jitter": (0.8, 0.8, 0.8, 0.2),
                    "color_jitter_prob": 0.8,
                    "grayscale_prob": 0.2,
                    "hflip": 0,
                },
                "rkrc": {"train_crop_mode": "rkrc", "scale": (0.3, 1), "ratio": (0.5, 2), "color_jitter": None},
                "rkrr": {"train_crop_mode": "rkrr", "color_jitter": None, "interpolation": "bilinear"},
                "no_aug": {"no_aug": True},
            }
        ).items()
    },
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return copies_in(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("name", TRAIN)
def test_training_has_the_distribution_of_the_original(name: str, copies: SampleIndex) -> None:
    recipe = TrainRecipe.from_transforms(TRAIN[name])
    assert alike(ours(copies, recipe), theirs(TRAIN[name])) > 1e-4


@pytest.mark.parametrize(
    ("a", "b"),
    [("classic", "flip behind all"), ("jitter", "wide jitter"), ("classic", "older"), ("points", "order"),
     ("jitter", "SimCLR"), ("erasing", "erasing before normalize"), ("timm, rkrc", "timm, rkrr"),
     ("timm, defaults", "timm, 3a"), ("rotation", "classic"), ("affine with all", "affine"),
     ("affine of tensors", "shift"), ("histograms", "choice")],
)  # fmt: skip
def test_other_pipelines_have_other_distributions(a: str, b: str, copies: SampleIndex) -> None:
    """What the test above would notice."""
    assert alike(ours(copies, TrainRecipe.from_transforms(TRAIN[a])), theirs(TRAIN[b])) < 1e-4


# ---- fields


@pytest.mark.parametrize(
    ("transform", "fields"),
    [
        (train(), {"input_size": SIDE, "mean": MEAN, "std": STD}),
        (train(JITTER), {"color_jitter": (0.4, 0.4, 0.4, 0.1)}),
        (train(v1.RandAugment(), JITTER), {"auto_augment": RandAugment(), "color_order": "after_policy"}),
        (train(JITTER, v1.RandAugment()), {"auto_augment": RandAugment(), "color_order": "before_policy"}),
        (
            train(*SIMCLR),
            {
                "color_jitter": (0.8, 0.8, 0.8, 0.2),
                "color_jitter_prob": 0.8,
                "grayscale_prob": 0.2,
                "gaussian_blur_prob": 0.5,
                "gaussian_blur_kernel": 3,
            },
        ),
        (train(v1.AugMix(mixture_width=2)), {"auto_augment": AugMix(mixture_width=2)}),
        (
            train2(v2.TrivialAugmentWide(num_magnitude_bins=9)),
            {"auto_augment": TrivialAugmentWide(num_magnitude_bins=9)},
        ),
        (train2(v2.AutoAugment(v2.AutoAugmentPolicy.SVHN)), {"auto_augment": AutoAugment(policy="svhn")}),
        (TRAIN["wide jitter"], {"program": (Jitter(brightness=(0.2, 3.0), hue=(0.1, 0.3)),)}),
        (TRAIN["cifar"], {"crop": "random", "crop_padding": 4, "input_size": 56, "resize_size": None}),
        (TRAIN["older"], {"crop": "random", "resize_size": 32, "input_size": SIDE}),
        (TRAIN["squashed"], {"crop": "center", "resize_size": (SIDE, 30), "input_size": (SIDE, 30)}),
        (TRAIN["without Normalize"], {"mean": (0, 0, 0), "std": (1, 1, 1), "hflip": 0.0}),
        (TRAIN["erasing before normalize"], {"re_value": (0.0, 1.0, 0.0), "re_prob": 0.9}),
        (TRAIN["timm, defaults"], {"interpolation": "random", "color_jitter": (0.4, 0.4, 0.4, 0)}),
        (TRAIN["timm, no_aug"], {"crop": "center", "resize_size": (SIDE, SIDE), "mean": MEAN, "hflip": 0.0}),
        (TRAIN["timm, 3a"], {"color_order": "after_policy", "vflip": 0.5}),
        (TRAIN["timm, rkrr"], {"crop": "rkrr", "scale": (0.8, 1.0), "ratio": (0.9, 1 / 0.9)}),
        (TRAIN["rotation on tensors"], {"program": ((Op.ROTATE, 1.0, (10.0, 60.0), False, 0),)}),
        (train(v1.RandomRotation(9)), {"program": ((Op.PIL_ROTATE, 1.0, (-9.0, 9.0), False, 0),)}),
        ([*TRAIN["choice"].transforms[:2], *END], {"hflip": 0.5}),
        ([v1.RandomHorizontalFlip(0.5), v1.RandomHorizontalFlip(0.2), *train().transforms[:1], *END], {"hflip": 0.5}),
        (
            torch.nn.Sequential(v1.CenterCrop(9), v1.ConvertImageDtype(torch.float32)),
            {"crop": "center", "input_size": 9},
        ),
    ],
)
def test_fields_are_those_of_the_pipeline(transform: Any, fields: dict[str, Any]) -> None:
    recipe = TrainRecipe.from_transforms(transform)
    for name, value in fields.items():
        found = getattr(recipe, name)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize(
    "name",
    ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.7", "rand-m9-mstd101", "rand-m15-mmax20", "rand-m8-t3a", "rand-m8-t3aw",
     "rand-m9-n3-tweights", "original", "originalr-mstd0.5", "v0", "v0r", "3a", "augmix-m3-w3", "augmix-m5-w4-d2-b1",
     "augmix-m3-mstd0.5-a2.0"],
)  # fmt: skip
@pytest.mark.parametrize("interpolation", ["random", "bicubic"])
def test_timms_policies_are_read_back(name: str, interpolation: str) -> None:
    transform = create_transform(
        32, is_training=True, auto_augment=name, interpolation=interpolation, mean=(0.2, 0.4, 0.6)
    )
    expected = resolve(name, mean=(0.2, 0.4, 0.6), interpolation=interpolation)
    assert TrainRecipe.from_transforms(transform).auto_augment == expected


def test_groups_are_read() -> None:
    recipe = TrainRecipe.from_transforms(TRAIN["choice"])
    [choice] = recipe.program
    assert isinstance(choice, Choice)
    assert [type(p).__name__ for p in choice.parts] == ["Step", "Step", "Apply"]
    [shuffled] = TrainRecipe.from_transforms(TRAIN["order"]).program
    assert isinstance(shuffled, Shuffled)
    applied = TrainRecipe.from_transforms(train(v1.RandomApply([JITTER, v1.RandomGrayscale(1)], 0.3))).program[0]
    assert isinstance(applied, Apply)
    assert applied.probability == 0.3


def test_fields_given_stand_in_place_of_what_was_read() -> None:
    recipe = TrainRecipe.from_transforms(train(), mixup_alpha=0.2, hflip=0.1, interpolation="bicubic")
    assert (recipe.mixup_alpha, recipe.hflip, recipe.interpolation) == (0.2, 0.1, "bicubic")
    plain = v1.Compose([v1.RandomHorizontalFlip(), JITTER, *END])
    assert TrainRecipe.from_transforms(plain, input_size=32).crop == "center"
    prefetched = create_transform(32, is_training=True, use_prefetcher=True)
    assert TrainRecipe.from_transforms(prefetched, mean=MEAN, std=STD).mean == MEAN
    with pytest.raises(TypeError, match="no field 'size'"):
        TrainRecipe.from_transforms(train(), size=3)


def test_rows_say_what_is_not_exact(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    transform = v1.Compose([v1.Resize(256), v1.RandomResizedCrop(SIDE), v1.ToTensor(), JITTER, v1.Normalize(MEAN, STD)])
    found = translate(TrainRecipe, transform)
    assert [row.exact for row in found.rows] == [True, False, True, False, True]
    assert found.rows[1].yours.startswith("RandomResizedCrop(size=(24, 24)")
    assert "resizes twice" in found.rows[1].note
    assert "8-bit" in found.rows[3].note
    with caplog.at_level(logging.WARNING):
        TrainRecipe.from_transforms(transform, report=True)
    assert "not exactly as in your pipeline: RandomResizedCrop" in caplog.text
    printed = capsys.readouterr().out.splitlines()
    assert [line[:11].strip() for line in printed if line[:11].strip()] == [
        *("exact", "NOT exact", "exact", "NOT exact", "exact")
    ]
    assert max(map(len, printed)) <= 80
    assert "NOT exact  RandomResizedCrop(size=(24, 24), scale=(0.08, 1.0), ratio=(0.75," in printed
    assert " ".join(" ".join(printed).split()) == " ".join(
        " ".join(["exact" if r.exact else "NOT exact", r.yours, f"-> {r.ours}", r.note]).strip() for r in found.rows
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        TrainRecipe.from_transforms(train(JITTER))
    assert not caplog.text
    assert "may differ by 1 of 255" in translate(TrainRecipe, train(JITTER)).rows[2].note


def test_a_translated_recipe_loads() -> None:
    recipe = TrainRecipe.from_transforms(TRAIN["SimCLR"])
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with create_loader(SampleIndex.from_folder(PICTURES, progress=False, cache=False), recipe, batch_size=4,
                       device="cpu", num_workers=0) as loader:  # fmt: skip
        assert next(iter(loader))[0].shape == (4, 3, SIDE, SIDE)


# ---- evaluation

EVAL: dict[str, Any] = {
    "classic": v1.Compose([v1.Resize(48), v1.CenterCrop(40), *END]),
    "v2, bicubic": v2.Compose([v2.Resize([48], interpolation=CUBIC), v2.CenterCrop(40), *END2]),
    "on tensors": v2.Compose([v2.ToImage(), v2.Resize(48), v2.CenterCrop((40, 44)), *END2[1:]]),
    "squash": v1.Compose([v1.Resize((40, 56)), *END]),
    "squash and crop": v1.Compose([v1.Resize((48, 48)), v1.CenterCrop(40), *END]),
    "lanczos": v1.Compose([v1.Resize(48, InterpolationMode.LANCZOS), v1.CenterCrop(40), *END]),
    "nearest": v1.Compose([v1.Resize(48, InterpolationMode.NEAREST), v1.CenterCrop(40), *END]),
    "a border": v1.Compose([v1.Resize(30), v1.CenterCrop(40), *END]),
    "RGB": v2.Compose([v2.RGB(), v2.Resize(48), v2.CenterCrop(40), *END2, v2.ToPureTensor(), v2.Identity()]),
    **{
        f"timm, {mode}, {size}": create_transform((3, *size), crop_mode=mode, crop_pct=0.9, interpolation="bicubic")
        for mode in ("center", "squash", "border")
        for size in ((40, 40), (36, 56))
    },
}


@pytest.mark.parametrize("engine", ["torchvision", "reference"])
@pytest.mark.parametrize("name", EVAL)
def test_evaluation_is_the_original(name: str, engine: str) -> None:
    assert levels_apart(EvalRecipe.from_transforms(EVAL[name]), EVAL[name], engine) < 0.2


# ---- refusals


def _of_two(size: int) -> Any:
    crop: Any = timm_transforms.RandomResizedCropAndInterpolation(size)
    crop.interpolation = (InterpolationMode.NEAREST, InterpolationMode.BILINEAR)
    return crop


class Own(v1.RandomHorizontalFlip):
    """Somebody's own."""


_RRC = v1.RandomResizedCrop(SIDE)
REFUSED: list[tuple[Any, str, str]] = [
    ([_RRC, Own(), *END], "RandomHorizontalFlip|Own", "a function: what it does cannot be known"),
    ([_RRC, lambda x: x, *END], "lambda", "cannot be known"),
    ([_RRC, v1.Lambda(lambda x: x), *END], "Lambda", "there is no counterpart"),
    ([_RRC, v2.ElasticTransform(), *END], "ElasticTransform", "there is no counterpart"),
    ([JITTER, _RRC, *END], "ColorJitter", "it stands before the crop. Change that line: put it behind the crop"),
    ([_RRC, v1.RandomCrop(9), *END], "RandomCrop", "there is a crop already: RandomResizedCrop"),
    ([_RRC, *END, v1.RandomCrop(9)], "RandomCrop", "it stands behind what changes pixels"),
    ([v1.Resize((9, 40)), _RRC, *END], "Resize", "changes the shape before"),
    ([v1.Resize(9), v1.Resize(9), *END], "Resize", "it was resized before"),
    ([v1.Resize(9, max_size=20), v1.CenterCrop(9), *END], "Resize", "max_size"),
    ([v1.Resize(40), *END], "Resize", r"leaves one side to the image. Change that line: add CenterCrop\(40\)"),
    ([v1.RandomHorizontalFlip(), *END], "the pipeline", "neither crops nor resizes"),
    (
        [v2.ToImage(), v2.RandomResizedCrop(9, antialias=False), *END2[1:]],
        "RandomResizedCrop",
        "give it antialias=True",
    ),
    ([v2.ToImage(), v2.Resize(9, interpolation="nearest"), *END2[1:]], "Resize", "nearest takes other pixels"),
    (
        [v1.RandomResizedCrop(9, interpolation=InterpolationMode.HAMMING), *END],
        "RandomResizedCrop",
        "the filter 'hamming'",
    ),
    ([v1.RandomCrop(9, padding=1, padding_mode="edge"), *END], "RandomCrop", "padding_mode='edge'"),
    ([v1.RandomCrop(9, padding=9), *END], "Crop", "crop_padding=9: must be at most 8"),
    ([_RRC, v1.PILToTensor()], "the end of the pipeline", "8-bit values"),
    ([_RRC], "the end of the pipeline", r"add ToTensor\(\)"),
    ([_RRC, v1.PILToTensor(), v1.Normalize(MEAN, STD)], "Normalize", "it normalizes values of 0..255"),
    ([_RRC, *END, v1.Normalize(MEAN, STD)], "Normalize", "there is a Normalize already"),
    ([_RRC, v1.ToTensor(), v1.Normalize((-1, 0, 0), STD)], "Compose|RandomResizedCrop", "mean="),
    ([_RRC, v2.ToImage(), v2.ToDtype(torch.float32)], "ToDtype", "give it scale=True"),
    ([_RRC, *END2, v2.ToDtype(torch.uint8)], "ToDtype", "whole numbers of floats"),
    ([_RRC, v2.ToImage(), v2.ToDtype({torch.Tensor: torch.float32}, scale=True)], "ToDtype", "by type"),
    ([_RRC, timm_transforms.ToTensor()], "ToTensor", "timm's ToTensor leaves values in 0..255"),
    ([_RRC, v2.RandomErasing(0.5), *END], "RandomErasing", "before the images are tensors"),
    ([_RRC, v1.ToTensor(), v1.RandomErasing(value="random"), END[1]], "RandomErasing", "not about the mean"),
    ([_RRC, *END, v1.RandomErasing(value=9)], "RandomErasing", "beyond black or white"),
    ([_RRC, *END, v1.RandomErasing(), v1.RandomErasing()], "RandomErasing", "an erasing already"),
    ([_RRC, v1.ToTensor(), TimmErasing(device="cpu")], "RandomErasing", "put it behind Normalize"),
    ([_RRC, *END, TimmErasing(num_splits=2, device="cpu")], "RandomErasing", "num_splits=0"),
    ([_RRC, *END, JITTER], "ColorJitter", "normalized or erased images"),
    ([_RRC, v1.Grayscale(), *END], "Grayscale", "num_output_channels=3"),
    ([_RRC, v1.GaussianBlur((3, 5)), *END], "GaussianBlur", "not square"),
    ([_RRC, v1.RandomRotation(9, expand=True), *END], "RandomRotation", "leave expand and center out"),
    ([_RRC, v1.RandomAffine(9, scale=(0.5, 1), center=(3, 4)), *END], "RandomAffine", "leave center out"),
    ([_RRC, v1.RandomAffine(9, shear=(20, 89)), *END], "RandomAffine", "AFFINE_SHEAR_X: magnitude"),
    ([_RRC, v1.RandomAffine(0, shear=(5, 9)), v1.RandomHorizontalFlip(), *END], "HorizontalFlip", "leans to one side"),
    ([_RRC, v1.RandomAffine(0), *END], "RandomAffine", "it does nothing"),
    ([_RRC, v1.RandomRotation((10, 20)), v1.RandomHorizontalFlip(), *END], "HorizontalFlip", "leans to one side"),
    ([_RRC, v1.RandomApply([v1.RandomHorizontalFlip()]), *END], "RandomApply", "cannot be drawn within another"),
    ([_RRC, v1.RandomChoice([v1.RandomCrop(3)]), *END], "RandomChoice", "cannot be drawn within another"),
    ([_RRC, v1.RandomApply([v1.AugMix()]), *END], "RandomApply", "without AugMix"),
    ([_RRC, v1.RandomRotation(9, fill=9), v1.RandAugment(), *END], "the pipeline", "several colours"),
    ([_RRC, v1.RandomRotation(9, fill=0.5), *END], "RandomRotation", "no colour"),
    ([_RRC, v1.RandAugment(interpolation=CUBIC), *END], "RandAugment", "interpolation='bicubic'"),
    ([_RRC, v1.RandomPosterize(9), *END], "RandomPosterize", "magnitude=9"),
    (
        [_RRC, TimmRand([AugmentOp("Invert", 0.5, 3), AugmentOp("Rotate", 0.5, 3)]), *END],
        "RandAugment",
        "none of timm's sets",
    ),
    (
        [_RRC, TimmRand([AugmentOp("Invert", 0.5, 3), AugmentOp("Rotate", 0.9, 3)]), *END],
        "RandAugment",
        "differ in more",
    ),
    ([timm_transforms.ResizeKeepRatio(9, random_scale_prob=0.3), *END], "ResizeKeepRatio", "other probabilities"),
    ([timm_transforms.ResizeKeepRatio(9, longest=0.5), *END], "ResizeKeepRatio", "covering and fitting"),
    (
        [timm_transforms.ResizeKeepRatio(9), v1.CenterCrop(9), *END],
        "ResizeKeepRatio",
        "none of timm's train_crop_modes",
    ),
    (
        [
            timm_transforms.ResizeKeepRatio(9, random_scale_prob=0.5, random_aspect_prob=0.5, random_scale_area=True),
            timm_transforms.RandomCropOrPad(8, padding_mode="reflect"),
            *END,
        ],
        "RandomCropOrPad",
        "give both one size",
    ),
    ([timm_transforms.ResizeKeepRatio(9), v1.RandomCrop(9), *END], "ResizeKeepRatio", "take Resize"),
    (
        [v1.Resize(9), timm_transforms.CenterCropOrPad(9, padding_mode="reflect"), *END],
        "CenterCropOrPad",
        "it reflects",
    ),
    ([_of_two(9), *END], "RandomResizedCropAndInterpolation", "it draws among nearest, bilinear"),
    ([_RRC, v2.RandomRotation(9, fill={torch.Tensor: 3}), *END], "RandomRotation", "it fills by type"),
    ([_RRC, TimmAuto([[AugmentOp("Invert", 0.5, 3)]]), *END], "AutoAugment", "none of timm's policies"),
    ([_RRC, AugMixAugment([AugmentOp("Invert", 1.0, 3, {"translate_pct": 0.3})]), *END], "AugMix", "are not timm's"),
    ([timm_transforms.TrimBorder(2), _RRC, *END], "TrimBorder", "there is no counterpart"),
]


@pytest.mark.parametrize(("steps", "what", "message"), REFUSED)
def test_what_has_no_counterpart_is_refused_with_its_line(steps: Any, what: str, message: str) -> None:
    import re

    with pytest.raises(UntranslatableError, match=message) as caught:
        TrainRecipe.from_transforms(steps)
    assert re.search(what, caught.value.what)
    assert "Change that line: " in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.what, str(again)) == (caught.value.what, str(caught.value))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([_RRC, *END], "use TrainRecipe.from_transforms"),
        ([v1.Resize(9), v1.CenterCrop(9), v1.RandomHorizontalFlip(), *END], "it is random"),
        ([v1.Resize(9), v1.CenterCrop(9), v1.Grayscale(3), *END], "an EvalRecipe does not"),
        ([v1.CenterCrop(9), *END], "it does not resize"),
        ([v1.Resize(9), *END], "leaves one side"),
        ([v1.Resize(9), v1.CenterCrop((10, 20)), *END], "resize both sides by one factor"),
        ([v1.Resize(9), timm_transforms.CenterCropOrPad(9), *END], "take CenterCrop"),
        ([timm_transforms.ResizeKeepRatio(9, longest=1), timm_transforms.CenterCropOrPad(9), *END], "none of timm's"),
        ([timm_transforms.ResizeKeepRatio(9), *END], "add CenterCrop"),
        ([v1.TenCrop(9), *END], "there is no counterpart"),
    ],
)
def test_what_is_no_evaluation_is_refused(steps: Any, message: str) -> None:
    with pytest.raises(UntranslatableError, match=message):
        EvalRecipe.from_transforms(steps)
