"""Pixel programs: steps and policies in an order of one's own, and what draws among them.

A program is a sequence of parts. Each part takes uniforms of its own, and what the parts draw stands in one row, part
after part.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dali_imagenet.ops import Op
from dali_imagenet.policy.base import AugmentPolicy, AugMixPlan, Color, Float, OpPlan, Size, Table, checked_uniforms
from dali_imagenet.policy.custom import Step, step_of, step_table
from dali_imagenet.policy.names import resolve
from dali_imagenet.validation import pair, probability, sequence, wrong

Part = Step | AugmentPolicy
_NONE = (0, 0, 0)


def part_of(given: Any, mean: Sequence[float], interpolation: str | None) -> Part:
    """A step, policy or policy's name as a part of a program.

    Raises:
        ValueError: for what is none, or out of range.
    """
    if isinstance(given, AugmentPolicy):
        return given
    if isinstance(given, str):
        policy = resolve(given, mean=mean, interpolation=interpolation)
        if policy is None:
            raise wrong("program", given, "a policy's name, such as 'randaugment'")
        return policy
    items = sequence(given)
    if not items or not isinstance(items[0], Op | int):
        raise wrong("program", given, "a step such as (Op.ROTATE, 0.5, (-10, 10)), a policy, or a policy's name")
    return step_of(items)


def fill_of(name: str, parts: Iterable[Part]) -> Color:
    """The one colour of what moved images leave empty, of those parts that have one.

    Raises:
        ValueError: for parts that differ: the images of a batch are filled with one colour.
    """
    found = {part.fill for part in parts if isinstance(part, AugmentPolicy) and moves(part)}
    if len(found) > 1:
        raise wrong(name, sorted(found), "parts with one colour to fill with: a batch has one")
    return found.pop() if found else _NONE


def moves(part: AugmentPolicy) -> bool:
    """Whether a policy may move pixels, and so fill."""
    if isinstance(part, Jitter):
        return False
    return any(moves(p) for p in part.parts if isinstance(p, AugmentPolicy)) if isinstance(part, _Group) else True


@functools.lru_cache(maxsize=256)
def _table(step: Step) -> Table:
    return step_table(step)


def slots_of(part: Part) -> int:
    """The operations that a part takes up in a row."""
    return part.num_slots if isinstance(part, AugmentPolicy) else 1


def uniforms_of(part: Part) -> int:
    """The uniforms that a part consumes for a sample."""
    return part.num_uniforms if isinstance(part, AugmentPolicy) else _table(part).num_uniforms


def draw_parts(parts: Sequence[Part], u: Float, size: Size) -> list[OpPlan | AugMixPlan]:
    """What each part draws from its own of the uniforms [B, U]."""
    ends = np.cumsum([uniforms_of(part) for part in parts])
    shares = np.split(u, ends[:-1], axis=1)
    return [
        part.draw(share, size) if isinstance(part, AugmentPolicy) else _table(part).draw(share)
        for part, share in zip(parts, shares, strict=True)
    ]


def _range(name: str, value: Any, low: float, high: float) -> tuple[float, float] | None:
    return None if value is None else pair(name, value, low, high)


@dataclass(frozen=True, kw_only=True)
class Jitter(AugmentPolicy):
    """torchvision's ColorJitter with ranges of its own, as four operations in a drawn order.

    Attributes:
        brightness: range of the factor, 0..1000; None leaves the operation out.
        contrast: as brightness; about the mean gray.
        saturation: as brightness.
        hue: range in turns, -0.5..0.5.
    """

    name: ClassVar[str] = "jitter"
    brightness: tuple[float, float] | None = None
    contrast: tuple[float, float] | None = None
    saturation: tuple[float, float] | None = None
    hue: tuple[float, float] | None = None

    def _check(self) -> None:
        for field in ("brightness", "contrast", "saturation"):
            self._set(field, _range, 0, 1000)
        self._set("hue", _range, -0.5, 0.5)

    @property
    def num_slots(self) -> int:
        return 4

    @property
    def num_uniforms(self) -> int:
        return 8

    def draw(self, u: Float, size: Size) -> OpPlan:
        u = checked_uniforms(self, u)
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        ops = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE], np.int16)
        ops[[r is None for r in ranges]] = Op.IDENTITY
        low, high = np.array([(0.0, 0.0) if r is None else r for r in ranges]).T
        order = u[:, 4:].argsort(1)
        arg = np.take_along_axis(low + u[:, :4] * (high - low), order, axis=1)
        op = ops[order]
        return OpPlan(op, arg.astype(np.float32), np.zeros_like(op))


@dataclass(frozen=True, kw_only=True)
class _Group(AugmentPolicy):
    """What draws among parts: steps (or tuples of their fields) and policies, AugMix excepted.

    `fill` is that of the parts.
    """

    parts: tuple[Any, ...] = ()

    def _check(self) -> None:
        what = f"{type(self).__name__}: parts"
        items = sequence(self.parts)
        if not items or any(isinstance(item, str) for item in items):
            raise wrong(what, self.parts, "not empty, of steps and policy objects")
        parts = tuple(part_of(item, (), None) for item in items)
        for part in parts:
            if isinstance(part, AugmentPolicy) and part.name in ("augmix", "timm-augmix"):
                raise wrong(what, part, "without AugMix, which can only stand by itself in a program")
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "fill", fill_of(what, parts))

    @property
    def _own(self) -> int:
        """Uniforms that the choice itself takes."""
        return 1

    @property
    def num_slots(self) -> int:
        return sum(slots_of(part) for part in self.parts)

    @property
    def num_uniforms(self) -> int:
        return self._own + sum(uniforms_of(part) for part in self.parts)

    def draw(self, u: Float, size: Size) -> OpPlan:
        u = checked_uniforms(self, u)
        drawn = draw_parts(self.parts, u[:, self._own :], size)
        return self._pick(u[:, : self._own], [each for each in drawn if isinstance(each, OpPlan)])

    def _pick(self, u: Float, drawn: list[OpPlan]) -> OpPlan:
        raise NotImplementedError

    def _stacked(self, drawn: list[OpPlan]) -> OpPlan:
        """The parts side by side, [B, parts, K], short ones filled up with identities."""
        most = self._widest
        filled = [[np.pad(a, ((0, 0), (0, most - a.shape[1]))) for a in part] for part in drawn]
        return OpPlan(*(np.stack(arrays, axis=1) for arrays in zip(*filled, strict=True)))

    @property
    def _widest(self) -> int:
        return max(slots_of(part) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Apply(_Group):
    """All parts in order, with a probability, else none (torchvision's RandomApply).

    Attributes:
        parts: steps and policies.
        probability: 0..1.
        fill: that of the parts.
    """

    name: ClassVar[str] = "apply"
    probability: float = 0.5

    def _check(self) -> None:
        super()._check()
        self._set("probability", probability)

    def _pick(self, u: Float, drawn: list[OpPlan]) -> OpPlan:
        op, arg, aux = (np.concatenate(arrays, axis=1) for arrays in zip(*drawn, strict=True))
        return OpPlan(np.where(u < self.probability, op, np.int16(Op.IDENTITY)), arg, aux)


@dataclass(frozen=True, kw_only=True)
class Choice(_Group):
    """One of the parts (torchvision's RandomChoice).

    Attributes:
        parts: steps and policies.
        weights: of the parts, not negative; None draws each alike.
        fill: that of the parts.
    """

    name: ClassVar[str] = "choice"
    weights: tuple[float, ...] | None = None

    def _check(self) -> None:
        super()._check()
        if self.weights is not None:
            weights = tuple(float(w) for w in self.weights)
            if len(weights) != len(self.parts) or min(weights) < 0 or not 0 < sum(weights) < np.inf:
                raise wrong("Choice: weights", self.weights, f"{len(self.parts)} numbers >= 0 with a positive sum")
            object.__setattr__(self, "weights", weights)

    @property
    def num_slots(self) -> int:
        return self._widest

    def _pick(self, u: Float, drawn: list[OpPlan]) -> OpPlan:
        weights = np.ones(len(drawn)) if self.weights is None else np.array(self.weights)
        which = np.searchsorted(np.cumsum(weights)[:-1] / weights.sum(), u[:, 0], side="right")
        rows = np.arange(len(u))
        op, arg, aux = self._stacked(drawn)
        return OpPlan(op[rows, which], arg[rows, which], aux[rows, which])


@dataclass(frozen=True, kw_only=True)
class Shuffled(_Group):
    """All parts in a drawn order (torchvision's RandomOrder).

    Attributes:
        parts: steps and policies.
        fill: that of the parts.
    """

    name: ClassVar[str] = "shuffled"

    @property
    def _own(self) -> int:
        return len(self.parts)

    @property
    def num_slots(self) -> int:
        return len(self.parts) * self._widest

    def _pick(self, u: Float, drawn: list[OpPlan]) -> OpPlan:
        rows, order = np.arange(len(u))[:, None], u.argsort(1)
        op, arg, aux = self._stacked(drawn)
        shape = (len(u), self.num_slots)
        return OpPlan(*(part[rows, order].reshape(shape) for part in (op, arg, aux)))  # type: ignore[arg-type]  # of two types
