"""Memory for batches that worker processes can write to, and the views on it."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from multiprocessing import reduction
from typing import Any, overload

import torch
from torch import Tensor

from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.transforms.postprocess import Postprocess

_ALIGNED = 64  # bytes at which each view of a batch begins
_SPARE = 2  # slots for batches that the user holds beyond that, where they cost nothing until they are used


class Ring(Sequence[Tensor]):
    """Slots of uint8 memory. Sent to a spawned worker it is the same memory there."""

    def __init__(self, slots: Sequence[Tensor], shared: _Shared | None = None) -> None:
        self._slots, self._shared = list(slots), shared

    def __getstate__(self) -> dict[str, Any]:
        if self._shared is None:
            return {"slots": self._slots}
        return {"shared": self._shared, "count": len(self), "nbytes": self._slots[0].numel()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._shared = state.get("shared")
        self._slots = state["slots"] if self._shared is None else self._shared.slots(state["count"], state["nbytes"])

    def for_device(self) -> Ring:
        """The same memory at other addresses, where it can be: what CUDA registers, no forked worker shall inherit."""
        if self._shared is None:
            return self
        return Ring(self._shared.slots(len(self), self._slots[0].numel(), anew=True))

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, slot: int) -> Tensor: ...
    @overload
    def __getitem__(self, slot: slice) -> list[Tensor]: ...
    def __getitem__(self, slot: int | slice) -> Tensor | list[Tensor]:
        return self._slots[slot]


class _Shared:
    """Memory without a name that processes share by a file descriptor: /dev/shm, which is small in containers, has no
    say in it, and it is taken only when it is written to."""

    def __init__(self, nbytes: int) -> None:
        self._fd = os.memfd_create("dali-imagenet")
        os.ftruncate(self._fd, nbytes)
        self._memory = mmap.mmap(self._fd, nbytes)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._fd)

    def __setstate__(self, duplicate: Any) -> None:
        self._fd = duplicate.detach()
        self._memory = mmap.mmap(self._fd, os.fstat(self._fd).st_size)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._fd)  # the mapping stays for as long as a tensor lies on it

    def slots(self, count: int, nbytes: int, *, anew: bool = False) -> list[Tensor]:
        """That many tensors, each at the start of a page.

        Args:
            anew: at addresses of their own, the same memory.
        """
        stride = _pages(nbytes)
        memory = mmap.mmap(self._fd, count * stride) if anew else self._memory
        return [torch.frombuffer(memory, dtype=torch.uint8, count=nbytes, offset=i * stride) for i in range(count)]


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def make_ring(slots: int, nbytes: int, num_workers: int, context: str | None, *, for_device: bool = False) -> Ring:
    """That many slots of `nbytes`, or a few more where they cost nothing; `for_device`: `Ring.for_device` is called."""
    processes = torch.multiprocessing
    method = context or processes.get_start_method(allow_none=True)  # without deciding on one for the user
    forked = (method or processes.get_all_start_methods()[0]) == "fork"
    if num_workers == 0 or (forked and not (for_device and hasattr(os, "memfd_create"))):
        # Taken only when written to; pages that CUDA registers are no other slot's. Without workers a child that the
        # user forks has its own.
        access = mmap.ACCESS_WRITE if num_workers else mmap.ACCESS_COPY
        made = [mmap.mmap(-1, nbytes, access=access) for _ in range(slots + _SPARE)]
        return Ring([torch.frombuffer(memory, dtype=torch.uint8) for memory in made])
    if hasattr(os, "memfd_create"):
        shared = _Shared((slots + _SPARE) * _pages(nbytes))
        return Ring(shared.slots(slots + _SPARE, nbytes), shared)
    ring = [torch.empty(nbytes, dtype=torch.uint8, device="cpu") for _ in range(slots)]
    return Ring([memory.share_memory_() for memory in ring])  # type: ignore[no-untyped-call]  # torch does not annotate


def batch_dtype(postprocess: Postprocess | None) -> torch.dtype:
    """What a worker hands over: uint8 pixels where nothing follows in it."""
    return torch.uint8 if postprocess is None else postprocess.dtype


def new_batch(plan: BatchPlan, postprocess: Postprocess | None) -> list[Tensor]:
    """Memory of its own for each view of a batch."""
    memory_format = torch.contiguous_format if postprocess is None else postprocess.memory_format
    options: dict[str, Any] = {"dtype": batch_dtype(postprocess), "memory_format": memory_format, "device": "cpu"}
    return [torch.empty((len(plan), 3, *view.size), **options) for view in plan.views]


def batch_bytes(rows: int, sizes: Sequence[int], itemsize: int) -> list[int]:
    """The bytes that each view of a batch takes in a slot, of its images' height times width."""
    return [-(-rows * 3 * size * itemsize // _ALIGNED) * _ALIGNED for size in sizes]


def batch_on(memory: Tensor, plan: BatchPlan, postprocess: Postprocess | None) -> list[Tensor]:
    """The views of a batch, one after the other on the first bytes of a uint8 tensor."""
    dtype, at, found = batch_dtype(postprocess), 0, []
    sizes = [view.size[0] * view.size[1] for view in plan.views]
    for (h, w), taken in zip((v.size for v in plan.views), batch_bytes(len(plan), sizes, dtype.itemsize), strict=True):
        flat = memory[at : at + len(plan) * 3 * h * w * dtype.itemsize].view(dtype)
        if postprocess is not None and postprocess.memory_format == torch.channels_last:
            found.append(flat.view(-1, h, w, 3).permute(0, 3, 1, 2))
        else:
            found.append(flat.view(-1, 3, h, w))
        at += taken
    return found
