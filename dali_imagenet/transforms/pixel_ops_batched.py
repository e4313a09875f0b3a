"""Pixel operations on a whole uint8 batch, each image with its own operation and argument: the executor for GPUs.

Each slot of the programs runs as a few kernels, one for all images that share an arithmetic (every geometric operation
of a family is one warp, every point operation one table lookup). Which image is in which group is known on the host, so
nothing is read back: all indices and parameters travel in one pinned copy, and the host never waits for the device.

The torchvision family gives the bytes of `pixel_ops.apply_ops_image`, and so does the PIL family but for its bilinear
and bicubic warps: they interpolate in float32 where PIL does in double, and both truncate, so that a value may differ
by 1 where the interpolation ends on a whole number (a shear by -0.3 does it in up to 4% of an image's values, most
arguments in fewer than 0.1%; an affine by 90 or 180 degrees in up to 43%).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from dali_imagenet.ops import AFFINE_PARTS, Op, check_op
from dali_imagenet.transforms.pixel_ops import (
    GRAY,
    PIL_POINT_OPS,
    POINT_OPS,
    Fill,
    affine_theta,
    bilinear_warp,
    check_image,
    convolve,
    fill_bytes,
    pil_matrix,
    shift_hue,
)
from dali_imagenet.transforms.transfer import to_device
from dali_imagenet.transforms.vectorised import affine_thetas, gaussian_kernels, point_luts

Array = npt.NDArray[Any]
Kernel = Callable[..., Tensor]

_NUMBERS = max(Op) + 1
_WARP = frozenset({Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, Op.AFFINE})
_PIL_WARP = frozenset({Op.PIL_SHEAR_X, Op.PIL_SHEAR_Y, Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y, Op.PIL_ROTATE,
                       Op.PIL_AFFINE})  # fmt: skip
# Point operations whose table depends on the image, in the order in which _point expects their images.
_ADAPTIVE = (Op.CONTRAST, Op.PIL_CONTRAST, Op.AUTO_CONTRAST, Op.PIL_AUTO_CONTRAST, Op.EQUALIZE, Op.PIL_EQUALIZE)


def apply_ops_batch(images: Tensor, op: Array, arg: Array, aux: Array, fill: Fill = None) -> Tensor:
    """Apply to image i the operations `op[i, k]` with `arg[i, k]` and `aux[i, k]`, k in order.

    Args:
        images: uint8 [B, 3, H, W] on any device, not modified.
        op: numbers of `Op` [B, K], numpy.
        arg: arguments [B, K], numpy.
        aux: filters or kernel sizes [B, K], numpy.
        fill: for what geometric operations leave empty: None (black), a number, or three of 0..255.

    Returns:
        uint8 [B, 3, H, W] on the same device: `images` itself where nothing was to be done. Work goes to the current
        stream.

    Raises:
        ValueError: for other shapes, unknown operations and wrong arguments.
        NotImplementedError: for an operation that has no batched executor.
    """
    check_image(images.shape, images.dtype, 4)
    op, arg, aux = np.asarray(op), np.asarray(arg), np.asarray(aux)
    if op.ndim != 2 or len(op) != len(images) or arg.shape != op.shape or aux.shape != op.shape:
        raise ValueError(
            f"op, arg, aux of {op.shape}, {arg.shape}, {aux.shape}: must be [B, K] for images {list(images.shape)}"
        )
    check_program(op, arg, aux)
    color = np.array(fill_bytes(fill), np.uint8).reshape(1, 3, 1, 1)
    given: list[dict[int, float]] = [{} for _ in op]
    slots = range(op.shape[1])
    groups = [g for k in slots for g in _groups(op[:, k], arg[:, k], aux[:, k], given, *images.shape[2:])]
    if not groups:
        return images
    arrays = [color] + [a for rows, _, parameters in groups for a in (rows, *parameters)]
    color_there, *there = to_device(arrays, images.device)
    out = images.clone(memory_format=torch.contiguous_format)
    position = 0
    for rows, kernel, parameters in groups:
        where = there[position]
        values: list[Tensor | None] = [*there[position + 1 : position + 1 + len(parameters)]]
        position += 1 + len(parameters)
        part = out if len(rows) == len(out) else out.index_select(0, where)
        if kernel in (_warp, _take, _pil_nearest, _pil_bilinear, _pil_bicubic):
            values.append(color_there)
        elif kernel is bilinear_warp:
            values.append(None if fill is None else color_there.float())
        part = kernel(part, *values).contiguous()
        out = part if len(rows) == len(out) else out.index_copy_(0, where, part)
    return out


def check_program(op: Array, arg: Array, aux: Array) -> None:
    """Raises ValueError for unknown operations, and arguments that they do not take; arrays of any one shape."""
    if not op.shape == arg.shape == aux.shape:
        raise ValueError(f"op {op.shape}, arg {arg.shape}, aux {aux.shape}: must be of one shape")
    if not op.size:
        return
    # The least and the largest argument of each operation with each aux, sorted to lie side by side: a look at each
    # operation apart takes twice the time of the thread that feeds a GPU.
    order = np.lexsort((aux.ravel(), op.ravel()))
    op, arg, aux = (values.ravel()[order] for values in (op, arg, aux))
    first = np.flatnonzero(np.concatenate([[True], (op[1:] != op[:-1]) | (aux[1:] != aux[:-1])]))
    limits = np.stack([np.minimum.reduceat(arg, first), np.maximum.reduceat(arg, first)], axis=1)
    for number, x, (least, most) in zip(op[first].tolist(), aux[first].tolist(), limits.tolist(), strict=True):
        check_op(number, least, x)
        check_op(number, most, x)


def _groups(
    op: Array, arg: Array, aux: Array, given: list[dict[int, float]], height: int, width: int
) -> list[tuple[npt.NDArray[np.int64], Kernel, list[Array]]]:
    """One slot as (rows, kernel, parameter arrays); every row is in one group at most.

    given: the arguments of `AFFINE_PARTS` in the slots before, by row, which those of this slot change.
    """
    groups: list[tuple[npt.NDArray[np.int64], Kernel, list[Array]]] = []
    present = {int(o) for o in np.unique(op)} - {int(Op.IDENTITY)}

    def rows_of(*ops: int) -> npt.NDArray[np.int64]:
        if not present & set(ops):
            return np.empty(0, np.int64)
        wanted = np.zeros(_NUMBERS, bool)
        wanted[list(ops)] = True
        return np.flatnonzero(wanted[op])

    def floats(rows: Array) -> list[float]:
        return [float(a) for a in arg[rows]]

    def add(rows: npt.NDArray[np.int64], kernel: Kernel, *parameters: Array) -> None:
        if len(rows):
            # All of a batch in one group goes without gathering, so its rows must be in order, and they are.
            groups.append((rows, kernel, list(parameters)))

    for r in rows_of(*AFFINE_PARTS):
        given[r][int(op[r])] = float(arg[r])

    rows = rows_of(*_WARP)
    for number, affine in ((0, _warp), (2, bilinear_warp)):
        chosen = rows[aux[rows] == number]
        thetas = np.empty((len(chosen), 2, 3), np.float32)
        for o in present & _WARP:
            mine = chosen[op[chosen] == o]
            if o == Op.AFFINE:
                rest = [affine_theta(o, float(arg[r]), height, width, given[r]) for r in mine]
                thetas[op[chosen] == o] = np.array(rest).reshape(-1, 2, 3)
            else:
                thetas[op[chosen] == o] = affine_thetas(o, arg[mine], height, width)
        add(chosen, affine, thetas)

    rows = rows_of(*_PIL_WARP)
    for number, warp in ((0, _pil_nearest), (2, _pil_bilinear), (3, _pil_bicubic)):
        chosen = rows[aux[rows] == number]
        matrices = [pil_matrix(int(op[r]), float(arg[r]), height, width, given[r]) for r in chosen]
        if number == 0:
            scaled = np.array([scales(m) for m in matrices], bool)
            add(chosen[scaled], _take, *scaled_grid([m for m in matrices if scales(m)], height, width))
            chosen, matrices = chosen[~scaled], [m for m in matrices if not scales(m)]
        values = [fixed_matrix(m) for m in matrices] if number == 0 else matrices
        add(chosen, warp, np.array(values, np.int64 if number == 0 else np.float64).reshape(-1, 6, 1, 1))

    for r in rows_of(Op.AFFINE, Op.PIL_AFFINE):
        given[r] = {}

    fixed = rows_of(*POINT_OPS, *PIL_POINT_OPS)
    adaptive = [rows_of(o) for o in _ADAPTIVE]
    rows = np.concatenate([fixed, *adaptive])
    factors = [f for part in adaptive[:2] for f in floats(part)]
    if len(rows):
        # The images are taken in the tables' order, also where they are the whole batch: so tables are put in order.
        counts = [len(part) for part in adaptive]
        add(
            np.sort(rows),
            lambda images, *values: _point(images, counts, *values),
            np.argsort(rows),
            np.searchsorted(np.sort(rows), np.concatenate(adaptive)),
            point_luts(op[fixed], arg[fixed]).reshape(-1, 1, 256),
            ratios(factors),
        )

    for o, blend in _BLENDS.items():
        rows = rows_of(o)
        add(rows, blend, ratios(floats(rows)))
    rows = rows_of(Op.HUE)
    add(rows, shift_hue, arg[rows].astype(np.float32).reshape(-1, 1, 1))
    add(rows_of(Op.GRAYSCALE), _grayscale)
    add(rows_of(Op.PIL_GRAYSCALE), _pil_grayscale)

    rows = rows_of(Op.GAUSSIAN_BLUR)
    for size in np.unique(aux[rows]):
        chosen = rows[aux[rows] == size]
        add(chosen, _blur, gaussian_kernels(arg[chosen], int(size)))
    rows = rows_of(Op.PIL_GAUSSIAN_BLUR)
    add(rows, _pil_blur, box_weights(floats(rows)))
    if missing := present - EXECUTED:
        raise NotImplementedError(f"no batched executor for {', '.join(Op(o).name for o in sorted(missing))}")
    return groups


def ratios(factors: list[float]) -> Array:
    """float32 [G, 2, 1, 1, 1]: the factor and one minus it (rounded after the subtraction, as v2's scalars are)."""
    return np.array([(f, 1.0 - f) for f in factors], np.float64).astype(np.float32).reshape(-1, 2, 1, 1, 1)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a + b * c of float32 rounded once, as the vectorised `add(alpha=...)` of v2 does it, on every device."""
    return (b.double() * c).add(a).float()


# ---- warps ----


def _warp(images: Tensor, theta: Tensor, fill: Tensor) -> Tensor:
    """v2's affine, nearest, theta [G, 2, 3]: the arithmetic of `pixel_ops.nearest_map`, each step rounded."""
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=torch.float32, device=images.device).sub_((width - 1) * 0.5)
    y = torch.arange(height, dtype=torch.float32, device=images.device).sub_((height - 1) * 0.5)

    def source(row: Tensor, size: int) -> Tensor:
        g = (x * row[:, 0, None])[:, None, :] + (y * row[:, 1, None])[:, :, None]
        g = g.add_(row[:, 2, None, None]).add_(1.0).mul_(size * 0.5).sub_(0.5)
        return g.round_().clamp_(-1, size).int()

    return _take(images, source(theta[:, 0], width), source(theta[:, 1], height), fill)


def _take(images: Tensor, ix: Tensor, iy: Tensor, fill: Tensor) -> Tensor:
    """Pixels at the whole coordinates ix, iy, broadcast to [G, H, W]; the fill where they are outside."""
    height, width = images.shape[2:]
    inside = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height)
    return torch.where(inside[:, None], _pixels(images, ix.clamp(0, width - 1), iy.clamp(0, height - 1)), fill)


def _pixels(images: Tensor, ix: Tensor, iy: Tensor) -> Tensor:
    index = (iy.long() * images.shape[3] + ix).view(len(images), 1, -1)
    return images.flatten(2).gather(2, index.expand(-1, 3, -1)).view(images.shape)


def fixed_matrix(matrix: tuple[float, ...]) -> tuple[int, ...]:
    """PIL's 16.16 fixed-point matrix of a nearest warp (affine_fixed; whole translations as in ImagingScaleAffine)."""
    a, b, c, d, e, f = matrix
    if b == 0 and d == 0 and a == 1 and e == 1:
        return (1 << 16, 0, math.floor(c + 0.5) << 16, 0, 1 << 16, math.floor(f + 0.5) << 16)
    fixed = [math.floor(v * 65536.0 + 0.5) for v in (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)]
    return tuple(fixed)


def scales(matrix: tuple[float, ...]) -> bool:
    """Whether PIL scales by a nearest warp, which it does in double (ImagingScaleAffine)."""
    a, b, _, d, e, _ = matrix
    return b == 0 and d == 0 and (a != 1 or e != 1)


def scaled_grid(matrices: list[tuple[float, ...]], height: int, width: int) -> tuple[Array, Array]:
    """PIL's whole source coordinates of such warps: int32 [G, 1, W] and [G, H, 1]."""
    m = np.array(matrices, np.float64).reshape(-1, 6)

    def along(step: Array, offset: Array, size: int) -> Array:
        at = np.repeat(step[:, None], size, axis=1)
        at[:, :1] = (offset + step * 0.5)[:, None]
        return np.clip(np.floor(np.add.accumulate(at, axis=1)), -1, 1 << 20).astype(np.int32)

    return along(m[:, 0], m[:, 2], width)[:, None, :], along(m[:, 4], m[:, 5], height)[:, :, None]


def _pil_nearest(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrix.unbind(1)
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    ix, iy = (x * a + y * b + c) >> 16, (x * d + y * e + f) >> 16
    return _take(images, ix, iy, fill)


def _pil_source(images: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """PIL's source coordinates: whole ix, iy, the fractions (float32 [G,1,H,W]), and what is inside [G,1,H,W]."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrix.unbind(1)
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    y = (torch.arange(height, dtype=torch.float64, device=images.device) + 0.5)[:, None]
    u, v = (x * a + y * b).add_(c), (x * d + y * e).add_(f)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = u.sub_(0.5).clamp_(-2, width + 2), v.sub_(0.5).clamp_(-2, height + 2)
    iu, iv = u.floor(), v.floor()
    fraction_x, fraction_y = (u - iu).float()[:, None], (v - iv).float()[:, None]
    return iu.int(), iv.int(), fraction_x, fraction_y, inside[:, None]


def _tap(images: Tensor, ix: Tensor, iy: Tensor) -> Tensor:
    height, width = images.shape[2:]
    return _pixels(images, ix.clamp(0, width - 1), iy.clamp(0, height - 1)).float()


def _pil_bilinear(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    ix, iy, dx, dy, inside = _pil_source(images, matrix)

    def row(offset: int) -> Tensor:
        left, right = _tap(images, ix, iy + offset), _tap(images, ix + 1, iy + offset)
        return right.sub_(left).mul_(dx).add_(left)

    top, bottom = row(0), row(1)
    return torch.where(inside, bottom.sub_(top).mul_(dy).add_(top).to(torch.uint8), fill)


def _pil_bicubic(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    ix, iy, dx, dy, inside = _pil_source(images, matrix)

    def cubic(v: list[Tensor], d: Tensor) -> Tensor:  # a = -1, as in PIL's Geometry.c
        v1, v2, v3, v4 = v
        p3 = (v1 - v2).mul_(2).add_(v3).sub_(v4)
        p4 = (v2 - v1).sub_(v3).add_(v4)
        return p4.mul_(d).add_(p3).mul_(d).add_(v3 - v1).mul_(d).add_(v2)

    def row(offset: int) -> Tensor:
        return cubic([_tap(images, ix + i, iy + offset) for i in (-1, 0, 1, 2)], dx)

    value = cubic([row(j) for j in (-1, 0, 1, 2)], dy)
    return torch.where(inside, value.clamp_(0, 255).to(torch.uint8), fill)


# ---- tables ----


def _point(images: Tensor, counts: list[int], order: Tensor, adaptive: Tensor, fixed: Tensor, ratios: Tensor) -> Tensor:
    """One table a channel for every image: fixed ones from the host, then those of _ADAPTIVE, made here.

    order [G]: the table of each image. adaptive: the images that need tables made, in the order of _ADAPTIVE, of which
    there are `counts`. fixed: uint8 [F, 1, 256]. ratios: of the contrasts.
    """
    tables = [fixed.expand(-1, 3, -1)]
    values = torch.arange(256, dtype=torch.float32, device=images.device)
    parts = torch.split(images.index_select(0, adaptive), counts) if sum(counts) else ()
    ratio, rest = ratios.unbind(1)
    for number, part in enumerate(parts):
        op, count = _ADAPTIVE[number], len(part)
        if not count:
            continue
        if op == Op.CONTRAST:
            gray = _gray(part.float()).floor_().sum(dim=(-3, -2, -1), keepdim=True)[:, 0]
            mean = _divided(gray, part.shape[2] * part.shape[3])
            table = _fma(values * ratio[:count, 0], mean, rest[:count, 0]).clamp_(0, 255).expand(-1, 3, -1)
        elif op == Op.PIL_CONTRAST:
            gray = _pil_gray(part).sum(dim=(-3, -2, -1)).double()
            mean = _divided(gray, part.shape[2] * part.shape[3])
            mean = mean.add_(0.5).floor_().float().view(-1, 1, 1)
            table = _pil_blend(mean, values, ratio[-count:, 0]).expand(-1, 3, -1)
        elif op in (Op.AUTO_CONTRAST, Op.PIL_AUTO_CONTRAST):
            low, high = part.flatten(2).amin(2, keepdim=True), part.flatten(2).amax(2, keepdim=True)
            make = _auto_contrast if op == Op.AUTO_CONTRAST else _pil_auto_contrast
            table = torch.where(low == high, values, make(values, low, high))
        else:
            table = _equalize(part.flatten(2))
        tables.append(table.to(torch.uint8))
    table = torch.cat(tables).index_select(0, order)
    return table.gather(2, images.flatten(2).long()).view(images.shape)


def _divided(sums: Tensor, count: int) -> Tensor:
    """Rounded once: by a Python number CUDA multiplies by its rounded reciprocal."""
    return sums.div_(torch.full_like(sums, count))


def _auto_contrast(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    scale = high.float().sub_(low).mul_(1.0 / 255)
    return (values - low).div_(scale).nan_to_num_(0.0).clamp_(0, 255)


def _pil_auto_contrast(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    span = (high.double() - low).clamp_(min=1)
    scale = torch.full_like(span, 255.0).div_(span)  # 255 / span would multiply by the rounded reciprocal
    return (values * scale).add_(-low.double() * scale).clamp_(0, 255).floor_().float()


def _equalize(planes: Tensor) -> Tensor:
    """The tables of `pixel_ops.equalize_lut`, [G, 3, 256], of uint8 [G, 3, N]."""
    histogram = torch.zeros((*planes.shape[:2], 256), dtype=torch.int32, device=planes.device)
    one = torch.ones((1, 1, 1), dtype=torch.int32, device=planes.device)
    histogram.scatter_add_(2, planes.long(), one.expand(planes.shape))
    position = torch.arange(256, device=planes.device)
    last = histogram.gather(2, torch.where(histogram > 0, position, 0).amax(2, keepdim=True))
    step = (planes.shape[2] - last).div_(255, rounding_mode="floor")
    before = histogram.cumsum(2, dtype=torch.int32) - histogram
    table = (before + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    return torch.where(step == 0, position, table)


# ---- blends ----


def _gray(image: Tensor) -> Tensor:
    """v2's gray [G, 1, H, W] of float32, not rounded."""
    return image[:, :1].mul(GRAY[0]).add_(image[:, 1:2], alpha=GRAY[1]).add_(image[:, 2:], alpha=GRAY[2])


def _pil_gray(images: Tensor) -> Tensor:
    """PIL's L [G, 1, H, W] as int32 (its Convert.c: ITU-R 601 in 16-bit fixed point)."""
    wide = images.int()
    return (wide[:, :1] * 19595 + wide[:, 1:2] * 38470 + wide[:, 2:] * 7471 + 0x8000) >> 16


def _pil_blend(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    return (image - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255)


def _color(images: Tensor, ratios: Tensor) -> Tensor:
    image = images.float()
    gray = _gray(image).floor_()
    return _fma(image.mul_(ratios[:, 0]), gray, ratios[:, 1]).clamp_(0, 255).to(torch.uint8)


def _pil_color(images: Tensor, ratios: Tensor) -> Tensor:
    return _pil_blend(_pil_gray(images).float(), images.float(), ratios[:, 0]).to(torch.uint8)


def _grayscale(images: Tensor) -> Tensor:
    return _gray(images.float()).to(torch.uint8).expand(images.shape)


def _pil_grayscale(images: Tensor) -> Tensor:
    return _pil_gray(images).to(torch.uint8).expand(images.shape)


def _smooth(images: Tensor) -> Tensor:
    """The 3x3 blur (1 1 1, 1 5 1, 1 1 1)/13 of the inner pixels, rounded, float32 [G, 3, H-2, W-2]."""
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    return total.add_(wide[:, :, 1:-1, 1:-1], alpha=4).float().mul_(1 / 13).round_()


def _sharpness(images: Tensor, ratios: Tensor) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    out = images.clone()
    inner = images[:, :, 1:-1, 1:-1].float()
    sharp = _fma(inner, _smooth(images).sub_(inner), ratios[:, 1])
    out[:, :, 1:-1, 1:-1] = sharp.clamp_(0, 255).to(torch.uint8)
    return out


def _pil_sharpness(images: Tensor, ratios: Tensor) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    out = images.clone()
    inner = images[:, :, 1:-1, 1:-1].float()
    out[:, :, 1:-1, 1:-1] = _pil_blend(_smooth(images), inner, ratios[:, 0]).to(torch.uint8)
    return out


# ---- blurs ----


def _blur(images: Tensor, kernels: Tensor) -> Tensor:
    """v2's gaussian_blur; kernels: float32 [G, k, k]. In the order of `convolve`."""
    size = kernels.shape[-1]
    image = pad(images.float(), [size // 2] * 4, mode="reflect")
    if images.device.type == "cpu":
        blurred = torch.stack([convolve(*each) for each in zip(image, kernels, strict=True)])
        return blurred.round_().to(torch.uint8)
    image = image.flatten(0, 1)[None]
    weight = kernels.repeat_interleave(3, dim=0)[:, None]
    blurred = _depthwise(image, weight, [size, size])
    return blurred.round_().to(torch.uint8).view(images.shape)


def _depthwise(image: Tensor, weight: Tensor, size: list[int]) -> Tensor:
    """conv2d with a kernel for each channel, by torch's own kernel on a GPU: row by row, with fused products.

    cuDNN, which conv2d may take, has orders of its own, and TF32 where the process allows it, which could be forbidden
    for the whole process alone, the user's model included.
    """
    found: Tensor = torch.ops.aten._conv_depthwise2d(image, weight, size, None, [1, 1], [0, 0], [1, 1])
    return found


def box_weights(radii: list[float]) -> Array:
    """PIL's extended box blur (BoxBlur.c, three passes) as taps: int32 [G, 2R+3, 1, 1, 1], in 1/2^24."""
    boxes: list[tuple[int, int, int]] = []
    for radius in np.array(radii, np.float32):
        sigma2 = np.float32(radius * radius / np.float32(3))
        length = np.float32(math.sqrt(12.0 * float(sigma2) + 1.0))
        whole = np.float32(math.floor((float(length) - 1.0) / 2.0))
        part = (2 * whole + 1) * (whole * (whole + 1) - 3 * sigma2) / (6 * (sigma2 - (whole + 1) * (whole + 1)))
        box = np.float32(whole + part)
        reach = int(box)
        inner = int(np.float32(1 << 24) / (box * 2 + 1))
        boxes.append((reach, inner, ((1 << 24) - (reach * 2 + 1) * inner) // 2))
    most = max((b[0] for b in boxes), default=0)
    taps = np.zeros((len(boxes), 2 * most + 3), np.int32)
    for row, (reach, inner, edge) in zip(taps, boxes, strict=True):
        row[most - reach : most + reach + 3] = edge
        row[most - reach + 1 : most + reach + 2] = inner
    return taps[:, :, None, None, None]


def _pil_blur(images: Tensor, taps: Tensor) -> Tensor:
    image = images.int()
    reach = taps.shape[1] // 2
    for axis in (3, 3, 3, 2, 2, 2):
        size = image.shape[axis]
        index = torch.arange(-reach, size + reach, device=image.device).clamp_(0, size - 1)
        padded = image.index_select(axis, index)
        total = padded.narrow(axis, 0, size) * taps[:, 0]
        for i in range(1, 2 * reach + 1):
            total.addcmul_(padded.narrow(axis, i, size), taps[:, i])
        # The sum needs 32 bits without a sign: it may wrap, and the mask takes the sign off again.
        image = total.add_(1 << 23).bitwise_right_shift_(24).bitwise_and_(255)
    return image.to(torch.uint8)


_BLENDS: dict[int, Kernel] = {
    Op.COLOR: _color,
    Op.PIL_COLOR: _pil_color,
    Op.SHARPNESS: _sharpness,
    Op.PIL_SHARPNESS: _pil_sharpness,
}
EXECUTED = frozenset(
    int(op)
    for op in (
        *(*_WARP, *_PIL_WARP, *POINT_OPS, *PIL_POINT_OPS, *_ADAPTIVE, *_BLENDS),
        *AFFINE_PARTS,
        *(Op.HUE, Op.GRAYSCALE, Op.PIL_GRAYSCALE, Op.GAUSSIAN_BLUR, Op.PIL_GAUSSIAN_BLUR),
    )
)
"""The operations that `_groups` knows."""
