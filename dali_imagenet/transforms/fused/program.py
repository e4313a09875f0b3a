"""A plan's operations as tables of jobs: which kernel does what to which image, in which order. numpy only, no pixels.

Every image goes through its own operations without gaps: job j of each image is in launch j, and an image that has no
more is not touched again. The results alternate between two places of the image's own, so that nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_imagenet.ops import AFFINE_PARTS, FILTERS, Op
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.policy import AugMixPlan, OpPlan
from dali_imagenet.transforms import pixel_ops
from dali_imagenet.transforms.fused import codes
from dali_imagenet.transforms.pixel_ops import PIL_POINT_OPS, POINT_OPS, affine_theta, fill_bytes, pil_matrix
from dali_imagenet.transforms.pixel_ops_batched import (
    box_weights,
    check_program,
    fixed_matrix,
    ratios,
    scaled_grid,
    scales,
)
from dali_imagenet.transforms.vectorised import affine_thetas, point_luts

Array = npt.NDArray[Any]
I32 = npt.NDArray[np.int32]

_NOTHING = frozenset({int(Op.IDENTITY), *map(int, AFFINE_PARTS)})
_WARPS = frozenset({Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, Op.AFFINE})
_PIL_WARPS = frozenset({Op.PIL_SHEAR_X, Op.PIL_SHEAR_Y, Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y, Op.PIL_ROTATE,
                        Op.PIL_AFFINE})  # fmt: skip
_MADE = {
    Op.CONTRAST: codes.CONTRAST,
    Op.PIL_CONTRAST: codes.PIL_CONTRAST,
    Op.AUTO_CONTRAST: codes.AUTO_CONTRAST,
    Op.PIL_AUTO_CONTRAST: codes.PIL_AUTO_CONTRAST,
    Op.EQUALIZE: codes.EQUALIZE,
    Op.PIL_EQUALIZE: codes.EQUALIZE,
}
_PLAIN = {
    Op.COLOR: codes.COLOR,
    Op.PIL_COLOR: codes.PIL_COLOR,
    Op.GRAYSCALE: codes.GRAYSCALE,
    Op.PIL_GRAYSCALE: codes.PIL_GRAYSCALE,
    Op.SHARPNESS: codes.SHARPNESS,
    Op.PIL_SHARPNESS: codes.PIL_SHARPNESS,
    Op.HUE: codes.HUE,
}
EXECUTED = frozenset(
    map(int, (*_NOTHING, *_WARPS, *_PIL_WARPS, *POINT_OPS, *PIL_POINT_OPS, *_MADE, *_PLAIN,
              Op.GAUSSIAN_BLUR, Op.PIL_GAUSSIAN_BLUR))
)  # fmt: skip
"""The operations that the kernels know."""
_GRID = 1 << 16  # what a grid has of rows
_MODES = {"blend": codes.BLEND, "timm": codes.TIMM, "torchvision": codes.TORCHVISION}


@dataclass(frozen=True)
class Launch:
    """One kernel of the operations."""

    kernel: str
    """"tables", "slot" or "mix"."""
    first: int
    """Its first job; of a mix the first row of `places` and `shares`, both flattened."""
    jobs: int
    """How many; of a mix the rows."""
    target: int = 0
    """Of a mix: where in the pool the results begin."""
    chains: int = 0
    mode: int = 0


@dataclass
class Program:
    """What the kernels are told."""

    count: int
    """Images; what comes after them in `place` is of the pool."""
    launches: list[Launch] = field(default_factory=list)
    pool: int = 0
    """Images that the pool has to hold."""
    wide: int = 0
    """Images of float32 between the passes of a blur."""
    made: int = 0
    """Tables [3, 256] that are made on the device."""
    place: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """[B], where each image is in the end."""
    arrays: dict[str, Array] = field(default_factory=dict)
    """For the device."""


@dataclass
class _Jobs:
    """Rows of the tables, in any order."""

    jobs: list[Array] = field(default_factory=list)
    steps: list[Array] = field(default_factory=list)
    numbers: list[Array] = field(default_factory=list)
    count: int = 0

    def add(self, step: Array, code: int, source: Array, target: Array, numbers: Array | None = None, *,
            at: Array | int = 0, size: Array | int = 0, extra: Array | int = 0) -> None:  # fmt: skip
        rows = len(step)
        if not rows:
            return
        number = np.arange(self.count, self.count + rows) if numbers is not None else 0
        table = np.zeros((rows, codes.JOB), np.int32)
        for column, value in enumerate((code, source, target, at, size, extra, number)):
            table[:, column] = value
        if numbers is not None:
            wide = np.zeros((rows, codes.NUMBERS), np.float64)
            wide[:, : numbers.shape[1]] = numbers
            self.numbers.append(wide)
            self.count += rows
        self.jobs.append(table)
        self.steps.append(step)


class _Blob:
    """Tables of one dtype, one behind the other; what is the same is there once."""

    def __init__(self, dtype: type) -> None:
        self.dtype, self.parts, self.size = dtype, list[Array](), 0
        self.known: dict[bytes, int] = {}

    def add(self, values: Array | bytes) -> int:
        part = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else np.ravel(values).astype(self.dtype)
        key = part.tobytes()
        if key not in self.known:
            self.known[key] = self.size
            self.parts.append(part)
            self.size += len(part)
        return self.known[key]

    def array(self) -> Array:
        return np.concatenate(self.parts) if self.parts else np.zeros(1, self.dtype)


def fits(plan: BatchPlan) -> bool:
    """Whether the kernels take a plan: not a blur that reflects more than there is, which is an error."""
    return len(plan) < _GRID and all(
        part.op[..., 0].size < _GRID
        and np.isin(part.op, list(EXECUTED)).all()
        and not ((part.op == Op.GAUSSIAN_BLUR) & (part.aux // 2 >= min(plan.size))).any()
        for part in plan.ops
    )


def encode(plan: BatchPlan) -> Program:
    """The operations of a plan.

    Raises:
        ValueError: for unknown operations and wrong arguments.
    """
    return _Encoder(plan).program


class _Encoder:
    def __init__(self, plan: BatchPlan) -> None:
        self.height, self.width = plan.size
        self.filled = plan.fill is not None
        self.program = Program(len(plan))
        self.jobs, self.tables = _Jobs(), _Jobs()
        self.bytes, self.floats, self.whole = _Blob(np.uint8), _Blob(np.float32), _Blob(np.int32)
        self.steps = 0
        places, shares = list[Array](), list[Array]()
        mixes: list[tuple[int, Launch]] = []
        place = np.arange(len(plan), dtype=np.int32)
        for part in plan.ops:
            check_program(part.op, part.arg, part.aux)
            if isinstance(part, OpPlan):
                place = self._run(part.op, part.arg, part.aux, place)
                continue
            rows, chains, depth = part.op.shape
            flat = [a.reshape(rows * chains, depth) for a in (part.op, part.arg, part.aux)]
            ends = self._run(flat[0], flat[1], flat[2], np.repeat(place, chains))
            first = sum(len(p.reshape(-1)) for p in places)
            places.append(np.concatenate([place[:, None], ends.reshape(rows, chains)], axis=1))
            shares.append(_shares(part))
            target = self._room(rows)
            mixes.append((self.steps, Launch("mix", first, rows, target, chains, _MODES[part.mode])))
            self.steps += 1
            place = (self.program.count + target + np.arange(rows)).astype(np.int32)
        self.program.place = place
        self._order(dict(mixes))
        self.program.arrays |= {
            "places": _flat(places, np.int32),
            "shares": _flat(shares, np.float32),
            "tables": self.bytes.array(),
            "weights": self.floats.array(),
            "whole": self.whole.array(),
            "fill": np.array(fill_bytes(plan.fill), np.uint8),
        }

    def _room(self, images: int) -> int:
        """A place for so many in the pool."""
        self.program.pool += images
        return self.program.pool - images

    def _order(self, mixes: dict[int, Launch]) -> None:
        """The jobs by launch; a table is made right before it is looked up."""
        tables, table_at = _sorted(self.tables, self.steps)
        slots, slot_at = _sorted(self.jobs, self.steps)
        tables[:, 6] += self.jobs.count  # behind the others' numbers
        offset = len(slots)
        for step in range(self.steps):
            if step in mixes:
                self.program.launches.append(mixes[step])
                continue
            for name, begin, end in (
                ("tables", offset + table_at[step], offset + table_at[step + 1]),
                ("slot", slot_at[step], slot_at[step + 1]),
            ):
                if end > begin:
                    self.program.launches.append(Launch(name, int(begin), int(end - begin)))
        numbers = [*self.jobs.numbers, *self.tables.numbers, np.zeros((1, codes.NUMBERS))]
        self.program.arrays |= {"jobs": np.concatenate([slots, tables]), "numbers": np.concatenate(numbers)}

    def _run(self, op: Array, arg: Array, aux: Array, start: I32) -> I32:
        """The jobs of programs [R, K] on images at `start`; where the results are."""
        small = min(self.height, self.width) <= 2
        idle = np.isin(op, [*_NOTHING, *((Op.SHARPNESS, Op.PIL_SHARPNESS) if small else ())])
        two, six = op == Op.GAUSSIAN_BLUR, op == Op.PIL_GAUSSIAN_BLUR
        spans = np.where(idle, 0, np.where(two, 2, np.where(six, 6, 1)))
        writes = np.where(two, 1, spans)
        self.step = self.steps + spans.cumsum(1) - spans  # the launch of each operation
        before = writes.cumsum(1) - writes
        rows, total = len(op), writes.sum(1)
        self.start, self.rows = start, rows
        self.pool = self._room(rows * min(2, int(total.max(initial=0))))
        self.before = before
        for number in np.unique(op[~idle]).tolist():
            r, k = np.nonzero((op == number) & ~idle)
            self._one(Op(number), r, k, op, arg, aux)
        self.steps += int(spans.sum(1).max(initial=0))
        row = np.arange(rows)
        return np.where(total, self._target(row, total - 1) + self.program.count, start).astype(np.int32)

    def _target(self, row: Array, written: Array) -> Array:
        """The place in the pool of what a row writes as its number `written`."""
        return np.asarray(self.pool + (written % 2) * self.rows + row)

    def _between(self, row: Array, written: Array) -> tuple[Array, Array]:
        """Where a row's job finds its image, and where it puts it."""
        source = np.where(written, self._target(row, written - 1) + self.program.count, self.start[row])
        return source, self._target(row, written)

    def _one(self, op: Op, r: Array, k: Array, ops: Array, arg: Array, aux: Array) -> None:
        """The jobs of one operation, in the programs' rows r at k."""
        step, given_arg, given_aux = self.step[r, k], arg[r, k], aux[r, k]
        source, target = self._between(r, self.before[r, k])
        add = self.jobs.add
        if op in _WARPS or op in _PIL_WARPS:
            given = [_parts(ops[i], arg[i], j) for i, j in zip(r, k, strict=True)] if "AFFINE" in op.name else None
            self._warps(op, step, source, target, given_arg, given_aux, given)
        elif op in POINT_OPS or op in PIL_POINT_OPS:
            args, which = np.unique(given_arg, return_inverse=True)  # most policies have few
            at = np.array([self.bytes.add(table) for table in point_luts(np.full(len(args), op), args)])
            add(step, codes.FIXED, source, target, at=at[which])
        elif op in _MADE:
            at = (self.program.made + np.arange(len(r))) * 768
            self.program.made += len(r)
            self.tables.add(step, _MADE[op], source, source, ratios(given_arg.tolist()).reshape(-1, 2), at=at)
            add(step, codes.MADE, source, target, at=at)
        elif op == Op.HUE:
            add(step, codes.HUE, source, target, given_arg[:, None])
        elif op in _PLAIN:
            add(step, _PLAIN[op], source, target, ratios(given_arg.tolist()).reshape(-1, 2))
        elif op == Op.GAUSSIAN_BLUR:
            at = np.zeros(len(r), np.int32)
            for size in np.unique(given_aux).tolist():
                same = np.flatnonzero(given_aux == size)
                sigmas, which = np.unique(given_arg[same], return_inverse=True)
                tables = blur_tables(sigmas, size)
                at[same] = self.floats.add(tables) + which * tables.shape[1]
            where = np.unique(r, return_inverse=True)[1]
            self.program.wide = max(self.program.wide, int(where.max()) + 1)
            add(step, codes.BLUR_ACROSS, source, target, at=at, size=given_aux, extra=where)
            add(step + 1, codes.BLUR_DOWN, source, target, at=at, size=given_aux, extra=where)
        else:
            taps = box_weights(given_arg.tolist()).reshape(len(r), -1)
            at = np.array([self.whole.add(t) for t in taps])
            for i in range(6):
                code = codes.BOX_ACROSS if i < 3 else codes.BOX_DOWN
                add(step + i, code, *self._between(r, self.before[r, k] + i), at=at, size=taps.shape[1])

    def _warps(self, op: Op, step: Array, source: Array, target: Array, arg: Array, aux: Array,
               given: list[dict[int, float]] | None) -> None:  # fmt: skip
        def add(chosen: Array, code: int, numbers: Array | None, **more: Any) -> None:
            self.jobs.add(step[chosen], code, source[chosen], target[chosen], numbers, **more)

        size = self.height, self.width
        if op in _WARPS and given is None:
            matrices = affine_thetas(int(op), arg, *size).astype(np.float64).reshape(-1, 6)
        else:
            number = pil_matrix if op in _PIL_WARPS else affine_theta
            rows = [number(int(op), float(a), *size, *([given[i]] if given else [])) for i, a in enumerate(arg)]
            matrices = np.array(rows, np.float64).reshape(-1, 6)
        bilinear = aux == FILTERS["bilinear"]
        if op in _WARPS:
            add(~bilinear, codes.NEAREST, matrices[~bilinear])
            add(bilinear, codes.BILINEAR, matrices[bilinear], extra=int(self.filled))
            return
        for chosen, code in ((bilinear, codes.PIL_BILINEAR), (aux == FILTERS["bicubic"], codes.PIL_BICUBIC)):
            add(chosen, code, matrices[chosen])
        for nearest in np.flatnonzero(aux == FILTERS["nearest"]):
            matrix, one = tuple(matrices[nearest].tolist()), np.array([nearest])
            if scales(matrix):
                across, down = scaled_grid([matrix], self.height, self.width)
                add(one, codes.PIL_SCALED, None, at=self.whole.add(np.concatenate([across.ravel(), down.ravel()])))
            else:
                add(one, codes.PIL_NEAREST, np.array([fixed_matrix(matrix)], np.float64))


def _flat(arrays: list[Array], dtype: type) -> Array:
    return np.concatenate([np.ravel(a) for a in arrays]).astype(dtype) if arrays else np.zeros(1, dtype)


def _sorted(jobs: _Jobs, steps: int) -> tuple[Array, Array]:
    """The jobs by launch, and where each launch's begin."""
    if not jobs.jobs:
        return np.zeros((0, codes.JOB), np.int32), np.zeros(steps + 1, np.int64)
    step = np.concatenate(jobs.steps)
    order = np.argsort(step, kind="stable")
    return np.concatenate(jobs.jobs)[order], np.searchsorted(step[order], np.arange(steps + 1))


def _parts(op: Array, arg: Array, k: int) -> dict[int, float]:
    """What the slots before slot k say of the affine there."""
    given: dict[int, float] = {}
    for o, a in zip(op[:k].tolist(), arg[:k].tolist(), strict=True):
        if o in AFFINE_PARTS:
            given[o] = a
        elif o in (Op.AFFINE, Op.PIL_AFFINE):
            given = {}
    return given


def _shares(part: AugMixPlan) -> Array:
    """float32 [B, 1 + chains]: of the image and of each chain, as the mode has them."""
    m = part.m[:, None]
    if part.mode == "torchvision":
        return np.concatenate([1 - m, part.weights * m], axis=1)
    return np.concatenate([m, part.weights], axis=1)


def blur_tables(sigmas: Array, size: int) -> Array:
    """The tables [G, 8 + size] of blurs for the kernels: the limits by binade, then the line."""
    lines = pixel_ops.gaussian_lines(sigmas, size).numpy()
    kernels = lines[:, :, None] * lines[:, None, :]
    bounds = np.array([blur_bounds(*each) for each in zip(lines, kernels, strict=True)], np.float32)
    return np.concatenate([np.nextafter(np.float32(0.5) - bounds, np.float32(-1)), lines], axis=1)


def blur_bounds(line: Array, kernel: Array) -> Sequence[float]:
    """How far two passes with `line` can be from the sum with `kernel`, eight: for values below 2, 4, .. 256.

    The reason is in _pixel_ops.c, whose numbers these are.
    """
    if pixel_ops._pixel_ops is not None and len(line) <= 63:
        found: Sequence[float] = pixel_ops._pixel_ops.blur_bounds(line, np.ascontiguousarray(kernel))
        return found
    first = _drift(line, 255.0)
    whole = float(line.astype(np.float64).sum())
    second = _drift(line, 255 * whole + first[-1])
    reference = _drift(kernel.ravel(), 255.0)
    apart = np.abs(np.multiply.outer(line, line, dtype=np.float64) - kernel).sum()
    total = (reference + 255 * apart + first[-1] * whole + second[-1]) * (1 + 1e-9) + 1e-9
    return list(np.where(total < 0.25, np.nextafter(total.astype(np.float32), np.float32(1)), np.float32(1)).tolist())


def _drift(weights: Array, top: float) -> Array:
    """How far a float32 sum of fused products with values of 0..top can be from the exact one, by binade."""
    most = 2.0**-24 * 2.0 ** np.arange(codes.BINADES)
    off, total, all_steps = np.zeros(codes.BINADES), 0.0, 0.0
    for term in (top * weights.astype(np.float64)).tolist():
        if term:
            total += term
            step = min(2.0 ** np.floor(np.log2(total + all_steps)) * 2.0**-24, term)
            all_steps += step
            off += np.minimum(step, most)
    return off
