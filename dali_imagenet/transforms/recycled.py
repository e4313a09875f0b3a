"""Memory for batches on the CPU that is used again when nobody holds it any more: fresh memory is slow to fill."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

_KEPT = 3  # blocks at most that wait for a batch


class Recycled:
    """Tensors of arbitrary content that belong to the caller: whatever lies on their memory, views and arrays of numpy
    included, keeps it. For batches of one size, or of one after the other."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def empty(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """A tensor [B, C, H, W].

        Args:
            memory_format: torch.contiguous_format or torch.channels_last.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        block = self._free.pop() if self._free else None
        if block is None or not nbytes <= block.numel() <= 2 * nbytes:
            self._free.clear()  # of another size
            block = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        lent = block.numpy()[:nbytes]
        weakref.finalize(lent, _give_back, self._free, block).atexit = False
        flat = torch.from_numpy(lent).view(dtype)
        if memory_format == torch.channels_last:
            count, channels, height, width = shape
            return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(*shape)


def _give_back(free: list[Tensor], block: Tensor) -> None:
    if len(free) < _KEPT:
        free.append(block)
