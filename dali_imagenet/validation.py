"""The one set of validators: what recipes, policies and loaders accept, and how they refuse the rest.

Each returns the value in its normal type, so that `1`, `1.0` and `numpy.int64(1)` mean the same, and raises ValueError
with what was given and what is allowed.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable
from typing import Any

_SHOWN = 200  # characters of a wrong argument, which may be a list of a million files


def wrong(name: str, given: object, allowed: str) -> ValueError:
    """The error of an argument that is not what it must be; of a long one the beginning is shown."""
    text = repr(given)
    return ValueError(f"{name}={text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}: must be {allowed}")


def whole(name: str, value: Any, low: int, high: int | float = math.inf) -> int:
    """An integer in [low, high]: Python's, numpy's, or a float without a fraction. A boolean is none."""
    number = value if _is_number(value) else math.nan
    if not low <= number <= high or number != int(number):
        raise wrong(name, value, f"a whole number {_within(low, high)}")
    return int(number)


def real(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """A number in [low, high]. A boolean is none."""
    if not _is_number(value) or not low <= value <= high:
        raise wrong(name, value, f"a number {_within(low, high)}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise wrong(name, value, "a probability in [0, 1]")
    return float(value)


def reals(name: str, value: Any, count: int, low: float, high: float) -> tuple[float, ...]:
    """That many numbers in [low, high]."""
    items = sequence(value)
    if items is None or len(items) != count or not all(_is_number(v) and low <= v <= high for v in items):
        raise wrong(name, value, f"{count} numbers {_within(low, high)}")
    return tuple(float(v) for v in items)


def number_of_bytes(name: str, value: Any) -> int:
    """A whole number of bytes, at least 1, or a text such as "200GB": decimal units, binary ones with an i ("1GiB")."""
    if not isinstance(value, str):
        return whole(name, value, 1)
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([kMGT])(i?))?B?", value.strip(), re.IGNORECASE)
    unit = 1 if not found or not found[2] else (1024 if found[3] else 1000) ** ("KMGT".index(found[2].upper()) + 1)
    if not found or float(found[1]) * unit < 1:
        raise wrong(name, value, 'a number of bytes, or a text such as "200GB"')
    return int(float(found[1]) * unit)


def pair(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    """(least, most), both in [low, high]."""
    least, most = reals(name, value, 2, low, high)
    if least > most:
        raise wrong(name, value, "(low, high) with low <= high")
    return least, most


def choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """One of the values allowed."""
    options = tuple(allowed)
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        raise wrong(name, value, f"one of {', '.join(map(repr, options))}")
    return value


def boolean(name: str, value: Any) -> bool:
    """True or False: Python's or numpy's."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise wrong(name, value, "True or False")
    return bool(value)


def sequence(value: Any) -> tuple[Any, ...] | None:
    """A tuple, list or array as a tuple; None for what is no sequence of values."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return None
    return None if isinstance(value, dict) else tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


def _within(low: float, high: float) -> str:
    return f"of at least {low:g}" if high == math.inf else f"in [{_short(low)}, {_short(high)}]"


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
