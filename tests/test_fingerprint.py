"""What saved states know of a recipe: the fields that are not their defaults, whatever their classes are called."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dali_imagenet import EvalRecipe, Op, Plan, SampleIndex, TrainRecipe
from dali_imagenet.policy import (
    Apply,
    AugmentPolicy,
    AugMix,
    AutoAugment,
    Choice,
    Jitter,
    RandAugment,
    Shuffled,
    TablePolicy,
    TimmAugMix,
    TimmAutoAugment,
    TimmRandAugment,
    TrivialAugmentWide,
    resolve,
)
from dali_imagenet.presets import PRESETS
from dali_imagenet.state import STATE_VERSION, position_in, state_of

# A default is part of what a saved state means: changing one takes a new STATE_VERSION.
TRAIN_DEFAULTS = {
    "input_size": 224,
    "crop": "rrc",
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "resize_size": None,
    "crop_padding": 0,
    "crop_fill": [0, 0, 0],
    "crop_padding_mode": "constant",
    "interpolation": "bilinear",
    "hflip": 0.5,
    "vflip": 0.0,
    "color_twist": None,
    "color_jitter": None,
    "color_jitter_prob": 1.0,
    "color_order": "before_policy",
    "auto_augment": None,
    "grayscale_prob": 0.0,
    "gaussian_blur_prob": 0.0,
    "gaussian_blur_kernel": 23,
    "gaussian_blur_sigma": [0.1, 2.0],
    "program": [],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "re_prob": 0.0,
    "re_mode": "const",
    "re_value": None,
    "re_count": [1, 1],
    "re_scale": [0.02, 1 / 3],
    "re_ratio": [0.3, 1 / 0.3],
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "cutmix_minmax": None,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "mixup_mode": "batch",
    "correct_lam": True,
    "label_smoothing": 0.0,
    "num_classes": None,
    "num_aug_repeats": 1,
}
EVAL_DEFAULTS = {
    "input_size": 224,
    "crop_pct": 0.875,
    "resize_size": None,
    "interpolation": "bilinear",
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
TIMM = {"fill": (128, 128, 128), "magnitude_std": 0.0, "interpolation": None}
POLICY_DEFAULTS: dict[type[AugmentPolicy], tuple[str, dict[str, Any]]] = {
    RandAugment: (
        "randaugment",
        {"fill": (0, 0, 0), "num_ops": 2, "magnitude": 9, "num_magnitude_bins": 31, "interpolation": "nearest"},
    ),
    TrivialAugmentWide: (
        "trivialaugment",
        {"fill": (0, 0, 0), "num_magnitude_bins": 31, "interpolation": "nearest"},
    ),
    AutoAugment: ("autoaugment", {"fill": (0, 0, 0), "policy": "imagenet", "interpolation": "nearest"}),
    AugMix: (
        "augmix",
        {"fill": (0, 0, 0), "severity": 3, "mixture_width": 3, "chain_depth": -1, "alpha": 1.0, "all_ops": True,
         "interpolation": "bilinear"},
    ),
    TimmRandAugment: (
        "timm-randaugment",
        {**TIMM, "magnitude": 10, "num_layers": 2, "prob": 0.5, "magnitude_max": 10, "increasing": False,
         "transforms": ""},
    ),
    TimmAutoAugment: ("timm-autoaugment", {**TIMM, "policy": "original"}),
    TimmAugMix: (
        "timm-augmix",
        {**TIMM, "magnitude_std": math.inf, "magnitude": 3, "width": 3, "depth": -1, "alpha": 1.0, "blended": False},
    ),
    Jitter: ("jitter", {"fill": (0, 0, 0), **dict.fromkeys(("brightness", "contrast", "saturation", "hue"))}),
    Apply: ("apply", {"fill": (0, 0, 0), "parts": (), "probability": 0.5}),
    Choice: ("choice", {"fill": (0, 0, 0), "parts": (), "weights": None}),
    Shuffled: ("shuffled", {"fill": (0, 0, 0), "parts": ()}),
    TablePolicy: ("table", {"fill": (0, 0, 0), "sub_policies": (), "weights": None}),
}  # fmt: skip
STRONG_SAVED = {  # as a state of version 2 holds it: a later version still has to read it
    "kind": "train",
    "auto_augment": {"policy": "randaugment", "fields": {}},
    "color_twist": [0.4, 0.4, 0.4, 0.1],
    "cutmix_alpha": 1.0,
    "interpolation": "bicubic",
    "label_smoothing": 0.1,
    "mixup_alpha": 0.2,
    "re_prob": 0.25,
    "re_scale": [0.02, 0.33],
}


def plan_of(recipe: TrainRecipe | EvalRecipe) -> Plan:
    return Plan(SampleIndex.from_arrays(np.arange(40) % 4, 50, 60), recipe, batch_size=8)


def test_defaults_are_those_that_states_leave_out() -> None:
    assert STATE_VERSION == 2
    assert TrainRecipe().defaults == TRAIN_DEFAULTS
    assert EvalRecipe().defaults == EVAL_DEFAULTS
    for policy, (name, defaults) in POLICY_DEFAULTS.items():
        assert policy.name == name
        assert {f.name: f.default for f in dataclasses.fields(policy)} == defaults


def test_a_fingerprint_is_the_fields_that_are_no_defaults() -> None:
    assert TrainRecipe().fingerprint == {"kind": "train"}
    assert EvalRecipe(crop_pct=0.9).fingerprint == {"kind": "eval", "crop_pct": 0.9}
    assert TrainRecipe.strong().fingerprint == STRONG_SAVED
    cifar = TrainRecipe(auto_augment="autoaugment-cifar10").fingerprint
    assert cifar["auto_augment"] == {"policy": "autoaugment", "fields": {"policy": "cifar10"}}
    table = TablePolicy(sub_policies=[[(Op.ROTATE, 1, (0, 30), True)], [(Op.INVERT,)]], weights=[1, 2])
    assert TrainRecipe(auto_augment=table).fingerprint["auto_augment"]["fields"] == {
        "sub_policies": [[["ROTATE", 1.0, [0.0, 30.0], True, 0]], [["INVERT", 1.0, [0.0, 0.0], False, 0]]],
        "weights": [1.0, 2.0],
    }


@pytest.mark.parametrize("name", PRESETS)
def test_fingerprints_are_json(name: str) -> None:
    found = getattr(TrainRecipe, name)().fingerprint
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert json.dumps(TrainRecipe(auto_augment="rand-m9-mstd101").fingerprint, allow_nan=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mixup_alpha": 1}, {"mixup_alpha": 1.0}),
        ({"mixup_alpha": np.float32(0.5)}, {"mixup_alpha": 0.5}),
        ({"input_size": np.int64(96)}, {"input_size": 96.0}),
        ({"input_size": (96, 96)}, {"input_size": ((0, 96),)}),
        ({"input_size": [[0, 96], [3, [128, 160]]]}, {"input_size": ((0, (96, 96)), (3, (128, 160)))}),
        ({"scale": [0.5, 1]}, {"scale": np.array([0.5, 1.0])}),
        ({"re_count": (1, np.int32(3))}, {"re_count": (1.0, 3.0)}),
        ({"correct_lam": np.bool_(False)}, {"correct_lam": False}),
        ({"auto_augment": ""}, {}),
        # a whole number as a float is not what the annotation says
        ({"auto_augment": RandAugment(num_ops=np.int64(3))}, {"auto_augment": RandAugment(num_ops=3.0)}),  # type: ignore[arg-type]
    ],
)
def test_recipes_that_mean_the_same_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = TrainRecipe(**one), TrainRecipe(**other)
    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == repr(b)
    assert a.fingerprint == b.fingerprint
    assert json.dumps(a.fingerprint) == json.dumps(b.fingerprint)


@pytest.mark.parametrize(
    "name", ["randaugment", "trivialaugment", "augmix", "rand-m9-mstd0.5-inc1", "3-augment", "augmix-m5-b1"]
)
def test_a_name_and_its_policy_have_one_fingerprint(name: str) -> None:
    for recipe in (TrainRecipe(), TrainRecipe(interpolation="bicubic", mean=(0.5, 0.5, 0.5))):
        policy = resolve(name, mean=recipe.mean, interpolation=recipe.interpolation)
        assert recipe.replace(auto_augment=name).fingerprint == recipe.replace(auto_augment=policy).fingerprint


def test_a_fingerprint_names_no_class_and_no_module() -> None:
    renamed = type("Other", (RandAugment,), {"name": RandAugment.name, "__module__": "elsewhere"})
    a, b = (TrainRecipe(auto_augment=value) for value in (renamed(), "randaugment"))
    assert a.fingerprint == b.fingerprint


def test_a_policy_without_a_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Own(RandAugment):
        pass

    with pytest.raises(TypeError, match="Own: give the class a `name`"):
        Own()


def test_a_new_field_with_a_default_breaks_no_saved_state() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(TrainRecipe):
        a_new_field: int = 3

    saved = state_of(plan_of(TrainRecipe.strong()), 4, 2)
    later = plan_of(Later(**PRESETS["strong"].fields))
    assert position_in(later, saved) == (4, 2)
    with pytest.raises(ValueError, match="recipe: a_new_field: saved 3, here 5"):
        position_in(plan_of(Later(**PRESETS["strong"].fields, a_new_field=5)), saved)


def test_a_state_of_another_recipe_names_each_field_with_both_values() -> None:
    saved = state_of(plan_of(TrainRecipe.strong()), 0, 0)
    here = plan_of(TrainRecipe.strong(mixup_alpha=0.4, hflip=0.25, auto_augment="randaugment-m5", re_prob=0))
    with pytest.raises(ValueError, match="another run") as caught:
        position_in(here, saved)
    message = str(caught.value)
    for part in (
        "recipe: mixup_alpha: saved 0.2, here 0.4",
        "recipe: hflip: saved 0.5, here 0.25",
        "recipe: re_prob: saved 0.25, here 0.0",
        "'fields': {}}, here {'policy': 'randaugment', 'fields': {'magnitude': 5}}",
    ):
        assert part in message
    assert "label_smoothing" not in message
    with pytest.raises(ValueError, match=r"recipe: saved .*'kind': 'train'.*, here \{'kind': 'eval'\}"):
        position_in(plan_of(EvalRecipe()), saved)
    with pytest.raises(ValueError, match="recipe: saved None, here"):
        position_in(here, {k: v for k, v in saved.items() if k != "recipe"})


def test_a_state_of_version_1_loads_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_of(TrainRecipe.strong())
    saved = {**state_of(plan, 1, 3), "version": 1, "recipe": "0123456789abcdef"}
    with caplog.at_level(logging.WARNING):
        assert position_in(plan, saved) == (1, 3)
    assert "version 1: whether it was saved with this recipe could not be compared" in caplog.text
    with pytest.raises(ValueError, match="seed: saved 7, here 0"):
        position_in(plan, {**saved, "seed": 7})
