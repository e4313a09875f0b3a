"""Augmentation policies: which operations a sample gets, drawn from uniforms. numpy only, no pixels.

``resolve`` turns a recipe's ``auto_augment`` into a policy; ``policy.draw(u, size)`` turns a fixed number of uniforms
a sample into final operations (``ops.Op`` and its argument, sign included) for a whole batch, as a function of ``u``.

==============================================  ======================================================================
name                                            semantics
==============================================  ======================================================================
randaugment[-n2][-m9][-bins31]                  torchvision ``v2.RandAugment``
trivialaugment[-bins31]                         torchvision ``v2.TrivialAugmentWide``
autoaugment[-imagenet|-cifar10|-svhn]           torchvision ``v2.AutoAugment``
augmix                                          torchvision ``v2.AugMix``
rand[-m10][-n2][-p0.5][-mstd0][-mmax10]         timm ``rand_augment_transform``; t: transform set weights, 3a or 3aw;
[-inc0][-t..][-w0]                              w0: the weighted choice of timm before 0.8, without inc
original, originalr, v0, v0r, 3a [-mstd0]       timm ``auto_augment_transform``
augmix-[m3][-w3][-d3][-a1][-b0][-mstd..]        timm ``augment_and_mix_transform``; no d: random depth 1 to 3
3-augment                                       DeiT III's ``new_data_aug_generator``: one of grayscale, solarize 128,
                                                PIL Gaussian blur of radius 0.1 to 2.0. timm's ``3a`` is the same
                                                (grayscale as saturation 0) and only adds the option mstd.
==============================================  ======================================================================

Every policy but the chains of AugMix is one table: a sub-policy is chosen, it names an entry for each slot, an entry is
a run of equally likely rows (operation, sign, filter) and a probability. So one uniform decides a slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import lru_cache
from itertools import permutations
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali_imagenet.ops import Op
from dali_imagenet.validation import boolean, choice, probability, real, sequence, whole, wrong

Size = tuple[int, int]
Color = tuple[int, int, int]
Float = NDArray[np.float64]

_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # PIL's Image.Resampling
_INF = math.inf


class OpPlan(NamedTuple):
    """The operations of B samples, slot after slot: op int16 [B,K], arg float32 [B,K], aux int16 [B,K] (see ``Op``)."""

    op: NDArray[np.int16]
    arg: NDArray[np.float32]
    aux: NDArray[np.int16]


class AugMixPlan(NamedTuple):
    """AugMix of B samples: W chains of up to D operations each, applied to the image, then mixed.

    op int16, arg float32, aux int16 [B,W,D], unused places at the end of a chain being ``Op.IDENTITY``;
    weights float32 [B,W]; m float32 [B], the share of the augmented image in the result. By ``mode``:

    - "torchvision": truncate((1 - m) * image + sum_i m * weights_i * chain_i), weights summing to 1
    - "timm": Image.blend(image, truncate(clip(sum_i weights_i * chain_i, 0, 255)), m), weights summing to 1
    - "blend" (timm's b1): for each chain in turn, result = Image.blend(result, chain_i, weights_i); m is already in
      the weights
    """

    op: NDArray[np.int16]
    arg: NDArray[np.float32]
    aux: NDArray[np.int16]
    weights: NDArray[np.float32]
    m: NDArray[np.float32]
    mode: Literal["torchvision", "timm", "blend"]


# ---------------------------------------------------------------------------------------------------- the table


class _Row(NamedTuple):
    """One way an operation can turn out: arg = clip(offset + sign * min(cap, level / 10 * scale), low, high), where
    level = clip(base + spread * noise, 0, limit) is timm's magnitude; ``whole`` truncates level / 10 * scale."""

    op: int
    aux: int = 0
    offset: float = 0.0
    base: float = 0.0
    spread: float = 0.0
    limit: float = _INF
    scale: float = 0.0
    whole: float = 0.0
    cap: float = _INF
    sign: float = 0.0
    low: float = -_INF
    high: float = _INF
    radius: float = 0.0  # 1: the argument is uniform in 0.1 .. 2 * arg (timm's GaussianBlurRand)


class _Entry(NamedTuple):
    """With ``probability``, one of ``rows``, each as likely as the others; else nothing."""

    rows: Sequence[_Row]
    probability: float


class _Table:
    """``entries`` by the sub-policies [P,K] that name them; P chosen by ``weights`` (None: all alike).

    ``noise`` is what stands behind ``_Row.spread``: "" nothing, "uniform" in [0,1) or "normal", one draw a slot.
    """

    def __init__(
        self, entries: Sequence[_Entry], subs: Any, weights: Sequence[float] | Float | None = None, noise: str = ""
    ) -> None:
        rows: list[_Row] = []
        first = []
        for entry in entries:
            first.append(len(rows))
            rows += [*entry.rows, _Row(Op.IDENTITY)] if entry.probability else [_Row(Op.IDENTITY)] * 2
        self.first = np.array(first)
        self.count = np.array([len(e.rows) if e.probability else 1 for e in entries])
        self.scale = self.count / np.array([e.probability or 1.0 for e in entries])
        self.subs: NDArray[np.int64] = np.array(subs, dtype=np.int64)
        self.cumulative = None if weights is None else np.cumsum(weights)[:-1] / np.sum(weights)
        self.noise = noise
        self.op = np.array([r.op for r in rows], dtype=np.int16)
        self.aux = np.array([r.aux for r in rows], dtype=np.int16)
        self.rows: Float = np.array([r[2:] for r in rows], dtype=np.float64)
        self.random_radius = bool(self.rows[:, -1].any())
        self.fixed = _argument(self.rows, 0.0)
        self.num_slots: int = self.subs.shape[1]
        noises = {"": 0, "uniform": self.num_slots, "normal": self.num_slots + self.num_slots % 2}[noise]
        radii = self.num_slots if self.random_radius else 0
        self.parts = np.cumsum([int(len(self.subs) > 1), self.num_slots, noises, radii])

    @property
    def num_uniforms(self) -> int:
        return int(self.parts[-1].item())

    def draw(self, u: Float) -> OpPlan:
        choice, slots, noise, radius, _ = np.split(u, self.parts, axis=1)
        if len(self.subs) == 1:
            entry = np.broadcast_to(self.subs, slots.shape)
        elif self.cumulative is None:
            entry = self.subs[(choice[:, 0] * len(self.subs)).astype(np.int64)]
        else:
            entry = self.subs[np.searchsorted(self.cumulative, choice[:, 0], side="right")]
        # Below the probability, u runs over the rows of the entry; above it, it stays on the identity that follows.
        row = self.first[entry] + np.minimum((slots * self.scale[entry]).astype(np.int64), self.count[entry])
        if self.noise:
            arg = _argument(self.rows[row], noise if self.noise == "uniform" else _normals(noise, self.num_slots))
        else:
            arg = self.fixed[row]
        if self.random_radius:
            arg = np.where(self.rows[row, -1] > 0, 0.1 + (2.0 * arg - 0.1) * radius, arg)
        return OpPlan(self.op[row], arg.astype(np.float32), self.aux[row])


def _argument(rows: Float, noise: Float | float) -> Float:
    offset, base, spread, limit, scale, whole, cap, sign, low, high, _ = np.moveaxis(rows, -1, 0)
    x: Float = np.clip(base + spread * noise, 0.0, limit) / 10.0 * scale
    x = np.minimum(np.where(whole > 0, np.trunc(x), x), cap)
    arg: Float = np.clip(offset + sign * x, low, high) + 0.0  # no negative zero
    return arg


def _normals(u: Float, n: int) -> Float:
    """n standard normals a row from n (rounded up to even) uniforms, by Box and Muller."""
    a, b = np.split(u, 2, axis=1)
    r = np.sqrt(-2.0 * np.log1p(-a))
    z: Float = np.concatenate([r * np.cos(2 * np.pi * b), r * np.sin(2 * np.pi * b)], axis=1)
    return z[:, :n]


# ---------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """What every policy offers. Policies are values: frozen, equal by content, picklable, with a stable repr.

    ``fill`` is the colour (0..255) of what lies outside a moved image. A policy of one's own derives from this class
    and gives itself a `name`.
    """

    name: ClassVar[str] = ""
    """Under which saved states know the policy; it never changes, whatever the class is called."""

    fill: Color = (0, 0, 0)

    def __post_init__(self) -> None:
        if not type(self).__dict__.get("name"):
            raise TypeError(f"{type(self).__name__}: give the class a `name`, under which saved states know it")
        self._set("fill", _color)
        self._check()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The policy as JSON takes it and gives it back: its name, and the fields that are not their defaults."""
        own = {f.name: as_json(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"policy": self.name, "fields": dict(sorted(own.items()))}

    def _set(self, field: str, validate: Callable[..., Any], *bounds: Any) -> None:
        """Replace a field by what its validator makes of it."""
        value = validate(f"{type(self).__name__}: {field}", getattr(self, field), *bounds)
        object.__setattr__(self, field, value)

    @property
    def num_slots(self) -> int:
        """K, the operations a sample gets at most (AugMix: D, those of one chain)."""
        return _table(self, (32, 32)).num_slots

    @property
    def num_uniforms(self) -> int:
        """U, the uniforms that ``draw`` consumes for a sample, whatever the size of the images."""
        return _table(self, (32, 32)).num_uniforms

    def draw(self, u: Float, size: Size) -> OpPlan | AugMixPlan:
        """Operations for u float64 [B,U] in [0,1), a row a sample, and images of ``size`` (height, width)."""
        return _table(self, size).draw(_uniforms(self, u))

    def _check(self) -> None:
        """Bring each field into its normal type, or raise ValueError."""

    def _build(self, size: Size) -> _Table:
        raise NotImplementedError(f"{type(self).__name__} has no table")


@lru_cache(maxsize=64)
def _table(policy: AugmentPolicy, size: Size) -> _Table:
    return policy._build(size)


def _uniforms(policy: AugmentPolicy, u: Float) -> Float:
    if u.ndim != 2 or u.shape[1] != policy.num_uniforms:
        raise ValueError(f"uniforms of shape {u.shape}: {policy!r} needs [B,{policy.num_uniforms}]")
    return u


def _color(name: str, value: Any) -> Color:
    items = sequence(value) or ()
    if len(items) != 3:
        raise wrong(name, value, "three whole numbers in [0, 255]")
    r, g, b = (whole(name, v, 0, 255) for v in items)
    return r, g, b


def as_json(value: Any) -> Any:
    """The value of a field in JSON's types: tuples as lists, an `Op` by its name, infinity as "inf"."""
    if isinstance(value, tuple):
        return [as_json(v) for v in value]
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, Enum):
        return value.name
    return "inf" if value == math.inf else value


# ---------------------------------------------------------------------------------------------------- torchvision

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
_MOVES = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)
_FACTORS = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
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
    """The magnitude of each bin, as the ``_AUGMENTATION_SPACE`` of torchvision's policies has it."""
    if op == Op.POSTERIZE:
        steps = np.arange(bins, dtype=np.float32) / np.float32((bins - 1) / limits.drop)
        return [float(bits) for bits in np.round(limits.bits - steps)]
    if op == Op.SOLARIZE:
        return [255.0 * float(level) for level in _linspace(1.0, 0.0, bins)]
    x, y = limits.shift
    largest = {Op.SHEAR_X: limits.shear, Op.SHEAR_Y: limits.shear, Op.TRANSLATE_X: x, Op.TRANSLATE_Y: y,
               Op.ROTATE: limits.rotate} | dict.fromkeys(_FACTORS, limits.factor)  # fmt: skip
    return [float(m) for m in _linspace(0.0, largest[op], bins)] if op in largest else [0.0] * bins


def _tv_rows(name: str, limits: _Limits, bins: int, picked: Iterable[int], interpolation: str) -> list[_Row]:
    """The outcomes of an operation at the picked bins, two for each (its signs, or twice the same)."""
    op, signed = _TV_OPS[name]
    aux = _FILTERS[interpolation] if op in _MOVES else 0
    rows = []
    magnitudes = _tv_magnitudes(op, limits, bins)
    for sign in (1, -1 if signed else 1):
        for m in (sign * magnitudes[i] for i in picked):
            if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
                m = float(int(m))
            rows.append(_Row(op, aux, 1.0 + m if op in _FACTORS else m))
    return rows


def _relative(size: Size, share: float) -> tuple[float, float]:
    return share * size[1], share * size[0]


def _one_of(rows: Iterable[list[_Row]], probability: float = 1.0) -> _Entry:
    """The union of equally likely lists of rows, the short ones repeated to the length of the longest."""
    lists = list(rows)
    longest = max(map(len, lists))
    return _Entry([row for some in lists for row in some * (longest // len(some))], probability)


@dataclass(frozen=True)
class RandAugment(AugmentPolicy):
    """torchvision's ``v2.RandAugment``: num_ops of 14 operations with replacement, at one magnitude, random signs."""

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

    def _build(self, size: Size) -> _Table:
        limits = _Limits(0.3, _relative(size, 150.0 / 331.0), 30.0, 0.9, 8, 4)
        bins, picked = self.num_magnitude_bins, [self.magnitude]
        entry = _one_of(_tv_rows(name, limits, bins, picked, self.interpolation) for name in _RAND_SPACE)
        return _Table([entry], [[0] * self.num_ops])


@dataclass(frozen=True)
class TrivialAugmentWide(AugmentPolicy):
    """torchvision's ``v2.TrivialAugmentWide``: one of 14 operations at a magnitude drawn from all bins."""

    name: ClassVar[str] = "trivialaugment"
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"

    def _check(self) -> None:
        self._set("num_magnitude_bins", whole, 2, 1000)
        self._set("interpolation", choice, ("nearest", "bilinear"))

    def _build(self, size: Size) -> _Table:
        limits = _Limits(0.99, (32.0, 32.0), 135.0, 0.99, 8, 6)
        bins = self.num_magnitude_bins
        entry = _one_of(_tv_rows(name, limits, bins, range(bins), self.interpolation) for name in _RAND_SPACE)
        return _Table([entry], [[0]])


# (operation, probability in tenths, bin), as torchvision's AutoAugment._get_policies lists them.
_AUTO_AUGMENT = {
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


def _sub_policies(text: str) -> list[list[tuple[str, float, int]]]:
    """Parse "Name tenths level Name tenths level, ..."."""
    subs = [sub.split() for sub in text.split(",")]
    return [[(w[i], int(w[i + 1]) / 10, int(w[i + 2])) for i in range(0, len(w), 3)] for w in subs]


def _auto_table(subs: Sequence[Sequence[_Entry]], weights: Sequence[float] | None = None, noise: str = "") -> _Table:
    """The table of sub-policies given as entries; short ones end in slots that do nothing."""
    slots = max(map(len, subs))
    entries = [_Entry([], 0.0)]
    index = []
    for sub in subs:
        index.append([*range(len(entries), len(entries) + len(sub)), *[0] * (slots - len(sub))])
        entries += sub
    return _Table(entries, index, weights, noise)


@dataclass(frozen=True)
class AutoAugment(AugmentPolicy):
    """torchvision's ``v2.AutoAugment``: one of 25 pairs of operations, each with a probability. See arXiv 1805.09501.

    policy: "imagenet", "cifar10" or "svhn".
    """

    name: ClassVar[str] = "autoaugment"
    policy: str = "imagenet"
    interpolation: str = "nearest"

    def _check(self) -> None:
        self._set("policy", choice, _AUTO_AUGMENT)
        self._set("interpolation", choice, ("nearest", "bilinear"))

    def _build(self, size: Size) -> _Table:
        limits = _Limits(0.3, _relative(size, 150.0 / 331.0), 30.0, 0.9, 8, 4)
        return _auto_table(
            [
                [_Entry(_tv_rows(name, limits, 10, [level], self.interpolation), p) for name, p, level in sub]
                for sub in _sub_policies(_AUTO_AUGMENT[self.policy])
            ]
        )


# ---------------------------------------------------------------------------------------------------- timm

# timm's LEVEL_TO_ARG as fields of a row: (operation, fields, random sign). The level is in 0..10 unless mmax says more.
# Posterize to fewer than 1 bit is 0 bits (black): ImageOps.posterize refuses it.
_TIMM_OPS: dict[str, tuple[Op, dict[str, float], bool]] = {
    "AutoContrast": (Op.PIL_AUTO_CONTRAST, {}, False),
    "Equalize": (Op.PIL_EQUALIZE, {}, False),
    "Invert": (Op.PIL_INVERT, {}, False),
    "Rotate": (Op.PIL_ROTATE, {"scale": 30.0}, True),
    "Posterize": (Op.PIL_POSTERIZE, {"scale": 4.0, "whole": 1, "high": 8}, False),
    "PosterizeIncreasing": (Op.PIL_POSTERIZE, {"scale": 4.0, "whole": 1, "offset": 4, "sign": -1, "low": 0}, False),
    "PosterizeOriginal": (Op.PIL_POSTERIZE, {"scale": 4.0, "whole": 1, "offset": 4, "high": 8}, False),
    "Solarize": (Op.PIL_SOLARIZE, {"scale": 256.0, "whole": 1, "cap": 256}, False),
    "SolarizeIncreasing": (Op.PIL_SOLARIZE, {"scale": 256.0, "whole": 1, "cap": 256, "offset": 256, "sign": -1}, False),
    "SolarizeAdd": (Op.PIL_SOLARIZE_ADD, {"scale": 110.0, "whole": 1, "cap": 128}, False),
    "Color": (Op.PIL_COLOR, {"scale": 1.8, "offset": 0.1}, False),
    "Contrast": (Op.PIL_CONTRAST, {"scale": 1.8, "offset": 0.1}, False),
    "Brightness": (Op.PIL_BRIGHTNESS, {"scale": 1.8, "offset": 0.1}, False),
    "Sharpness": (Op.PIL_SHARPNESS, {"scale": 1.8, "offset": 0.1}, False),
    "ColorIncreasing": (Op.PIL_COLOR, {"scale": 0.9, "offset": 1.0, "low": 0.1}, True),
    "ContrastIncreasing": (Op.PIL_CONTRAST, {"scale": 0.9, "offset": 1.0, "low": 0.1}, True),
    "BrightnessIncreasing": (Op.PIL_BRIGHTNESS, {"scale": 0.9, "offset": 1.0, "low": 0.1}, True),
    "SharpnessIncreasing": (Op.PIL_SHARPNESS, {"scale": 0.9, "offset": 1.0, "low": 0.1}, True),
    "ShearX": (Op.PIL_SHEAR_X, {"scale": 0.3}, True),
    "ShearY": (Op.PIL_SHEAR_Y, {"scale": 0.3}, True),
    "TranslateXRel": (Op.PIL_TRANSLATE_X, {}, True),  # scale: translate_pct of the width or height
    "TranslateYRel": (Op.PIL_TRANSLATE_Y, {}, True),
    "Desaturate": (Op.PIL_COLOR, {"scale": 0.5, "offset": 0.5, "sign": -1, "low": 0}, False),
    "GaussianBlur": (Op.PIL_GAUSSIAN_BLUR, {"scale": 1.9, "offset": 0.1, "high": 2.0}, False),
    "GaussianBlurRand": (Op.PIL_GAUSSIAN_BLUR, {"scale": 1.0, "high": 1.0, "radius": 1}, False),
}
_PIL_MOVES = (Op.PIL_SHEAR_X, Op.PIL_SHEAR_Y, Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y, Op.PIL_ROTATE)
_TIMM_RAND = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color",
              "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")  # fmt: skip
_TIMM_RAND_INC = tuple(name + "Increasing" if name + "Increasing" in _TIMM_OPS else name for name in _TIMM_RAND)
_TIMM_MIX = ("AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
             "Equalize", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "ShearX", "ShearY", "TranslateXRel",
             "TranslateYRel")  # fmt: skip
# timm's transform sets: those in a dict are drawn by weight and without replacement.
_TIMM_SETS: dict[str, tuple[str, ...] | dict[str, float]] = {
    "3a": ("SolarizeIncreasing", "Desaturate", "GaussianBlur"),
    "3aw": {"SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
            "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
            "ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1},
    "weights": {"Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
                "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
                "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05,
                "PosterizeIncreasing": 0.05, "Invert": 0.05},
    # _RAND_CHOICE_WEIGHTS_0 of timm 0.6, where w0 stood for it; Posterize and Invert have weight 0.
    "w0": {"Rotate": 0.3, "ShearX": 0.2, "ShearY": 0.2, "TranslateXRel": 0.1, "TranslateYRel": 0.1, "Color": 0.025,
           "Sharpness": 0.025, "AutoContrast": 0.025, "Solarize": 0.005, "SolarizeAdd": 0.005, "Contrast": 0.005,
           "Brightness": 0.005, "Equalize": 0.005},
}  # fmt: skip


def _timm_rows(
    name: str, magnitude: float, std: float, limit: float, size: Size, filters: Sequence[int], pct: float = 0.45
) -> list[_Row]:
    op, fields, signed = _TIMM_OPS[name]
    if op in (Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y):
        fields = {"scale": pct * size[1 if op == Op.PIL_TRANSLATE_X else 0]}
    base, spread = (0.0, magnitude) if std == _INF else (magnitude, std)
    # `fields` are of many types
    row = _Row(op, sign=1.0)._replace(base=base, spread=spread, limit=limit, **fields)  # type: ignore[arg-type]
    rows = [row, row._replace(sign=-1.0)] if signed else [row]
    return [r._replace(aux=aux) for r in rows for aux in (filters if op in _PIL_MOVES else (0,))]


def _timm_noise(std: float) -> str:
    return "" if std == 0 else "uniform" if std == _INF else "normal"


@dataclass(frozen=True, kw_only=True)
class TimmPolicy(AugmentPolicy):
    """What timm's policies share.

    magnitude_std: of the normal noise on each magnitude; inf draws it uniformly from 0 to the magnitude instead.
    interpolation: the filter of moving operations; None draws bilinear or bicubic for each, as timm does for
    ``interpolation="random"``. timm's ``create_transform`` passes the filter that resizes.
    fill: timm's ``img_mean``.
    """

    fill: Color = (128, 128, 128)
    magnitude_std: float = 0.0
    interpolation: str | None = None

    def _check(self) -> None:
        self._set("magnitude_std", real, 0.0, _INF)
        self._set("interpolation", choice, (None, *_FILTERS))

    def _filters(self) -> list[int]:
        return [2, 3] if self.interpolation is None else [_FILTERS[self.interpolation]]


@dataclass(frozen=True, kw_only=True)
class TimmRandAugment(TimmPolicy):
    """timm's RandAugment, named ``rand-...``: num_layers operations, each applied with probability ``prob``.

    magnitude_max: the largest magnitude after noise (10 is the level where timm's ranges end).
    transforms: "" for timm's list (with ``increasing``, the one whose severity grows with the magnitude), "3a" for its
    three, or "3aw", "weights", "w0": drawn by weight, without replacement (at most 4 layers).
    """

    name: ClassVar[str] = "timm-randaugment"
    magnitude: int = 10
    num_layers: int = 2
    prob: float = 0.5
    magnitude_max: int = 10
    increasing: bool = False
    transforms: str = ""

    def _check(self) -> None:
        super()._check()
        self._set("magnitude", whole, 0, 1000)
        self._set("prob", real, 0.0, 1.0)
        self._set("magnitude_max", whole, 1, 1000)
        self._set("transforms", choice, ("", *_TIMM_SETS))
        self._set("increasing", boolean)
        self._set("num_layers", whole, 1, 4 if isinstance(_TIMM_SETS.get(self.transforms), dict) else 100)
        if self.transforms == "w0" and self.increasing:
            raise wrong("increasing", True, "False with transforms='w0', which weighs timm's plain operations")

    def _build(self, size: Size) -> _Table:
        chosen = _TIMM_SETS[self.transforms] if self.transforms else _TIMM_RAND_INC if self.increasing else _TIMM_RAND
        filters, limit = self._filters(), float(self.magnitude_max)
        rows = [_timm_rows(name, self.magnitude, self.magnitude_std, limit, size, filters) for name in chosen]
        noise = _timm_noise(self.magnitude_std)
        if not isinstance(chosen, dict):
            return _Table([_one_of(rows, self.prob)], [[0] * self.num_layers], noise=noise)
        orders = list(permutations(range(len(rows)), self.num_layers))
        weights = _without_replacement(np.array(list(chosen.values())), np.array(orders))
        return _Table([_Entry(some, self.prob) for some in rows], orders, weights, noise)


def _without_replacement(weights: Float, orders: NDArray[np.int64]) -> Float:
    """The probability of each order (a row of ``orders``) in which weighted things are drawn and not put back."""
    p = weights[orders] / weights.sum()
    left = 1.0 - np.cumsum(p, axis=1) + p
    return np.asarray(np.prod(p / left, axis=1))


# (operation, probability in tenths, level), as timm's auto_augment_policy_* list them; in the variants with "r" (in
# Google's research code) posterize increases.
_TIMM_AUTO = {
    "v0": """
        Equalize 8 1 ShearY 8 4, Color 4 9 Equalize 6 3, Color 4 1 Rotate 6 8, Solarize 8 3 Equalize 4 7,
        Solarize 4 2 Solarize 6 2, Color 2 0 Equalize 8 8, Equalize 4 8 SolarizeAdd 8 3, ShearX 2 9 Rotate 6 8,
        Color 6 1 Equalize 10 2, Invert 4 9 Rotate 6 0, Equalize 10 9 ShearY 6 3, Color 4 7 Equalize 6 0,
        Posterize 4 6 AutoContrast 4 7, Solarize 6 8 Color 6 9, Solarize 2 4 Rotate 8 9, Rotate 10 7 TranslateYRel 8 9,
        ShearX 0 0 Solarize 8 4, ShearY 8 0 Color 6 4, Color 10 0 Rotate 6 2, Equalize 8 4 Equalize 0 8,
        Equalize 10 4 AutoContrast 6 2, ShearY 4 7 SolarizeAdd 6 7, Posterize 8 2 Solarize 6 10,
        Solarize 6 8 Equalize 6 1, Color 8 6 Rotate 4 5""",
    "original": _AUTO_AUGMENT["imagenet"].replace("Posterize", "PosterizeOriginal"),
    "3a": "Solarize 10 5, Desaturate 10 10, GaussianBlurRand 10 10",
}
_TIMM_AUTO["v0r"] = _TIMM_AUTO["v0"].replace("Posterize", "PosterizeIncreasing")
_TIMM_AUTO["originalr"] = _AUTO_AUGMENT["imagenet"].replace("Posterize", "PosterizeIncreasing")


@dataclass(frozen=True, kw_only=True)
class TimmAutoAugment(TimmPolicy):
    """timm's AutoAugment: policy "original", "originalr", "v0", "v0r" or "3a" (the 3-Augment of DeiT III)."""

    name: ClassVar[str] = "timm-autoaugment"
    policy: str = "original"

    def _check(self) -> None:
        super()._check()
        self._set("policy", choice, _TIMM_AUTO)

    def _build(self, size: Size) -> _Table:
        std, filters = self.magnitude_std, self._filters()
        return _auto_table(
            [
                [_Entry(_timm_rows(name, level, std, 10.0, size, filters), p) for name, p, level in sub]
                for sub in _sub_policies(_TIMM_AUTO[self.policy])
            ],
            noise=_timm_noise(std),
        )


# ---------------------------------------------------------------------------------------------------- AugMix


_GAMMA_LOW = -40.0  # of log x: below it the gamma distribution function is x^alpha / gamma(alpha + 1) to 17 digits


@lru_cache(maxsize=16)
def _gamma_table(alpha: float) -> tuple[Float, Float]:
    """(logit of the distribution function, log of the quantile) of the gamma distribution with shape alpha."""
    t = np.linspace(_GAMMA_LOW, math.log(alpha + 45.0 + 9.0 * math.sqrt(alpha)), 1 << 16)
    density = np.exp(alpha * t - np.exp(t) - math.lgamma(alpha))  # of log x
    steps = 0.5 * (density[1:] + density[:-1]) * (t[1] - t[0])
    below = math.exp(alpha * t[0] - math.lgamma(alpha + 1.0))
    lower = np.cumsum(np.concatenate([[below], steps]))
    upper = np.cumsum(np.concatenate([[0.0], steps[::-1]]))[::-1]
    keep = (lower > 0) & (upper > 0)
    return np.log(lower[keep]) - np.log(upper[keep]), t[keep]


def _log_gamma(u: Float, alpha: float) -> Float:
    """Logarithms of gamma variates of shape alpha, one for each uniform: the quantiles, to 5 digits or better."""
    u = np.maximum(u, 2.0**-54)
    if alpha == 1.0:
        return np.asarray(np.log(-np.log1p(-u)))
    logit, t = _gamma_table(alpha)
    low = (np.log(u) + math.lgamma(alpha + 1.0)) / alpha
    return np.where(low < _GAMMA_LOW, low, np.interp(np.log(u) - np.log1p(-u), logit, t))


def _dirichlet(u: Float, alpha: float) -> Float:
    """Symmetric Dirichlet variates along the last axis, of which the first of two is a Beta(alpha, alpha)."""
    g = _log_gamma(u, alpha)
    g = np.exp(g - g.max(axis=-1, keepdims=True))
    return np.asarray(g / g.sum(axis=-1, keepdims=True))


def _draw_augmix(
    table: _Table, u: Float, width: int, depth: int, alpha: float, mode: Literal["torchvision", "timm", "blend"]
) -> AugMixPlan:
    """``width`` chains from ``table``, each of ``depth`` operations, or of 1 to 3 if depth is not positive."""
    b, chain = len(u), table.num_uniforms
    parts = np.cumsum([width * chain, width if depth <= 0 else 0, width])
    chains, depths, weights, m = np.split(u, parts, axis=1)
    drawn, shape = table.draw(chains.reshape(b * width, chain)), (b, width, table.num_slots)
    op, arg, aux = drawn.op.reshape(shape), drawn.arg.reshape(shape), drawn.aux.reshape(shape)
    if depth <= 0:
        used = np.arange(3) <= (depths * 3).astype(np.int64)[:, :, None]
        op, arg, aux = op * used, arg * used, aux * used
    share = _dirichlet(m, alpha)[:, 1].astype(np.float32)
    mixing = _dirichlet(weights, alpha).astype(np.float32)
    if mode == "blend":
        mixing, share = _blend_weights(mixing * share[:, None]), np.ones_like(share)
    return AugMixPlan(op, arg, aux, mixing, share, mode)


def _blend_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """timm's ``_calc_blended_weights``: from the last chain to the first, its share of what is left."""
    left, out = np.ones_like(weights[:, 0]), np.empty_like(weights)
    for i in reversed(range(weights.shape[1])):
        out[:, i] = weights[:, i] / left
        left = left * (1 - out[:, i])
    return out


def _augmix_uniforms(table: _Table, width: int, depth: int) -> int:
    return width * (table.num_uniforms + (depth <= 0) + 1) + 2


@dataclass(frozen=True)
class AugMix(AugmentPolicy):
    """torchvision's ``v2.AugMix`` (arXiv 1912.02781); draws an ``AugMixPlan``.

    severity: operations draw their magnitude from the first so many of 10 bins.
    mixture_width: chains. chain_depth: operations in a chain; not positive draws 1 to 3 for each chain.
    alpha: of the Dirichlet and Beta distributions. all_ops: with brightness, contrast, color and sharpness.
    interpolation: torchvision's default for AugMix is bilinear, for its other policies nearest.
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
        return _augmix_uniforms(_table(self, (32, 32)), self.mixture_width, self.chain_depth)

    def draw(self, u: Float, size: Size) -> AugMixPlan:
        table = _table(self, size)
        width, depth = self.mixture_width, self.chain_depth
        return _draw_augmix(table, _uniforms(self, u), width, depth, self.alpha, "torchvision")

    def _build(self, size: Size) -> _Table:
        limits = _Limits(0.3, _relative(size, 1.0 / 3.0), 30.0, 0.9, 4, 4)
        space = _MIX_SPACE if self.all_ops else _MIX_SPACE[:9]
        entry = _one_of(_tv_rows(name, limits, 10, range(self.severity), self.interpolation) for name in space)
        return _Table([entry], [[0] * (self.chain_depth if self.chain_depth > 0 else 3)])


@dataclass(frozen=True, kw_only=True)
class TimmAugMix(TimmPolicy):
    """timm's AugMix, named ``augmix-...``; draws an ``AugMixPlan``. Fields as ``AugMix``'s; see also ``TimmPolicy``.

    magnitude_std: its default, inf, draws each magnitude uniformly from 0 to ``magnitude``.
    blended: blend each chain into the result, with timm's weights, instead of summing the chains first.
    """

    name: ClassVar[str] = "timm-augmix"
    magnitude_std: float = _INF
    magnitude: int = 3
    width: int = 3
    depth: int = -1
    alpha: float = 1.0
    blended: bool = False

    def _check(self) -> None:
        super()._check()
        self._set("magnitude", whole, 0, 1000)
        self._set("width", whole, 1, 100)
        self._set("depth", whole, -1, 100)
        self._set("alpha", real, 0.01, 1000.0)
        self._set("blended", boolean)

    @property
    def num_uniforms(self) -> int:
        return _augmix_uniforms(_table(self, (32, 32)), self.width, self.depth)

    def draw(self, u: Float, size: Size) -> AugMixPlan:
        mode: Literal["timm", "blend"] = "blend" if self.blended else "timm"
        return _draw_augmix(_table(self, size), _uniforms(self, u), self.width, self.depth, self.alpha, mode)

    def _build(self, size: Size) -> _Table:
        std, filters = self.magnitude_std, self._filters()
        # create_transform passes translate_pct 0.3 to AugMix, against 0.45 elsewhere.
        entry = _one_of(_timm_rows(name, self.magnitude, std, 10.0, size, filters, 0.3) for name in _TIMM_MIX)
        return _Table([entry], [[0] * (self.depth if self.depth > 0 else 3)], noise=_timm_noise(std))


# ---------------------------------------------------------------------------------------------------- a user's table


class Step(NamedTuple):
    """An operation of a ``TablePolicy``.

    probability: in 0..1. magnitude: the final argument that ``Op`` describes, or its range (low, high), drawn uniformly
    (whole numbers, both ends included, where the operation wants whole ones: translate, posterize, solarize-add).
    sign: with probability one half mirrors the argument about the value that changes nothing: -x, or 2 - x for the
    factors of brightness, color, contrast and sharpness.
    aux: what ``Op`` says; None is 3 (bicubic) for PIL's moving operations and 0 else.
    """

    op: Op
    probability: float = 1.0
    magnitude: float | tuple[float, float] = 0.0
    sign: bool = False
    aux: int | None = None


_ALL_FACTORS = (*_FACTORS, Op.PIL_BRIGHTNESS, Op.PIL_COLOR, Op.PIL_CONTRAST, Op.PIL_SHARPNESS)
_ALL_MOVES = (*_MOVES, *_PIL_MOVES)
_WHOLE = (Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.POSTERIZE, Op.PIL_POSTERIZE, Op.SOLARIZE_ADD, Op.PIL_SOLARIZE_ADD)
# The arguments allowed, where not everything is.
_DOMAIN: dict[Op, tuple[float, float]] = {
    **dict.fromkeys(_ALL_FACTORS, (0.0, _INF)),
    **dict.fromkeys((Op.POSTERIZE, Op.PIL_POSTERIZE), (0, 8)),
    Op.SOLARIZE: (0, 255),
    Op.PIL_SOLARIZE: (0, 256),
    **dict.fromkeys((Op.SOLARIZE_ADD, Op.PIL_SOLARIZE_ADD), (0, 255)),
    Op.HUE: (-0.5, 0.5),
    Op.GAUSSIAN_BLUR: (1e-3, 100),
    Op.PIL_GAUSSIAN_BLUR: (0, 100),
}


def _step(given: Any) -> Step:
    step = Step(*given)
    op = Op(step.op)
    what = f"{op.name}: magnitude"
    ends = sequence(step.magnitude) or (step.magnitude, step.magnitude)
    if len(ends) != 2 or not all(math.isfinite(x) for x in ends) or ends[0] > ends[1]:
        raise wrong(what, step.magnitude, "a number or (low, high) with low <= high")
    chance = probability(f"{op.name}: probability", step.probability)
    if step.sign and op not in (*_ALL_FACTORS, *_ALL_MOVES, Op.HUE):
        raise wrong(f"{op.name}: sign", step.sign, "False: only moving operations, factors and hue have one")
    low, high = _DOMAIN.get(op, (-_INF, _INF))
    mirror = 2.0 if op in _ALL_FACTORS else 0.0
    reached = [*ends, *(mirror - x for x in ends)] if step.sign else ends
    if min(reached) < low or max(reached) > high:
        raise wrong(what, step.magnitude, f"one that stays in [{low:g}, {high:g}]; with its sign it reaches "
                    f"{min(reached):g} to {max(reached):g}")  # fmt: skip
    if op in _WHOLE and any(x != int(x) for x in ends):
        raise wrong(what, step.magnitude, "whole numbers")
    aux = step.aux if step.aux is not None else 3 if op in _PIL_MOVES else 0
    if op == Op.GAUSSIAN_BLUR and aux % 2 == 0:
        raise wrong(f"{op.name}: aux", step.aux, "the kernel size, an odd number such as 23")
    if op in _ALL_MOVES and aux not in _FILTERS.values():
        raise wrong(f"{op.name}: aux", step.aux, "0 (nearest), 2 (bilinear) or 3 (bicubic)")
    return Step(op, chance, (float(ends[0]), float(ends[1])), bool(step.sign), int(aux))


def _step_entry(step: Step) -> _Entry:
    low, high = step.magnitude  # type: ignore[misc]  # _step made it a pair
    whole = step.op in _WHOLE
    row = _Row(step.op, step.aux or 0, offset=low, sign=1.0, scale=10.0, spread=high - low, whole=float(whole))
    if whole:
        row = row._replace(spread=high - low + 1.0, cap=high - low)
    mirror = 2.0 if step.op in _ALL_FACTORS else 0.0
    return _Entry([row, row._replace(offset=mirror - low, sign=-1.0)] if step.sign else [row], step.probability)


@dataclass(frozen=True, kw_only=True)
class TablePolicy(AugmentPolicy):
    """A policy of one's own: a sub-policy is drawn for each sample and its steps are applied in order.

    sub_policies: sequences of ``Step``, or of tuples in the order of its fields, for example
    ``[[(Op.ROTATE, 0.7, (0, 30), True), (Op.EQUALIZE, 0.5)], [(Op.COLOR, 1.0, 1.4)]]``.
    weights: of the sub-policies, not negative; None draws each alike.
    """

    name: ClassVar[str] = "table"
    sub_policies: Sequence[Sequence[Any]] = ()
    weights: Sequence[float] | None = None

    def _check(self) -> None:
        steps = tuple(tuple(_step(step) for step in sub) for sub in self.sub_policies)
        if not steps or not any(steps):
            raise wrong("sub_policies", self.sub_policies, "not empty: at least one sub-policy with one step")
        object.__setattr__(self, "sub_policies", steps)
        if self.weights is not None:
            weights = tuple(float(w) for w in self.weights)
            if len(weights) != len(steps) or min(weights) < 0 or not 0 < sum(weights) < _INF:
                raise wrong("weights", self.weights, f"{len(steps)} numbers >= 0 with a positive sum")
            object.__setattr__(self, "weights", weights)

    def _build(self, size: Size) -> _Table:
        entries = [[_step_entry(step) for step in sub] for sub in self.sub_policies]
        ranges = any(step.magnitude[0] < step.magnitude[1] for sub in self.sub_policies for step in sub)
        return _auto_table(entries, self.weights, "uniform" if ranges else "")


# ---------------------------------------------------------------------------------------------------- names


def _options(name: str, parts: Sequence[str], kinds: Mapping[str, type | Sequence[str]]) -> dict[str, Any]:
    """Parse parts such as "m9" or "mstd0.5": a key of ``kinds`` and a value of its type, or one of its words."""
    found: dict[str, Any] = {}
    for part in parts:
        key = next((k for k in sorted(kinds, key=len, reverse=True) if part.startswith(k)), None)
        if key is None or key in found:
            what = "is given twice" if key else "is unknown"
            raise ValueError(
                f"auto_augment={name!r}: {part!r} {what}; options must be among: {', '.join(kinds) or 'none'}"
            )
        kind, text = kinds[key], part[len(key) :]
        if isinstance(kind, type):
            try:
                found[key] = kind(text)
            except ValueError:
                want = "a whole number" if kind is int else "a number"
                raise ValueError(f"auto_augment={name!r}: {part!r} must be {key!r} and {want}") from None
        elif text in kind:
            found[key] = text
        else:
            raise ValueError(f"auto_augment={name!r}: {part!r} must be {key!r} and one of {', '.join(kind)}")
    return found


def _flag(name: str, options: dict[str, Any], key: str) -> bool:
    value = options.get(key, 0)
    if value not in (0, 1):
        raise ValueError(f"auto_augment={name!r}: {key} must be 0 or 1")
    return bool(value)


def _named(options: dict[str, Any], **fields: str) -> dict[str, Any]:
    """The options found, under the names of fields."""
    return {field: options[key] for field, key in fields.items() if key in options}


def _timm_rand(name: str, parts: Sequence[str], common: dict[str, Any]) -> TimmRandAugment:
    numbers: dict[str, type] = {"m": int, "n": int, "p": float, "mstd": float, "mmax": int, "inc": int, "w": int}
    o = _options(name, parts, {**numbers, "t": ("weights", "3a", "3aw")})
    if o.get("mstd", 0) > 100:
        o["mstd"] = _INF  # timm: uniform
    if "w" in o:
        if o["w"] != 0 or "t" in o:
            raise ValueError(f"auto_augment={name!r}: w must be 0, timm's only set of weights, without t beside it")
        o["t"] = "w0"
    keys = {"magnitude": "m", "num_layers": "n", "prob": "p", "magnitude_std": "mstd", "magnitude_max": "mmax"}
    return TimmRandAugment(increasing=_flag(name, o, "inc"), **_named(o, transforms="t", **keys), **common)


def _timm_augmix(name: str, parts: Sequence[str], common: dict[str, Any]) -> TimmAugMix:
    o = _options(name, parts, {"m": int, "w": int, "d": int, "a": float, "b": int, "mstd": float})
    fields = _named(o, magnitude="m", width="w", depth="d", alpha="a", magnitude_std="mstd")
    return TimmAugMix(blended=_flag(name, o, "b"), **fields, **common)


def resolve(
    auto_augment: str | AugmentPolicy | None,
    *,
    image_size: int | None = None,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    interpolation: str | None = None,
    fill: Color | None = None,
) -> AugmentPolicy | None:
    """The policy that ``auto_augment`` names (the table above), or the one that it is; None and "" give None.

    mean (in 0..1) and interpolation (the filter that resizes; None or "random" for none) are used as timm's
    ``create_transform`` uses them, for the names that are timm's: the mean colour fills, and moving operations use the
    filter. ``fill`` (0..255) replaces the colour of a named policy: black for torchvision's, the mean for timm's.
    ``image_size`` prepares the draws for square images of that size, which the first ``draw`` of a size does else.
    Raises ValueError for what is unknown or out of range.
    """
    policy = _policy(auto_augment, mean, None if interpolation == "random" else interpolation)
    if policy is not None and fill is not None and isinstance(auto_augment, str):
        policy = replace(policy, fill=fill)
    if policy is not None and image_size is not None:
        _table(policy, (image_size, image_size))
    return policy


def _policy(
    auto_augment: str | AugmentPolicy | None, mean: Sequence[float], interpolation: str | None
) -> AugmentPolicy | None:
    if auto_augment is None or isinstance(auto_augment, AugmentPolicy):
        return auto_augment
    if not isinstance(auto_augment, str):
        raise wrong("auto_augment", auto_augment, "a name, a policy or None")
    if not auto_augment:
        return None
    return _parse(auto_augment, mean, interpolation)


def _parse(name: str, mean: Sequence[float], interpolation: str | None) -> AugmentPolicy:
    head, *parts = name.split("-")
    colour = tuple(min(255, round(255 * x)) for x in mean)
    timm: dict[str, Any] = {"fill": colour, "interpolation": interpolation}
    if name == "3-augment":
        return TimmAutoAugment(policy="3a", **timm)
    if head == "randaugment":
        o = _options(name, parts, {"n": int, "m": int, "bins": int})
        return RandAugment(**_named(o, num_ops="n", magnitude="m", num_magnitude_bins="bins"))
    if head == "trivialaugment":
        return TrivialAugmentWide(**_named(_options(name, parts, {"bins": int}), num_magnitude_bins="bins"))
    if head == "autoaugment":
        o = _options(name, parts, {"": tuple(_AUTO_AUGMENT)})
        return AutoAugment(**_named(o, policy=""))
    if name == "augmix":
        return AugMix()
    if head == "augmix":
        return _timm_augmix(name, parts, timm)
    if head == "rand":
        return _timm_rand(name, parts, timm)
    if head in _TIMM_AUTO:
        o = _options(name, parts, {"mstd": float})
        return TimmAutoAugment(policy=head, **_named(o, magnitude_std="mstd"), **timm)
    raise wrong(
        "auto_augment",
        name,
        "randaugment, trivialaugment, autoaugment, autoaugment-cifar10, autoaugment-svhn, augmix, 3-augment, or one of "
        "timm's: rand-m9-mstd0.5-inc1, original, originalr, v0, v0r, 3a, augmix-m3-w3",
    )
