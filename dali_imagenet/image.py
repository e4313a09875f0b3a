"""One row of a plan on the CPU: read, decode, resize, crop, flip, colour. Draws nothing.

Executes the same `BatchPlan` as DALI does. Every engine uses it for the rows that only Pillow decodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.decode.decode import Box, Pixels, decode
from dali_imagenet.errors import BadImageError
from dali_imagenet.escape import escaped, printable
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.resize import required_region, resize_crop_flip


def decode_and_resize(index: SampleIndex, plan: BatchPlan, row: int, workspace: Workspace | None = None) -> Tensor:
    """One row of a plan, up to the pixel operations: uint8 [3, H, W], strides as they fall.

    Raises:
        BadImageError: as `read_pixels`.
    """
    region = required_region(plan, row)
    pixels = read_pixels(index, int(plan.source_index[row]), region.box, workspace)
    return resize_crop_flip(pixels, region, plan, row)


def read_pixels(index: SampleIndex, sample: int, box: Box, workspace: Workspace | None = None) -> Pixels:
    """Decode a box (top, left, height, width) of one sample: uint8 [height, width, 3], in the workspace if any.

    Raises:
        BadImageError: it cannot be read, or is not of the size that the index knows; names path and reason.
    """
    height, width = int(index.height[sample]), int(index.width[sample])
    try:
        data = index.source.read(sample)
        expected = int(index.file_size[sample])
        if 0 < expected != len(data):
            raise ValueError(
                f"{len(data)} bytes, but the index says {expected}: the file has changed since it was indexed"
            )
        memory = None
        if workspace is not None:  # fresh memory for each image costs a page fault for every 4 KiB
            memory = workspace.get("decoded", (height * width * 3,), torch.uint8).numpy()
        return decode(data, (height, width), box, memory)
    except Exception as error:  # decoders raise what they like: OSError, ValueError, SyntaxError, struct.error ...
        name, why = escaped(index.source.name(sample)), printable(str(error))
        raise BadImageError(f"{name}: {type(error).__name__}: {why}") from error
