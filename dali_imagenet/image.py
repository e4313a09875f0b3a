"""One sample of a plan -> uint8 pixels: read, decode, and what the image stage does after. Draws nothing."""

from __future__ import annotations

import os

import numpy as np
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.decode.decode import Box, Pixels, decode
from dali_imagenet.errors import BadImageError
from dali_imagenet.plan.plan import BatchPlan
from dali_imagenet.transforms import resize


class Memory:
    """Memory for one decoded image at a time, used again: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, size: int) -> Pixels:
        """At least that many bytes; what was handed out before is overwritten."""
        if self._bytes.size < size:
            self._bytes = np.empty(size * 5 // 4, np.uint8)
        return self._bytes


def render(index: SampleIndex, plan: BatchPlan, row: int, interpolation: str, memory: Memory | None = None) -> Tensor:
    """One row of a plan as the image stage leaves it: uint8 [3, S, S], strides as they fall.

    Raises:
        BadImageError: as `read_pixels`.
    """
    part = resize.needed(plan, row, interpolation)
    pixels = read_pixels(index, int(plan.index[row]), part.box, memory)
    return resize.render(pixels, part, plan, row, interpolation)


def read_pixels(index: SampleIndex, sample: int, box: Box, memory: Memory | None = None) -> Pixels:
    """Decode a box (top, left, height, width) of one sample: uint8 [height, width, 3]; in `memory` where it is given.

    Raises:
        BadImageError: it cannot be read, or is not of the size that the index knows; names path and reason.
    """
    path = index.path(sample)
    height, width = int(index.height[sample]), int(index.width[sample])
    expected = int(index.file_size[sample])
    try:
        with open(path, "rb", opener=_open, buffering=0) as file:
            data = file.read() or b""  # None: a pipe
        if 0 < expected != len(data):
            raise ValueError(
                f"{len(data)} bytes, but the index says {expected}: the file has changed since it was indexed"
            )
        buffer = None if memory is None else memory.of(height * width * 3)
        return decode(data, (height, width), box, buffer)
    except Exception as error:  # decoders raise what they like: OSError, ValueError, SyntaxError, struct.error ...
        raise BadImageError(f"{path}: {type(error).__name__}: {error}") from error


def _open(path: str, flags: int) -> int:
    """Not blocking: a pipe may have taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
