"""timm's policies, with the operations and magnitudes of its `data.auto_augment`, which works on PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dali_imagenet.ops import FILTERS, OPS, Op
from dali_imagenet.policy.augmix import augmix_uniforms, draw_augmix
from dali_imagenet.policy.base import (
    INF,
    AugmentPolicy,
    AugMixPlan,
    Color,
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
from dali_imagenet.policy.torchvision import AUTO_AUGMENT
from dali_imagenet.validation import boolean, choice, real, whole, wrong

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
_TIMM_RAND = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color",
              "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")  # fmt: skip
_TIMM_RAND_INC = tuple(name + "Increasing" if name + "Increasing" in _TIMM_OPS else name for name in _TIMM_RAND)
TIMM_MIX = ("AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
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
) -> list[Row]:
    op, fields, signed = _TIMM_OPS[name]
    if op in (Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y):
        fields = {"scale": pct * size[1 if op == Op.PIL_TRANSLATE_X else 0]}
    base, spread = (0.0, magnitude) if std == INF else (magnitude, std)
    # `fields` are of many types
    row = Row(op, sign=1.0)._replace(base=base, spread=spread, limit=limit, **fields)  # type: ignore[arg-type]  # of many types
    rows = [row, row._replace(sign=-1.0)] if signed else [row]
    return [r._replace(aux=aux) for r in rows for aux in (filters if OPS[op].aux == "filter" else (0,))]


def _timm_noise(std: float) -> str:
    return "" if std == 0 else "uniform" if std == INF else "normal"


@dataclass(frozen=True, kw_only=True)
class TimmPolicy(AugmentPolicy):
    """What timm's policies share.

    Attributes:
        magnitude_std: of the normal noise on each magnitude, 0 or more; inf draws it uniformly from 0 to the magnitude
            instead.
        interpolation: the filter of moving operations, "nearest", "bilinear" or "bicubic"; None draws bilinear or
            bicubic for each, as timm does for `interpolation="random"`. timm's `create_transform` passes the filter
            that resizes.
        fill: timm's `img_mean`, 0..255.
    """

    fill: Color = (128, 128, 128)
    magnitude_std: float = 0.0
    interpolation: str | None = None

    def _check(self) -> None:
        self._set("magnitude_std", real, 0.0, INF)
        self._set("interpolation", choice, (None, "nearest", "bilinear", "bicubic"))  # PIL moves with no others

    def _filters(self) -> list[int]:
        return [2, 3] if self.interpolation is None else [FILTERS[self.interpolation]]


@dataclass(frozen=True, kw_only=True)
class TimmRandAugment(TimmPolicy):
    """timm's RandAugment, named `rand-...`: num_layers operations, each applied with probability `prob`.

    Attributes:
        magnitude: 0..1000; timm's ranges end at 10.
        num_layers: operations for each image, 1..100.
        prob: of each layer, 0..1.
        magnitude_max: the largest magnitude after noise, 1..1000.
        increasing: whether severity grows with the magnitude in every operation.
        transforms: "" for timm's list, "3a" for its three, or "3aw", "weights", "w0": drawn by weight, without
            replacement (at most 4 layers).
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

    def _build(self, size: Size) -> Table:
        chosen = _TIMM_SETS[self.transforms] if self.transforms else _TIMM_RAND_INC if self.increasing else _TIMM_RAND
        filters, limit = self._filters(), float(self.magnitude_max)
        rows = [_timm_rows(name, self.magnitude, self.magnitude_std, limit, size, filters) for name in chosen]
        noise = _timm_noise(self.magnitude_std)
        if not isinstance(chosen, dict):
            return Table([one_of(rows, self.prob)], [[0] * self.num_layers], noise=noise)
        orders = list(permutations(range(len(rows)), self.num_layers))
        weights = _without_replacement(np.array(list(chosen.values())), np.array(orders))
        return Table([Entry(some, self.prob) for some in rows], orders, weights, noise)


def _without_replacement(weights: Float, orders: NDArray[np.int64]) -> Float:
    """The probability of each order (a row of `orders`) in which weighted things are drawn and not put back."""
    p = weights[orders] / weights.sum()
    left = 1.0 - np.cumsum(p, axis=1) + p
    return np.asarray(np.prod(p / left, axis=1))


# (operation, probability in tenths, level), as timm's auto_augment_policy_* list them; in the variants with "r" (in
# Google's research code) posterize increases.
TIMM_AUTO = {
    "v0": """
        Equalize 8 1 ShearY 8 4, Color 4 9 Equalize 6 3, Color 4 1 Rotate 6 8, Solarize 8 3 Equalize 4 7,
        Solarize 4 2 Solarize 6 2, Color 2 0 Equalize 8 8, Equalize 4 8 SolarizeAdd 8 3, ShearX 2 9 Rotate 6 8,
        Color 6 1 Equalize 10 2, Invert 4 9 Rotate 6 0, Equalize 10 9 ShearY 6 3, Color 4 7 Equalize 6 0,
        Posterize 4 6 AutoContrast 4 7, Solarize 6 8 Color 6 9, Solarize 2 4 Rotate 8 9, Rotate 10 7 TranslateYRel 8 9,
        ShearX 0 0 Solarize 8 4, ShearY 8 0 Color 6 4, Color 10 0 Rotate 6 2, Equalize 8 4 Equalize 0 8,
        Equalize 10 4 AutoContrast 6 2, ShearY 4 7 SolarizeAdd 6 7, Posterize 8 2 Solarize 6 10,
        Solarize 6 8 Equalize 6 1, Color 8 6 Rotate 4 5""",
    "original": AUTO_AUGMENT["imagenet"].replace("Posterize", "PosterizeOriginal"),
    "3a": "Solarize 10 5, Desaturate 10 10, GaussianBlurRand 10 10",
}
TIMM_AUTO["v0r"] = TIMM_AUTO["v0"].replace("Posterize", "PosterizeIncreasing")
TIMM_AUTO["originalr"] = AUTO_AUGMENT["imagenet"].replace("Posterize", "PosterizeIncreasing")


def rand_augment_named(names: Sequence[str], weights: Sequence[float] | None) -> tuple[str, bool] | None:
    """Which of timm's lists of operations that is: (transforms, increasing) of a `TimmRandAugment`; None: none."""
    if weights is None:
        lists = {("", False): _TIMM_RAND, ("", True): _TIMM_RAND_INC, ("3a", False): _TIMM_SETS["3a"]}
        return next((key for key, found in lists.items() if tuple(found) == tuple(names)), None)
    for key, some in _TIMM_SETS.items():
        if isinstance(some, dict) and len(some) == len(names):
            whole = sum(some.values())
            shares = [some.get(name, -1.0) / whole for name in names]
            if np.allclose(shares, weights, rtol=1e-6, atol=0):
                return key, False
    return None


def auto_augment_named(subs: Sequence[Sequence[tuple[str, float, float]]]) -> str | None:
    """Which of timm's AutoAugment policies, of (operation, probability, level), that is; None: none."""

    def meaning(policy: Sequence[Sequence[tuple[str, float, float]]]) -> list[list[tuple[str, float, float]]]:
        """The level of what has none is of no account."""
        return [[(name, p, level if _TIMM_OPS[name][1] or "Translate" in name else 0) for name, p, level in sub]
                for sub in policy]  # fmt: skip

    given = meaning(subs)
    return next((name for name, text in TIMM_AUTO.items() if meaning(sub_policies(text)) == given), None)


@dataclass(frozen=True, kw_only=True)
class TimmAutoAugment(TimmPolicy):
    """timm's AutoAugment: policy "original", "originalr", "v0", "v0r" or "3a" (the 3-Augment of DeiT III)."""

    name: ClassVar[str] = "timm-autoaugment"
    policy: str = "original"

    def _check(self) -> None:
        super()._check()
        self._set("policy", choice, TIMM_AUTO)

    def _build(self, size: Size) -> Table:
        std, filters = self.magnitude_std, self._filters()
        return auto_table(
            [
                [Entry(_timm_rows(name, level, std, 10.0, size, filters), p) for name, p, level in sub]
                for sub in sub_policies(TIMM_AUTO[self.policy])
            ],
            noise=_timm_noise(std),
        )


@dataclass(frozen=True, kw_only=True)
class TimmAugMix(TimmPolicy):
    """timm's AugMix, named `augmix-...`; draws an `AugMixPlan`. See also `TimmPolicy`.

    Attributes:
        magnitude_std: its default, inf, draws each magnitude uniformly from 0 to `magnitude`.
        magnitude: 0..1000.
        width: chains, 1..100.
        depth: operations in a chain, at most 100; not positive draws 1 to 3 for each chain.
        alpha: of the Dirichlet and Beta distributions, 0.01..1000.
        blended: blend each chain into the result, with timm's weights, instead of summing the chains first.
    """

    name: ClassVar[str] = "timm-augmix"
    magnitude_std: float = INF
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
        return augmix_uniforms(table_of(self, (32, 32)), self.width, self.depth)

    def draw(self, u: Float, size: Size) -> AugMixPlan:
        mode: Literal["timm", "blend"] = "blend" if self.blended else "timm"
        return draw_augmix(table_of(self, size), checked_uniforms(self, u), self.width, self.depth, self.alpha, mode)

    def _build(self, size: Size) -> Table:
        std, filters = self.magnitude_std, self._filters()
        # create_transform passes translate_pct 0.3 to AugMix, against 0.45 elsewhere.
        entry = one_of(_timm_rows(name, self.magnitude, std, 10.0, size, filters, 0.3) for name in TIMM_MIX)
        return Table([entry], [[0] * (self.depth if self.depth > 0 else 3)], noise=_timm_noise(std))
