"""The fused batch stage in Triton's interpreter, on the CPU: what its kernels compute, and the bytes that they move.

TRITON_INTERPRET=1 has to be set before Triton is imported: `python -m bench.gpu.interpreted RECIPE ...` is run in a
process of its own, by `paper`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from dali_imagenet import Plan, SampleIndex, TrainRecipe
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.transforms.fused import stage
from dali_imagenet.transforms.normalize_erase import normalize_constants

from .paper import DTYPES, recipes


@contextlib.contextmanager
def interpreter() -> Iterator[Any]:
    """Triton's interpreter without what makes it slow: a function that is called patches Triton no second time, and
    sums are not looked at for an overflow, which is wanted of hashes."""
    from triton.runtime import interpreter

    called = interpreter.InterpretedFunction.__call__

    def call(self: Any, *arguments: Any, **constants: Any) -> Any:
        if self.fn.__module__.startswith("dali_imagenet."):
            return self.rewrite()(*arguments, **constants)
        return called(self, *arguments, **constants)

    builder = interpreter.interpreter_builder
    with (
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
        mock.patch.object(builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False)),
    ):
        yield builder


class Moved:
    """Bytes that each launch loads and stores: each program every byte once, for what it asks for again is in a cache.

    A program is an image here, whatever its size.
    """

    def __init__(self) -> None:
        self.launches: list[tuple[str, int]] = []
        self._touched: dict[tuple[str, int], list[Any]] = {}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the kernels that are launched in a `with` block."""
        with interpreter() as builder:
            load, store, program, launch = (
                builder.create_masked_load,
                builder.create_masked_store,
                builder.set_grid_idx,
                stage._launch,
            )

            def masked_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
                self._touch("load", ptrs, mask)
                return load(ptrs, mask, *rest)

            def masked_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
                self._touch("store", ptrs, mask)
                return store(ptrs, value, mask, *rest)

            def launched(name: str, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
                self.launches.append((name, 0))
                launch(name, grid, *arguments, **constants)
                self._next()

            def set_grid_idx(*index: int) -> None:
                self._next()
                program(*index)

            with (
                mock.patch.object(builder, "create_masked_load", masked_load),
                mock.patch.object(builder, "create_masked_store", masked_store),
                mock.patch.object(builder, "set_grid_idx", set_grid_idx),
                mock.patch.object(stage, "_launch", launched),
                mock.patch.object(stage, "BLOCK", 1 << 16),
                mock.patch.object(stage, "LANES", 1 << 16),
            ):
                yield

    def _touch(self, kind: str, ptrs: Any, mask: Any) -> None:
        where = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)]
        self._touched.setdefault((kind, ptrs.get_element_ty().primitive_bitwidth // 8), []).append(where.ravel())

    def _next(self) -> None:
        """What a program touched is added to its launch."""
        moved = sum(size * len(np.unique(np.concatenate(found))) for (_, size), found in self._touched.items())
        self._touched.clear()
        if moved:
            name, before = self.launches[-1]
            self.launches[-1] = (name, before + moved)


def bytes_moved(recipe: TrainRecipe, dtypes: Sequence[str], rows: int, batch_size: int) -> dict[str, Any]:
    """The bytes of each launch of a batch of a recipe: those of some rows, multiplied.

    Returns:
        "operations": of each launch before the tail; "tail": by dtype.
    """
    index = SampleIndex.from_arrays(np.zeros(rows, np.int64), 375, 500)
    drawn = Plan(index, recipe, batch_size=rows, seed=0).batch(0, 0)
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (rows, 3, 16, 16)).astype(np.float32))
    images = torch.nn.functional.interpolate(coarse, drawn.size, mode="bilinear").to(torch.uint8)
    constants = normalize_constants(drawn.mean, drawn.std)

    def moved(plan: BatchPlan, dtype: str) -> list[int]:
        found = Moved()
        with found.counting():
            stage.finish(images, plan, constants, dtype=getattr(torch, dtype), mix=True)
        return [count * batch_size // rows for _, count in found.launches]

    *operations, first = moved(drawn, dtypes[0])
    plain = dataclasses.replace(drawn, ops=())
    return {
        "operations": operations,
        "tail": {dtypes[0]: first, **{dtype: moved(plain, dtype)[-1] for dtype in dtypes[1:]}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    for name in options.recipes:
        print(json.dumps(bytes_moved(recipes()[name], DTYPES, options.rows, options.batch_size)), flush=True)


if __name__ == "__main__":
    main()
