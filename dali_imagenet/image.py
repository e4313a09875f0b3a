"""One row of a plan on the CPU: read, decode, resize, crop, flip, colour. Draws nothing.

Executes the same `BatchPlan` as DALI does. Every engine uses it for the rows that only Pillow decodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.decode.decode import Box, Pixels, decode
from dali_imagenet.errors import BadImageError
from dali_imagenet.escape import escaped, printable
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.storage import patiently, storage_error
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.resize import required_region, resize_crop_flip


def decode_and_resize(index: SampleIndex, plan: BatchPlan, row: int, workspace: Workspace | None = None) -> Tensor:
    """One row of a plan, up to the pixel operations: uint8 [3, H, W], strides as they fall.

    Raises:
        BadImageError, StorageError: as `read_pixels`.
    """
    region = required_region(plan, row)
    pixels = read_pixels(index, int(plan.source_index[row]), region.box, workspace)
    return resize_crop_flip(pixels, region, plan, row)


def read_pixels(index: SampleIndex, sample: int, box: Box, workspace: Workspace | None = None) -> Pixels:
    """Decode a box (top, left, height, width) of one sample: uint8 [height, width, 3], in the workspace if any.

    Raises:
        BadImageError: it cannot be read, or is not of the size that the index knows; names path and reason.
        StorageError: the storage or the memory fails.
    """
    height, width = int(index.height[sample]), int(index.width[sample])
    data = read_sample(index, sample)
    memory = None
    if workspace is not None:  # fresh memory for each image costs a page fault for every 4 KiB
        memory = workspace.get("decoded", (height * width * 3,), torch.uint8).numpy()
    with decoding(index, sample):
        return decode(data, (height, width), box, memory)


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
