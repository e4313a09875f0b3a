"""Recipes: their numbers, and what they refuse."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import timm

from dali_imagenet import EvalRecipe, Op, TrainRecipe
from dali_imagenet.policy import Apply, AugMix, Choice, Jitter, RandAugment, Shuffled, TrivialAugmentWide

MIXUP = {"mixup_prob": 1.0, "mixup_switch_prob": 0.5, "mixup_mode": "batch", "correct_lam": True, "cutmix_minmax": None}
COMMON = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "vflip": 0.0, "re_count": (1, 1), **MIXUP}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN = {
    "color_twist": None,
    "color_jitter": None,
    "grayscale_prob": 0.0,
    "gaussian_blur_prob": 0.0,
    "re_prob": 0.0,
    "label_smoothing": 0.0,
    "num_aug_repeats": 1,
    "auto_augment": None,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}
NOISE = {"re_prob": 0.25, "re_mode": "pixel", "re_scale": (0.02, 1 / 3), "re_ratio": (0.3, 1 / 0.3)}
RAND9 = "rand-m9-mstd0.5-inc1"
# The filter is what timm's train.py has by default.
RSB = {"input_size": 224, "interpolation": "random", "auto_augment": "rand-m7-mstd0.5-inc1", "cutmix_alpha": 1.0}
DEIT = {
    "input_size": 224,
    "interpolation": "bicubic",
    "auto_augment": RAND9,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "label_smoothing": 0.1,
    **NOISE,
}
PRESETS: dict[str, dict[str, Any]] = {
    "classic": {"input_size": 224, "interpolation": "bilinear"},
    "strong": {
        "input_size": 224,
        "interpolation": "bicubic",
        "color_twist": (0.4, 0.4, 0.4, 0.1),
        "auto_augment": "randaugment",
        "re_prob": 0.25,
        "re_mode": "const",
        "re_scale": (0.02, 0.33),
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
    },
    "advanced": {
        "interpolation": "bicubic",
        "auto_augment": RAND9,
        "gaussian_blur_prob": 0.5,
        "re_prob": 0.25,
        "re_mode": "pixel",
        "re_scale": (0.02, 0.33),
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
    },
    "torchvision_v2": {  # train.py --auto-augment ta_wide --random-erase 0.1 ... --train-crop-size 176 --ra-reps 4
        "input_size": 176,
        "interpolation": "bilinear",
        "auto_augment": TrivialAugmentWide(interpolation="bilinear"),  # presets.py passes its interpolation on
        "re_prob": 0.1,
        "re_mode": "const",
        "re_scale": (0.02, 0.33),
        "re_ratio": (0.3, 3.3),
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "num_aug_repeats": 4,
    },
    "rsb_a1": {**RSB, "mixup_alpha": 0.2, "label_smoothing": 0.1, "num_aug_repeats": 3},
    "rsb_a2": {**RSB, "mixup_alpha": 0.1, "num_aug_repeats": 3},
    "rsb_a3": {**RSB, "mixup_alpha": 0.1, "input_size": 160, "auto_augment": "rand-m6-mstd0.5-inc1"},
    "deit": {**DEIT, "num_aug_repeats": 3},
    "deit3": {
        "input_size": 224,
        "interpolation": "bicubic",
        "auto_augment": "3-augment",
        "color_jitter": (0.3, 0.3, 0.3, 0.0),
        "color_order": "after_policy",  # augment.py: primary, secondary, ColorJitter
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "num_aug_repeats": 3,
    },
    "convnext": DEIT,
    "swin": DEIT,
    "simclr": {
        "input_size": 224,
        "interpolation": "bicubic",
        "color_jitter": (0.8, 0.8, 0.8, 0.2),
        "color_jitter_prob": 0.8,
        "grayscale_prob": 0.2,
        "gaussian_blur_prob": 0.5,
        "gaussian_blur_kernel": 23,
        "gaussian_blur_sigma": (0.1, 2.0),
    },
    "dino_global": {"input_size": 224, "interpolation": "bicubic", "scale": (0.4, 1.0)},
    "dino_global2": {"input_size": 224, "interpolation": "bicubic", "scale": (0.4, 1.0)},
    "dino_local": {"input_size": 96, "interpolation": "bicubic", "scale": (0.05, 0.4)},
}
DINO_BLUR_AND_SOLARIZE = {"dino_global": (1.0, None), "dino_global2": (0.1, 0.2), "dino_local": (0.5, None)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_sources_numbers(name: str) -> None:
    recipe = getattr(TrainRecipe, name)()
    for field, value in (COMMON | IMAGENET | PLAIN | PRESETS[name]).items():
        assert getattr(recipe, field) == value, field
    assert getattr(TrainRecipe, name)(input_size=96).input_size == 96
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(recipe) == hash(recipe.replace())


@pytest.mark.parametrize("name", DINO_BLUR_AND_SOLARIZE)
def test_the_program_of_dino_is_its_sources(name: str) -> None:
    jitter, gray, blur, *solarize = getattr(TrainRecipe, name)().program
    ranges: dict[str, Any] = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    assert jitter == Apply(parts=(Jitter(**ranges),), probability=0.8)
    assert gray[:2] == (Op.PIL_GRAYSCALE, 0.2)
    assert blur[:3] == (Op.PIL_GAUSSIAN_BLUR, DINO_BLUR_AND_SOLARIZE[name][0], (0.1, 2.0))
    expected = DINO_BLUR_AND_SOLARIZE[name][1]
    assert [step[:3] for step in solarize] == ([] if expected is None else [(Op.PIL_SOLARIZE, expected, (128, 128))])


def test_evaluation_presets() -> None:
    assert EvalRecipe().scale_size == (256, 256)
    assert EvalRecipe(resize_size=232).scale_size == (232, 232)
    assert EvalRecipe(crop_pct=0.95).scale_size == (235, 235)  # timm floors

    cfg = timm.get_pretrained_cfg("resnet50.a1_in1k")
    recipe = EvalRecipe.from_pretrained_cfg(cfg)
    assert (recipe.input_size, recipe.crop_pct) == (224, 0.95)
    tested = EvalRecipe.from_pretrained_cfg(cfg, use_test_size=True)
    assert (tested.input_size, tested.crop_pct) == (288, 1.0)
    assert recipe.interpolation == "bicubic"
    assert EvalRecipe.from_pretrained_cfg(cfg, input_size=160).input_size == 160
    with pytest.raises(ValueError, match="input_size"):
        EvalRecipe.from_pretrained_cfg({"input_size": (1, 224, 224)})
    assert EvalRecipe.from_pretrained_cfg({"input_size": (3, 224, 200)}).input_size == (224, 200)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", 0),
        ("input_size", 224.5),
        ("input_size", (224, 0)),
        ("input_size", (1, 2, 3)),
        ("input_size", ()),
        ("input_size", ((1, 128),)),
        ("input_size", ((0, 128), (0, 160))),
        ("scale", (0.5, 0.1)),
        ("scale", (0.1, 2.0)),
        ("ratio", (0.0, 1.0)),
        ("interpolation", "cubic"),
        ("interpolation", "box"),
        ("crop", "corner"),
        ("resize_size", 256),
        ("crop_padding", 4),
        ("crop_padding_mode", "reflect"),
        ("crop_fill", (0, 0, 300)),
        ("crop_fill", 1.5),
        ("color_order", "behind"),
        ("color_order", "after_policy!"),
        ("program", "randaugment"),
        ("program", [()]),
        ("program", [("rotate", 0.5)]),
        ("program", [""]),
        ("re_value", (0.5, 0.5)),
        ("re_value", 128),
        ("hflip", 1.5),
        ("hflip", True),
        ("vflip", -0.1),
        ("color_twist", (0.4, 0.4, 0.4)),
        ("color_twist", (0.4, 0.4, 0.4, 0.6)),
        ("color_jitter", (2.0, 0.4, 0.4, 0.1)),
        ("auto_augment", "randaugmnet"),
        ("auto_augment", 9),
        ("gaussian_blur_kernel", 22),
        ("gaussian_blur_sigma", (0.0, 1.0)),
        ("mean", (128, 128, 128)),
        ("std", (0, 1, 1)),
        ("re_prob", 2),
        ("re_mode", "noise"),
        ("re_count", (3, 1)),
        ("re_count", (1.5, 2.5)),
        ("re_scale", (0.5, 1.5)),
        ("mixup_alpha", -1),
        ("cutmix_minmax", (0.9, 0.1)),
        ("mixup_mode", "half"),
        ("label_smoothing", 1.1),
        ("num_classes", 0),
        ("num_aug_repeats", 0),
    ],
)
def test_wrong_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        TrainRecipe(**{field: value})
    with pytest.raises(ValueError, match=field):
        TrainRecipe.strong().replace(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", -1),
        ("crop_pct", 0),
        ("crop_pct", 11),
        ("resize_size", 100),
        ("interpolation", "random"),
        ("interpolation", "hamming"),
        ("crop_mode", "corner"),
    ],
)
def test_wrong_evaluation_values_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        EvalRecipe(**{field: value})


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="choose one"):
        TrainRecipe(color_twist=(0.4, 0.4, 0.4, 0.1), color_jitter=(0.4, 0.4, 0.4, 0.1))
    for name in ("box", "hamming"):
        for kind in (TrainRecipe, EvalRecipe):
            with pytest.raises(ValueError, match=f"interpolation='{name}': .*box and hamming are filters of Pillow's"):
                kind(interpolation=name)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="color_order='after_policy': must be 'before_policy' with color_twist"):
        TrainRecipe.strong(color_order="after_policy")
    with pytest.raises(ValueError, match=r"re_value=.* None with re_mode='pixel'"):
        TrainRecipe(re_mode="pixel", re_value=0.0)
    with pytest.raises(ValueError, match="crop_padding=32: must be at most 31 pixels for an output of 32"):
        TrainRecipe(input_size=32, crop="random", crop_padding=32)
    with pytest.raises(ValueError, match="crop_padding=16: must be at most 15 pixels"):
        TrainRecipe(input_size=32, crop="random", crop_padding=16, crop_padding_mode="reflect")
    with pytest.raises(ValueError, match=r"crop_padding=\(1, 2, 3\): must be one number of pixels"):
        TrainRecipe(input_size=32, crop="random", crop_padding=(1, 2, 3))  # type: ignore[arg-type]  # wrong on purpose
    for fields in ({"auto_augment": "randaugment"}, {"color_jitter": (0.4, 0.4, 0.4, 0.1)}, {"grayscale_prob": 0.2}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))}=.*beside program, which says it all"):
            TrainRecipe(program=[(Op.INVERT, 0.1)], **fields)  # type: ignore[arg-type]  # a list, fields of many types
    with pytest.raises(ValueError, match="one colour to fill with"):
        TrainRecipe(program=(RandAugment(fill=(1, 2, 3)), RandAugment()))
    with pytest.raises(ValueError, match=r"Apply: parts=.*without AugMix"):
        Apply(parts=(AugMix(),))
    with pytest.raises(ValueError, match=r"Shuffled: parts=.*not empty"):
        Shuffled()
    with pytest.raises(ValueError, match=r"Choice: parts=.*policy objects"):
        Choice(parts=("randaugment",))
    with pytest.raises(ValueError, match=r"Choice: weights=.*1 numbers >= 0"):
        Choice(parts=((Op.INVERT,),), weights=(1, 2))
    with pytest.raises(TypeError, match="no field 'size'"):
        TrainRecipe.classic().replace(size=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainRecipe.classic().input_size = 3  # type: ignore[misc]  # frozen


def test_lists_become_tuples() -> None:
    assert TrainRecipe(scale=[0.1, 1.0]) == TrainRecipe(scale=(0.1, 1.0))  # type: ignore[arg-type]  # lists
    assert TrainRecipe(program=[(Op.INVERT, 1)]) == TrainRecipe(program=((Op.INVERT, 1.0, 0.0, False, 0),))  # type: ignore[arg-type]  # a list
    assert TrainRecipe(crop="random", crop_padding=(4, 4)).crop_padding == 4
    assert TrainRecipe(crop="center", resize_size=(40, 40)).resize_size == (40, 40)  # 40 would be the short side
    assert TrainRecipe(input_size=[[0, 128], [5, 224]]).size_at(7) == (224, 224)  # type: ignore[arg-type]  # lists
