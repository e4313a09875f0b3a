"""The pixel operations by name: what a plan draws and a batch stage executes.

An operation takes a uint8 image and one final argument (a factor, degrees, pixels, bits, a threshold; sign included),
so that what executes a draw knows nothing of the policy that drew it. Two families: torchvision's `transforms.v2`
functional on uint8 tensors, and PIL as timm's auto-augment uses it (ids from 100).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Literal, NamedTuple

from dali_imagenet.escape import either
from dali_imagenet.validation import wrong

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""Filters of resizing, and but for lanczos of moving, by the numbers of PIL's Image.Resampling."""


class Op(IntEnum):
    """An operation; the comment gives its argument. `aux` is 0 where the comment names none."""

    IDENTITY = 0
    SHEAR_X = 1  # tangent of the angle; aux = 0 nearest, 2 bilinear
    SHEAR_Y = 2  # as above
    TRANSLATE_X = 3  # whole pixels, right is positive; aux as above
    TRANSLATE_Y = 4  # whole pixels, down is positive; aux as above
    ROTATE = 5  # degrees, as torchvision's rotate; aux as above
    BRIGHTNESS = 6  # factor >= 0, 1 leaves the image
    COLOR = 7  # saturation factor >= 0
    CONTRAST = 8  # factor >= 0
    SHARPNESS = 9  # factor >= 0
    POSTERIZE = 10  # bits kept, 0..8
    SOLARIZE = 11  # threshold: values >= it are inverted
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14
    HUE = 15  # turns, -0.5..0.5
    GRAYSCALE = 16
    GAUSSIAN_BLUR = 17  # sigma in pixels; aux = odd kernel size
    SOLARIZE_ADD = 18  # value added below the threshold 128
    AFFINE_X = 19  # pixels to the right, rounded; as with the next four, the AFFINE that follows does it
    AFFINE_Y = 20  # pixels down, rounded
    AFFINE_SCALE = 21  # factor of the size
    AFFINE_SHEAR_X = 22  # degrees
    AFFINE_SHEAR_Y = 23  # degrees
    AFFINE = 24  # degrees, as torchvision's affine: the one warp of a turn and of all that; aux = 0 nearest, 2 bilinear

    PIL_SHEAR_X = 101  # shear factor; aux = PIL resampling filter (0 nearest, 2 bilinear, 3 bicubic)
    PIL_SHEAR_Y = 102  # as above
    PIL_TRANSLATE_X = 103  # pixels; aux as above
    PIL_TRANSLATE_Y = 104  # as above
    PIL_ROTATE = 105  # degrees; aux as above
    PIL_BRIGHTNESS = 106  # ImageEnhance factor
    PIL_COLOR = 107
    PIL_CONTRAST = 108
    PIL_SHARPNESS = 109
    PIL_POSTERIZE = 110  # bits kept; 0 gives black, which ImageOps.posterize refuses
    PIL_SOLARIZE = 111  # threshold
    PIL_AUTO_CONTRAST = 112
    PIL_EQUALIZE = 113
    PIL_INVERT = 114
    PIL_GRAYSCALE = 116
    PIL_GAUSSIAN_BLUR = 117  # radius in pixels
    PIL_SOLARIZE_ADD = 118  # value added below the threshold 128
    PIL_AFFINE = 124  # torchvision's affine of PIL images; aux = PIL resampling filter


class OpInfo(NamedTuple):
    """What an operation is, for whoever draws it, checks it or executes it."""

    family: Literal["torchvision", "pil"]
    low: float = -math.inf
    """Least argument."""
    high: float = math.inf
    """Largest argument."""
    whole: bool = False
    """Whether the argument is a whole number where it is drawn from a range."""
    mirror: float | None = None
    """A random sign turns an argument x into mirror - x; None: it has no sign."""
    aux: Literal["none", "filter", "kernel"] = "none"
    """What `aux` is: nothing (0), a filter of `FILTERS`, or the odd side of a kernel in pixels."""

    @property
    def filters(self) -> tuple[int, ...]:
        """The filters that the family has for moving operations."""
        names = ("nearest", "bilinear") if self.family == "torchvision" else ("nearest", "bilinear", "bicubic")
        return tuple(FILTERS[name] for name in names)

    @property
    def default_aux(self) -> int | None:
        """The aux of who gives none; None where there is no default."""
        if self.aux == "filter":
            return FILTERS["nearest" if self.family == "torchvision" else "bicubic"]
        return 0 if self.aux == "none" else None


def _both(torch_op: Op, pil_op: Op, **fields: object) -> dict[Op, OpInfo]:
    """The same operation of both families."""
    infos = (OpInfo(family, **fields) for family in ("torchvision", "pil"))  # type: ignore[arg-type]  # of many types
    return dict(zip((torch_op, pil_op), infos, strict=True))


OPS: dict[Op, OpInfo] = {
    Op.IDENTITY: OpInfo("torchvision"),
    **_both(Op.SHEAR_X, Op.PIL_SHEAR_X, mirror=0.0, aux="filter"),
    **_both(Op.SHEAR_Y, Op.PIL_SHEAR_Y, mirror=0.0, aux="filter"),
    Op.TRANSLATE_X: OpInfo("torchvision", whole=True, mirror=0.0, aux="filter"),
    Op.TRANSLATE_Y: OpInfo("torchvision", whole=True, mirror=0.0, aux="filter"),
    Op.PIL_TRANSLATE_X: OpInfo("pil", mirror=0.0, aux="filter"),
    Op.PIL_TRANSLATE_Y: OpInfo("pil", mirror=0.0, aux="filter"),
    **_both(Op.ROTATE, Op.PIL_ROTATE, mirror=0.0, aux="filter"),
    **_both(Op.BRIGHTNESS, Op.PIL_BRIGHTNESS, low=0, mirror=2.0),
    **_both(Op.COLOR, Op.PIL_COLOR, low=0, mirror=2.0),
    **_both(Op.CONTRAST, Op.PIL_CONTRAST, low=0, mirror=2.0),
    **_both(Op.SHARPNESS, Op.PIL_SHARPNESS, low=0, mirror=2.0),
    **_both(Op.POSTERIZE, Op.PIL_POSTERIZE, low=0, high=8, whole=True),
    Op.SOLARIZE: OpInfo("torchvision", low=0, high=255),
    Op.PIL_SOLARIZE: OpInfo("pil", low=0, high=256),
    **_both(Op.AUTO_CONTRAST, Op.PIL_AUTO_CONTRAST),
    **_both(Op.EQUALIZE, Op.PIL_EQUALIZE),
    **_both(Op.INVERT, Op.PIL_INVERT),
    Op.HUE: OpInfo("torchvision", low=-0.5, high=0.5, mirror=0.0),
    **_both(Op.GRAYSCALE, Op.PIL_GRAYSCALE),
    Op.GAUSSIAN_BLUR: OpInfo("torchvision", low=1e-3, high=100, aux="kernel"),
    Op.PIL_GAUSSIAN_BLUR: OpInfo("pil", low=0, high=100),
    **_both(Op.SOLARIZE_ADD, Op.PIL_SOLARIZE_ADD, low=0, high=255, whole=True),
    Op.AFFINE_X: OpInfo("torchvision", mirror=0.0),
    Op.AFFINE_Y: OpInfo("torchvision", mirror=0.0),
    Op.AFFINE_SCALE: OpInfo("torchvision", low=0.05, high=20),
    Op.AFFINE_SHEAR_X: OpInfo("torchvision", low=-85, high=85, mirror=0.0),
    Op.AFFINE_SHEAR_Y: OpInfo("torchvision", low=-85, high=85, mirror=0.0),
    **_both(Op.AFFINE, Op.PIL_AFFINE, mirror=0.0, aux="filter"),
}
"""The one table of operations: a new one is an entry here, and a function in each executor."""


def check_op(op: int, arg: float, aux: int) -> OpInfo:
    """The operation of that number, for an argument and aux that it takes.

    Raises:
        ValueError: for an operation that there is not, or an argument or aux that it does not take.
    """
    info = _BY_NUMBER.get(op)
    if info is None:
        raise wrong("op", op, f"one of {', '.join(o.name for o in Op)}")
    # an end of the range may come as the next float32
    if not info.low - 1e-6 <= arg <= info.high + 1e-6:
        raise wrong(f"{Op(op).name}: argument", arg, f"in [{info.low:g}, {info.high:g}]")
    check_aux(op, info, aux)
    return info


def check_aux(op: int, info: OpInfo, aux: int | None) -> None:
    """Raises ValueError for an aux that the operation does not take."""
    if info.aux == "filter" and aux not in info.filters:
        names = {number: name for name, number in FILTERS.items()}
        raise wrong(f"{Op(op).name}: aux", aux, f"a filter: {either(f'{n} ({names[n]})' for n in info.filters)}")
    if info.aux == "kernel" and not (aux and aux > 0 and aux % 2):
        raise wrong(f"{Op(op).name}: aux", aux, "the kernel size in pixels, an odd number such as 23")


AFFINE_PARTS = frozenset({Op.AFFINE_X, Op.AFFINE_Y, Op.AFFINE_SCALE, Op.AFFINE_SHEAR_X, Op.AFFINE_SHEAR_Y})
"""Operations that change nothing by themselves: they say what the next AFFINE or PIL_AFFINE does."""

_BY_NUMBER = {int(op): info for op, info in OPS.items()}
