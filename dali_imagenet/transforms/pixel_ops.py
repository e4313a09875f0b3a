"""Pixel operations on one uint8 image on the CPU: what the workers run, image by image, in reused memory.

The torchvision family equals `torchvision.transforms.v2.functional` on uint8 tensors bit for bit; the PIL family
equals `timm.data.auto_augment` on PIL images because the same arithmetic on planes gives the same bytes, or because
PIL itself runs. Where the compiled `_pixel_ops` was built, it does much of what is below in C, with the same bytes. The
batched executor for GPUs is in `pixel_ops_batched.py`; both share the host arithmetic below.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

from dali_imagenet._compiled import ORACLE, compiled
from dali_imagenet.ops import AFFINE_PARTS, FILTERS, Op, check_op
from dali_imagenet.validation import wrong

_pixel_ops = compiled("dali_imagenet.transforms._pixel_ops")

Fill = float | Sequence[float] | None

_NOTHING: Mapping[int, float] = {}
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma as torchvision's rgb_to_grayscale rounds it
# Point operations with a table that does not depend on the image.
POINT_OPS = frozenset({Op.BRIGHTNESS, Op.POSTERIZE, Op.SOLARIZE, Op.INVERT, Op.SOLARIZE_ADD})
PIL_POINT_OPS = frozenset({Op.PIL_BRIGHTNESS, Op.PIL_POSTERIZE, Op.PIL_SOLARIZE, Op.PIL_INVERT, Op.PIL_SOLARIZE_ADD})


# ---- host arithmetic shared with the batched executor ----


def check_image(shape: Sequence[int], dtype: torch.dtype, dims: int) -> None:
    """Raise ValueError unless the shape is [3,H,W] (dims 3) or [B,3,H,W] (dims 4), not empty, and the dtype uint8."""
    if len(shape) != dims or shape[-3] != 3 or dtype != torch.uint8 or 0 in shape[-2:]:
        wanted = "[3, H, W]" if dims == 3 else "[B, 3, H, W]"
        raise ValueError(
            f"image of {dtype} {list(shape)}: must be uint8 RGB of shape {wanted}; grayscale images are converted when "
            "they are decoded"
        )


def fill_bytes(fill: Fill) -> tuple[int, int, int]:
    """The three uint8 values that `fill` (None is black, one number, or one a channel; 0..255) stands for."""
    values = [0.0] if fill is None else [float(fill)] if isinstance(fill, (int, float)) else [float(f) for f in fill]
    if len(values) not in (1, 3) or not all(0 <= v <= 255 for v in values):
        raise wrong("fill", fill, "None, a number or three numbers in [0, 255]")
    r, g, b = (round(v) for v in (values * 3)[:3])
    return r, g, b


def affine_theta(
    op: int, arg: float, height: int, width: int, given: Mapping[int, float] = _NOTHING
) -> npt.NDArray[np.float32]:
    """The inverse affine matrix [2, 3] of a torchvision shear, translation, rotation or affine, as `_affine_grid`
    scales it.

    It takes output coordinates centred on the image to input coordinates of -1..1, in double, then float32. given:
    the arguments of `AFFINE_PARTS` before an AFFINE.
    """
    angle, shear_x, shear_y, cx, cy, tx, ty = 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0
    if op == Op.AFFINE:
        return _theta(affine_matrix(arg, given, 0.0, 0.0), height, width)
    if op == Op.ROTATE:
        angle = math.radians(-(arg % 360))
    elif op == Op.TRANSLATE_X:
        tx = int(arg)
    elif op == Op.TRANSLATE_Y:
        ty = int(arg)
    else:
        cx, cy = -width * 0.5, -height * 0.5  # RandAugment shears about the corner
        shear = math.radians(math.degrees(math.atan(arg)))
        shear_x, shear_y = (shear, 0.0) if op == Op.SHEAR_X else (0.0, shear)
    return _theta(_inverse_matrix(angle, shear_x, shear_y, 1.0, (cx, cy), (tx, ty)), height, width)


def _theta(six: tuple[float, ...], height: int, width: int) -> npt.NDArray[np.float32]:
    matrix = np.array(six, np.float32).reshape(2, 3)
    matrix /= np.array([[0.5 * width], [0.5 * height]], np.float32)
    return matrix


def affine_matrix(degrees: float, given: Mapping[int, float], cx: float, cy: float) -> tuple[float, ...]:
    """The six numbers of the inverse of torchvision's affine about a point; given: the arguments of `AFFINE_PARTS`."""
    moved = round(given.get(Op.AFFINE_X, 0.0)), round(given.get(Op.AFFINE_Y, 0.0))
    shear_x, shear_y = (math.radians(given.get(op, 0.0)) for op in (Op.AFFINE_SHEAR_X, Op.AFFINE_SHEAR_Y))
    return _inverse_matrix(math.radians(degrees), shear_x, shear_y, given.get(Op.AFFINE_SCALE, 1.0), (cx, cy), moved)


def _inverse_matrix(
    angle: float, shear_x: float, shear_y: float, scale: float, center: tuple[float, float], moved: tuple[int, int]
) -> tuple[float, ...]:
    """v2's `_get_inverse_affine_matrix`, in its arithmetic and order; angles in radians."""
    a = math.cos(angle - shear_y) / math.cos(shear_y)
    b = -(a * math.tan(shear_x) + math.sin(angle))
    c = math.sin(angle - shear_y) / math.cos(shear_y)
    d = math.cos(angle) - c * math.tan(shear_x)
    x, y = center[0] + moved[0], center[1] + moved[1]
    a, b, c, d = d / scale, -b / scale, -c / scale, a / scale
    return a, b, center[0] - a * x - b * y, c, d, center[1] - c * x - d * y


def nearest_map(theta: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.int32]:
    """For each output pixel the flat index of the input pixel that v2's affine takes, or H*W where it fills: [H*W].

    Every product and sum is rounded to float32 on its own, as in `_affine_grid` and `grid_sample`. (A BLAS that
    fuses multiply and add may move a sample that lies within one rounding of the border between two pixels.)
    """
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) * 0.5)
    y = np.arange(height, dtype=np.float32) - np.float32((height - 1) * 0.5)

    def source(row: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.int32]:
        g = (x * row[0])[None, :] + (y * row[1])[:, None]
        g += row[2]
        g += np.float32(1)
        g *= np.float32(size * 0.5)
        g -= np.float32(0.5)
        pixel: npt.NDArray[np.int32] = np.clip(np.rint(g), -1, size).astype(np.int32)
        return pixel

    ix, iy = source(theta[0], width), source(theta[1], height)
    outside = (ix < 0) | (ix >= width) | (iy < 0) | (iy >= height)
    iy *= width
    iy += ix
    iy[outside] = height * width
    return iy.reshape(-1)


def bilinear_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """v2's `_affine_grid`, float32 [G, H, W, 2], of theta float32 [G, 2, 3], with the rounding of `nearest_map`."""
    x = torch.arange(width, dtype=torch.float32, device=theta.device).sub_((width - 1) * 0.5)
    y = torch.arange(height, dtype=torch.float32, device=theta.device).sub_((height - 1) * 0.5)
    return torch.stack(
        [(x * row[:, 0, None])[:, None, :] + (y * row[:, 1, None])[:, :, None] for row in theta.unbind(1)], dim=-1
    ).add_(theta[:, None, None, :, 2])


def bilinear_warp(images: Tensor, theta: Tensor, fill: Tensor | None, grid: Tensor | None = None) -> Tensor:
    """v2's bilinear affine of uint8 [G, 3, H, W] by theta float32 [G, 2, 3]; fill: float32 [1, 3, 1, 1], or None.

    As in v2, None lets the border fade to black, and a colour is blended in with the weight of what is inside, which
    zero padding has weighed once already. grid: `bilinear_grid`, where it is known.
    """
    if grid is None:
        grid = bilinear_grid(theta, *images.shape[2:])
    values = images.float()
    if fill is not None:
        values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    values = grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if fill is not None:
        values, inside = values[:, :3], values[:, 3:]
        values = values.sub_(fill).mul_(inside).add_(fill)
    return values.round_().to(torch.int16).to(torch.uint8)


@lru_cache(maxsize=1024)
def point_lut(op: int, arg: float) -> bytes:
    """The 256 output values of a point operation that does not look at the image (`POINT_OPS`, `PIL_POINT_OPS`)."""
    v = np.arange(256)
    out: npt.NDArray[Any]
    if op == Op.BRIGHTNESS:
        out = np.clip(v.astype(np.float32) * np.float32(arg), 0, 255)
    elif op == Op.PIL_BRIGHTNESS:
        out = pil_blend(np.zeros(256, np.float32), v.astype(np.float32), arg)
    elif op in (Op.POSTERIZE, Op.PIL_POSTERIZE):
        out = v & (0xFF00 >> int(arg))
    elif op in (Op.SOLARIZE, Op.PIL_SOLARIZE):
        out = np.where(v >= arg, 255 - v, v)
    elif op in (Op.INVERT, Op.PIL_INVERT):
        out = 255 - v
    elif op in (Op.SOLARIZE_ADD, Op.PIL_SOLARIZE_ADD):
        out = np.where(v < 128, np.clip(v + int(arg), 0, 255), v)
    else:
        raise ValueError(f"{Op(op).name} is not a point operation with a fixed table")
    table: bytes = out.astype(np.uint8).tobytes()
    return table


def pil_blend(
    degenerate: npt.NDArray[np.float32], image: npt.NDArray[np.float32], factor: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """`PIL.Image.blend` before the cast to uint8 (which truncates), in its float32 arithmetic."""
    return np.clip(degenerate + np.asarray(factor, np.float32) * (image - degenerate), 0, 255)


def equalize_lut(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """PIL's and torchvision's equalize tables [C, 256] of the channels' histograms [C, 256]."""
    below = histogram.cumsum(1)
    last = histogram[np.arange(len(histogram)), 255 - (histogram[:, ::-1] > 0).argmax(1)]
    step = (below[:, -1:] - last[:, None]) // 255
    table = (below - histogram + step // 2) // np.maximum(step, 1)
    return np.where(step == 0, np.arange(256), np.minimum(table, 255)).astype(np.uint8)


# ---- one image ----


class Workspace:
    """Memory that one worker (one thread) reuses from image to image: buffers by name, and index maps.

    `map_bytes` bounds the maps kept (4 bytes a pixel each: 200 kB at 224 px, so that 32 MiB hold 167; RandAugment at
    a fixed magnitude needs 6, TrivialAugment 186); the least recently used go first.
    """

    def __init__(self, map_bytes: int = 32 << 20) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}
        self._maps: OrderedDict[tuple[int, float, int, int, int], Tensor] = OrderedDict()
        self.map_bytes = map_bytes
        self._held = 0

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with arbitrary content, valid until the same name is asked for again.

        It may be the same tensor then: what is in it may be changed, its shape may not.
        """
        asked = (name, tuple(shape), dtype)
        view = self._views.get(asked)
        if view is not None:  # as mostly: making a tensor takes as long as moving some ten thousand bytes
            return view
        count = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < count:
            # images come in all sizes: with some room to spare the largest is soon met
            buffer = self._buffers[name] = torch.empty(count * 5 // 4, dtype=dtype, device="cpu")
            self._views.clear()
        if len(self._views) >= 64:
            self._views.clear()
        view = self._views[asked] = buffer[:count].view(asked[1])
        return view

    def index_map(self, op: int, arg: float, height: int, width: int) -> Tensor:
        """The int32 map of `nearest_map` for this operation, from memory or new."""

        def make() -> Tensor:
            return torch.from_numpy(nearest_map(affine_theta(op, arg, height, width), height, width))

        return self._kept((op, arg, height, width, 0), make)

    def grid(self, op: int, arg: float, height: int, width: int) -> tuple[Tensor, Tensor]:
        """theta [1, 2, 3] and the `bilinear_grid` of this operation, from memory or new."""
        theta = torch.from_numpy(affine_theta(op, arg, height, width))[None]
        return theta, self._kept((op, arg, height, width, 2), lambda: bilinear_grid(theta, height, width))

    def _kept(self, key: tuple[int, float, int, int, int], make: Callable[[], Tensor]) -> Tensor:
        found = self._maps.get(key)
        if found is not None:
            self._maps.move_to_end(key)
            return found
        made = self._maps[key] = make()
        self._held += made.nbytes
        while self._held > self.map_bytes and len(self._maps) > 1:
            self._held -= self._maps.popitem(last=False)[1].nbytes
        return made


def apply_ops_image(
    image: Tensor,
    op: Sequence[int] | npt.NDArray[np.int16],
    arg: Sequence[float] | npt.NDArray[np.float32],
    aux: Sequence[int] | npt.NDArray[np.int16],
    fill: Fill = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Apply the operations `op[k]` with `arg[k]` and `aux[k]` in order to one image on the CPU.

    Args:
        image: uint8 [3, H, W], any strides, not modified; contiguous (planar) is fastest.
        op: numbers of `Op` [K].
        arg: arguments [K].
        aux: filters or kernel sizes [K].
        fill: for what geometric operations leave empty: None (black), a number, or three of 0..255; PIL operations
            round it to whole values.
        workspace: memory to work in; None for memory of its own.

    Returns:
        uint8 [3, H, W], contiguous: the image itself where nothing was to be done, else memory of the workspace, valid
        until the next call with it.

    Raises:
        ValueError: for other shapes, unknown operations and wrong arguments.
    """
    check_image(image.shape, image.dtype, 3)
    work = _Work(image, fill_bytes(fill), workspace or Workspace(), fill is not None)
    for o, a, x in zip(_ints(op), _floats(arg), _ints(aux), strict=True):
        if o == Op.IDENTITY:
            continue
        check_op(o, a, x)
        if _pixel_ops is None or not _in_c(work, o, a, x):
            EXECUTORS[o](work, o, a, x)
    return work.planar()


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


def _floats(values: Any) -> list[float]:
    return [float(v) for v in values]


class _Work:
    """The image between two operations: planar uint8 memory, or a PIL image where the last operation was PIL's."""

    def __init__(self, image: Tensor, fill: tuple[int, int, int], workspace: Workspace, filled: bool) -> None:
        self.tensor: Tensor = image
        self.pil: Image.Image | None = None
        self.fill = fill
        self.filled = filled  # whether a fill was given
        self.workspace = workspace
        self.shape = (3, image.shape[-2], image.shape[-1])
        self.given: dict[int, float] = {}  # arguments of `AFFINE_PARTS`, until there is an AFFINE
        self._turn = 0

    def planar(self) -> Tensor:
        """The image as a contiguous uint8 [3, H, W] tensor."""
        if self.pil is not None:
            out = self.out()
            for plane, band in zip(out, self.pil.split(), strict=True):
                plane.view(-1).numpy()[:] = np.frombuffer(band.tobytes(), np.uint8)
            self.pil = None
            self.keep(out)
        elif not self.tensor.is_contiguous():
            self.keep(self.out().copy_(self.tensor))
        return self.tensor

    def as_pil(self) -> Image.Image:
        if self.pil is None:
            planes = self.planar().numpy()
            self.pil = Image.merge("RGB", [Image.fromarray(planes[c]) for c in range(3)])
        return self.pil

    def out(self) -> Tensor:
        """The one of two buffers that does not hold the image."""
        return self.workspace.get(f"image{self._turn}", self.shape, torch.uint8)

    def keep(self, result: Tensor) -> None:
        """Make `result`, which `out` gave, the image."""
        self.tensor = result
        self._turn ^= 1

    def keep_truncated(self, result: Tensor) -> None:
        """`keep` of float32 0..255, cut to uint8. (By way of int16, which is three times as fast on a CPU.)"""
        whole = self.workspace.get("whole", self.shape, torch.int16).copy_(result)
        self.keep(self.out().copy_(whole))

    def room(self) -> npt.NDArray[np.uint8]:
        """ROOM in _pixel_ops.c."""
        _, height, width = self.shape
        return self.workspace.get("room", (9 * (height + 4) * (width + 4),), torch.uint8).numpy()

    def floats(self) -> Tensor:
        return self.workspace.get("float", self.shape, torch.float32).copy_(self.planar())

    def gray(self, image: Tensor) -> Tensor:
        """v2's gray [1, H, W], float32, not rounded, of float32 [3, H, W]."""
        out = torch.mul(image[:1], GRAY[0], out=self.workspace.get("gray", (1, *self.shape[1:]), torch.float32))
        return out.add_(image[1:2], alpha=GRAY[1]).add_(image[2:], alpha=GRAY[2])

    def translate_bytes(self, tables: Sequence[bytes]) -> None:
        """Map the values through one table for all channels, or one for each. (bytes.translate beats every gather.)"""
        source = self.planar().numpy().reshape(-1)
        out = self.out()
        target = out.numpy().reshape(-1)
        size = source.size // len(tables)
        for c, table in enumerate(tables):
            part = slice(c * size, (c + 1) * size)
            target[part] = np.frombuffer(source[part].tobytes().translate(table), np.uint8)
        self.keep(out)


def _gather(work: _Work, op: int, arg: float, aux: int) -> None:
    _, height, width = work.shape
    if op == Op.ROTATE and arg % 360 == 0:
        return
    if aux == FILTERS["bilinear"]:
        _interpolate(work, *work.workspace.grid(op, arg, height, width))
    else:
        _take(work, work.workspace.index_map(op, arg, height, width))


def _take(work: _Work, index: Tensor) -> None:
    """The pixels that a `nearest_map` names."""
    count = len(index)
    if _pixel_ops is not None:
        image, out = work.planar(), work.out()
        _pixel_ops.gather(image.numpy(), out.numpy(), index.numpy(), work.room(), work.fill)
        work.keep(out)
        return
    source = work.workspace.get("padded", (3, count + 1), torch.uint8)
    source[:, :count].copy_(work.planar().view(3, count))
    out = work.out()
    for c in range(3):  # plane by plane: a plane stays in the cache
        source[c, count] = work.fill[c]
        torch.index_select(source[c], 0, index, out=out[c].view(-1))
    work.keep(out)


def _give(work: _Work, op: int, arg: float, aux: int) -> None:
    work.given[op] = arg


def _affine(work: _Work, op: int, arg: float, aux: int) -> None:
    height, width = work.shape[1:]
    theta = affine_theta(op, arg, height, width, work.given)
    work.given = {}
    if aux == FILTERS["bilinear"]:
        _interpolate(work, torch.from_numpy(theta)[None], None)
    else:
        _take(work, torch.from_numpy(nearest_map(theta, height, width)))


def _shift(work: _Work, op: int, arg: float, aux: int) -> None:
    pixels = int(arg)
    source = work.planar()  # both filters give the same for whole pixels
    out = work.out()
    if _pixel_ops is not None and _fits_c(work):
        most = max(work.shape)
        pixels = max(-most, min(pixels, most))  # beyond, all is empty
        down, right = (0, pixels) if op == Op.TRANSLATE_X else (pixels, 0)
        _pixel_ops.shift(source.numpy(), out.numpy(), *work.shape[1:], down, right, work.fill)
        work.keep(out)
        return
    axis = 2 if op == Op.TRANSLATE_X else 1
    size = work.shape[axis]
    moved = min(abs(pixels), size)
    kept = size - moved
    start, free = (moved, 0) if pixels > 0 else (0, kept)
    if kept:
        out.narrow(axis, start, kept).copy_(source.narrow(axis, 0 if pixels > 0 else moved, kept))
    for c in range(3):
        out[c].narrow(axis - 1, free, moved).fill_(work.fill[c])
    work.keep(out)


def _interpolate(work: _Work, theta: Tensor, grid: Tensor | None) -> None:
    fill = torch.tensor(work.fill, dtype=torch.float32, device="cpu").view(1, 3, 1, 1) if work.filled else None
    work.keep(work.out().copy_(bilinear_warp(work.planar()[None], theta, fill, grid)[0]))


def _point(work: _Work, op: int, arg: float, aux: int) -> None:
    work.translate_bytes([point_lut(op, arg)])


def _bits(work: _Work, op: int, arg: float, aux: int) -> None:
    source, out = work.planar(), work.out()
    if op in (Op.INVERT, Op.PIL_INVERT):
        torch.bitwise_not(source, out=out)
    elif op in (Op.POSTERIZE, Op.PIL_POSTERIZE):
        torch.bitwise_and(source, point_lut(op, arg)[255], out=out)
    else:  # x ^ 255 where x >= threshold
        threshold = math.ceil(arg)
        if threshold <= 0:
            torch.bitwise_not(source, out=out)
        elif threshold > 255:
            return
        else:
            torch.ge(source, threshold, out=out)
            torch.bitwise_xor(out.neg_(), source, out=out)
    work.keep(out)


def _brightness(work: _Work, op: int, arg: float, aux: int) -> None:
    work.keep_truncated(work.floats().mul_(arg).clamp_(0, 255))


def _color(work: _Work, op: int, arg: float, aux: int) -> None:
    image = work.floats()
    gray = work.gray(image).floor_()
    work.keep_truncated(image.mul_(arg).add_(gray, alpha=1.0 - arg).clamp_(0, 255))


def _contrast(work: _Work, op: int, arg: float, aux: int) -> None:
    image = work.floats()
    mean = work.gray(image).floor_().mean(dim=(-3, -2, -1), keepdim=True)
    work.keep_truncated(image.mul_(arg).add_(mean, alpha=1.0 - arg).clamp_(0, 255))


def _grayscale(work: _Work, op: int, arg: float, aux: int) -> None:
    gray = work.gray(work.floats())
    work.keep(work.out().copy_(gray.to(torch.int16).expand(work.shape)))


def _sharpness(work: _Work, op: int, arg: float, aux: int) -> None:
    _, height, width = work.shape
    if height <= 2 or width <= 2:
        return
    image = work.planar()
    out = work.out()
    torch_sharpness(image, 1.0 - arg, out, work.workspace)
    work.keep(out)


def _blurred(image: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor, Tensor]:
    """The inner pixels blurred as sharpness does it, and themselves, float32; and int16 memory of their shape.

    The blur is a sum of 9 values, exact in int16, over 13.
    """
    _, height, width = image.shape
    wide = workspace.get("wide", image.shape, torch.int16).copy_(image)
    rows = workspace.get("rows", (3, height - 2, width), torch.int16)
    torch.add(wide[:, :-2], wide[:, 1:-1], out=rows).add_(wide[:, 2:])
    total = workspace.get("total", (3, height - 2, width - 2), torch.int16)
    torch.add(rows[..., :-2], rows[..., 1:-1], out=total).add_(rows[..., 2:])
    inner = wide[:, 1:-1, 1:-1]
    total.add_(inner, alpha=4)
    # No multiple of 1/13 lies within 1/26 of a tie, so that a float32 product rounds as the exact quotient does.
    blurred = workspace.get("float", total.shape, torch.float32).copy_(total).mul_(1 / 13).round_()
    return blurred, workspace.get("middle", total.shape, torch.float32).copy_(inner), total


def torch_sharpness(image: Tensor, alpha: float, out: Tensor, workspace: Workspace) -> None:
    """v2's adjust_sharpness with factor 1 - alpha."""
    blurred, middle, total = _blurred(image, workspace)
    blurred.sub_(middle)
    total.copy_(middle.add_(blurred, alpha=alpha).clamp_(0, 255))
    out.copy_(image)
    out[:, 1:-1, 1:-1].copy_(total)


def _auto_contrast(work: _Work, op: int, arg: float, aux: int) -> None:
    planes = work.planar().view(3, -1)
    low, high = (f(1, keepdim=True).numpy().astype(np.float32) for f in (planes.amin, planes.amax))
    flat = low == high
    if flat.all():
        return
    values = np.arange(256, dtype=np.float32)
    if op == Op.PIL_AUTO_CONTRAST:
        scale = 255.0 / np.where(flat, 1, high - low).astype(np.float64)
        stretched = np.clip(values * scale - low * scale, 0, 255)
    else:
        stretched = np.clip((values - low) / np.where(flat, 1, (high - low) * np.float32(1 / 255)), 0, 255)
    tables = np.where(flat, values, stretched).astype(np.uint8)
    work.translate_bytes([table.tobytes() for table in tables])


def _equalize(work: _Work, op: int, arg: float, aux: int) -> None:
    counts = np.stack([torch.bincount(plane, minlength=256).numpy() for plane in work.planar().view(3, -1)])
    work.translate_bytes([table.tobytes() for table in equalize_lut(counts)])


def _hue(work: _Work, op: int, arg: float, aux: int) -> None:
    work.keep(work.out().copy_(shift_hue(work.planar(), arg)))


def shift_hue(image: Tensor, turns: float | Tensor) -> Tensor:
    """v2's adjust_hue of uint8 [..., 3, H, W] by `turns` (-0.5..0.5; a tensor broadcasts against [..., H, W])."""
    # Selections are products with 0 or 1, exact and several times faster than torch.where on a CPU. Ranges are 0..1, so
    # that 1 - ceil(x) tells where x is 0.
    rgb = image.to(torch.float32).mul_(1.0 / 255)
    r, g, b = rgb.unbind(-3)
    v = torch.maximum(torch.maximum(r, g), b)
    span = v - torch.minimum(torch.minimum(r, g), b)
    gray = 1.0 - span.ceil()
    s = span / (v + gray)
    span.add_(gray)
    rc, gc, bc = (v - r).div_(span), (v - g).div_(span), (v - b).div_(span)
    not_r = rc.ceil()
    g_or_b = gc.ceil()
    is_b, is_g = not_r * g_or_b, not_r * (1.0 - g_or_b)
    h = (bc - gc).mul_(1.0 - not_r)
    h.add_((rc + 2.0).sub_(bc).mul_(is_g)).add_((gc + 4.0).sub_(rc).mul_(is_b))
    h.mul_(1.0 / 6.0).add_(1.0)
    h.sub_(h.floor())  # fmod and remainder by 1, exactly, for what is in -0.5..2
    h.add_(turns)
    h.sub_(h.floor()).mul_(6)
    sector = h.floor()
    f = h.sub_(sector)
    sxf = s * f
    one_minus_s = 1.0 - s
    q = (1.0 - sxf).mul_(v).clamp_(0.0, 1.0)
    t = sxf.add_(one_minus_s).mul_(v).clamp_(0.0, 1.0)
    p = one_minus_s.mul_(v).clamp_(0.0, 1.0)
    s0, s1, s2, s3, s4, s5, s6 = (1.0 - (sector - i).abs_().clamp_(max=1.0) for i in range(7))
    s0.add_(s6)  # 6 where adding a turn to a tiny negative hue rounds
    out = torch.empty(image.shape, dtype=torch.uint8, device=image.device)
    for channel, at_v, at_q, at_t, at_p in (
        (0, s0 + s5, s1, s4, s2 + s3),
        (1, s1 + s2, s3, s0, s4 + s5),
        (2, s3 + s4, s5, s2, s0 + s1),
    ):
        chosen = at_v.mul_(v).add_(at_q * q).add_(at_t * t).add_(at_p.mul_(p))
        out.select(-3, channel).copy_(chosen.mul_(255 + 1.0 - 1e-3).to(torch.int16))
    return out


def _blur(work: _Work, op: int, arg: float, aux: int) -> None:
    image = pad(work.floats()[None], [aux // 2] * 4, mode="reflect")[0]
    work.keep_truncated(convolve(image, gaussian_kernel(arg, aux)).round_())


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """float32 [3, H + k - 1, W + k - 1] and [k, k] -> [3, H, W]: torch's conv2d.

    In C row by row, each product fused with its addition: the order of torch's own CPU kernel for images of some size,
    and of `_pixel_ops.blur`; docs/exactness.md has how far torch's other orders are from it.
    """
    size = len(kernel)
    height, width = (n - size + 1 for n in image.shape[1:])
    if _pixel_ops is not None and height >= 4 and width >= 16 and size <= 63 and image.device.type == "cpu":
        out = torch.empty(3, height, width, dtype=torch.float32, device="cpu")
        try:
            _pixel_ops.convolve(
                image.contiguous().numpy(), kernel.contiguous().numpy(), out.numpy(), height, width, size
            )
            return out
        except ValueError:  # a processor without AVX2 and FMA, or NEON
            pass
    return conv2d(image[None], kernel.expand(3, 1, size, size), groups=3)[0]


def gaussian_kernel(sigma: float, size: int) -> Tensor:
    """v2's two-dimensional kernel, float32 [size, size], for sigma in pixels and an odd size."""
    return gaussian(sigma, size)[1]


@lru_cache(maxsize=256)
def gaussian(sigma: float, size: int) -> tuple[Tensor, Tensor]:
    """v2's kernel in one dimension, float32 [size], and its outer product [size, size]."""
    if not sigma > 0 or size < 1 or size % 2 == 0:
        raise wrong("gaussian_blur", (sigma, size), "a sigma above 0 and an odd kernel size")
    [line] = gaussian_lines(np.array([sigma]), size)
    return line, line.unsqueeze(-1) * line


def gaussian_lines(sigmas: npt.NDArray[Any], size: int) -> Tensor:
    """v2's kernels in one dimension, float32 [G, size]."""
    limit = (size - 1) / (2.0 * math.sqrt(2.0))
    x = torch.linspace(-limit, limit, steps=size, dtype=torch.float32, device="cpu")
    widths = torch.from_numpy(sigmas.astype(np.float32))[:, None]
    return torch.softmax(x.div(widths).pow(2).neg(), dim=1)


# ---- compiled ----

_JOBS: dict[int, str] = {
    Op.BRIGHTNESS: "brightness",
    Op.COLOR: "torch_color",
    Op.CONTRAST: "torch_contrast",
    Op.SHARPNESS: "torch_sharpness",
    Op.HUE: "hue",
    Op.GRAYSCALE: "torch_grayscale",
    Op.PIL_BRIGHTNESS: "brightness",
    Op.PIL_COLOR: "color",
    Op.PIL_CONTRAST: "contrast",
    Op.PIL_SHARPNESS: "sharpness",
    Op.PIL_GRAYSCALE: "grayscale",
    Op.PIL_GAUSSIAN_BLUR: "gaussian_blur",
    Op.AUTO_CONTRAST: "torch_auto_contrast",
    Op.PIL_AUTO_CONTRAST: "pil_auto_contrast",
    **dict.fromkeys((Op.EQUALIZE, Op.PIL_EQUALIZE), "equalize"),
    **dict.fromkeys((Op.INVERT, Op.PIL_INVERT), "invert"),
    **dict.fromkeys((Op.POSTERIZE, Op.PIL_POSTERIZE), "posterize"),
    **dict.fromkeys((Op.SOLARIZE, Op.PIL_SOLARIZE), "solarize"),
    **dict.fromkeys((Op.SOLARIZE_ADD, Op.PIL_SOLARIZE_ADD), "solarize_add"),
}
_PIL_WARPS = frozenset({Op.PIL_SHEAR_X, Op.PIL_SHEAR_Y, Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y, Op.PIL_ROTATE,
                         Op.PIL_AFFINE})  # fmt: skip


def _torch_fuses() -> bool:
    """Whether torch rounds `a.add_(b, alpha=factor)` once, after the product and the sum, on this CPU."""
    small = 2.0**-12
    one, rounded = (torch.full((64,), v, dtype=torch.float32, device="cpu") for v in (1 + small, 1 + 2 * small))
    return bool((-rounded).add_(one, alpha=1 + small).any())  # the square of 1 + small, less what it rounds to


def _pillow_fuses() -> bool:
    """Whether Pillow's compiler made one step of a product and its addition, as on other CPUs than x86-64."""
    dark, bright = (Image.new("L", (1, 1), value) for value in (5, 0))
    return bool(Image.blend(dark, bright, 0.8).getpixel((0, 0)) == 0)  # 5 - 4.00000006, or 5 - 4


if _pixel_ops is not None:
    _pixel_ops.set_fused(_torch_fuses())
# What _pixel_ops.c does in Pillow's arithmetic, rounded after each step: where Pillow's own is another, Pillow does it.
# Its brightness, gray and Gaussian blur have the same bytes all the same (bench/checks/other_cpu.py).
_PILLOWS: frozenset[int] = frozenset({Op.PIL_COLOR, Op.PIL_CONTRAST, Op.PIL_SHARPNESS}) | _PIL_WARPS
_BY_PILLOW: frozenset[int] = _PILLOWS if _pillow_fuses() else frozenset()


def _fits_c(work: _Work) -> bool:
    """Whether `fits` in _pixel_ops.c takes images of this size: of less than 2**27 pixels."""
    _, height, width = work.shape
    return height * width < 2**27 - max(height, width)


def _in_c(work: _Work, op: int, arg: float, aux: int) -> bool:
    """Whether `_pixel_ops` has the operation, and then its result, the same as without it."""
    assert _pixel_ops is not None
    if op == Op.GAUSSIAN_BLUR:
        return not ORACLE and _blur_in_c(work, arg, aux)
    warps = op in _PIL_WARPS and aux != FILTERS["nearest"]
    job = _JOBS.get(op)
    if op in _BY_PILLOW or not (warps or job) or not abs(arg) <= 1e6 or not _fits_c(work):
        return False
    _, height, width = work.shape
    if op == Op.CONTRAST and height * width > 65793:  # a float32 sum may round, and its order matters
        return False
    room = work.room()
    source, out = work.planar().numpy(), work.out()
    if job:
        getattr(_pixel_ops, job)(source, out.numpy(), room, height, width, arg)
    else:
        matrix = pil_matrix(op, arg, height, width, work.given)
        work.given = {} if op == Op.PIL_AFFINE else work.given
        _pixel_ops.affine(source, out.numpy(), room, height, width, matrix, work.fill, aux == 3)
    work.keep(out)
    return True


def _blur_in_c(work: _Work, sigma: float, size: int) -> bool:
    """Whether `_pixel_ops` blurs this image, and then its result, to the bit that of `_blur` in the order of C."""
    assert _pixel_ops is not None
    _, height, width = work.shape
    if height < 4 or width < 16 or size > 63 or size // 2 >= min(height, width):
        return False
    line, kernel = gaussian(sigma, size)
    room = work.workspace.get("blur", (4 * (height + 2) * (width + size + 44) + 32,), torch.uint8).numpy()  # BLUR_ROOM
    source, out = work.planar().numpy(), work.out()
    try:
        _pixel_ops.blur(source, line.numpy(), kernel.numpy(), out.numpy(), room, height, width)
    except ValueError:  # a processor without AVX2 and FMA, or NEON
        return False
    work.keep(out)
    return True


# ---- PIL, as timm calls it ----


def _pil_color(work: _Work, op: int, arg: float, aux: int) -> None:
    work.pil = ImageEnhance.Color(work.as_pil()).enhance(arg)


def _pil_grayscale(work: _Work, op: int, arg: float, aux: int) -> None:
    work.pil = work.as_pil().convert("L").convert("RGB")


def _pil_rotate(work: _Work, op: int, arg: float, aux: int) -> None:
    work.pil = work.as_pil().rotate(arg, resample=Image.Resampling(aux), fillcolor=work.fill)


def _pil_warp(work: _Work, op: int, arg: float, aux: int) -> None:
    image, matrix = work.as_pil(), pil_matrix(op, arg, work.shape[1], work.shape[2], work.given)
    work.given = {} if op == Op.PIL_AFFINE else work.given
    affine, resample = Image.Transform.AFFINE, Image.Resampling(aux)
    work.pil = image.transform(image.size, affine, matrix, resample=resample, fillcolor=work.fill)


def _pil_contrast(work: _Work, op: int, arg: float, aux: int) -> None:
    """ImageEnhance.Contrast: a blend with the mean of PIL's gray, so a table."""
    gray = Image.merge("RGB", [Image.fromarray(plane) for plane in work.planar().numpy()]).convert("L")
    values = np.arange(256)
    mean = int(int(np.dot(gray.histogram(), values)) / (work.shape[1] * work.shape[2]) + 0.5)
    table = pil_blend(np.full(256, mean, np.float32), values.astype(np.float32), arg)
    work.translate_bytes([table.astype(np.uint8).tobytes()])


def _pil_blur(work: _Work, op: int, arg: float, aux: int) -> None:
    """Plane by plane, where PIL's RGB has a fourth to blur."""
    out, blur = work.out(), ImageFilter.GaussianBlur(radius=arg)
    for plane, target in zip(work.planar().numpy(), out.numpy(), strict=True):
        target[:] = np.asarray(Image.fromarray(plane).filter(blur))
    work.keep(out)


def _pil_sharpness(work: _Work, op: int, arg: float, aux: int) -> None:
    """ImageEnhance.Sharpness: a blend with PIL's SMOOTH filter, which is the same blur."""
    if min(work.shape[1:]) <= 2:
        return
    image, out = work.planar(), work.out()
    blurred, middle, total = _blurred(image, work.workspace)
    total.copy_(middle.sub_(blurred).mul_(arg).add_(blurred).clamp_(0, 255))
    out.copy_(image)
    out[:, 1:-1, 1:-1].copy_(total)
    work.keep(out)


def pil_matrix(
    op: int, arg: float, height: int, width: int, given: Mapping[int, float] = _NOTHING
) -> tuple[float, ...]:
    """The six numbers of PIL's AFFINE transform (output pixel to input pixel) for an operation of the PIL family.

    given: as in `affine_theta`.
    """
    if op == Op.PIL_AFFINE:
        return affine_matrix(arg, given, width * 0.5, height * 0.5)
    if op == Op.PIL_SHEAR_X:
        return (1, arg, 0, 0, 1, 0)
    if op == Op.PIL_SHEAR_Y:
        return (1, 0, 0, arg, 1, 0)
    if op == Op.PIL_TRANSLATE_X:
        return (1, 0, arg, 0, 1, 0)
    if op == Op.PIL_TRANSLATE_Y:
        return (1, 0, 0, 0, 1, arg)
    angle = -math.radians(arg % 360.0)  # as PIL.Image.rotate
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), a
    cx, cy = width / 2, height / 2
    return (a, b, a * -cx + b * -cy + 0.0 + cx, d, e, d * -cx + e * -cy + 0.0 + cy)


EXECUTORS: dict[int, Callable[[_Work, int, float, int], None]] = {
    Op.SHEAR_X: _gather,
    Op.SHEAR_Y: _gather,
    Op.TRANSLATE_X: _shift,
    Op.TRANSLATE_Y: _shift,
    Op.ROTATE: _gather,
    **dict.fromkeys(AFFINE_PARTS, _give),
    Op.AFFINE: _affine,
    Op.BRIGHTNESS: _brightness,
    Op.COLOR: _color,
    Op.CONTRAST: _contrast,
    Op.SHARPNESS: _sharpness,
    Op.POSTERIZE: _bits,
    Op.SOLARIZE: _bits,
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: _bits,
    Op.HUE: _hue,
    Op.GRAYSCALE: _grayscale,
    Op.GAUSSIAN_BLUR: _blur,
    Op.SOLARIZE_ADD: _point,
    Op.PIL_SHEAR_X: _pil_warp,
    Op.PIL_SHEAR_Y: _pil_warp,
    Op.PIL_TRANSLATE_X: _pil_warp,
    Op.PIL_TRANSLATE_Y: _pil_warp,
    Op.PIL_ROTATE: _pil_rotate,
    Op.PIL_AFFINE: _pil_warp,
    Op.PIL_BRIGHTNESS: _point,
    Op.PIL_COLOR: _pil_color,
    Op.PIL_CONTRAST: _pil_contrast,
    Op.PIL_SHARPNESS: _pil_sharpness,
    # on planar memory, where it is faster than on a PIL image, with the same result
    Op.PIL_POSTERIZE: _bits,
    Op.PIL_SOLARIZE: _bits,
    Op.PIL_AUTO_CONTRAST: _auto_contrast,
    Op.PIL_EQUALIZE: _equalize,
    Op.PIL_INVERT: _bits,
    Op.PIL_GRAYSCALE: _pil_grayscale,
    Op.PIL_GAUSSIAN_BLUR: _pil_blur,
    Op.PIL_SOLARIZE_ADD: _point,
}
"""What carries out each operation but the identity. The compiled `_pixel_ops` comes first, where it has one."""
