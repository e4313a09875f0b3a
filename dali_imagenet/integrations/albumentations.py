"""Albumentations' transforms, as those of torchvision's that mean the same on 8-bit tensors.

They are read by their names and attributes: Albumentations is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dali_imagenet.errors import UntranslatableError

_FILTERS = {0: "nearest", 1: "bilinear", 2: "bicubic"}  # OpenCV's numbers
_ALIASED = "OpenCV does not antialias: what is made smaller is sharper and noisier there"
_HUE = "OpenCV's hue has steps of 2 degrees"
_ROUNDS = "rounds, where ours cuts off"
_STEPS = "OpenCV interpolates in steps of 1/32 of a pixel"


def refuse(transform: Any, why: str, change: str) -> UntranslatableError:
    """The error of what has no counterpart; whoever reads the pipeline shows the whole line."""
    return UntranslatableError(type(transform).__name__, why, change)


class Meaning(NamedTuple):
    """What a transform means: transforms of torchvision's, one after the other, and how far that is exact."""

    parts: list[Any]
    exact: bool = True
    note: str = ""


def by_albumentations(transform: Any) -> bool:
    """Whether a transform, or a pipeline, is of Albumentations."""
    return type(transform).__module__.partition(".")[0] == "albumentations"


def flat_albumentations(transform: Any) -> list[Any]:
    """The transforms of a Compose, one after the other."""
    if type(transform).__name__ != "Compose":
        return [transform]
    if transform.p != 1:
        raise refuse(transform, "it may leave everything out, so that images keep their own sizes", "give it p=1")
    return [each for part in transform.transforms for each in flat_albumentations(part)]


def meaning_of(transform: Any) -> Meaning:
    """What one transform means.

    Raises:
        UntranslatableError: for one that has no counterpart.
    """
    return _meaning(transform, float(transform.p))


def _meaning(t: Any, p: float) -> Meaning:
    name = type(t).__name__
    if name in _WHOLE:
        if p != 1:
            raise refuse(t, "it is applied to some images only, so that sizes differ", "give it p=1")
        return _WHOLE[name](t)
    if name in _FLIPS:
        return Meaning([_torchvision(_FLIPS[name], p)])
    if name not in _PARTS:
        raise refuse(t, "there is no counterpart", "take it out, or give from_dataloader a recipe=")
    found = _PARTS[name](t)
    return found if p == 1 or name == "NoOp" else found._replace(parts=[_torchvision("RandomApply", found.parts, p=p)])


def _torchvision(name: str, *arguments: Any, **options: Any) -> Any:
    from torchvision import transforms

    return getattr(transforms, name)(*arguments, **options)


def _filter(t: Any) -> Any:
    from torchvision.transforms import InterpolationMode

    if t.interpolation not in _FILTERS or getattr(t, "area_for_downscale", None):
        raise refuse(t, "it averages areas, or has another filter of OpenCV's", "take cv2.INTER_LINEAR or INTER_CUBIC")
    return InterpolationMode(_FILTERS[t.interpolation])


# ---- size


def _resized_crop(t: Any) -> Meaning:
    crop = _torchvision("RandomResizedCrop", tuple(t.size), tuple(t.scale), tuple(t.ratio), _filter(t))
    return Meaning([crop], False, _ALIASED)


def _resize(t: Any) -> Meaning:
    return Meaning([_torchvision("Resize", (t.height, t.width), _filter(t))], False, _ALIASED)


def _smallest(t: Any) -> Meaning:
    sides = t.max_size if isinstance(t.max_size, Sequence) else [t.max_size]
    if t.max_size is None or len(sides) != 1:
        raise refuse(t, "it draws among several sides, or has one for each", "give it one max_size")
    return Meaning([_torchvision("Resize", int(sides[0]), _filter(t))], False, _ALIASED)


def _center_crop(t: Any) -> Meaning:
    note = "where the rest is odd, the middle is up to one pixel further up or left in yours"
    return Meaning([_cropped("CenterCrop", t)], False, note)


def _random_crop(t: Any) -> Meaning:
    return Meaning([_cropped("RandomCrop", t)])


def _cropped(name: str, t: Any) -> Any:
    if t.pad_if_needed:
        raise refuse(t, "it pads what is too small in a way of its own", "give it pad_if_needed=False")
    return _torchvision(name, (t.height, t.width))


# ---- values


def _normalize(t: Any) -> Meaning:
    import torch

    if t.normalization != "standard" or t.max_pixel_value != 255 or t.mean is None or t.std is None:
        raise refuse(t, "it does not take a mean of 0..1 off values of 0..255", "give it mean, std and nothing else")
    mean, std = ([float(v) for v in (each if isinstance(each, Sequence) else [each] * 3)] for each in (t.mean, t.std))
    return Meaning([_torchvision("ConvertImageDtype", torch.float32), _torchvision("Normalize", mean, std)])


def _to_float(t: Any) -> Meaning:
    import torch

    if t.max_value not in (None, 255):
        raise refuse(t, "it divides by another number than 255", "leave max_value out")
    return Meaning([_torchvision("ConvertImageDtype", torch.float32)])


def _nothing(t: Any) -> Meaning:
    from torchvision.transforms.v2 import Identity

    return Meaning([Identity()])


# ---- pixel operations


def _jitter(t: Any) -> Meaning:
    ranges = {name: tuple(getattr(t, name)) for name in ("brightness", "contrast", "saturation", "hue")}
    coarse = ranges["hue"] != (0, 0)
    return Meaning([_torchvision("ColorJitter", **ranges)], not coarse, _HUE if coarse else _ROUNDS)


def _brightness_contrast(t: Any) -> Meaning:
    low, high = t.contrast_limit
    if tuple(t.brightness_limit) != (0, 0) or t.ensure_safe_range:
        raise refuse(t, "it adds a brightness, where a recipe multiplies by one",
                     "take ColorJitter, or brightness_limit=0 (its contrast is a factor of all values)")  # fmt: skip
    return Meaning([_torchvision("ColorJitter", brightness=(1 + low, 1 + high))], True, _ROUNDS)


def _gray(t: Any) -> Meaning:
    if t.method != "weighted_average" or t.num_output_channels != 3:
        raise refuse(t, "its gray is no weighted average in three channels", "leave method and num_output_channels out")
    return Meaning([_torchvision("RandomGrayscale", 1.0)], True, _ROUNDS)


def _blur(t: Any) -> Meaning:
    (least, most), sigma = t.blur_limit, tuple(float(v) for v in t.sigma_limit)
    if least != most or sigma[0] <= 0:
        raise refuse(t, "it draws the size of its kernel, or a sigma of 0",
                     "give it one blur_limit, such as (7, 7) or 0, and sigma_limit above 0")  # fmt: skip
    note = "" if most else "the kernel of the largest sigma for all; their tails beyond 3.5 sigma are left out in yours"
    size = int(most) if most else int(sigma[1] * 3.5) * 2 + 1
    return Meaning([_torchvision("GaussianBlur", size, sigma)], True, note)


def _fill(t: Any) -> Any:
    if t.border_mode != 0:
        raise refuse(t, "it repeats or mirrors what lies outside", "take border_mode=cv2.BORDER_CONSTANT")
    # torchvision's None lets the border fade to black, as OpenCV's does
    return None if not t.fill or t.fill == 0 else t.fill


def _rotate(t: Any) -> Meaning:
    if t.crop_border:
        raise refuse(t, "it crops what it turned", "leave crop_border out")
    turned = _torchvision("RandomRotation", tuple(t.limit), _filter(t))
    turned.fill = _fill(t)
    return Meaning([turned], False, _STEPS)


def _affine(t: Any) -> Meaning:
    low, high = t.rotate
    scale, shear = t.scale, [tuple(t.shear[axis]) for axis in "xy"]
    if any(ends != (0, 0) for ends in shear):
        raise refuse(t, "it shears after turning, where torchvision's and ours shear before", "leave shear out")
    if t.fit_output or t.balanced_scale or not (t.keep_ratio or scale["x"] == scale["y"] == (1, 1)):
        raise refuse(t, "it scales width and height apart, or draws their scale in a way of its own",
                     "take Affine with keep_ratio=True, without fit_output and balanced_scale")  # fmt: skip
    percent = t.translate_percent or {"x": (0.0, 0.0), "y": (0.0, 0.0)}
    pixels = t.translate_px or {"x": (0, 0), "y": (0, 0)}
    if any(tuple(pixels[axis]) != (0, 0) or percent[axis][0] != -percent[axis][1] for axis in "xy"):
        raise refuse(t, "it moves by pixels, or to one side", "give it translate_percent=(-share, share)")
    shares = tuple(float(percent[axis][1]) for axis in "xy")
    moved = any(shares)
    warp = _torchvision("RandomAffine", (-high, -low), shares if moved else None, tuple(scale["x"]),
                        interpolation=_filter(t))  # fmt: skip
    warp.fill = _fill(t)
    return Meaning([warp], False, f"{_STEPS}{'; shifts are rounded, where yours are cut off' if moved else ''}")


def _one(t: Any, field: str, what: str) -> float:
    """The value of a range that holds one."""
    ends = getattr(t, field)
    if len(ends) != 2 or ends[0] != ends[1] or isinstance(ends[0], Sequence):
        raise refuse(t, f"it draws {what}", f"give it one {field}")
    return float(ends[0])


def _solarize(t: Any) -> Meaning:
    return Meaning([_torchvision("RandomSolarize", _one(t, "threshold_range", "its threshold") * 255, p=1.0)])


def _posterize(t: Any) -> Meaning:
    return Meaning([_torchvision("RandomPosterize", int(_one(t, "num_bits", "its bits")), p=1.0)])


def _equalize(t: Any) -> Meaning:
    if t.mode != "pil" or not t.by_channels or t.mask is not None:
        raise refuse(t, "OpenCV's table is another, and so is one of the luminance or of a mask",
                     "give it mode='pil', by_channels=True and no mask")  # fmt: skip
    note = "its table counts the pixels of a value itself, where Pillow's and ours count those below"
    return Meaning([_torchvision("RandomEqualize", 1.0)], False, note)


def _dropout(t: Any) -> Meaning:
    raise refuse(t, "it draws the sides of its holes, where erasing draws an area and a shape",
                 "leave it out, and pass re_prob=, re_scale= and re_ratio=")  # fmt: skip


def _invert(t: Any) -> Meaning:
    return Meaning([_torchvision("RandomInvert", 1.0)])


def _one_of(t: Any) -> Meaning:
    """One of them by their p as weights, which is then applied whatever its p."""
    found = [_meaning(each, 1.0) for each in t.transforms]
    parts = [each.parts[0] if len(each.parts) == 1 else each.parts for each in found]
    choice = _torchvision("RandomChoice", parts, p=[float(p) for p in t.transforms_ps])
    notes = "; ".join(dict.fromkeys(each.note for each in found if each.note))
    return Meaning([choice], all(each.exact for each in found), notes)


def _sequential(t: Any) -> Meaning:
    found = [meaning_of(each) for each in t.transforms if type(each).__name__ != "NoOp"]
    notes = "; ".join(dict.fromkeys(each.note for each in found if each.note))
    return Meaning([part for each in found for part in each.parts], all(each.exact for each in found), notes)


_FLIPS = {"HorizontalFlip": "RandomHorizontalFlip", "VerticalFlip": "RandomVerticalFlip"}
_WHOLE: dict[str, Callable[[Any], Meaning]] = {
    "RandomResizedCrop": _resized_crop,
    "Resize": _resize,
    "SmallestMaxSize": _smallest,
    "CenterCrop": _center_crop,
    "RandomCrop": _random_crop,
    "Normalize": _normalize,
    "ToFloat": _to_float,
    "ToTensorV2": _nothing,
}
_PARTS: dict[str, Callable[[Any], Meaning]] = {
    "NoOp": _nothing,
    "ColorJitter": _jitter,
    "RandomBrightnessContrast": _brightness_contrast,
    "ToGray": _gray,
    "GaussianBlur": _blur,
    "Rotate": _rotate,
    "Affine": _affine,
    "ShiftScaleRotate": _affine,
    "Solarize": _solarize,
    "Posterize": _posterize,
    "Equalize": _equalize,
    "InvertImg": _invert,
    "CoarseDropout": _dropout,
    "Erasing": _dropout,
    "OneOf": _one_of,
    "Sequential": _sequential,
}
