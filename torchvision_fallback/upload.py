"""Batches of the ring to a GPU, without waiting for it and without a copy on the host."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("dali_imagenet")
_HELD = 1  # slots whose copies may still run while the next batch is awaited; the ring has room for as many


class Upload:
    """Copies images to a GPU on a stream of its own, where they pass by the model's queued work.

    A slot of the ring is registered with CUDA when it is first seen; copies from it then are asynchronous. Its images
    are held until their copy has run, so that no worker writes to the slot before. Where registering fails, and for
    memory of no slot, there is one copy into pinned memory in between.

    Args:
        device: a CUDA device.
        slots: the ring's memory in this process, uint8 [bytes] each.
    """

    def __init__(self, device: torch.device, slots: Sequence[Tensor]) -> None:
        self.device = device
        self._slots = {slot.data_ptr(): slot for slot in slots}
        self._registered = dict[int, Tensor]()
        self._failed = ""  # why registering does not work
        self._pending = deque[tuple[Any, list[Tensor]]]()
        self._stream: Any = None
        # The memory must not go away while it is registered. At exit CUDA may be gone before.
        self._end = weakref.finalize(self, _unregister_all, self._registered, self._unregister, os.getpid())
        self._end.atexit = False

    def wait(self) -> None:
        """Give slots back to the workers: all but those that were copied last, or have been copied in the meantime."""
        while self._pending and (len(self._pending) > _HELD or self._pending[0][0].query()):
            self._pending.popleft()[0].synchronize()

    def __call__(self, images: list[Tensor]) -> list[Tensor]:
        """The images on the device, ordered on its current stream."""
        held = [image if self._is_registered(image) else self._staged(image) for image in images]
        there, done = self._copied(held)
        self._pending.append((done, held))
        return there

    def close(self) -> None:
        """Wait for what is being copied, and let go of the ring."""
        while self._pending:
            with contextlib.suppress(RuntimeError):  # what went wrong on the device before, which each call repeats
                self._pending.popleft()[0].synchronize()
        self._end()
        self._slots.clear()

    def _is_registered(self, image: Tensor) -> bool:
        storage = image.untyped_storage()  # of a whole slot, where it lies in one
        address = storage.data_ptr()
        if address not in self._registered and address in self._slots and not self._failed:
            self._failed = self._register(address, storage.nbytes())
            if self._failed:
                log.warning(
                    "the ring of the workers cannot be registered with CUDA (%s): each batch is copied once more, into "
                    "pinned memory. `ulimit -l` or the container may limit it",
                    self._failed,
                )
            else:
                self._registered[address] = self._slots[address]
        return address in self._registered

    # ---- what is asked of CUDA

    def _register(self, address: int, nbytes: int) -> str:
        """Nothing, or why it failed."""
        with torch.cuda.device(self.device):
            error = int(_cudart().cudaHostRegister(address, nbytes, 0))
            if not error:
                return ""
            try:  # CUDA repeats its last error at the next launch, which is not at fault
                torch.zeros(1, device=self.device)
            except RuntimeError as repeated:
                return str(repeated).splitlines()[0]
            return f"CUDA error {error}"

    @staticmethod
    def _unregister(address: int) -> None:
        _cudart().cudaHostUnregister(address)

    def _staged(self, image: Tensor) -> Tensor:
        return torch.empty_like(image, pin_memory=True).copy_(image)

    def _copied(self, images: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Copies, and an event that has passed when they have run."""
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not annotate it
            with torch.cuda.stream(self._stream):
                there = [image.to(self.device, non_blocking=True) for image in images]
                done = self._stream.record_event()
            current = torch.cuda.current_stream()
            current.wait_event(done)
            for image in there:
                image.record_stream(current)
        return there, done


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch does not annotate it


def _unregister_all(registered: dict[int, Tensor], unregister: Any, owner: int) -> None:
    if owner == os.getpid():
        for address in registered:
            unregister(address)
    registered.clear()
