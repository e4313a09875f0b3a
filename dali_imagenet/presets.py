"""Training recipes that people cite, as plain values: a new one is one entry here.

`TrainRecipe` makes a classmethod of each entry; the command line and its help list them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dali_imagenet.ops import Op
from dali_imagenet.policy import Apply, Jitter, TrivialAugmentWide


class Preset(NamedTuple):
    """What a recipe differs in from the defaults of `TrainRecipe`."""

    fields: dict[str, Any]
    about: str
    """What it is, its source, how it departs from it, and how to evaluate; the first line stands alone."""


def _from(name: str, about: str, **changes: Any) -> Preset:
    """Another preset with some fields changed."""
    return Preset({**PRESETS[name].fields, **changes}, about)


PRESETS: dict[str, Preset] = {}

PRESETS["classic"] = Preset(
    {}, "RandomResizedCrop, flip, normalize: torchvision's first reference recipe. ResNet-50: 76.1% top-1."
)
PRESETS["strong"] = Preset(
    {
        "interpolation": "bicubic",
        "color_twist": (0.4, 0.4, 0.4, 0.1),
        "auto_augment": "randaugment",
        "re_prob": 0.25,
        "re_scale": (0.02, 0.33),
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
    },
    "`classic` with bicubic resizing, color_twist, RandAugment(2, 9), RandomErasing, Mixup, CutMix, smoothing.",
)
PRESETS["advanced"] = _from(
    "strong",
    """timm's RandAugment with magnitude noise, blur, erasing with noise, and the mixing of `strong`.

    `auto_augment="autoaugment"` in its place gives torchvision's AutoAugment.""",
    color_twist=None,
    auto_augment="rand-m9-mstd0.5-inc1",
    gaussian_blur_prob=0.5,
    re_mode="pixel",
)
PRESETS["torchvision_v2"] = Preset(
    {
        "input_size": 176,
        "auto_augment": TrivialAugmentWide(interpolation="bilinear"),
        "re_prob": 0.1,
        "re_scale": (0.02, 0.33),
        "re_ratio": (0.3, 3.3),
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "num_aug_repeats": 4,
    },
    """torchvision's second ResNet-50 recipe (80.86% top-1 in 600 epochs).

    Source: "How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives" (2021) and
    references/classification of torchvision: TrivialAugmentWide, erasing 0.1, smoothing 0.1, Mixup 0.2 or CutMix 1.0,
    crops of 176, four repeats. Evaluate with `EvalRecipe(resize_size=232)`. torchvision mixes a row with its neighbour,
    this library with its mirror.""",
)
PRESETS["rsb_a1"] = Preset(
    {
        "interpolation": "random",
        "auto_augment": "rand-m7-mstd0.5-inc1",
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "num_aug_repeats": 3,
    },
    """ResNet strikes back, A1 (600 epochs, 80.4%); Wightman et al. 2021, table 2. Evaluate at crop_pct 0.95.

    The loss is binary cross-entropy. The filters of the resize and of the policy's warps are drawn, bilinear or
    bicubic, as timm's script does by default.""",
)
PRESETS["rsb_a2"] = _from(
    "rsb_a1",
    "ResNet strikes back, A2 (300 epochs, 79.8%): A1 with Mixup 0.1 and no smoothing.",
    mixup_alpha=0.1,
    label_smoothing=0.0,
)
PRESETS["rsb_a3"] = _from(
    "rsb_a2",
    "ResNet strikes back, A3 (100 epochs at 160 px, 78.1%): A2 at magnitude 6 without repeats.",
    input_size=160,
    auto_augment="rand-m6-mstd0.5-inc1",
    num_aug_repeats=1,
)
PRESETS["deit"] = Preset(
    {
        "interpolation": "bicubic",
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "re_mode": "pixel",
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "num_aug_repeats": 3,
    },
    "DeiT. Touvron et al. 2020, table 9, and the defaults of its main.py; three repeats.",
)
PRESETS["deit3"] = Preset(
    {
        "interpolation": "bicubic",
        "color_jitter": (0.3, 0.3, 0.3, 0.0),
        "color_order": "after_policy",
        "auto_augment": "3-augment",
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "num_aug_repeats": 3,
    },
    """DeiT III on ImageNet-1k. Touvron, Cord, Jégou 2022, table 1 and augment.py.

    3-Augment, then colour jitter 0.3, no erasing, no smoothing, three repeats; loss binary cross-entropy; evaluate at
    crop_pct 1.0.""",
)
PRESETS["convnext"] = _from(
    "deit",
    "ConvNeXt. Liu et al. 2022, table 5, and the defaults of its main.py: DeiT's without repeats.",
    num_aug_repeats=1,
)
PRESETS["swin"] = _from(
    "deit",
    "Swin Transformer. Liu et al. 2021, A2.1, and its config.py: DeiT's without repeats.",
    num_aug_repeats=1,
)
PRESETS["simclr"] = Preset(
    {
        "interpolation": "bicubic",
        "color_jitter": (0.8, 0.8, 0.8, 0.2),
        "color_jitter_prob": 0.8,
        "grayscale_prob": 0.2,
        "gaussian_blur_prob": 0.5,
    },
    """SimCLR's, for `create_loader(..., views=2)`. Chen et al. 2020, appendix A, and data_util.py of its code.

    Colour distortion of strength 1, blur with a kernel of 23 (a tenth of 224) and sigma 0.1 to 2. The original does not
    normalize: `mean=(0, 0, 0), std=(1, 1, 1)`; its bicubic resize is not antialiased.""",
)


def _dino(blur: float, solarize: float, about: str, **changes: Any) -> Preset:
    jitter = Jitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.8, 1.2), hue=(-0.1, 0.1))
    program: list[Any] = [Apply(parts=(jitter,), probability=0.8), (Op.PIL_GRAYSCALE, 0.2)]
    program.append((Op.PIL_GAUSSIAN_BLUR, blur, (0.1, 2.0)))
    if solarize:
        program.append((Op.PIL_SOLARIZE, solarize, 128))
    return Preset({"interpolation": "bicubic", "program": tuple(program), **changes}, about)


PRESETS["dino_global"] = _dino(
    1.0,
    0.0,
    """DINO's first global crop. Caron et al. 2021, and main_dino.py of its code: always blurred, with PIL's blur.

    The views are `[dino_global, dino_global2, dino_local, ...]`, with eight local ones; see docs/views.md.""",
    scale=(0.4, 1.0),
)
PRESETS["dino_global2"] = _dino(
    0.1, 0.2, "DINO's second global crop: blurred in one of ten, solarized in one of five.", scale=(0.4, 1.0)
)
PRESETS["dino_local"] = _dino(
    0.5, 0.0, "DINO's local crops: 96 pixels of small parts, half of them blurred.", scale=(0.05, 0.4), input_size=96
)
