"""What every policy is made of: one table that says which operations a sample gets, drawn from uniforms.

Every policy but the chains of AugMix is one table: a sub-policy is chosen, it names an entry for each slot, an entry is
a run of equally likely rows (operation, sign, filter) and a probability. So one uniform decides a slot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dali_imagenet.ops import Op
from dali_imagenet.rng import normal_pairs
from dali_imagenet.validation import sequence, whole, wrong

Size = tuple[int, int]
"""Height and width in pixels."""
Color = tuple[int, int, int]
Float = NDArray[np.float64]

INF = math.inf


class OpPlan(NamedTuple):
    """The operations of B samples, slot after slot (see `Op`).

    Attributes:
        op: int16 [B, K].
        arg: float32 [B, K].
        aux: int16 [B, K].
    """

    op: NDArray[np.int16]
    arg: NDArray[np.float32]
    aux: NDArray[np.int16]


class AugMixPlan(NamedTuple):
    """AugMix of B samples: W chains of up to D operations each, applied to the image, then mixed.

    Attributes:
        op: int16 [B, W, D], unused places at the end of a chain being `Op.IDENTITY`.
        arg: float32 [B, W, D].
        aux: int16 [B, W, D].
        weights: float32 [B, W].
        m: float32 [B], the share of the augmented image in the result.
        mode: how they are mixed:

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


class Row(NamedTuple):
    """One way an operation can turn out: arg = clip(offset + sign * min(cap, level / 10 * scale), low, high), where
    level = clip(base + spread * noise, 0, limit) is timm's magnitude; `whole` truncates level / 10 * scale."""

    op: int
    aux: int = 0
    offset: float = 0.0
    base: float = 0.0
    spread: float = 0.0
    limit: float = INF
    scale: float = 0.0
    whole: float = 0.0
    cap: float = INF
    sign: float = 0.0
    low: float = -INF
    high: float = INF
    radius: float = 0.0  # 1: the argument is uniform in 0.1 .. 2 * arg (timm's GaussianBlurRand)


class Entry(NamedTuple):
    """With `probability`, one of `rows`, each as likely as the others; else nothing."""

    rows: Sequence[Row]
    probability: float


class Table:
    """`entries` by the sub-policies [P,K] that name them; P chosen by `weights` (None: all alike).

    `noise` is what stands behind `Row.spread`: "" nothing, "uniform" in [0,1) or "normal", one draw a slot.
    """

    def __init__(
        self, entries: Sequence[Entry], subs: Any, weights: Sequence[float] | Float | None = None, noise: str = ""
    ) -> None:
        rows: list[Row] = []
        first = []
        for entry in entries:
            first.append(len(rows))
            rows += [*entry.rows, Row(Op.IDENTITY)] if entry.probability else [Row(Op.IDENTITY)] * 2
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
    """n standard normals a row from n (rounded up to even) uniforms."""
    z: Float = np.concatenate(normal_pairs(*np.split(u, 2, axis=1)), axis=1)
    return z[:, :n]


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """What every policy offers. Policies are values: frozen, equal by content, picklable, with a stable repr.

    A policy of one's own derives from this class and gives itself a `name`.

    Attributes:
        fill: colour (0..255) of what lies outside a moved image.
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
        return table_of(self, (32, 32)).num_slots

    @property
    def num_uniforms(self) -> int:
        """U, the uniforms that `draw` consumes for a sample, whatever the size of the images."""
        return table_of(self, (32, 32)).num_uniforms

    def draw(self, u: Float, size: Size) -> OpPlan | AugMixPlan:
        """Operations for u float64 [B,U] in [0,1), a row a sample, and images of `size` (height, width)."""
        return table_of(self, size).draw(checked_uniforms(self, u))

    def _check(self) -> None:
        """Bring each field into its normal type, or raise ValueError."""

    def _build(self, size: Size) -> Table:
        raise NotImplementedError(f"{type(self).__name__} has no table")


@lru_cache(maxsize=64)
def table_of(policy: AugmentPolicy, size: Size) -> Table:
    """The table of a policy for images of that size, made once."""
    return policy._build(size)


def checked_uniforms(policy: AugmentPolicy, u: Float) -> Float:
    """The uniforms; ValueError where their shape is not what the policy consumes."""
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
    """The value of a field in JSON's types: tuples as lists, an `Op` by its name, infinity as "inf", a policy as its
    fingerprint."""
    if isinstance(value, AugmentPolicy):
        return value.fingerprint
    if isinstance(value, tuple):
        return [as_json(v) for v in value]
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, Enum):
        return value.name
    return "inf" if value == math.inf else value


def one_of(rows: Iterable[list[Row]], probability: float = 1.0) -> Entry:
    """The union of equally likely lists of rows, the short ones repeated to the length of the longest."""
    lists = list(rows)
    longest = max(map(len, lists))
    return Entry([row for some in lists for row in some * (longest // len(some))], probability)


def sub_policies(text: str) -> list[list[tuple[str, float, int]]]:
    """Parse "Name tenths level Name tenths level, ..."."""
    subs = [sub.split() for sub in text.split(",")]
    return [[(w[i], int(w[i + 1]) / 10, int(w[i + 2])) for i in range(0, len(w), 3)] for w in subs]


def auto_table(subs: Sequence[Sequence[Entry]], weights: Sequence[float] | None = None, noise: str = "") -> Table:
    """The table of sub-policies given as entries; short ones end in slots that do nothing."""
    slots = max(map(len, subs))
    entries = [Entry([], 0.0)]
    index = []
    for sub in subs:
        index.append([*range(len(entries), len(entries) + len(sub)), *[0] * (slots - len(sub))])
        entries += sub
    return Table(entries, index, weights, noise)
