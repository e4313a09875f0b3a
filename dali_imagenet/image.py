"""One row of a plan on the CPU: read, decode, resize, crop, flip, colour. Draws nothing.

Executes the same `BatchPlan` as DALI does. Every engine uses it for the rows that only Pillow decodes.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.data.source import samples_ahead
from dali_imagenet.decode.decode import Box, Pixels, decode
from dali_imagenet.decode.seek_index import SeekIndex
from dali_imagenet.errors import BadImageError
from dali_imagenet.escape import escaped, printable
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.storage import patiently, storage_error
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.resize import enclosing, part_of, required_region, resize_crop_flip


def decode_and_resize(
    index: SampleIndex,
    plan: BatchPlan,
    row: int,
    workspace: Workspace | None = None,
    remembered: SeekIndex | None = None,
    data: bytes | None = None,
) -> list[Tensor]:
    """One row of a plan in each of its views, up to the pixel operations: uint8 [3, H, W], strides as they fall.

    The file is read and decoded once: of a JPEG's cost the most is for bits that every box needs down to its last row,
    so that one box around all is cheaper than each view's own.

    Raises:
        BadImageError, StorageError: as `read_pixels`.
    """
    regions = [required_region(view, row) for view in plan.views]
    box = enclosing([region.box for region in regions])
    pixels = read_pixels(index, int(plan.source_index[row]), box, workspace, remembered, data)
    return [
        resize_crop_flip(part_of(pixels, box, region.box), region, view, row)
        for view, region in zip(plan.views, regions, strict=True)
    ]


def read_pixels(
    index: SampleIndex,
    sample: int,
    box: Box,
    workspace: Workspace | None = None,
    remembered: SeekIndex | None = None,
    data: bytes | None = None,
) -> Pixels:
    """Decode a box (top, left, height, width) of one sample: uint8 [height, width, 3], in the workspace if any.

    Raises:
        BadImageError: it cannot be read, or is not of the size that the index knows; names path and reason.
        StorageError: the storage or the memory fails.
    """
    height, width = int(index.height[sample]), int(index.width[sample])
    data = read_sample(index, sample) if data is None else data
    memory = None
    if workspace is not None:  # fresh memory for each image costs a page fault for every 4 KiB
        memory = workspace.get("decoded", (height * width * 3,), torch.uint8).numpy()
    with decoding(index, sample):
        return decode(data, (height, width), box, memory, None if remembered is None else remembered.slot(sample))


def read_sample(index: SampleIndex, sample: int) -> bytes:
    """The encoded file of a sample, of the length that the index knows.

    Raises:
        BadImageError: it is missing, forbidden or of another size; names path and reason.
        StorageError: the storage fails, at the third try, too.
    """
    try:
        data = patiently(lambda: index.source.read(sample), lambda: index.source.name(sample))
        expected = int(index.file_size[sample])
        if 0 < expected != len(data):
            raise ValueError(
                f"{len(data)} bytes, but the index says {expected}: the file has changed since it was indexed"
            )
        return data
    except (OSError, ValueError) as error:  # as `Source` says
        raise _bad(index, sample, error) from error


def announce(plan: Plan, batch: BatchPlan, every: int = 1, order: Callable[[int], Iterable[int]] = range) -> None:
    """Tell the source what this process reads next: a batch, and what it will probably be asked for after that.

    Args:
        every: it gets each step of this distance.
        order: in which the rows of a batch of that size are read.
    """
    index, real = plan.index, ~batch.is_padding
    samples = [int(batch.source_index[row]) for row in order(len(batch)) if real[row]]
    enough = len(samples) + samples_ahead(index.source)
    for epoch, step in itertools.islice(plan.schedule(batch.epoch, batch.step), every, None, every):
        if len(samples) >= enough:
            break
        coming = plan.samples(epoch, step)
        coming[(coming >= 0) & index.broken[coming]] = -1
        samples += [int(coming[row]) for row in order(len(coming)) if coming[row] >= 0]
    index.source.will_read(samples)


@contextlib.contextmanager
def decoding(index: SampleIndex, sample: int) -> Iterator[None]:
    """Whatever is raised within is the sample's fault, but for a want of memory."""
    try:
        yield
    except MemoryError as error:
        raise storage_error(index.source.name(sample), error) from error
    except Exception as error:  # decoders raise what they like: OSError, ValueError, SyntaxError, struct.error ...
        raise _bad(index, sample, error) from error


def _bad(index: SampleIndex, sample: int, error: Exception) -> BadImageError:
    name, why = escaped(index.source.name(sample)), printable(str(error))
    return BadImageError(f"{name}: {type(error).__name__}: {why}")
