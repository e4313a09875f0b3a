"""What to do with each image: frozen recipes, validated and brought into one form when they are made.

Field names are timm's. A recipe holds distributions, never draws: a `Plan` draws from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from dali_imagenet.policy import AugmentPolicy, Step, resolve
from dali_imagenet.policy.base import as_json
from dali_imagenet.policy.compose import fill_of, part_of
from dali_imagenet.presets import PRESETS
from dali_imagenet.validation import boolean, choice, pair, probability, real, reals, sequence, whole, wrong

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # per channel, of pixels in 0..1; torchvision's reference scripts
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
RESIZE_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
Range = tuple[float, float]
Triple = tuple[float, float, float]
Quad = tuple[float, float, float, float]
Margins = tuple[int, int, int, int]
Size = tuple[int, int]
"""Height and width in pixels."""

_LARGEST = 4096  # side of an output in pixels


class _Recipe:
    """What both kinds of recipe share."""

    kind: ClassVar[str]

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

    @classmethod
    def from_transforms(cls, transform: Any, *, report: bool = False, **changes: Any) -> Self:
        """The recipe that a pipeline of torchvision's (v1 or v2), timm's or Albumentations' stands for.

        What is translated with another meaning is logged as a warning; `integrations.transforms.translate` gives the
        rows as data. docs/scripts.md has the table of what is read.

        Args:
            transform: a Compose, a transform, or a sequence of them.
            report: print how each transform was read.
            changes: fields of the recipe, in place of what was read.

        Raises:
            UntranslatableError: for what the recipe cannot say.
            TypeError: for a change of a field that the recipe does not have.
        """
        module = importlib.import_module("dali_imagenet.integrations.transforms")
        recipe: Self = module.recipe_from(cls, transform, boolean("report", report), changes)
        return recipe

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The recipe as JSON takes it and gives it back: its kind, and the fields that are not their defaults, by name.

        Equal recipes have equal fingerprints, and a new field with a default changes none. Neither do names of classes
        and modules: a policy is its registered name and its own fields.
        """
        found = {"kind": self.kind}
        for f in sorted(dataclasses.fields(self), key=lambda f: f.name):  # type: ignore[arg-type]  # as above
            value = getattr(self, f.name)
            if value != f.default:
                found[f.name] = as_json(self._meaning(f.name, value))
        return found

    @property
    def defaults(self) -> dict[str, Any]:
        """What `fingerprint` leaves out: the default of every field, in the same form."""
        return {f.name: as_json(f.default) for f in dataclasses.fields(self)}  # type: ignore[arg-type]  # as above

    def _meaning(self, name: str, value: Any) -> Any:
        return value

    def _set(self, name: str, validate: Callable[..., Any], *bounds: Any) -> None:
        """Replace a field by what its validator makes of it; None stays where it is the default."""
        value = getattr(self, name)
        if value is not None or getattr(type(self), name) is not None:
            object.__setattr__(self, name, validate(name, value, *bounds))


def _size(name: str, value: Any) -> int | Size:
    """One side, or (height, width); equal ones become one."""
    items = sequence(value)
    if items is None:
        return whole(name, value, 1, _LARGEST)
    if len(items) != 2:
        raise wrong(name, value, "a side in pixels or (height, width)")
    height, width = (whole(name, v, 1, _LARGEST) for v in items)
    return height if height == width else (height, width)


def _short_or_both(name: str, value: Any) -> int | Size:
    """The short side, or (height, width), which may be equal: the image loses its shape."""
    size = _size(name, value)
    return size if sequence(value) is None else _pair_of_sides(size)


def _sizes(name: str, value: Any) -> int | Size | tuple[tuple[int, int | Size], ...]:
    """A size, or a schedule ((first epoch, size), ...). A pair of numbers is a size."""
    items = sequence(value)
    if items is None or not any(sequence(item) is not None for item in items):
        return _size(name, value)
    entries = [sequence(item) or () for item in items]
    if any(len(entry) != 2 for entry in entries):
        raise wrong(name, value, "a size or a schedule ((first epoch, size), ...)")
    schedule = tuple((whole(f"{name}: first epoch", e, 0, 2**31), _size(name, size)) for e, size in entries)
    firsts = [first for first, _ in schedule]
    if firsts[0] != 0 or firsts != sorted(set(firsts)):
        raise wrong(name, value, "a schedule that starts at epoch 0 and rises")
    return schedule if len(schedule) > 1 else schedule[0][1]


def _strengths(name: str, value: Any) -> Quad:
    """Brightness, contrast, saturation and hue."""
    b, c, s, hue = reals(name, value, 4, 0, 1)
    if hue > 0.5:
        raise wrong(f"{name}: hue", hue, "a share of a turn in [0, 0.5]")
    return b, c, s, hue


def _odd(name: str, value: Any, low: int, high: int) -> int:
    number = whole(name, value, low, high)
    if number % 2 == 0:
        raise wrong(name, value, "odd")
    return number


def _counts(name: str, value: Any, low: int, high: int) -> tuple[int, int]:
    least, most = pair(name, value, low, high)
    return whole(name, least, low, high), whole(name, most, low, high)


def _interpolation(name: str, value: Any, more: tuple[str, ...] = ()) -> Any:
    """A filter of `RESIZE_FILTERS`, or one of `more`."""
    if value in ("box", "hamming"):
        raise wrong(
            name,
            value,
            f"one of {', '.join(map(repr, (*RESIZE_FILTERS, *more)))}: box and hamming are filters of Pillow's alone, "
            "which no backend here has; bilinear is between them",
        )
    return choice(name, value, (*RESIZE_FILTERS, *more))


def _colour(name: str, value: Any) -> tuple[int, int, int]:
    """A gray level or three, 0..255."""
    items = sequence(value)
    r, g, b = (whole(name, v, 0, 255) for v in reals(name, (value,) * 3 if items is None else items, 3, 0, 255))
    return r, g, b


def _margins(name: str, value: Any) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels, of one number, (horizontal, vertical) or all four, as torchvision's."""
    items = sequence(value)
    items = (value,) if items is None else items
    if len(items) not in (1, 2, 4):
        raise wrong(name, value, "one number of pixels, (horizontal, vertical) or (left, top, right, bottom)")
    left, top, right, bottom = (whole(name, v, 0, _LARGEST) for v in (items * 4)[:4])
    return left, top, right, bottom


def _erase_value(name: str, value: Any) -> Triple:
    items = sequence(value)
    r, g, b = reals(name, (value,) * 3 if items is None else items, 3, 0, 1)
    return r, g, b


def _pair_of_sides(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


class _Presets(type):
    """Type checkers see the classmethods that `presets.PRESETS` becomes."""

    if TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Callable[..., TrainRecipe]: ...


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(_Recipe, metaclass=_Presets):
    """A training recipe. Order: crop, resize, flip, color_twist | color_jitter, auto_augment, grayscale, blur,
    normalize, erase, mix. `color_order` puts color_jitter behind auto_augment; `program` takes the place of the pixel
    operations (color_jitter to blur) with an order of your own.

    Raises:
        ValueError: at construction, for a value out of its range; the message names the field and what is allowed.
    """

    kind: ClassVar[str] = "train"

    input_size: int | Size | tuple[tuple[int, int | Size], ...] = 224
    """Side of the square output in pixels, or (height, width), each 1..4096; or a schedule ((first epoch, size), ...)
    starting at epoch 0."""
    crop: Literal["rrc", "rkrc", "rkrr", "random", "center"] = "rrc"
    """ "rrc": RandomResizedCrop. "rkrc" and "rkrr": timm's `train_crop_mode`, which resizes until the output is
    covered, the shape kept; with probability one half each zooms in by `scale` and changes the shape by `ratio`; and
    takes the middle (rkrc) or a random place (rkrr). What lies beside the image is its reflection. "random": a place
    of the image as it is stored, or resized to `resize_size`, padded by `crop_padding` (torchvision's RandomCrop).
    "center": the middle of it, with `crop_fill` beside what is smaller."""
    scale: Range = (0.08, 1.0)
    """Share of the image's area that RandomResizedCrop takes (Inception, Szegedy et al. 2014); for "rkrc" and "rkrr"
    timm has (0.8, 1.0). "random" has no use for it."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width / height of the crop, log-uniform; for "rkrc" and "rkrr" the factor of the shape, where timm has
    (0.9, 1 / 0.9)."""
    resize_size: int | Size | None = None
    """crop="random" and "center" alone: pixels of the short side before the crop, the shape kept, or (height, width);
    None: the image as it is stored."""
    crop_padding: int | tuple[int, int] | Margins = 0
    """crop="random" alone: pixels beside the image, one number, (horizontal, vertical) or (left, top, right, bottom),
    each smaller than the output. An image that is smaller than the output is padded further (`pad_if_needed`)."""
    crop_fill: int | tuple[int, int, int] = (0, 0, 0)
    """Colour (0..255) of that padding."""
    crop_padding_mode: Literal["constant", "reflect"] = "constant"
    """Whether the padding shows `crop_fill`, or the image reflected at its border."""
    interpolation: Interpolation | Literal["random"] = "bilinear"
    """Filter of the resize, antialiased but for "nearest" (Pillow's). "random" draws bilinear or bicubic for each
    image, with even odds (timm's default)."""
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
    color_order: Literal["before_policy", "after_policy"] = "before_policy"
    """Whether color_jitter comes before auto_augment or behind it (timm, DeiT III and most scripts)."""
    auto_augment: str | AugmentPolicy | None = None
    """A policy: "randaugment", "autoaugment", "trivialaugment", "augmix", a timm string such as
    "rand-m9-mstd0.5-inc1", or a policy object of `dali_imagenet.policy`."""
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    gaussian_blur_kernel: int = 23
    """Odd side of torchvision's GaussianBlur kernel in pixels (timm: 23)."""
    gaussian_blur_sigma: Range = (0.1, 2.0)
    """Range of the blur's sigma in pixels (torchvision's default, and DeiT III's)."""
    program: tuple[Any, ...] = ()
    """Pixel operations in the order given, in place of color_jitter, auto_augment, grayscale and blur. Each is a step
    (operation, probability, magnitude or range, random sign, aux; see `policy.Step`), a policy or its name, or one of
    `policy.Jitter`, `Apply`, `Choice` and `Shuffled`."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    re_prob: float = 0.0
    """Probability of RandomErasing (Zhong et al. 2017)."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """Erase with zeros (the mean, after normalizing), one normal colour a box, or normal noise a pixel."""
    re_value: float | Triple | None = None
    """re_mode="const" alone: what erased boxes show, in pixel units of 0..1, one number or one a channel: black (0) of
    an erasing that stands before normalize. None: the mean."""
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
        self._set("input_size", _sizes)
        self._set("crop", choice, ("rrc", "rkrc", "rkrr", "random", "center"))
        self._set("scale", pair, 1e-6, 1)
        self._set("ratio", pair, 1e-3, 1e3)
        self._set("interpolation", _interpolation, ("random",))
        self._check_crop()
        for name in (
            *("hflip", "vflip", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "re_prob"),
            *("mixup_prob", "mixup_switch_prob"),
        ):
            self._set(name, probability)
        self._set("color_twist", _strengths)
        self._set("color_jitter", _strengths)
        if self.color_twist is not None and self.color_jitter is not None:
            raise ValueError("color_twist and color_jitter are both set: they are two forms of one stage, choose one")
        self._set("gaussian_blur_kernel", _odd, 1, 255)
        self._set("gaussian_blur_sigma", pair, 1e-3, 100)
        self._set("mean", reals, 3, 0, 1)
        self._set("std", reals, 3, 1e-6, 10)
        self._set("re_mode", choice, ("const", "rand", "pixel"))
        self._set("re_value", _erase_value)
        if self.re_value is not None and self.re_mode != "const":
            raise wrong("re_value", self.re_value, f"None with re_mode={self.re_mode!r}: it is what 'const' shows")
        self._set("re_count", _counts, 1, 16)
        self._set("re_scale", pair, 0, 1)
        self._set("re_ratio", pair, 1e-3, 1e3)
        self._set("mixup_alpha", real, 0, 1000)
        self._set("cutmix_alpha", real, 0, 1000)
        self._set("cutmix_minmax", pair, 1e-6, 1)
        self._set("mixup_mode", choice, ("batch", "pair", "elem"))
        self._set("correct_lam", boolean)
        self._set("label_smoothing", real, 0, 1)
        self._set("num_classes", whole, 1, 2**24)
        self._set("num_aug_repeats", whole, 1, 255)
        if self.auto_augment == "":
            object.__setattr__(self, "auto_augment", None)
        _ = self.policy  # refuses a name that is unknown
        self._set("color_order", choice, ("before_policy", "after_policy"))
        if self.color_order == "after_policy" and self.color_twist is not None:
            raise wrong("color_order", self.color_order, "'before_policy' with color_twist: only color_jitter moves")
        self._check_program()

    def _check_crop(self) -> None:
        if self.crop != "random":
            for name, default in (("resize_size", None), ("crop_padding", 0), ("crop_padding_mode", "constant")):
                if getattr(self, name) != default and (self.crop, name) != ("center", "resize_size"):
                    raise wrong(name, getattr(self, name), f"{default!r} with crop={self.crop!r}: it is for 'random'")
        least = min(side for size in self.sizes for side in size)
        if self.resize_size is not None:
            self._set("resize_size", _short_or_both)
        margins = _margins("crop_padding", self.crop_padding)
        self._set("crop_padding_mode", choice, ("constant", "reflect"))
        most = least - 1 if self.crop_padding_mode == "constant" else (least - 1) // 2
        if max(margins) > most:
            raise wrong("crop_padding", self.crop_padding, f"at most {most} pixels for an output of {least}")
        object.__setattr__(self, "crop_padding", margins[0] if len(set(margins)) == 1 else margins)
        self._set("crop_fill", _colour)

    def _check_program(self) -> None:
        items = sequence(self.program)
        if items is None:
            raise wrong("program", self.program, "a sequence of steps and policies, in order")
        object.__setattr__(self, "program", tuple(part_of(item, self.mean, self.interpolation) for item in items))
        if not self.program:
            return
        fill_of("program", self.program)
        for name in ("color_jitter", "auto_augment", "grayscale_prob", "gaussian_blur_prob", "color_order"):
            value, default = getattr(self, name), getattr(type(self), name)
            if value != default:
                raise wrong(name, value, f"{default!r} beside program, which says it all")

    @property
    def margins(self) -> Margins:
        """`crop_padding` as left, top, right and bottom in pixels."""
        return _margins("crop_padding", self.crop_padding)

    @property
    def window_fill(self) -> tuple[int, int, int]:
        """Colour (0..255) of what the output shows beside the image."""
        return _colour("crop_fill", self.crop_fill)

    @property
    def erase_value(self) -> Triple:
        """What erased boxes show, in normalized units: `re_value`, or zero, the mean."""
        value = self.mean if self.re_value is None else _erase_value("re_value", self.re_value)
        r, g, b = ((v - m) / s for v, m, s in zip(value, self.mean, self.std, strict=True))
        return r, g, b

    @property
    def policy(self) -> AugmentPolicy | None:
        """The policy that `auto_augment` names; timm's are given the recipe's mean and filter, as timm does it."""
        return resolve(self.auto_augment, mean=self.mean, interpolation=self.interpolation)

    def _meaning(self, name: str, value: Any) -> Any:
        if name == "program":
            return tuple(tuple(part) if isinstance(part, Step) else part.fingerprint for part in value)
        return value if name != "auto_augment" or self.policy is None else self.policy.fingerprint

    def size_at(self, epoch: int) -> Size:
        """Height and width of the output in pixels in that epoch."""
        return next(size for first, size in reversed(self._schedule) if first <= epoch)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width of every output that the recipe has, in pixels."""
        return tuple(size for _, size in self._schedule)

    @property
    def _schedule(self) -> tuple[tuple[int, Size], ...]:
        size: Any = self.input_size
        if isinstance(size, int) or isinstance(size[0], int):
            return ((0, _pair_of_sides(size)),)
        return tuple((first, _pair_of_sides(each)) for first, each in size)

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
            or self.program
        )


def _add_preset(name: str) -> None:
    def make(cls: type[TrainRecipe], /, **changes: Any) -> TrainRecipe:
        return cls(**PRESETS[name].fields).replace(**changes)

    make.__name__, make.__qualname__, make.__doc__ = name, f"TrainRecipe.{name}", PRESETS[name].about
    setattr(TrainRecipe, name, classmethod(make))


for _name in PRESETS:
    _add_preset(_name)


@dataclass(frozen=True, kw_only=True)
class EvalRecipe(_Recipe):
    """Resize, centre crop, normalize: torchvision's reference evaluation and timm's, to the rounding.

    The short side goes to `resize_size`, by default to `floor(input_size / crop_pct)` as in timm. For an output that is
    not square the image is resized, its shape kept, until it covers `floor(height / crop_pct)` by
    `floor(width / crop_pct)` (timm's ResizeKeepRatio). Where the output is larger than the resized image, the image is
    in its middle.

    Raises:
        ValueError: at construction, for a value out of its range.
    """

    kind: ClassVar[str] = "eval"

    input_size: int | Size = 224
    """Side of the square output in pixels, or (height, width), each 1..4096."""
    crop_pct: float = 0.875
    """Share of the resized image that the crop takes, in (0, 10]; above 1 a border is left around it. Ignored where
    resize_size is given."""
    resize_size: int | None = None
    """Pixels of the short side (in "border" of the long one), at least the smaller side of the output."""
    interpolation: Interpolation = "bilinear"
    crop_mode: Literal["center", "squash", "border"] = "center"
    """ "squash" resizes both sides on their own, whatever the shape of the image; "border" resizes, the shape kept,
    until the image fits, and shows the mean colour around it, where the others show black (timm)."""
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    def __post_init__(self) -> None:
        self._set("input_size", _size)
        self._set("crop_pct", real, 1e-3, 10)
        self._set("resize_size", whole, min(self.size_at(0)), 2**15)
        self._set("interpolation", _interpolation)
        self._set("crop_mode", choice, ("center", "squash", "border"))
        if min(self.scale_size) < 1:
            raise wrong("crop_pct", self.crop_pct, f"at most the output's smaller side, {min(self.size_at(0))}")
        self._set("mean", reals, 3, 0, 1)
        self._set("std", reals, 3, 1e-6, 10)

    @classmethod
    def from_pretrained_cfg(cls, cfg: Any, *, use_test_size: bool = False, **changes: Any) -> EvalRecipe:
        """What a timm model is evaluated with: `timm.data.resolve_model_data_config`, field by field.

        Args:
            cfg: a model (anything with a `pretrained_cfg`), its `pretrained_cfg` (dict or timm's PretrainedCfg), its
                name in timm such as "resnet50.a1_in1k", or a hub's config.json (flat, or with "pretrained_cfg" in it).
            use_test_size: take test_input_size and test_crop_pct where there are any. As in timm the default is not to.
            changes: fields of the recipe, in place of the config's.

        Raises:
            ValueError: for what is no config, a value that this recipe does not have, or not three channels.
            TypeError: for a change of a field that the recipe does not have.
        """
        found = _config_of(cfg)
        tested = found if boolean("use_test_size", use_test_size) else {}
        size = tested.get("test_input_size") or found.get("input_size") or (3, 224, 224)
        sides = sequence(size) or ()
        if len(sides) != 3 or sides[0] != 3:
            raise wrong("pretrained_cfg: input_size", size, "(3, height, width): this library makes RGB images")
        fields: dict[str, Any] = {  # timm's defaults, which are not this recipe's
            "input_size": sides[1:],
            "crop_pct": tested.get("test_crop_pct") or found.get("crop_pct") or 0.875,
            "interpolation": found.get("interpolation") or "bicubic",
            "crop_mode": found.get("crop_mode") or "center",
            "mean": found.get("mean") or IMAGENET_MEAN,
            "std": found.get("std") or IMAGENET_STD,
        }
        try:
            recipe = cls(**{name: value for name, value in fields.items() if name not in changes})
        except ValueError as error:
            raise ValueError(f"pretrained_cfg: {error}. To use another value, pass it as an argument") from None
        return recipe.replace(**changes)

    @property
    def scale_size(self) -> Size:
        """Height and width that the output is cut from, before the shape of the image is kept (timm's scale_size)."""
        if self.resize_size is not None:
            return self.resize_size, self.resize_size
        height, width = self.size_at(0)
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    @property
    def window_fill(self) -> tuple[int, int, int]:
        """Colour (0..255) of what the output shows beside the image: the mean in crop_mode "border", else black."""
        r, g, b = (round(255 * m) for m in self.mean) if self.crop_mode == "border" else (0, 0, 0)
        return r, g, b

    def size_at(self, epoch: int) -> Size:
        """Height and width of the output in pixels, the same in every epoch."""
        return _pair_of_sides(self.input_size)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width of every output that the recipe has, in pixels."""
        return (self.size_at(0),)

    mixing = False
    soft_targets = False
    pixel_ops = False


def _config_of(given: Any) -> dict[str, Any]:
    """The fields of a timm config, of whatever holds it."""
    found = given
    if isinstance(given, str):
        timm = importlib.import_module("timm")
        with contextlib.suppress(RuntimeError):  # of a known model with an unknown tag
            found = timm.get_pretrained_cfg(given)
    inner = found.get("pretrained_cfg") if isinstance(found, Mapping) else getattr(found, "pretrained_cfg", None)
    holder = found if inner is None else inner
    fields = dict(holder if isinstance(holder, Mapping) else getattr(holder, "__dict__", {}))
    if fields.get("mean") is None and fields.get("input_size") is None:
        named = isinstance(given, str)
        what = repr(given) if named or given is None else f"<{type(given).__name__}>"
        raise ValueError(
            f"cfg={what} {'is no model of timm' if named else 'has neither mean nor input_size'}: must be a model with "
            "a pretrained_cfg, a pretrained_cfg, a hub's config, or a model's name in timm such as 'resnet50.a1_in1k'"
        )
    return fields


Recipe = TrainRecipe | EvalRecipe
