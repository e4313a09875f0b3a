"""Pipelines that people published, as facts: which are read exactly, which with a note, and which are refused.

Each is made of the parameters of its source, at the size given; the fields are checked at the source's own size, the
images at a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from timm.data.transforms_factory import create_transform
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, UntranslatableError
from dali_imagenet.integrations.transforms import translate
from dali_imagenet.policy import TrivialAugmentWide, resolve
from tests.pipelines import alike, copies_in, levels_apart, ours, theirs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
CUBIC = InterpolationMode.BICUBIC
END = [v1.ToTensor(), v1.Normalize(MEAN, STD)]
FLOATS = [v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
ROUNDS = "rounds as torchvision does on tensors"
RANDAUGMENT = resolve("rand-m9-mstd0.5-inc1", mean=MEAN, interpolation="bicubic")


def classic(size: int, **rrc: Any) -> v1.Compose:
    return v1.Compose([v1.RandomResizedCrop(size, **rrc), v1.RandomHorizontalFlip(), *END])


def by_timm(size: int, **options: Any) -> Any:
    """What the scripts of DeiT, ConvNeXt, Swin and MAE ask timm for."""
    return create_transform(
        input_size=size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", re_count=1, **options,
    )  # fmt: skip


def torchvisions(size: int) -> v2.Compose:
    """references/classification: ta_wide, random erasing 0.1, crop 176, bilinear with antialias, on PIL images."""
    crop = v2.RandomResizedCrop(size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    policy = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    steps = [crop, v2.RandomHorizontalFlip(0.5), policy, v2.PILToTensor(), *FLOATS]
    return v2.Compose([*steps, v2.RandomErasing(0.1), v2.ToPureTensor()])


class Published(NamedTuple):
    """A training pipeline: how it is made, its own size, what the recipe says, and the note, if any."""

    make: Callable[[int], Any]
    size: int
    fields: dict[str, Any]
    note: str = ""


ERASES = {"re_prob": 0.25, "re_mode": "pixel", "re_count": (1, 1), "auto_augment": RANDAUGMENT}
TRAIN = {
    "PyTorch's ImageNet example": Published(classic, 224, {"crop": "rrc", "hflip": 0.5}, ROUNDS),
    "torchvision's reference": Published(
        torchvisions, 176, {"auto_augment": TrivialAugmentWide(interpolation="bilinear"), "re_prob": 0.1}, ROUNDS
    ),
    "timm's defaults": Published(
        lambda size: create_transform(size, is_training=True, interpolation="random"),
        224,
        {"interpolation": "random", "color_jitter": (0.4, 0.4, 0.4, 0), "scale": (0.08, 1), "hflip": 0.5},
    ),
    "DeiT, Swin, ConvNeXt": Published(
        lambda size: by_timm(size, color_jitter=0.4), 224, {**ERASES, "color_jitter": None, "interpolation": "bicubic"}
    ),
    "MAE, pretraining": Published(
        lambda size: classic(size, scale=(0.2, 1.0), interpolation=3), 224,
        {"scale": (0.2, 1.0), "interpolation": "bicubic"}, ROUNDS,
    ),
    "MAE, finetuning": Published(lambda size: by_timm(size, color_jitter=None), 224, {**ERASES, "color_jitter": None}),
    "Hugging Face, run_image_classification": Published(
        lambda size: v1.Compose(
            [v1.RandomResizedCrop((size, size)), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(HALF, HALF)]
        ),
        224, {"mean": HALF, "std": HALF, "crop": "rrc"}, ROUNDS,
    ),
    "Lightning, CIFAR-10": Published(
        lambda size: v1.Compose([v1.RandomCrop(size, padding=4), v1.RandomHorizontalFlip(), *END]),
        32, {"crop": "random", "crop_padding": 4, "resize_size": None}, "an image that is too small is padded",
    ),
    "DINO, linear probe": Published(classic, 224, {"crop": "rrc", "color_jitter": None, "auto_augment": None}, ROUNDS),
}  # fmt: skip


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return copies_in(tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("name", TRAIN)
def test_training_pipelines_are_exact(name: str, copies: SampleIndex) -> None:
    published = TRAIN[name]
    found = translate(TrainRecipe, published.make(published.size))
    recipe: Any = found.recipe
    assert recipe.input_size in (published.size, (published.size,) * 2)
    for field, value in published.fields.items():
        assert getattr(recipe, field) == value, field
    assert all(row.exact for row in found.rows)
    notes = " ".join(row.note for row in found.rows)
    assert published.note in notes
    side = 24 if published.size > 32 else 40
    small = TrainRecipe.from_transforms(published.make(side))
    assert alike(ours(copies, small), theirs(published.make(side))) > 1e-4


def val(resize: Any, size: int, **options: Any) -> v1.Compose:
    return v1.Compose([v1.Resize(resize, **options), v1.CenterCrop(size), *END])


EVAL: dict[str, tuple[Callable[[int], Any], int]] = {  # of an output size, and the source's own
    "PyTorch's ImageNet example, DINO": (lambda size: val(size * 8 // 7, size), 224),
    "torchvision's reference": (
        lambda size: v2.Compose([v2.Resize(size * 29 // 28, antialias=True), v2.CenterCrop(size), v2.PILToTensor(),
                                 *FLOATS, v2.ToPureTensor()]), 224,
    ),
    "timm's defaults": (lambda size: create_transform(size), 224),
    "DeiT, Swin, ConvNeXt, MAE": (lambda size: val(int(size / (224 / 256)), size, interpolation=3), 224),
    "ConvNeXt and Swin from 384 pixels on": (
        lambda size: v1.Compose([v1.Resize((size, size), interpolation=CUBIC), *END]), 384,
    ),
    "Hugging Face, run_image_classification": (lambda size: val((size, size), size), 224),
}  # fmt: skip


@pytest.mark.parametrize("name", EVAL)
def test_evaluations_are_the_original(name: str) -> None:
    make, size = EVAL[name]
    found = translate(EvalRecipe, make(size))
    assert found.recipe.input_size in (size, (size, size))
    assert all(row.exact for row in found.rows)
    small = make(56)
    assert levels_apart(EvalRecipe.from_transforms(small), small) < 0.2


class RandomResizedCrop(v1.RandomResizedCrop):
    """MAE's linear probe has one that samples otherwise, in a class of its own."""


class GaussianBlur:
    """MoCo's and DINO's, in a class of their own."""

    def __call__(self, image: Any) -> Any:
        return image


class Solarization(GaussianBlur):
    """DINO's."""


_JITTER = v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)


@pytest.mark.parametrize(
    ("kind", "steps", "what"),
    [
        (TrainRecipe, [RandomResizedCrop(224, interpolation=CUBIC), v1.RandomHorizontalFlip(), *END], "RandomResized"),
        (
            TrainRecipe,  # MoCo v2
            [v1.RandomResizedCrop(224, (0.2, 1.0)), _JITTER, v1.RandomGrayscale(0.2),
             v1.RandomApply([GaussianBlur()], p=0.5), v1.RandomHorizontalFlip(), *END],
            "RandomApply",
        ),
        (
            TrainRecipe,  # DINO's second global crop
            [v1.RandomResizedCrop(224, (0.4, 1.0), interpolation=CUBIC), v1.RandomHorizontalFlip(), _JITTER,
             v1.RandomGrayscale(0.2), Solarization(), *END],
            "Solarization",
        ),
        (EvalRecipe, END, "the pipeline"),  # Lightning's CIFAR-10: images as large as they are
    ],
)  # fmt: skip
def test_what_is_refused(kind: Any, steps: list[Any], what: str) -> None:
    with pytest.raises(UntranslatableError) as caught:
        kind.from_transforms(v1.Compose(steps))
    assert what in caught.value.what
    assert "Change that line" in str(caught.value)
