"""Memory for batches that worker processes can write to, and the views on it."""

from __future__ import annotations

import mmap

import numpy as np
import torch
from torch import Tensor

from dali_imagenet.transforms.postprocess import Postprocess

_SPARE = 2  # slots for batches that the user holds beyond that, where they cost nothing until they are used


def make_ring(slots: int, nbytes: int, num_workers: int, context: str | None) -> list[Tensor]:
    """That many uint8 tensors of `nbytes`, or a few more where they cost nothing."""
    if num_workers == 0:
        return [torch.empty(nbytes, dtype=torch.uint8, device="cpu") for _ in range(slots + _SPARE)]
    processes = torch.multiprocessing
    method = context or processes.get_start_method(allow_none=True)  # without deciding on one for the user
    if (method or processes.get_all_start_methods()[0]) != "fork":
        ring = [torch.empty(nbytes, dtype=torch.uint8, device="cpu") for _ in range(slots)]
        return [memory.share_memory_() for memory in ring]  # type: ignore[no-untyped-call]  # torch does not annotate it
    # Not from /dev/shm, which is small in containers, and taken only when written to.
    return [torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8) for _ in range(slots + _SPARE)]


def batch_dtype(postprocess: Postprocess | None) -> torch.dtype:
    """What a worker hands over: uint8 pixels where nothing follows in it."""
    return torch.uint8 if postprocess is None else postprocess.dtype


def new_batch(shape: tuple[int, ...], postprocess: Postprocess | None) -> Tensor:
    """Memory of its own for a batch."""
    memory_format = torch.contiguous_format if postprocess is None else postprocess.memory_format
    return torch.empty(shape, dtype=batch_dtype(postprocess), memory_format=memory_format, device="cpu")


def batch_on(memory: Tensor, shape: tuple[int, ...], postprocess: Postprocess | None) -> Tensor:
    """A batch on the first bytes of a uint8 tensor."""
    dtype = batch_dtype(postprocess)
    flat = memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype)
    if postprocess is not None and postprocess.memory_format == torch.channels_last:
        b, c, h, w = shape
        return flat.view(b, h, w, c).permute(0, 3, 1, 2)
    return flat.view(shape)
