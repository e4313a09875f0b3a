"""A policy of one's own, as a table of operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from dali_imagenet.ops import OPS, Op, check_aux
from dali_imagenet.policy.base import AugmentPolicy, Entry, Row, Size, Table, auto_table
from dali_imagenet.validation import probability, sequence, wrong


class Step(NamedTuple):
    """An operation of a `TablePolicy`.

    Attributes:
        op: the operation.
        probability: 0..1.
        magnitude: the final argument that `Op` describes, or its range (low, high), drawn uniformly (whole numbers,
            both ends included, where the operation wants whole ones: translate, posterize, solarize-add).
        sign: with probability one half mirrors the argument about the value that changes nothing: -x, or 2 - x for the
            factors of brightness, color, contrast and sharpness.
        aux: what `Op` says; None is 3 (bicubic) for PIL's moving operations and 0 else, but for GAUSSIAN_BLUR, which
            has no default.
    """

    op: Op
    probability: float = 1.0
    magnitude: float | tuple[float, float] = 0.0
    sign: bool = False
    aux: int | None = None


def step_of(given: Any) -> Step:
    """A tuple of the fields of `Step`, checked and filled up.

    Raises:
        ValueError: for what the operation does not take.
    """
    step = Step(*given)
    op = Op(step.op)
    what = f"{op.name}: magnitude"
    ends = sequence(step.magnitude) or (step.magnitude, step.magnitude)
    if len(ends) != 2 or not all(math.isfinite(x) for x in ends) or ends[0] > ends[1]:
        raise wrong(what, step.magnitude, "a number or (low, high) with low <= high")
    chance = probability(f"{op.name}: probability", step.probability)
    info = OPS[op]
    if step.sign and info.mirror is None:
        raise wrong(f"{op.name}: sign", step.sign, "False: only moving operations, factors and hue have one")
    mirror = info.mirror
    reached = [*ends, *(mirror - x for x in ends)] if step.sign and mirror is not None else ends
    if min(reached) < info.low or max(reached) > info.high:
        raise wrong(what, step.magnitude, f"one that stays in [{info.low:g}, {info.high:g}]; with its sign it reaches "
                    f"{min(reached):g} to {max(reached):g}")  # fmt: skip
    if info.whole and any(x != int(x) for x in ends):
        raise wrong(what, step.magnitude, "whole numbers")
    aux = info.default_aux if step.aux is None else step.aux
    check_aux(op, info, aux)
    return Step(op, chance, (float(ends[0]), float(ends[1])), bool(step.sign), int(aux or 0))


def _step_entry(step: Step) -> Entry:
    low, high = step.magnitude  # type: ignore[misc]  # step_of made it a pair
    whole, mirror = OPS[step.op].whole, OPS[step.op].mirror
    row = Row(step.op, step.aux or 0, offset=low, sign=1.0, scale=10.0, spread=high - low, whole=float(whole))
    if whole:
        row = row._replace(spread=high - low + 1.0, cap=high - low)
    rows = [row, row._replace(offset=mirror - low, sign=-1.0)] if step.sign and mirror is not None else [row]
    return Entry(rows, step.probability)


def _ranges(step: Step) -> bool:
    low, high = step.magnitude  # type: ignore[misc]  # step_of made it a pair
    return low < high


def step_table(step: Step) -> Table:
    """The table of that one step."""
    return auto_table([[_step_entry(step)]], noise="uniform" if _ranges(step) else "")


@dataclass(frozen=True, kw_only=True)
class TablePolicy(AugmentPolicy):
    """A policy of one's own: a sub-policy is drawn for each sample and its steps are applied in order.

    Attributes:
        sub_policies: sequences of `Step`, or of tuples in the order of its fields, for example
            `[[(Op.ROTATE, 0.7, (0, 30), True), (Op.EQUALIZE, 0.5)], [(Op.COLOR, 1.0, 1.4)]]`.
        weights: of the sub-policies, not negative; None draws each alike.
        fill: colour (0..255) of what lies outside a moved image.
    """

    name: ClassVar[str] = "table"
    sub_policies: Sequence[Sequence[Any]] = ()
    weights: Sequence[float] | None = None

    def _check(self) -> None:
        steps = tuple(tuple(step_of(step) for step in sub) for sub in self.sub_policies)
        if not steps or not any(steps):
            raise wrong("sub_policies", self.sub_policies, "not empty: at least one sub-policy with one step")
        object.__setattr__(self, "sub_policies", steps)
        if self.weights is not None:
            weights = tuple(float(w) for w in self.weights)
            if len(weights) != len(steps) or min(weights) < 0 or not 0 < sum(weights) < math.inf:
                raise wrong("weights", self.weights, f"{len(steps)} numbers >= 0 with a positive sum")
            object.__setattr__(self, "weights", weights)

    def _build(self, size: Size) -> Table:
        entries = [[_step_entry(step) for step in sub] for sub in self.sub_policies]
        ranges = any(_ranges(step) for sub in self.sub_policies for step in sub)
        return auto_table(entries, self.weights, "uniform" if ranges else "")
