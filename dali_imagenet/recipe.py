"""What to do with each image: frozen recipes, validated when they are made.

Field names are timm's. A recipe holds distributions, never draws: :class:`dali_imagenet.Plan` draws from it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from dali_imagenet.policy import AugmentPolicy, TrivialAugmentWide, resolve

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # per channel, of pixels in 0..1; torchvision's reference scripts
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bilinear", "bicubic"]
Range = tuple[float, float]
Triple = tuple[float, float, float]
Quad = tuple[float, float, float, float]


def _bad(name: str, given: object, allowed: str) -> ValueError:
    return ValueError(f"{name}={given!r}: must be {allowed}")


def _numbers(name: str, value: Any, count: int, low: float, high: float) -> None:
    ok = isinstance(value, tuple) and len(value) == count
    if not ok or not all(isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high for v in value):
        raise _bad(name, value, f"a tuple of {count} numbers in [{low:g}, {high:g}]")


def _ordered(name: str, value: Any, low: float, high: float) -> None:
    _numbers(name, value, 2, low, high)
    if value[0] > value[1]:
        raise _bad(name, value, "(low, high) with low <= high")


def _probability(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise _bad(name, value, "a probability in [0, 1]")


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _bad(name, value, "one of " + ", ".join(repr(a) for a in allowed))


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _bad(name, value, f"a whole number in [{low}, {high}]")


class _Recipe:
    """What both kinds of recipe share."""

    def replace(self, **changes: Any) -> Self:
        """The same recipe with some fields changed; validated again.

        Raises:
            TypeError: for a field that the recipe does not have.
            ValueError: for a value out of its range.
        """
        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]  # its heirs are dataclasses
        for name in changes:
            if name not in names:
                raise TypeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(names)}")
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  # as above

    def _freeze(self) -> None:
        """Lists become tuples, so that recipes written as JSON or YAML come back equal and hashable."""
        for f in dataclasses.fields(self):  # type: ignore[arg-type]  # its heirs are dataclasses
            value = getattr(self, f.name)
            if isinstance(value, list):
                object.__setattr__(self, f.name, tuple(tuple(v) if isinstance(v, list) else v for v in value))


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(_Recipe):
    """A training recipe. Order: crop, resize, flip, color_twist | color_jitter, auto_augment, grayscale, blur,
    normalize, erase, mix.

    Raises:
        ValueError: at construction, for a value out of its range; the message names the field and what is allowed.
    """

    input_size: int | tuple[tuple[int, int], ...] = 224
    """Side of the square output in pixels, 1..4096; or a schedule ((first epoch, size), ...) starting at epoch 0."""
    scale: Range = (0.08, 1.0)
    """Share of the image's area that RandomResizedCrop takes (Inception, Szegedy et al. 2014)."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width / height of the crop, log-uniform."""
    interpolation: Interpolation = "bilinear"
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_twist: Quad | None = None
    """Strengths (brightness, contrast, saturation, hue): factors in [1 - s, 1 + s], hue in turns in [-h, h], h <= 0.5.
    DALI's operation: contrast about 128, hue as a rotation in YIQ, fixed order, one matrix."""
    color_jitter: Quad | None = None
    """The same strengths, as torchvision's ColorJitter: contrast about the mean gray, hue in HSV, drawn order, clamped
    after each operation. Slower."""
    color_jitter_prob: float = 1.0
    """Probability that color_jitter is applied to an image."""
    auto_augment: str | AugmentPolicy | None = None
    """A policy: "randaugment", "autoaugment", "trivialaugment", "augmix", a timm string such as
    "rand-m9-mstd0.5-inc1", or a policy object of :mod:`dali_imagenet.policy`."""
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    gaussian_blur_kernel: int = 23
    """Odd side of torchvision's GaussianBlur kernel in pixels (timm: 23)."""
    gaussian_blur_sigma: Range = (0.1, 2.0)
    """Range of the blur's sigma in pixels (torchvision's default, and DeiT III's)."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    re_prob: float = 0.0
    """Probability of RandomErasing (Zhong et al. 2017)."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """Erase with zeros (the mean, after normalizing), one normal colour a box, or normal noise a pixel."""
    re_count: tuple[int, int] = (1, 1)
    """Range of the number of boxes in an erased image; the erased area is shared among them (timm)."""
    re_scale: Range = (0.02, 1 / 3)
    re_ratio: Range = (0.3, 1 / 0.3)
    """Height / width of a box, log-uniform."""
    mixup_alpha: float = 0.0
    """Mixup's Beta(alpha, alpha); 0 is off (Zhang et al. 2017)."""
    cutmix_alpha: float = 0.0
    """CutMix's Beta(alpha, alpha); 0 is off (Yun et al. 2019)."""
    cutmix_minmax: Range | None = None
    """Range of the box side as a share of the image; replaces cutmix_alpha's draw of lambda (timm)."""
    mixup_prob: float = 1.0
    """Probability that a batch (pair, element) is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Probability of CutMix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    correct_lam: bool = True
    """Recompute lambda from the box that the border has clipped."""
    label_smoothing: float = 0.0
    num_classes: int | None = None
    """Classes of the soft labels; counted from the data when None."""
    num_aug_repeats: int = 1
    """Copies of each sample in a row, with independent draws (repeated augmentation, Hoffer et al. 2019)."""

    def __post_init__(self) -> None:
        self._freeze()
        sizes = self.input_size if isinstance(self.input_size, tuple) else ((0, self.input_size),)
        for entry in sizes:
            if not isinstance(entry, tuple) or len(entry) != 2:
                raise _bad("input_size", self.input_size, "a size or a schedule ((first epoch, size), ...)")
            _integer("input_size: first epoch", entry[0], 0, 2**31)
            _integer("input_size", entry[1], 1, 4096)
        firsts = [entry[0] for entry in sizes]
        if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)):
            raise _bad("input_size", self.input_size, "a schedule that starts at epoch 0 and rises")
        _ordered("scale", self.scale, 1e-6, 1)
        _ordered("ratio", self.ratio, 1e-3, 1e3)
        _choice("interpolation", self.interpolation, ("bilinear", "bicubic"))
        for name in ("hflip", "vflip", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "re_prob"):
            _probability(name, getattr(self, name))
        for name in ("color_twist", "color_jitter"):
            strengths = getattr(self, name)
            if strengths is not None:
                _numbers(name, strengths, 4, 0, 1)
                if strengths[3] > 0.5:
                    raise _bad(f"{name}: hue", strengths[3], "a share of a turn in [0, 0.5]")
        if self.color_twist is not None and self.color_jitter is not None:
            raise ValueError("color_twist and color_jitter are both set: they are two forms of one stage, choose one")
        policy = resolve(self.auto_augment, image_size=self.size_at(0), mean=self.mean)
        if policy is not None and not isinstance(self.auto_augment, str | AugmentPolicy):
            raise _bad("auto_augment", self.auto_augment, "a name or a policy")
        _integer("gaussian_blur_kernel", self.gaussian_blur_kernel, 1, 255)
        if self.gaussian_blur_kernel % 2 == 0:
            raise _bad("gaussian_blur_kernel", self.gaussian_blur_kernel, "odd")
        _ordered("gaussian_blur_sigma", self.gaussian_blur_sigma, 1e-3, 100)
        _numbers("mean", self.mean, 3, 0, 1)
        _numbers("std", self.std, 3, 1e-6, 10)
        _choice("re_mode", self.re_mode, ("const", "rand", "pixel"))
        _ordered("re_count", self.re_count, 1, 16)
        _integer("re_count", self.re_count[0], 1, 16)
        _integer("re_count", self.re_count[1], 1, 16)
        _ordered("re_scale", self.re_scale, 0, 1)
        _ordered("re_ratio", self.re_ratio, 1e-3, 1e3)
        for name in ("mixup_alpha", "cutmix_alpha"):
            _numbers(name, (getattr(self, name),), 1, 0, 1000)
        if self.cutmix_minmax is not None:
            _ordered("cutmix_minmax", self.cutmix_minmax, 1e-6, 1)
        _probability("mixup_prob", self.mixup_prob)
        _probability("mixup_switch_prob", self.mixup_switch_prob)
        _choice("mixup_mode", self.mixup_mode, ("batch", "pair", "elem"))
        _numbers("label_smoothing", (self.label_smoothing,), 1, 0, 1)
        if self.num_classes is not None:
            _integer("num_classes", self.num_classes, 1, 2**24)
        _integer("num_aug_repeats", self.num_aug_repeats, 1, 255)

    @classmethod
    def classic(cls, **changes: Any) -> TrainRecipe:
        """RandomResizedCrop, flip, normalize: torchvision's first reference recipe. ResNet-50: 76.1% top-1."""
        return cls().replace(**changes)

    @classmethod
    def strong(cls, **changes: Any) -> TrainRecipe:
        """`classic` with bicubic resizing, color_twist, RandAugment(2, 9), RandomErasing, Mixup, CutMix, smoothing."""
        recipe = cls(
            interpolation="bicubic",
            color_twist=(0.4, 0.4, 0.4, 0.1),
            auto_augment="randaugment",
            re_prob=0.25,
            re_scale=(0.02, 0.33),
            mixup_alpha=0.2,
            cutmix_alpha=1.0,
            label_smoothing=0.1,
        )
        return recipe.replace(**changes)

    @classmethod
    def advanced(cls, **changes: Any) -> TrainRecipe:
        """timm's RandAugment with magnitude noise, blur, erasing with noise, and the mixing of `strong`.

        ``auto_augment="autoaugment"`` in its place gives torchvision's AutoAugment.
        """
        recipe = cls.strong(
            color_twist=None,
            auto_augment="rand-m9-mstd0.5-inc1",
            gaussian_blur_prob=0.5,
            re_mode="pixel",
        )
        return recipe.replace(**changes)

    @classmethod
    def torchvision_v2(cls, **changes: Any) -> TrainRecipe:
        """torchvision's second ResNet-50 recipe (80.86% top-1 in 600 epochs).

        Source: "How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives" (2021) and
        references/classification of torchvision: TrivialAugmentWide, erasing 0.1, smoothing 0.1, Mixup 0.2 or CutMix
        1.0, crops of 176, four repeats. Evaluate with ``EvalRecipe(resize_size=232)``. torchvision mixes a row with its
        neighbour, this library with its mirror.
        """
        recipe = cls(
            input_size=176,
            auto_augment=TrivialAugmentWide(interpolation="bilinear"),
            re_prob=0.1,
            re_scale=(0.02, 0.33),
            re_ratio=(0.3, 3.3),
            mixup_alpha=0.2,
            cutmix_alpha=1.0,
            label_smoothing=0.1,
            num_aug_repeats=4,
        )
        return recipe.replace(**changes)

    @classmethod
    def rsb_a1(cls, **changes: Any) -> TrainRecipe:
        """ResNet strikes back, A1 (600 epochs, 80.4%); Wightman et al. 2021, table 2. Evaluate at crop_pct 0.95.

        The loss is binary cross-entropy. timm's script draws the interpolation (bilinear or bicubic); here it is
        bicubic.
        """
        recipe = cls(
            interpolation="bicubic",
            auto_augment="rand-m7-mstd0.5-inc1",
            mixup_alpha=0.2,
            cutmix_alpha=1.0,
            label_smoothing=0.1,
            num_aug_repeats=3,
        )
        return recipe.replace(**changes)

    @classmethod
    def rsb_a2(cls, **changes: Any) -> TrainRecipe:
        """ResNet strikes back, A2 (300 epochs, 79.8%): A1 with Mixup 0.1 and no smoothing."""
        return cls.rsb_a1(mixup_alpha=0.1, label_smoothing=0.0).replace(**changes)

    @classmethod
    def rsb_a3(cls, **changes: Any) -> TrainRecipe:
        """ResNet strikes back, A3 (100 epochs at 160 px, 78.1%): A2 at magnitude 6 without repeats."""
        recipe = cls.rsb_a2(input_size=160, auto_augment="rand-m6-mstd0.5-inc1", num_aug_repeats=1)
        return recipe.replace(**changes)

    @classmethod
    def deit(cls, **changes: Any) -> TrainRecipe:
        """DeiT. Touvron et al. 2020, table 9, and the defaults of its main.py; three repeats."""
        recipe = cls(
            interpolation="bicubic",
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            label_smoothing=0.1,
            num_aug_repeats=3,
        )
        return recipe.replace(**changes)

    @classmethod
    def deit3(cls, **changes: Any) -> TrainRecipe:
        """DeiT III on ImageNet-1k. Touvron, Cord, Jégou 2022, table 1 and augment.py: 3-Augment, colour jitter 0.3, no
        erasing, no smoothing, three repeats; loss binary cross-entropy; evaluate at crop_pct 1.0.

        The original jitters after 3-Augment, this library before.
        """
        recipe = cls(
            interpolation="bicubic",
            color_jitter=(0.3, 0.3, 0.3, 0.0),
            auto_augment="3-augment",
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            num_aug_repeats=3,
        )
        return recipe.replace(**changes)

    @classmethod
    def convnext(cls, **changes: Any) -> TrainRecipe:
        """ConvNeXt. Liu et al. 2022, table 5, and the defaults of its main.py: DeiT's without repeats."""
        return cls.deit(num_aug_repeats=1).replace(**changes)

    @classmethod
    def swin(cls, **changes: Any) -> TrainRecipe:
        """Swin Transformer. Liu et al. 2021, A2.1, and its config.py: DeiT's without repeats."""
        return cls.deit(num_aug_repeats=1).replace(**changes)

    def size_at(self, epoch: int) -> int:
        """Side of the square output in pixels in that epoch."""
        if isinstance(self.input_size, int):
            return self.input_size
        return next(size for first, size in reversed(self.input_size) if first <= epoch)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every output side that the recipe has, in pixels."""
        return (self.input_size,) if isinstance(self.input_size, int) else tuple(size for _, size in self.input_size)

    @property
    def mixing(self) -> bool:
        """Whether the loader yields soft labels: Mixup or CutMix is on."""
        return self.mixup_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0 or self.cutmix_minmax is not None)

    @property
    def soft_targets(self) -> bool:
        """Whether targets are float [B, num_classes]: mixing or label smoothing is on."""
        return self.mixing or self.label_smoothing > 0

    @property
    def pixel_ops(self) -> bool:
        """Whether the batch stage works on uint8 pixels. Where not, the image stage may normalize, fused."""
        return bool(
            self.auto_augment is not None
            or self.color_jitter is not None
            or self.grayscale_prob > 0
            or self.gaussian_blur_prob > 0
        )


@dataclass(frozen=True, kw_only=True)
class EvalRecipe(_Recipe):
    """Resize the short side, centre crop, normalize: torchvision's reference evaluation, to the rounding.

    The short side goes to ``resize_size``, by default ``floor(input_size / crop_pct)`` as in timm.

    Raises:
        ValueError: at construction, for a value out of its range.
    """

    input_size: int = 224
    crop_pct: float = 0.875
    """Share of the resized image that the crop takes, in (0, 1]; ignored where resize_size is given."""
    resize_size: int | None = None
    interpolation: Interpolation = "bilinear"
    crop_mode: Literal["center", "squash"] = "center"
    """ "squash" resizes both sides to resize_size, whatever the aspect ratio (timm)."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        self._freeze()
        _integer("input_size", self.input_size, 1, 4096)
        _numbers("crop_pct", (self.crop_pct,), 1, 1e-3, 1)
        if self.resize_size is not None:
            _integer("resize_size", self.resize_size, self.input_size, 2**15)
        _choice("interpolation", self.interpolation, ("bilinear", "bicubic"))
        _choice("crop_mode", self.crop_mode, ("center", "squash"))
        _numbers("mean", self.mean, 3, 0, 1)
        _numbers("std", self.std, 3, 1e-6, 10)

    @classmethod
    def from_pretrained_cfg(cls, cfg: Any, **changes: Any) -> EvalRecipe:
        """From a timm model's ``pretrained_cfg`` (dict or object): input_size, crop_pct, interpolation, mean, std.

        Raises:
            ValueError: for a non-square input or a crop_mode or interpolation that this recipe does not have.
        """
        get = cfg.get if hasattr(cfg, "get") else lambda key, default=None: getattr(cfg, key, default)
        channels, height, width = get("test_input_size", None) or get("input_size", None) or (3, 224, 224)
        if channels != 3 or height != width:
            raise _bad("pretrained_cfg: input_size", (channels, height, width), "(3, S, S)")
        recipe = cls(
            input_size=height,
            crop_pct=get("test_crop_pct", None) or get("crop_pct", None) or 0.875,
            interpolation=get("interpolation", None) or "bilinear",
            crop_mode=get("crop_mode", None) or "center",
            mean=tuple(get("mean", None) or IMAGENET_MEAN),
            std=tuple(get("std", None) or IMAGENET_STD),
        )
        return recipe.replace(**changes)

    @property
    def short_side(self) -> int:
        """Pixels that the short side is resized to (timm floors)."""
        return self.resize_size if self.resize_size is not None else math.floor(self.input_size / self.crop_pct)

    def size_at(self, epoch: int) -> int:
        """Side of the square output in pixels, the same in every epoch."""
        return self.input_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every output side that the recipe has, in pixels."""
        return (self.input_size,)

    mixing = False
    soft_targets = False
    pixel_ops = False


Recipe = TrainRecipe | EvalRecipe
