"""What follows the pixel operations: normalization, and random erasing of normalized images.

Both exist for one image on the CPU (in a worker) and for a batch on any device; neither makes the host wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet._compiled import ORACLE, compiled
from dali_imagenet.plan.batch_plan import EraseMode
from dali_imagenet.transforms.transfer import to_device
from dali_imagenet.validation import wrong

_image_kernels = compiled("dali_imagenet.transforms._image_kernels")
_pixel_ops = compiled("dali_imagenet.transforms._pixel_ops")

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}  # as `_image_kernels` numbers them

# splitmix64 (Steele, Lea, Flood 2014): its increment and its finalizer's two multipliers, as signed 64-bit integers.
GOLDEN, MIX1, MIX2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def per_image(images: Tensor) -> bool:
    """Whether a batch is worked on image by image: on the CPU, where a whole batch would leave the cache."""
    return images.device.type == "cpu"


def normalize_constants(mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """scale and bias, float32 [2, 3, 1, 1], with `x * scale + bias == (x / 255 - mean) / std` for x of 0..255.

    Make them once: a copy to a GPU waits.

    Args:
        mean: of each channel, of pixels in 0..1.
        std: of each channel, above 0.
    """
    if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
        raise ValueError(f"mean={mean}, std={std}: must be three numbers each, std above 0")
    scale = 1.0 / (255.0 * np.array(std, np.float64))
    bias = -np.array(mean, np.float64) / np.array(std, np.float64)
    return torch.tensor(np.stack([scale, bias]), dtype=torch.float32, device="cpu").view(2, 3, 1, 1).to(device)


def normalize(images: Tensor, constants: Tensor, out: Tensor) -> Tensor:
    """Write `images * scale + bias`, computed in float32, into `out` and return it.

    Args:
        images: uint8 [3, H, W] or [B, 3, H, W].
        constants: what `normalize_constants` gave, on the same device.
        out: float32, float16 or bfloat16 of the same shape, in any memory format.
    """
    if images.dtype != torch.uint8 or images.shape[-3:-2] != (3,) or out.shape != images.shape:
        raise ValueError(
            f"images of {images.dtype} {list(images.shape)}, out of {list(out.shape)}: must be uint8 [..., 3, H, W], "
            "and an output of that shape"
        )
    if images.dim() == 4 and per_image(images):
        for image, target in zip(images, out, strict=True):
            normalize(image, constants, target)
        return out
    if _image_kernels is not None and per_image(images):
        planar = out.is_contiguous()
        memory = out if planar else out.permute(1, 2, 0)
        dtype = DTYPES.get(out.dtype)
        if planar and dtype == 0:
            _image_kernels.normalize(images.numpy(), constants.numpy(), out.numpy())
            return out
        if memory.is_contiguous() and dtype is not None and not ORACLE:
            try:
                _image_kernels.normalize(images.numpy(), constants.numpy(), raw(memory), dtype, not planar)
                return out
            except ValueError:  # float16 on a processor without AVX2 or NEON
                pass
    scale, bias = constants
    if per_image(images):
        if out.dtype == torch.float32 and out.is_contiguous():
            # three vectorised passes, where addcmul with uint8 converts value by value
            return out.copy_(images).mul_(scale).add_(bias)
        return out.copy_(images.float().mul_(scale).add_(bias))
    return torch.addcmul(bias, images, scale, out=out)


def raw(images: Tensor) -> npt.NDArray[Any]:
    """The memory of a tensor on the CPU as an array, of integers where numpy has no such floats."""
    return images.view(torch.int16).numpy() if images.dtype.itemsize == 2 else images.numpy()


def noise(key: Tensor, stream: Tensor | int, pixel: Tensor) -> Tensor:
    """Standard normal float32 numbers that are a function of three int64 values; the shapes broadcast.

    A splitmix64 hash, then Box-Muller: the same on every device up to the rounding of log and cos. Magnitudes end at
    6.7 (2**-32 is the smallest number that the logarithm sees).
    """
    z = key + (pixel + (1 << 32) * stream + 1) * GOLDEN
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX2
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    radius = ((z >> 32) & 0xFFFFFFFF).float().add_(1.0).mul_(2.0**-32)
    return _normal(radius, (z & 0xFFFFFFFF).float().mul_(2.0**-32 * 2 * torch.pi))


def _normal(radius: Tensor, angle: Tensor) -> Tensor:
    """Box-Muller: normal numbers of uniform ones in (0, 1] and [0, 2 pi], whose memory it takes.

    By torch on the CPU, too, whose log and cos round as no others.
    """
    return angle.cos_().mul_(radius.log_().mul_(-2.0).sqrt_())


def erase_image_(
    image: Tensor,
    boxes: npt.NDArray[np.int32],
    key: int,
    mode: EraseMode = "const",
    value: float | Sequence[float] = 0.0,
) -> None:
    """Overwrite the boxes of one normalized image on the CPU in place, in order: `erase_` for one image.

    Args:
        image: float [3, H, W].
        boxes: [C, 4] top, left, height, width in pixels; a height of 0 is no box.
        key: the image's uint64 noise key.
        mode: as of `erase_`.
        value: as of `erase_`.
    """
    _, _, width = image.shape
    for number, (top, left, h, w) in enumerate(boxes.tolist()):
        if h == 0:
            continue
        target = image[:, top : top + h, left : left + w]
        if mode == "const":
            values = _fills(tuple(_values(value)), image.dtype)
            for part, one in zip(target if len(values) == 3 else [target], values, strict=True):
                part.fill_(one)
            continue
        signed = torch.from_numpy(np.array([key], np.uint64).view(np.int64))
        stream = torch.arange(3, device="cpu")[:, None, None] + 3 * number
        if mode == "rand":
            target.copy_(noise(signed, stream, torch.zeros(1, dtype=torch.int64, device="cpu")).expand_as(target))
        elif _pixel_ops is not None and not ORACLE:
            radius, angle = torch.empty(2, 3, h, w, dtype=torch.float32, device="cpu")
            _pixel_ops.hash_noise(key, 3 * number, (top, left, h, w), width, radius.numpy(), angle.numpy())
            target.copy_(_normal(radius, angle))
        else:
            y = torch.arange(top, top + h, device="cpu")[:, None]
            x = torch.arange(left, left + w, device="cpu")
            target.copy_(noise(signed, stream, y * width + x))


def erase_(
    images: Tensor,
    erase: npt.NDArray[np.int32] | None,
    noise_key: npt.NDArray[np.uint64],
    mode: EraseMode = "const",
    value: float | Sequence[float] = 0.0,
) -> Tensor:
    """Overwrite boxes of normalized images in place (random erasing) and return `images`.

    Noise is a function of (key, box, channel, pixel), so that devices agree.

    Args:
        images: float [B, 3, H, W] on any device.
        erase: [B, C, 4] top, left, height, width in pixels, later boxes over earlier ones; a height of 0 is no box;
            None is none at all.
        noise_key: uint64 [B].
        mode: as in timm's RandomErasing: "const" writes `value`, "rand" one normal number for each box and channel,
            "pixel" one for each pixel and channel.
        value: a number or one a channel, in normalized units.
    """
    if mode not in ("const", "rand", "pixel"):
        raise wrong("mode", mode, "'const', 'rand' or 'pixel'")
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images of {images.dtype} {list(images.shape)}: must be floats [B, 3, H, W]")
    if erase is None:
        return images
    if erase.ndim != 3 or erase.shape[0] != len(images) or erase.shape[2] != 4:
        raise ValueError(f"erase of {list(erase.shape)}: must be [B, C, 4] for images {list(images.shape)}")
    rows = np.flatnonzero((erase[:, :, 2] > 0).any(1))
    if not len(rows):
        return images
    if per_image(images):
        for row in rows.tolist():
            erase_image_(images[row], erase[row], int(noise_key[row]), mode, value)
        return images
    _erase_batch(images, rows, erase[rows], noise_key[rows], mode, value)
    return images


def _values(value: float | Sequence[float]) -> list[float]:
    values = [value] if isinstance(value, (int, float)) else list(value)
    if len(values) not in (1, 3):
        raise wrong("value", value, "a number or one for each of the three channels")
    return values


@lru_cache(maxsize=64)
def _fills(values: tuple[float, ...], dtype: torch.dtype) -> list[float]:
    """As the dtype holds them, inf beyond it: what `fill_` refuses, and `to` on a device gives."""
    filled: list[float] = torch.tensor(values, dtype=torch.float32, device="cpu").to(dtype).tolist()
    return filled


def _erase_batch(
    images: Tensor,
    rows: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    keys: npt.NDArray[np.uint64],
    mode: EraseMode,
    value: float | Sequence[float],
) -> None:
    """Erase in `images[rows]` on a device: every box is a comparison with the pixels' coordinates."""
    values = np.array(_values(value), np.float32).reshape(1, -1, 1, 1)
    arrays: list[npt.NDArray[Any]] = [rows, boxes.astype(np.int32), keys.view(np.int64), values]
    where, corners, key, constant = to_device(arrays, images.device)
    part = images.index_select(0, where)
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    channel = torch.arange(3, device=images.device)[:, None, None]
    pixel = y * width + x if mode == "pixel" else torch.zeros_like(x[:1])
    for number in range(boxes.shape[1]):
        if not (boxes[:, number, 2] > 0).any():
            continue
        top, left, h, w = corners[:, number, :, None, None, None].unbind(1)
        inside = (y >= top) & (y < top + h) & (x >= left) & (x < left + w)
        what = constant if mode == "const" else noise(key[:, None, None, None], channel + 3 * number, pixel)
        part = torch.where(inside, what.to(part.dtype), part)
    images.index_copy_(0, where, part)
