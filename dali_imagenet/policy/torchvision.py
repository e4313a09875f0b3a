"""torchvision's policies, with the operations and magnitudes of its `transforms.v2`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali_imagenet.ops import FILTERS, OPS, Op
from dali_imagenet.policy.augmix import augmix_uniforms, draw_augmix
from dali_imagenet.policy.base import (
    AugmentPolicy,
    AugMixPlan,
    Entry,
    Float,
    Row,
    Size,
    Table,
    auto_table,
    checked_uniforms,
    one_of,
    sub_policies,
    table_of,
)
from dali_imagenet.validation import boolean, choice, real, whole

# The names of torchvision's operations; True where the magnitude gets a random sign.
_TV_OPS = {
    "Identity": (Op.IDENTITY, False),
    "ShearX": (Op.SHEAR_X, True),
    "ShearY": (Op.SHEAR_Y, True),
    "TranslateX": (Op.TRANSLATE_X, True),
    "TranslateY": (Op.TRANSLATE_Y, True),
    "Rotate": (Op.ROTATE, True),
    "Brightness": (Op.BRIGHTNESS, True),
    "Color": (Op.COLOR, True),
    "Contrast": (Op.CONTRAST, True),
    "Sharpness": (Op.SHARPNESS, True),
    "Posterize": (Op.POSTERIZE, False),
    "Solarize": (Op.SOLARIZE, False),
    "AutoContrast": (Op.AUTO_CONTRAST, False),
    "Equalize": (Op.EQUALIZE, False),
    "Invert": (Op.INVERT, False),
}
FACTORS = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
_RAND_SPACE = tuple(name for name in _TV_OPS if name != "Invert")
_MIX_SPACE = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Posterize", "Solarize", "AutoContrast",
              "Equalize", "Brightness", "Color", "Contrast", "Sharpness")  # fmt: skip


class _Limits(NamedTuple):
    """The largest magnitudes of a torchvision policy."""

    shear: float  # tangent
    shift: tuple[float, float]  # pixels along x and y
    rotate: float  # degrees
    factor: float  # distance from 1
    bits: int  # kept by the weakest posterize
    drop: int  # and so many fewer by the strongest


def _linspace(start: float, end: float, num: int) -> NDArray[np.float32]:
    """torch.linspace of float32 on the CPU, to the bit: fused multiply-adds from both ends towards the middle."""
    i = np.arange(num, dtype=np.float64)
    a, b = np.float32(start), np.float32(end)
    step = np.float64((b - a) / np.float32(num - 1))
    return np.where(i < num // 2, a + step * i, b - step * (num - 1 - i)).astype(np.float32)


def _tv_magnitudes(op: Op, limits: _Limits, bins: int) -> list[float]:
    """The magnitude of each bin, as the `_AUGMENTATION_SPACE` of torchvision's policies has it."""
    if op == Op.POSTERIZE:
        steps = np.arange(bins, dtype=np.float32) / np.float32((bins - 1) / limits.drop)
        return [float(bits) for bits in np.round(limits.bits - steps)]
    if op == Op.SOLARIZE:
        return [255.0 * float(level) for level in _linspace(1.0, 0.0, bins)]
    x, y = limits.shift
    largest = {Op.SHEAR_X: limits.shear, Op.SHEAR_Y: limits.shear, Op.TRANSLATE_X: x, Op.TRANSLATE_Y: y,
               Op.ROTATE: limits.rotate} | dict.fromkeys(FACTORS, limits.factor)  # fmt: skip
    return [float(m) for m in _linspace(0.0, largest[op], bins)] if op in largest else [0.0] * bins


def _tv_rows(name: str, limits: _Limits, bins: int, picked: Iterable[int], interpolation: str) -> list[Row]:
    """The outcomes of an operation at the picked bins, two for each (its signs, or twice the same)."""
    op, signed = _TV_OPS[name]
    aux = FILTERS[interpolation] if OPS[op].aux == "filter" else 0
    rows = []
    magnitudes = _tv_magnitudes(op, limits, bins)
    for sign in (1, -1 if signed else 1):
        for m in (sign * magnitudes[i] for i in picked):
            if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
                m = float(int(m))
            rows.append(Row(op, aux, 1.0 + m if op in FACTORS else m))
    return rows


def _relative(size: Size, share: float) -> tuple[float, float]:
    return share * size[1], share * size[0]


@dataclass(frozen=True)
class RandAugment(AugmentPolicy):
    """torchvision's `v2.RandAugment`: num_ops of 14 operations with replacement, at one magnitude, random signs.

    Attributes:
        num_ops: operations for each image, 1..100.
        magnitude: bin of the magnitude, 0..num_magnitude_bins-1.
        num_magnitude_bins: 2..1000.
        interpolation: "nearest" or "bilinear".
        fill: colour (0..255) of what lies outside a moved image.
    """

    name: ClassVar[str] = "randaugment"
    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"

    def _check(self) -> None:
        self._set("num_ops", whole, 1, 100)
        self._set("num_magnitude_bins", whole, 2, 1000)
        self._set("magnitude", whole, 0, self.num_magnitude_bins - 1)
        self._set("interpolation", choice, ("nearest", "bilinear"))

    def _build(self, size: Size) -> Table:
        limits = _Limits(0.3, _relative(size, 150.0 / 331.0), 30.0, 0.9, 8, 4)
        bins, picked = self.num_magnitude_bins, [self.magnitude]
        entry = one_of(_tv_rows(name, limits, bins, picked, self.interpolation) for name in _RAND_SPACE)
        return Table([entry], [[0] * self.num_ops])


@dataclass(frozen=True)
class TrivialAugmentWide(AugmentPolicy):
    """torchvision's `v2.TrivialAugmentWide`: one of 14 operations at a magnitude drawn from all bins.

    Attributes:
        num_magnitude_bins: 2..1000.
        interpolation: "nearest" or "bilinear".
        fill: colour (0..255) of what lies outside a moved image.
    """

    name: ClassVar[str] = "trivialaugment"
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"

    def _check(self) -> None:
        self._set("num_magnitude_bins", whole, 2, 1000)
        self._set("interpolation", choice, ("nearest", "bilinear"))

    def _build(self, size: Size) -> Table:
        limits = _Limits(0.99, (32.0, 32.0), 135.0, 0.99, 8, 6)
        bins = self.num_magnitude_bins
        entry = one_of(_tv_rows(name, limits, bins, range(bins), self.interpolation) for name in _RAND_SPACE)
        return Table([entry], [[0]])


# (operation, probability in tenths, bin), as torchvision's AutoAugment._get_policies lists them.
AUTO_AUGMENT = {
    "imagenet": """
        Posterize 4 8 Rotate 6 9, Solarize 6 5 AutoContrast 6 0, Equalize 8 0 Equalize 6 0, Posterize 6 7 Posterize 6 6,
        Equalize 4 0 Solarize 2 4, Equalize 4 0 Rotate 8 8, Solarize 6 3 Equalize 6 0, Posterize 8 5 Equalize 10 0,
        Rotate 2 3 Solarize 6 8, Equalize 6 0 Posterize 4 6, Rotate 8 8 Color 4 0, Rotate 4 9 Equalize 6 0,
        Equalize 0 0 Equalize 8 0, Invert 6 0 Equalize 10 0, Color 6 4 Contrast 10 8, Rotate 8 8 Color 10 2,
        Color 8 8 Solarize 8 7, Sharpness 4 7 Invert 6 0, ShearX 6 5 Equalize 10 0, Color 4 0 Equalize 6 0,
        Equalize 4 0 Solarize 2 4, Solarize 6 5 AutoContrast 6 0, Invert 6 0 Equalize 10 0, Color 6 4 Contrast 10 8,
        Equalize 8 0 Equalize 6 0""",
    "cifar10": """
        Invert 1 0 Contrast 2 6, Rotate 7 2 TranslateX 3 9, Sharpness 8 1 Sharpness 9 3, ShearY 5 8 TranslateY 7 9,
        AutoContrast 5 0 Equalize 9 0, ShearY 2 7 Posterize 3 7, Color 4 3 Brightness 6 7, Sharpness 3 9 Brightness 7 9,
        Equalize 6 0 Equalize 5 0, Contrast 6 7 Sharpness 6 5, Color 7 7 TranslateX 5 8, Equalize 3 0 AutoContrast 4 0,
        TranslateY 4 3 Sharpness 2 6, Brightness 9 6 Color 2 8, Solarize 5 2 Invert 0 0, Equalize 2 0 AutoContrast 6 0,
        Equalize 2 0 Equalize 6 0, Color 9 9 Equalize 6 0, AutoContrast 8 0 Solarize 2 8, Brightness 1 3 Color 7 0,
        Solarize 4 5 AutoContrast 9 0, TranslateY 9 9 TranslateY 7 9, AutoContrast 9 0 Solarize 8 3,
        Equalize 8 0 Invert 1 0, TranslateY 7 9 AutoContrast 9 0""",
    "svhn": """
        ShearX 9 4 Invert 2 0, ShearY 9 8 Invert 7 0, Equalize 6 0 Solarize 6 6, Invert 9 0 Equalize 6 0,
        Equalize 6 0 Rotate 9 3, ShearX 9 4 AutoContrast 8 0, ShearY 9 8 Invert 4 0, ShearY 9 5 Solarize 2 6,
        Invert 9 0 AutoContrast 8 0, Equalize 6 0 Rotate 9 3, ShearX 9 4 Solarize 3 3, ShearY 8 8 Invert 7 0,
        Equalize 9 0 TranslateY 6 6, Invert 9 0 Equalize 6 0, Contrast 3 3 Rotate 8 4, Invert 8 0 TranslateY 0 2,
        ShearY 7 6 Solarize 4 8, Invert 6 0 Rotate 8 4, ShearY 3 7 TranslateX 9 3, ShearX 1 6 Invert 6 0,
        Solarize 7 2 TranslateY 6 7, ShearY 8 4 Invert 8 0, ShearX 7 9 TranslateY 8 3, ShearY 8 5 AutoContrast 7 0,
        ShearX 7 2 Invert 1 0""",
}


@dataclass(frozen=True)
class AutoAugment(AugmentPolicy):
    """torchvision's `v2.AutoAugment`: one of 25 pairs of operations, each with a probability. See arXiv 1805.09501.

    Attributes:
        policy: "imagenet", "cifar10" or "svhn".
        interpolation: "nearest" or "bilinear".
        fill: colour (0..255) of what lies outside a moved image.
    """

    name: ClassVar[str] = "autoaugment"
    policy: str = "imagenet"
    interpolation: str = "nearest"

    def _check(self) -> None:
        self._set("policy", choice, AUTO_AUGMENT)
        self._set("interpolation", choice, ("nearest", "bilinear"))

    def _build(self, size: Size) -> Table:
        limits = _Limits(0.3, _relative(size, 150.0 / 331.0), 30.0, 0.9, 8, 4)
        return auto_table(
            [
                [Entry(_tv_rows(name, limits, 10, [level], self.interpolation), p) for name, p, level in sub]
                for sub in sub_policies(AUTO_AUGMENT[self.policy])
            ]
        )


@dataclass(frozen=True)
class AugMix(AugmentPolicy):
    """torchvision's `v2.AugMix` (arXiv 1912.02781); draws an `AugMixPlan`.

    Attributes:
        severity: operations draw their magnitude from the first so many of 10 bins, 1..10.
        mixture_width: chains, 1..100.
        chain_depth: operations in a chain, at most 100; not positive draws 1 to 3 for each chain.
        alpha: of the Dirichlet and Beta distributions, 0.01..1000.
        all_ops: with brightness, contrast, color and sharpness.
        interpolation: "nearest" or "bilinear"; torchvision's default is bilinear here, nearest in its other policies.
        fill: colour (0..255) of what lies outside a moved image.
    """

    name: ClassVar[str] = "augmix"
    severity: int = 3
    mixture_width: int = 3
    chain_depth: int = -1
    alpha: float = 1.0
    all_ops: bool = True
    interpolation: str = "bilinear"

    def _check(self) -> None:
        self._set("severity", whole, 1, 10)
        self._set("mixture_width", whole, 1, 100)
        self._set("chain_depth", whole, -1, 100)
        self._set("alpha", real, 0.01, 1000.0)
        self._set("all_ops", boolean)
        self._set("interpolation", choice, ("nearest", "bilinear"))

    @property
    def num_uniforms(self) -> int:
        return augmix_uniforms(table_of(self, (32, 32)), self.mixture_width, self.chain_depth)

    def draw(self, u: Float, size: Size) -> AugMixPlan:
        table = table_of(self, size)
        width, depth = self.mixture_width, self.chain_depth
        return draw_augmix(table, checked_uniforms(self, u), width, depth, self.alpha, "torchvision")

    def _build(self, size: Size) -> Table:
        limits = _Limits(0.3, _relative(size, 1.0 / 3.0), 30.0, 0.9, 4, 4)
        space = _MIX_SPACE if self.all_ops else _MIX_SPACE[:9]
        entry = one_of(_tv_rows(name, limits, 10, range(self.severity), self.interpolation) for name in space)
        return Table([entry], [[0] * (self.chain_depth if self.chain_depth > 0 else 3)])
