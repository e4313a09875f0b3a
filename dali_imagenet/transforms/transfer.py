"""Host arrays to a device, without waiting for it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Copies of numpy arrays on `device`, in one transfer: to a GPU from pinned memory, without waiting for it.

    Returns:
        Tensors of the arrays' dtypes and shapes, parts of one allocation.
    """
    offsets = np.cumsum([0] + [-(-a.nbytes // 16) * 16 for a in arrays])  # 16 bytes: aligned for every dtype
    host = torch.empty(int(offsets[-1]), dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    view = host.numpy()
    for array, start in zip(arrays, offsets, strict=False):
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + a.nbytes].view(_dtype(a.dtype)).view(a.shape)
        for a, start in zip(arrays, offsets.tolist(), strict=False)
    ]


@functools.cache
def _dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
