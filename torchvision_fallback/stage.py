"""One sample of a plan -> uint8 pixels: read, decode, crop, resize, flip, colour. Draws nothing."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dali_imagenet.errors import BadImageError
from dali_imagenet.index import SampleIndex
from dali_imagenet.plan import BatchPlan
from torchvision_fallback.decode import Pixels, decode


class Memory:
    """Memory for one image at a time, used again: fresh memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._floats = torch.empty(0)
        self._pixels = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Pixels:
        """At least that many bytes; what was handed out before is overwritten."""
        if self._bytes.size < size:
            self._bytes = np.empty(size * 5 // 4, np.uint8)
        return self._bytes

    def colors(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two float32 and one uint8 image [3, size * size]; what was handed out before is overwritten."""
        if self._pixels.shape[-1:] != (size * size,):
            self._floats = torch.empty(2, 3, size * size)
            self._pixels = torch.empty(3, size * size, dtype=torch.uint8)
        return self._floats[0], self._floats[1], self._pixels


def read_pixels(index: SampleIndex, sample: int, rows: int | None = None, memory: Memory | None = None) -> Pixels:
    """Decode one sample: uint8 [H, W, 3], at least the first `rows` rows; in `memory` where it is given.

    Raises:
        BadImageError: it cannot be read, or is not of the size that the index knows; names path and reason.
    """
    path = index.path(sample)
    height, width = int(index.height[sample]), int(index.width[sample])
    expected = int(index.file_size[sample])
    try:
        with open(path, "rb", opener=_open) as file:
            data = file.read()
        if 0 < expected != len(data):
            raise ValueError(
                f"{len(data)} bytes, but the index says {expected}: the file has changed since it was indexed"
            )
        buffer = None if memory is None else memory.of(height * width * 3)
        return decode(data, rows, buffer, (height, width))
    except Exception as error:  # decoders raise what they like: OSError, ValueError, SyntaxError, struct.error ...
        raise BadImageError(f"{path}: {type(error).__name__}: {error}") from error


def _open(path: str, flags: int) -> int:
    """Not blocking: a pipe may have taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def render(pixels: Pixels, plan: BatchPlan, row: int, interpolation: str, memory: Memory | None = None) -> Tensor:
    """Execute the image stage of one row on its decoded pixels.

    Returns:
        uint8 [3, S, S], strides as they fall; in `memory` where it is given.
    """
    top, left, height, width = plan.box[row].tolist()
    view = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    resized = interpolate(view, size=plan.resize[row].tolist(), mode=interpolation, antialias=True)
    crop_top, crop_left = plan.crop[row].tolist()
    image = _window(resized[0], crop_top, crop_left, plan.size)
    flips = [axis for axis, flip in ((1, plan.vflip[row]), (2, plan.hflip[row])) if flip]
    if flips:
        image = image.flip(flips)
    return image if plan.color is None else _recolor(image, plan.color[row], memory or Memory())


def _window(image: Tensor, top: int, left: int, size: int) -> Tensor:
    """The S x S window; zeros where it leaves the image, as torchvision's CenterCrop."""
    height, width = image.shape[1:]
    if height < size or width < size:
        image = pad(image, (max(0, -left), max(0, size - width), max(0, -top), max(0, size - height)))
        top, left = max(0, top), max(0, left)
    return image[:, top : top + size, left : left + size]


def _recolor(image: Tensor, matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]], memory: Memory) -> Tensor:
    """clamp(round(M @ rgb + o)) of a uint8 [3, S, S] image; contiguous."""
    both = torch.from_numpy(matrix)
    floats, mixed, pixels = memory.colors(image.shape[1])
    floats.view(image.shape).copy_(image)
    torch.addmm(both[:, 3:], both[:, :3], floats, out=mixed)
    return pixels.copy_(mixed.clamp_(0, 255).round_()).view(image.shape)
