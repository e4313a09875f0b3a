"""Policies by name.

==============================================  ======================================================================
name                                            semantics
==============================================  ======================================================================
randaugment[-n2][-m9][-bins31]                  torchvision `v2.RandAugment`
trivialaugment[-bins31]                         torchvision `v2.TrivialAugmentWide`
autoaugment[-imagenet|-cifar10|-svhn]           torchvision `v2.AutoAugment`
augmix                                          torchvision `v2.AugMix`
rand[-m10][-n2][-p0.5][-mstd0][-mmax10]         timm `rand_augment_transform`; t: transform set weights, 3a or 3aw;
[-inc0][-t..][-w0]                              w0: the weighted choice of timm before 0.8, without inc
original, originalr, v0, v0r, 3a [-mstd0]       timm `auto_augment_transform`
augmix-[m3][-w3][-d3][-a1][-b0][-mstd..]        timm `augment_and_mix_transform`; no d: random depth 1 to 3
3-augment                                       DeiT III's `new_data_aug_generator`: one of grayscale, solarize 128,
                                                PIL Gaussian blur of radius 0.1 to 2.0. timm's `3a` is the same
                                                (grayscale as saturation 0) and only adds the option mstd.
==============================================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dali_imagenet.policy.base import INF, AugmentPolicy, Color, table_of
from dali_imagenet.policy.timm import TIMM_AUTO, TimmAugMix, TimmAutoAugment, TimmRandAugment
from dali_imagenet.policy.torchvision import AUTO_AUGMENT, AugMix, AutoAugment, RandAugment, TrivialAugmentWide
from dali_imagenet.validation import wrong


def _options(name: str, parts: Sequence[str], kinds: Mapping[str, type | Sequence[str]]) -> dict[str, Any]:
    """Parse parts such as "m9" or "mstd0.5": a key of `kinds` and a value of its type, or one of its words."""
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
        o["mstd"] = INF  # timm: uniform
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
    """The policy that `auto_augment` names (the table above), or the one that it is; None and "" give None.

    Args:
        auto_augment: a name of the table above, or a policy.
        image_size: prepares the draws for square images of that size, which the first `draw` of a size does else.
        mean: of each channel, 0..1: the colour that fills where the name is timm's.
        interpolation: the filter that resizes; None or "random" for none. timm's moving operations use it.
        fill: replaces the colour (0..255) of a named policy: black for torchvision's, the mean for timm's.

    Raises:
        ValueError: for what is unknown or out of range.
    """
    policy = _policy(auto_augment, mean, None if interpolation == "random" else interpolation)
    if policy is not None and fill is not None and isinstance(auto_augment, str):
        policy = replace(policy, fill=fill)
    if policy is not None and image_size is not None:
        table_of(policy, (image_size, image_size))
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
        o = _options(name, parts, {"": tuple(AUTO_AUGMENT)})
        return AutoAugment(**_named(o, policy=""))
    if name == "augmix":
        return AugMix()
    if head == "augmix":
        return _timm_augmix(name, parts, timm)
    if head == "rand":
        return _timm_rand(name, parts, timm)
    if head in TIMM_AUTO:
        o = _options(name, parts, {"mstd": float})
        return TimmAutoAugment(policy=head, **_named(o, magnitude_std="mstd"), **timm)
    raise wrong(
        "auto_augment",
        name,
        "randaugment, trivialaugment, autoaugment, autoaugment-cifar10, autoaugment-svhn, augmix, 3-augment, or one of "
        "timm's: rand-m9-mstd0.5-inc1, original, originalr, v0, v0r, 3a, augmix-m3-w3",
    )
