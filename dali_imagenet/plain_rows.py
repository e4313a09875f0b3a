"""Plain rows of a batch on the CPU, in one call of C each: read, decode, resize, flip, colour and normalize."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet._compiled import compiled
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.decode.decode import region_decoder
from dali_imagenet.decode.seek_index import SeekIndex
from dali_imagenet.formats import FORMATS
from dali_imagenet.image import read_sample
from dali_imagenet.ops import FILTERS
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.transforms import resize
from dali_imagenet.transforms.normalize_erase import DTYPES, raw
from dali_imagenet.transforms.postprocess import Postprocess

_kernels: Any = compiled("dali_imagenet.transforms._image_kernels")


class Target(NamedTuple):
    """Images [B, 3, H, W] on the CPU, contiguous or channels_last, and their memory."""

    images: Tensor
    memory: npt.NDArray[Any]
    interleaved: bool

    @classmethod
    def of(cls, images: Tensor) -> Target:
        """The target that these images are."""
        interleaved = not images.is_contiguous()
        return cls(images, raw(images.permute(0, 2, 3, 1) if interleaved else images), interleaved)


class _Drawn(NamedTuple):
    """What has to be known of a plan's rows, as lists: each look at an array takes its time."""

    plan: BatchPlan
    decoder: Any
    plain: list[bool]
    samples: list[int]
    nbytes: list[int]
    source_size: list[list[int]]
    cubic: list[bool]
    window: list[list[int]]
    flips: list[list[bool]]
    color: npt.NDArray[np.float32] | None
    numbers: npt.NDArray[np.float32] | None


class PlainRows:
    """Makes rows of plans of one view, in one thread.

    A row is plain where its file is of a kind that the region decoder knows, where torch has its filter, and where its
    window does not leave the resized image. What is not, and what cannot be read, is left to `decode_and_resize`, which
    says why.

    Args:
        index: of the plans.
        postprocess: what follows the pixels; None for uint8 images.
        remembered: of the index.
    """

    def __init__(self, index: SampleIndex, postprocess: Postprocess | None, remembered: SeekIndex | None) -> None:
        self._index, self._postprocess, self._remembered = index, postprocess, remembered
        self._drawn: _Drawn | None = None
        self._scratch = bytearray()
        self._pixels: Target | None = None  # of a row whose operations follow
        self._is_left = (index.format != FORMATS.index("JPEG")) | ~np.isin(index.components, (1, 3))
        self._by_path = len(index) > 0 and index.source.local_path(0) is not None

    def make(self, plan: BatchPlan, row: int, target: Target) -> tuple[bool, bytes | None]:
        """One row.

        Returns:
            Whether it was made, and where it was not, its file, if that has been read.

        Raises:
            BadImageError, StorageError: as `read_sample`.
        """
        drawn = self._drawn
        if drawn is None or drawn.plan is not plan:
            drawn = self._drawn = self._prepared(plan)
        if not drawn.plain[row]:
            return False, None
        sample, postprocess = drawn.samples[row], self._postprocess
        if self._by_path:
            data, nbytes = None, drawn.nbytes[row]
            file = os.fsencode(str(self._index.source.local_path(sample)))
        else:
            data = file = read_sample(self._index, sample)
            nbytes = -1
        box, resized, (down, across) = resize.required_region(plan, row)
        room = nbytes + 1 + 3 * (box[2] * box[3] + 2 * plan.size[0] * plan.size[1])
        if len(self._scratch) < room:
            self._scratch = bytearray(room * 5 // 4)  # with some room to spare the largest is soon met
        slot = None if self._remembered is None else self._remembered.slot(sample)
        to, at = (target, row) if postprocess is None or drawn.numbers is not None else (self._room_for(plan.size), 0)
        made = _kernels.row(
            drawn.decoder,
            (file, nbytes),
            drawn.source_size[row],
            box,
            (resized, (down or 0.0, across or 0.0), drawn.cubic[row]),
            (*drawn.window[row], *plan.size),
            drawn.flips[row],
            None if drawn.color is None else drawn.color[row],
            drawn.numbers,
            self._scratch,
            (to.memory, at, DTYPES[to.images.dtype], to.interleaved),
            None if slot is None else slot.record,
        )
        if made is None:
            self._is_left[sample] = True
            return False, data
        if slot is not None:
            slot.note(*made)
        if postprocess is not None and to is not target:
            postprocess.finish_image(to.images[0], plan, row, target.images[row])
        elif postprocess is not None and plan.erase is not None:
            postprocess.erase_image(plan, row, target.images[row])
        return True, None

    def _prepared(self, plan: BatchPlan) -> _Drawn:
        decoder = region_decoder() if hasattr(_kernels, "row") else None
        samples, nbytes = plan.source_index, self._index.file_size[plan.source_index]
        numbers, dtype = None, None if self._postprocess is None else self._postprocess.dtype
        if self._postprocess is not None and not plan.ops:
            numbers = self._postprocess.constants(plan, torch.device("cpu")).numpy()
        plain = np.isin(plan.interpolation, (FILTERS["bilinear"], FILTERS["bicubic"])) & (samples >= 0)
        plain &= ((plan.window >= 0) & (plan.window + np.array(plan.size) <= plan.resize)).all(1)
        plain &= (nbytes > 0) | (not self._by_path)
        plain &= ~self._is_left[samples] & (decoder is not None and len(plan.views) == 1)
        if decoder is not None and dtype == torch.float16 and numbers is not None and not _kernels.float16:
            plain[:] = False
        return _Drawn(
            plan,
            decoder,
            plain.tolist(),
            samples.tolist(),
            nbytes.tolist(),
            plan.source_size.tolist(),
            (plan.interpolation == FILTERS["bicubic"]).tolist(),
            plan.window.tolist(),
            np.stack([plan.vflip, plan.hflip], axis=1).tolist(),
            None if plan.color is None else np.ascontiguousarray(plan.color, np.float32),
            numbers,
        )

    def _room_for(self, size: tuple[int, int]) -> Target:
        if self._pixels is None or self._pixels.images.shape[2:] != size:
            self._pixels = Target.of(torch.empty((1, 3, *size), dtype=torch.uint8, device="cpu"))
        return self._pixels
