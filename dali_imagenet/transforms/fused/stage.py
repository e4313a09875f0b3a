"""Launches the kernels of a batch, and says whether it can."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet._compiled import ORACLE
from dali_imagenet.plan.batch_plan import BatchPlan, EraseMode
from dali_imagenet.transforms.fused import codes
from dali_imagenet.transforms.fused.program import Launch, Program, encode, fits
from dali_imagenet.transforms.transfer import to_device

log = logging.getLogger("dali_imagenet")

BLOCK, LANES = 512, 128
"""Pixels of a program, and of a blur at a time: one a thread. One that makes a table takes 8 * BLOCK at a time."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""Of the compiler: every product and every sum is rounded."""
_NOISE = {"const": codes.NO_NOISE, "rand": codes.NOISE_BOX, "pixel": codes.NOISE_PIXEL}


def finish(
    images: Tensor,
    plan: BatchPlan,
    constants: Tensor,
    *,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
    mix: bool = False,
) -> Tensor:
    """Operations, normalize, erase and mix of a batch; nothing waits for the device.

    Args:
        images: uint8 [B, 3, H, W] on a GPU, or on the CPU with Triton's interpreter; not modified.
        plan: of these images.
        constants: as of `normalize_constants`, on the images' device.
        dtype: float32, float16 or bfloat16: rounded to once, in the end.
        memory_format: of the result.
        mix: whether Mixup and CutMix follow, where the plan has them.

    Returns:
        [B, 3, H, W] of `dtype`. Work goes to the current stream of the images' device.

    Raises:
        ValueError: for images that are not the plan's.
    """
    size = (len(plan), 3, *plan.size)
    if images.dtype != torch.uint8 or images.shape != size:
        raise ValueError(f"images of {images.dtype} {list(images.shape)}: must be uint8 {list(size)}")
    program = encode(plan)
    arrays = program.arrays | {"place": program.place} | _tail_arrays(plan, mix)
    boxes = 0 if plan.erase is None or plan.noise_key is None else plan.erase.shape[1]
    with _device(images.device):
        there = dict(zip(arrays, to_device(list(arrays.values()), images.device), strict=True))
        out = torch.empty(images.shape, dtype=dtype, device=images.device, memory_format=memory_format)
        return _run(images.contiguous(), out, constants, program, there, boxes, plan.erase_mode)


def _device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _tail_arrays(plan: BatchPlan, mix: bool) -> dict[str, npt.NDArray[Any]]:
    rows = len(plan)
    mixing = np.zeros((rows, 6), np.float32)
    mixing[:, 0] = 1
    if mix and plan.mix is not None:
        cut = plan.mix.use_cutmix
        mixing[:, 0] = np.where(cut, np.float32(1), plan.mix.lam)
        mixing[:, 1] = 1 - mixing[:, 0]
        mixing[cut, 2:] = plan.mix.box[cut]
    erased = plan.erase is not None and plan.noise_key is not None
    return {
        "mixing": mixing,
        "boxes": np.asarray(plan.erase, np.int32) if erased else np.zeros(4, np.int32),
        "keys": np.asarray(plan.noise_key, np.uint64).view(np.int64) if erased else np.zeros(rows, np.int64),
        "value": np.broadcast_to(np.asarray(plan.erase_value, np.float32), 3),
    }


def _run(
    images: Tensor,
    out: Tensor,
    constants: Tensor,
    program: Program,
    there: dict[str, Tensor],
    boxes: int,
    mode: EraseMode,
) -> Tensor:
    """Launch a program and the tail: uint8 [B, 3, H, W] into `out`. boxes: how many each image has in "boxes"."""
    rows, _, height, width = images.shape
    blocks, sizes = -(-height * width // BLOCK), (rows, height, width)

    def room(count: int, of: torch.dtype) -> Tensor:
        return torch.empty((max(1, count), 3, height, width), dtype=of, device=images.device)

    pool, wide = room(program.pool, torch.uint8), room(program.wide, torch.float32)
    made = torch.empty((max(1, program.made), 768), dtype=torch.uint8, device=images.device)
    tables = (there["tables"], made, there["weights"], there["whole"], there["fill"])
    for step in program.launches:
        if step.kernel == "mix":
            mixed = (there["places"][step.first :], there["shares"][step.first :], step.target, step.chains, step.mode)
            _launch("mix", (blocks, step.jobs), images, pool, *mixed, *sizes, BLOCK=BLOCK)
            continue
        jobs = (there["jobs"][step.first :], there["numbers"])
        if step.kernel == "tables":
            _launch("tables", (3, step.jobs), images, pool, made, *jobs, *sizes, BLOCK=8 * BLOCK, WIDE=_wide())
        else:
            lanes = {"LANES": LANES, "WIDE": _wide()}
            _launch("slot", (blocks, step.jobs), images, pool, wide, *jobs, *tables, *sizes, BLOCK=BLOCK, **lanes)
    last = [there[name] for name in ("place", "mixing", "boxes", "keys", "value")]
    layout = {"NOISE": _NOISE[mode], "LAST": out.is_contiguous(memory_format=torch.channels_last)}
    _launch("tail", (blocks, rows), images, pool, out, constants, *last, boxes, *sizes, BLOCK=BLOCK, **layout)
    return out


def _wide() -> bool:
    return bool(_kernels().INTERPRETED)


def _kernels() -> Any:
    return importlib.import_module("dali_imagenet.transforms.fused.kernels")


def _launch(name: str, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
    getattr(_kernels(), name)[grid](*arguments, **constants, **OPTIONS)


def takes(plan: BatchPlan, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> bool:
    """Whether the kernels take a plan's batches on a device; the first answer for each kind compiles them.

    Where Triton or its C compiler is missing it says so once, and never again tries.
    """
    if ORACLE or device.type != "cuda" or not fits(plan):
        return False
    return _ready(device, dtype, memory_format, plan.erase_mode, bool(plan.ops))


@functools.cache
def _ready(
    device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format, mode: EraseMode, operations: bool
) -> bool:
    if _refused:
        return False
    try:
        _compile(device, dtype, memory_format, mode, operations)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever Triton, its compilers and its driver raise
        _refused.append(str(error))
        log.warning(
            "the batch stage runs as torch operations, slower and with the same pixels: Triton's kernels cannot be "
            "compiled here (%s: %s)",
            type(error).__name__,
            (str(error).strip().splitlines() or [""])[0],
        )
        return False
    return True


_refused: list[str] = []


def _compile(
    device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format, mode: EraseMode, operations: bool
) -> None:
    """Launch every kernel once, for a few black pixels."""
    zeros: dict[str, npt.NDArray[Any]] = {
        "jobs": np.zeros((1, codes.JOB), np.int32),
        "numbers": np.zeros((1, codes.NUMBERS)),
        "tables": np.zeros(256, np.uint8),
        "weights": np.zeros(1, np.float32),
        "whole": np.zeros(1, np.int32),
        "fill": np.zeros(3, np.uint8),
        "places": np.zeros(2, np.int32),
        "shares": np.zeros(2, np.float32),
        "place": np.zeros(1, np.int32),
        "mixing": np.zeros((1, 6), np.float32),
        "boxes": np.zeros(4, np.int32),
        "keys": np.zeros(1, np.int64),
        "value": np.zeros(3, np.float32),
        "constants": np.zeros(6, np.float32),
    }
    launches = [Launch("tables", 0, 1), Launch("slot", 0, 1), Launch("mix", 0, 1, chains=1)] if operations else []
    with _device(device):
        there = dict(zip(zeros, to_device(list(zeros.values()), device), strict=True))
        images = torch.zeros((1, 3, 2, 2), dtype=torch.uint8, device=device)
        out = torch.empty(images.shape, dtype=dtype, device=device, memory_format=memory_format)
        _run(images, out, there["constants"], Program(1, launches, pool=1), there, 0, mode)
