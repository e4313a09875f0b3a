"""All that an executor needs to make a batch: arrays of numbers, drawn before a pixel is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dali_imagenet.policy import AugMixPlan, OpPlan

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
EraseMode = Literal["const", "rand", "pixel"]
WindowMode = Literal["constant", "reflect"]

PADDING = -100
"""Target of a padding row: the ignore_index of torch.nn.CrossEntropyLoss."""


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Row i mixes with row B-1-i, as in timm's Mixup."""

    lam: F32
    """[B], weight of the row itself in its target, and in its pixels where it is not cut."""
    use_cutmix: Bools
    """[B], whether a box is pasted (CutMix) rather than blended (Mixup)."""
    box: I32
    """[B, 4]: top, bottom, left, right in pixels of the output; bottom and right are exclusive."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What happens to the B rows that one rank sees in one step. Nothing else of the recipe is needed to make them."""

    epoch: int
    step: int
    size: tuple[int, int]
    """Height and width of the output in pixels."""
    position: I64
    """[B], place in the order of the epoch (of the pass, with `steps_per_epoch`); -1 for a padding row."""
    sampled_index: I64
    """[B], the sample that the order put here, and that keys the draws; -1 for padding."""
    source_index: I64
    """[B], the sample that is read: `sampled_index`, or its substitute where that one is broken; -1 for padding."""
    repeat: I64
    """[B], number of the copy under repeated augmentation."""
    label: I64
    """[B], class; -100 for padding."""
    source_size: I32
    """[B, 2], height and width of the stored image in pixels, without EXIF rotation."""
    crop_box: I32
    """[B, 4]: top, left, height, width of the region that is resized, in pixels of the stored image."""
    resize: I32
    """[B, 2], height and width that the region is resized to."""
    interpolation: U8
    """[B], filter of the resize, antialiased: a number of `ops.FILTERS`."""
    window: I32
    """[B, 2], top and left of the output in the resized region; where it leaves the region, `window_fill` is shown."""
    hflip: Bools
    vflip: Bools
    color_factors: F32 | None
    """[B, 4]: brightness, contrast, saturation factors and hue in degrees of color_twist."""
    color: F32 | None
    """[B, 3, 4], the same as one matrix and offset: clamp(round(M @ rgb + o)), in 0..255."""
    ops: tuple[OpPlan | AugMixPlan, ...]
    """Operations on the uint8 pixels after the colour, in order."""
    fill: tuple[int, int, int] | None
    """Colour (0..255) of what moving operations leave empty. None is black, and fades bilinear borders to it."""
    mean: tuple[float, ...]
    """Of each channel, of pixels in 0..1; subtracted before dividing by `std`."""
    std: tuple[float, ...]
    erase: I32 | None
    """[B, C, 4]: top, left, height, width of erased boxes in the output; height 0 is none."""
    erase_mode: EraseMode
    """Erase with `erase_value`, one normal colour a box, or normal noise a pixel."""
    noise_key: U64 | None
    """[B], key of the erasing noise."""
    mix: MixPlan | None
    window_fill: tuple[int, int, int] = (0, 0, 0)
    """Colour (0..255) of the output beside the resized region."""
    window_mode: WindowMode = "constant"
    """Whether the output shows `window_fill` beside the resized region, or the region reflected at its border."""
    erase_value: tuple[float, ...] = (0.0, 0.0, 0.0)
    """What boxes show with erase_mode "const", of each channel in normalized units; 0 is the mean."""
    view: int = 0
    """Which of a sample's views this is."""
    others: tuple[BatchPlan, ...] = ()
    """Of view 0: the same rows in the other views, in order."""

    def __len__(self) -> int:
        return len(self.source_index)

    @property
    def is_padding(self) -> Bools:
        """[B], the rows that show no image."""
        return self.source_index < 0

    @property
    def views(self) -> tuple[BatchPlan, ...]:
        """The plan of each view of these rows, from this one on."""
        return (self, *self.others)

    def select_rows(self, rows: Sequence[int] | I64) -> BatchPlan:
        """The plan of some of the rows; without mixing, which is between rows."""
        at = np.asarray(rows, np.int64)

        def pick(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value[at]
            return type(value)(*(pick(part) for part in value)) if isinstance(value, OpPlan | AugMixPlan) else value

        apart: dict[str, Any] = {
            "ops": tuple(pick(part) for part in self.ops),
            "others": tuple(other.select_rows(at) for other in self.others),
            "mix": None,
        }
        fields = {f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in apart}
        return BatchPlan(**fields, **apart)
