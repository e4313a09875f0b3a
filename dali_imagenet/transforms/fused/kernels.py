"""The kernels. Importing this takes Triton.

Bytes are those of `pixel_ops_batched`, so arithmetic is written out: what is rounded once is `_fma`, division is
`div_rn`, and the launcher forbids the compiler to fuse (`enable_fp_fusion=False`). Triton's interpreter rounds its fma
twice, so there it goes by double (`WIDE`).

Sizes, addresses and counts are run-time arguments that nothing is specialized on: a kernel is compiled once.

An image's place is its number: below `count` it is one of `images` [count, 3, H, W], from there on of `pool`.
"""

from __future__ import annotations

import inspect
from typing import Any

import triton
import triton.language as tl

from dali_imagenet.transforms.fused import codes
from dali_imagenet.transforms.normalize_erase import GOLDEN, MIX1, MIX2

INTERPRETED: bool = triton.knobs.runtime.interpret

_FIXED = tl.constexpr(codes.FIXED)
_MADE = tl.constexpr(codes.MADE)
_NEAREST = tl.constexpr(codes.NEAREST)
_BILINEAR = tl.constexpr(codes.BILINEAR)
_PIL_NEAREST = tl.constexpr(codes.PIL_NEAREST)
_PIL_SCALED = tl.constexpr(codes.PIL_SCALED)
_PIL_BILINEAR = tl.constexpr(codes.PIL_BILINEAR)
_PIL_BICUBIC = tl.constexpr(codes.PIL_BICUBIC)
_COLOR = tl.constexpr(codes.COLOR)
_PIL_COLOR = tl.constexpr(codes.PIL_COLOR)
_GRAYSCALE = tl.constexpr(codes.GRAYSCALE)
_PIL_GRAYSCALE = tl.constexpr(codes.PIL_GRAYSCALE)
_SHARPNESS = tl.constexpr(codes.SHARPNESS)
_PIL_SHARPNESS = tl.constexpr(codes.PIL_SHARPNESS)
_HUE = tl.constexpr(codes.HUE)
_BLUR_ACROSS = tl.constexpr(codes.BLUR_ACROSS)
_BLUR_DOWN = tl.constexpr(codes.BLUR_DOWN)
_BOX_ACROSS = tl.constexpr(codes.BOX_ACROSS)
_CONTRAST = tl.constexpr(codes.CONTRAST)
_PIL_CONTRAST = tl.constexpr(codes.PIL_CONTRAST)
_AUTO_CONTRAST = tl.constexpr(codes.AUTO_CONTRAST)
_PIL_AUTO_CONTRAST = tl.constexpr(codes.PIL_AUTO_CONTRAST)
_BLEND = tl.constexpr(codes.BLEND)
_TIMM = tl.constexpr(codes.TIMM)
_JOB = tl.constexpr(codes.JOB)
_NUMBERS = tl.constexpr(codes.NUMBERS)
_BINADES = tl.constexpr(codes.BINADES)
_NOISE_PIXEL = tl.constexpr(codes.NOISE_PIXEL)
_NO_NOISE = tl.constexpr(codes.NO_NOISE)
_GOLDEN = tl.constexpr(GOLDEN)
_MIX1 = tl.constexpr(MIX1)
_MIX2 = tl.constexpr(MIX2)
_TURN = tl.constexpr(codes.TURN)


def _kernel(function: Any) -> Any:
    """A kernel that no argument specializes."""
    names = [name for name in inspect.signature(function).parameters if name not in function.__annotations__]
    return triton.jit(function, do_not_specialize=names, do_not_specialize_on_alignment=names)


# ---- arithmetic ----


@triton.jit
def _whole(x):
    """The nearest whole number, ties to even; exact below 2**22, and beyond still beyond every image."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _floor(x):
    """Of float32 below 2**31; Triton's own takes tiny numbers for 0 (cvt.rmi.ftz)."""
    down = x.to(tl.int32).to(tl.float32)
    return tl.where(down > x, down - 1.0, down)


@triton.jit
def _fma(a, b, c, WIDE: tl.constexpr):
    """a * b + c of float32, rounded once."""
    if WIDE:
        return (a.to(tl.float64) * b + c).to(tl.float32)
    else:
        return tl.fma(a, b, c)


@triton.jit
def _cut(x):
    """0..255 of float32, truncated to a byte."""
    return tl.minimum(tl.maximum(x, 0.0), 255.0).to(tl.int32).to(tl.uint8)


@triton.jit
def _between(i, low, high):
    return tl.minimum(tl.maximum(i, low), high)


@triton.jit
def _place(images, pool, place, count, n):
    """Where an image begins."""
    if place < count:
        at = images + place.to(tl.int64) * (3 * n)
    else:
        at = pool + (place - count).to(tl.int64) * (3 * n)
    return at


@triton.jit
def _gray(r, g, b, WIDE: tl.constexpr):
    """v2's gray, float32, not rounded."""
    return _fma(b, tl.full((1,), 0.114, tl.float32), _fma(g, tl.full((1,), 0.587, tl.float32), r * 0.2989, WIDE), WIDE)


@triton.jit
def _pil_gray(r, g, b):
    """PIL's L of int32."""
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


@triton.jit
def _mirrored(i, n):
    """Where row or column i is, for i in (-n, 2n - 1)."""
    i = tl.where(i < 0, -i, i)
    return tl.where(i < n, i, 2 * n - 2 - i)


# ---- one operation on a block of pixels ----


@triton.jit
def _take(src, dst, fill, ix, iy, n, height, width, pos, live):
    """The pixels at whole coordinates; the fill where they are outside."""
    inside = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height) & live
    for c in range(3):
        value = tl.load(src + c * n + iy * width + ix, mask=inside, other=0)
        tl.store(dst + c * n + pos, tl.where(inside, value, tl.load(fill + c)), mask=live)


@triton.jit
def _grid(p, first: tl.constexpr, xf, yf):
    """One coordinate of v2's affine grid, -1..1 across the image."""
    a = tl.load(p + first).to(tl.float32)
    b = tl.load(p + first + 1).to(tl.float32)
    return (xf * a + yf * b) + tl.load(p + first + 2).to(tl.float32)


@triton.jit
def _nearest(src, dst, fill, p, n, height, width, x, y, pos, live):
    xf = x.to(tl.float32) - (width - 1).to(tl.float32) * 0.5
    yf = y.to(tl.float32) - (height - 1).to(tl.float32) * 0.5
    wide = width.to(tl.float32)
    high = height.to(tl.float32)
    gx = (_grid(p, 0, xf, yf) + 1.0) * (wide * 0.5) - 0.5
    gy = (_grid(p, 3, xf, yf) + 1.0) * (high * 0.5) - 0.5
    ix = _between(_whole(gx), -1.0, wide).to(tl.int32)
    iy = _between(_whole(gy), -1.0, high).to(tl.int32)
    _take(src, dst, fill, ix, iy, n, height, width, pos, live)


@triton.jit
def _weighed(a, b, c, d, nw, ne, sw, se, WIDE: tl.constexpr):
    return _fma(d, se, _fma(c, sw, _fma(b, ne, a * nw, WIDE), WIDE), WIDE)


@triton.jit
def _bilinear(src, dst, fill, filled, p, n, height, width, x, y, pos, live, WIDE: tl.constexpr):
    """grid_sample as torch's vectorised CPU kernel computes it: what can be fused is."""
    xf = x.to(tl.float32) - (width - 1).to(tl.float32) * 0.5
    yf = y.to(tl.float32) - (height - 1).to(tl.float32) * 0.5
    wide = width.to(tl.float32)
    high = height.to(tl.float32)
    half = tl.full((1,), -0.5, tl.float32)
    gx = _between(_fma(_grid(p, 0, xf, yf) + 1.0, wide * 0.5, half, WIDE), -2.0, wide + 1.0)
    gy = _between(_fma(_grid(p, 3, xf, yf) + 1.0, high * 0.5, half, WIDE), -2.0, high + 1.0)
    left = _floor(gx)
    top = _floor(gy)
    w = gx - left
    e = 1.0 - w
    s = gy - top
    north = 1.0 - s
    nw = north * e
    ne = north * w
    sw = s * e
    se = s * w
    ix = left.to(tl.int32)
    iy = top.to(tl.int32)
    at = iy * width + ix
    west = (ix >= 0) & (ix < width)
    east = (ix >= -1) & (ix < width - 1)
    above = (iy >= 0) & (iy < height) & live
    below = (iy >= -1) & (iy < height - 1) & live
    inside = _weighed(
        (above & west).to(tl.float32), (above & east).to(tl.float32),
        (below & west).to(tl.float32), (below & east).to(tl.float32), nw, ne, sw, se, WIDE,
    )  # fmt: skip
    for c in range(3):
        q = src + c * n + at
        value = _weighed(
            tl.load(q, mask=above & west, other=0).to(tl.float32),
            tl.load(q + 1, mask=above & east, other=0).to(tl.float32),
            tl.load(q + width, mask=below & west, other=0).to(tl.float32),
            tl.load(q + width + 1, mask=below & east, other=0).to(tl.float32),
            nw, ne, sw, se, WIDE,
        )  # fmt: skip
        if filled != 0:
            colour = tl.load(fill + c).to(tl.float32)
            value = (value - colour) * inside + colour
        tl.store(dst + c * n + pos, _whole(value).to(tl.int32).to(tl.uint8), mask=live)


@triton.jit
def _pil_nearest(src, dst, fill, p, n, height, width, x, y, pos, live):
    x = x.to(tl.int64)
    y = y.to(tl.int64)
    ix = (x * tl.load(p).to(tl.int64) + y * tl.load(p + 1).to(tl.int64) + tl.load(p + 2).to(tl.int64)) >> 16
    iy = (x * tl.load(p + 3).to(tl.int64) + y * tl.load(p + 4).to(tl.int64) + tl.load(p + 5).to(tl.int64)) >> 16
    _take(src, dst, fill, ix, iy, n, height, width, pos, live)


@triton.jit
def _tap(src, ix, iy, height, width, live):
    at = _between(iy, 0, height - 1) * width + _between(ix, 0, width - 1)
    return tl.load(src + at, mask=live, other=0).to(tl.float32)


@triton.jit
def _between_two(src, ix, iy, dx, height, width, live):
    left = _tap(src, ix, iy, height, width, live)
    return (_tap(src, ix + 1, iy, height, width, live) - left) * dx + left


@triton.jit
def _cubic(v1, v2, v3, v4, d):
    """a = -1, as in PIL's Geometry.c."""
    p3 = (v1 - v2) * 2.0 + v3 - v4
    p4 = v2 - v1 - v3 + v4
    return ((p4 * d + p3) * d + (v3 - v1)) * d + v2


@triton.jit
def _cubic_row(src, ix, iy, dx, height, width, live):
    return _cubic(
        _tap(src, ix - 1, iy, height, width, live), _tap(src, ix, iy, height, width, live),
        _tap(src, ix + 1, iy, height, width, live), _tap(src, ix + 2, iy, height, width, live), dx,
    )  # fmt: skip


@triton.jit
def _pil_smooth(src, dst, fill, cubic, p, n, height, width, x, y, pos, live):
    """PIL's bilinear and bicubic warps: coordinates in double, values in float32."""
    xd = x.to(tl.float64) + 0.5
    yd = y.to(tl.float64) + 0.5
    u = xd * tl.load(p) + yd * tl.load(p + 1) + tl.load(p + 2)
    v = xd * tl.load(p + 3) + yd * tl.load(p + 4) + tl.load(p + 5)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & live
    u = _between(u - 0.5, -2.0, (width + 2).to(tl.float64))
    v = _between(v - 0.5, -2.0, (height + 2).to(tl.float64))
    left = tl.floor(u)
    top = tl.floor(v)
    dx = (u - left).to(tl.float32)
    dy = (v - top).to(tl.float32)
    ix = left.to(tl.int32)
    iy = top.to(tl.int32)
    for c in range(3):
        q = src + c * n
        if cubic:
            value = _cubic(
                _cubic_row(q, ix, iy - 1, dx, height, width, inside), _cubic_row(q, ix, iy, dx, height, width, inside),
                _cubic_row(q, ix, iy + 1, dx, height, width, inside),
                _cubic_row(q, ix, iy + 2, dx, height, width, inside), dy,
            )  # fmt: skip
        else:
            above = _between_two(q, ix, iy, dx, height, width, inside)
            value = (_between_two(q, ix, iy + 1, dx, height, width, inside) - above) * dy + above
        tl.store(dst + c * n + pos, tl.where(inside, _cut(value), tl.load(fill + c)), mask=live)


@triton.jit
def _blends(src, dst, op, p, n, pos, live, WIDE: tl.constexpr):
    """What a pixel becomes with its gray."""
    red = tl.load(src + pos, mask=live, other=0).to(tl.int32)
    green = tl.load(src + n + pos, mask=live, other=0).to(tl.int32)
    blue = tl.load(src + 2 * n + pos, mask=live, other=0).to(tl.int32)
    factor = tl.load(p).to(tl.float32)
    rest = tl.load(p + 1).to(tl.float32)
    if (op == _COLOR) | (op == _GRAYSCALE):
        gray = _floor(_gray(red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32), WIDE))
    else:
        gray = _pil_gray(red, green, blue).to(tl.float32)
    for c in tl.static_range(3):
        value = (red if c == 0 else (green if c == 1 else blue)).to(tl.float32)
        if op == _COLOR:
            value = _fma(gray, rest, value * factor, WIDE)
        elif op == _PIL_COLOR:
            value = (value - gray) * factor + gray
        else:
            value = gray
        tl.store(dst + c * n + pos, _cut(value), mask=live)


@triton.jit
def _sharpness(src, dst, op, p, n, height, width, x, y, pos, live, WIDE: tl.constexpr):
    """A blend with the 3x3 blur (1 1 1, 1 5 1, 1 1 1)/13; borders stay."""
    factor = tl.load(p).to(tl.float32)
    rest = tl.load(p + 1).to(tl.float32)
    inner = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1) & live
    for c in range(3):
        q = src + c * n + pos
        here = tl.load(q, mask=live, other=0)
        total = 4 * here.to(tl.int32)
        for dy in tl.static_range(-1, 2):
            for dx in tl.static_range(-1, 2):
                total += tl.load(q + dy * width + dx, mask=inner, other=0).to(tl.int32)
        value = here.to(tl.float32)
        blurred = _whole(total.to(tl.float32) * (1 / 13))
        if op == _SHARPNESS:
            value = _fma(blurred - value, rest, value, WIDE)
        else:
            value = (value - blurred) * factor + blurred
        tl.store(dst + c * n + pos, tl.where(inner, _cut(value), here), mask=live)


@triton.jit
def _hue(src, dst, p, n, pos, live):
    """The arithmetic of `pixel_ops.shift_hue`, whose products with 0 and 1 are selections."""
    r = tl.load(src + pos, mask=live, other=0).to(tl.float32) * (1.0 / 255)
    g = tl.load(src + n + pos, mask=live, other=0).to(tl.float32) * (1.0 / 255)
    b = tl.load(src + 2 * n + pos, mask=live, other=0).to(tl.float32) * (1.0 / 255)
    v = tl.maximum(tl.maximum(r, g), b)
    span = v - tl.minimum(tl.minimum(r, g), b)
    gray = tl.where(span == 0.0, 1.0, 0.0)
    s = tl.div_rn(span, v + gray)
    span = span + gray
    rc = tl.div_rn(v - r, span)
    gc = tl.div_rn(v - g, span)
    bc = tl.div_rn(v - b, span)
    h = tl.where(rc == 0.0, bc - gc, tl.where(gc == 0.0, rc + 2.0 - bc, gc + 4.0 - rc))
    h = h * (1.0 / 6.0) + 1.0
    h = h - _floor(h) + tl.load(p).to(tl.float32)
    h = (h - _floor(h)) * 6.0
    sector = _floor(h)
    sxf = s * (h - sector)
    rest = 1.0 - s
    q = _between((1.0 - sxf) * v, 0.0, 1.0)
    t = _between((sxf + rest) * v, 0.0, 1.0)
    w = _between(rest * v, 0.0, 1.0)
    k = sector.to(tl.int32)
    k = tl.where(k == 6, 0, k)  # adding a turn to a tiny negative hue rounds
    red = tl.where((k == 0) | (k == 5), v, tl.where(k == 1, q, tl.where(k == 4, t, w)))
    green = tl.where((k == 1) | (k == 2), v, tl.where(k == 3, q, tl.where(k == 0, t, w)))
    blue = tl.where((k == 3) | (k == 4), v, tl.where(k == 5, q, tl.where(k == 2, t, w)))
    tl.store(dst + pos, _cut(red * 255.999), mask=live)
    tl.store(dst + n + pos, _cut(green * 255.999), mask=live)
    tl.store(dst + 2 * n + pos, _cut(blue * 255.999), mask=live)


@triton.jit
def _blur_across(
    src, wide, weights, size, n, width, first, BLOCK: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr
):
    """The first pass of v2's Gaussian blur: bytes to float32."""
    line = weights + _BINADES
    for chunk in range(BLOCK // LANES):
        pos = first + chunk * LANES + tl.arange(0, LANES)
        live = pos < n
        y = pos // width
        x = pos - y * width - size // 2
        for c in range(3):
            total = tl.zeros((LANES,), tl.float32)
            for i in range(size):
                value = tl.load(src + c * n + y * width + _mirrored(x + i, width), mask=live, other=0)
                total = _fma(value.to(tl.float32), tl.load(line + i), total, WIDE)
            tl.store(wide + c * n + pos, total, mask=live)


@triton.jit
def _blur_down(
    src, dst, wide, weights, size, n, height, width, first,
    BLOCK: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The second pass. Where it ends so near to a half that the reference, the sum of all products in the order of
    `pixel_ops.convolve`, can lie on the other side (`codes`), that one is taken."""
    line = weights + _BINADES
    reach = size // 2
    for chunk in range(BLOCK // LANES):
        pos = first + chunk * LANES + tl.arange(0, LANES)
        live = pos < n
        y = pos // width
        x = pos - y * width
        for c in range(3):
            total = tl.zeros((LANES,), tl.float32)
            for i in range(size):
                value = tl.load(wide + c * n + _mirrored(y - reach + i, height) * width + x, mask=live, other=0.0)
                total = _fma(value, tl.load(line + i), total, WIDE)
            binade = _between((total.to(tl.int32, bitcast=True) >> 23) - 127, 0, _BINADES - 1)
            limit = tl.load(weights + binade)
            close = live & ~(tl.abs(total - _whole(total)) < limit)
            if tl.max(close.to(tl.int32), 0) > 0:
                again = tl.zeros((LANES,), tl.float32)
                for i in range(size):
                    row = src + c * n + _mirrored(y - reach + i, height) * width
                    weight = tl.load(line + i)
                    for j in range(size):
                        value = tl.load(row + _mirrored(x - reach + j, width), mask=close, other=0)
                        again = _fma(value.to(tl.float32), weight * tl.load(line + j), again, WIDE)
                total = tl.where(close, again, total)
            tl.store(dst + c * n + pos, _whole(total).to(tl.int32).to(tl.uint8), mask=live)


@triton.jit
def _box(src, dst, taps, size, step, n, i, length, pos, live):
    """One of PIL's box blurs along an axis, in 1 / 2**24; i: the place along it. step: from one pixel to the next."""
    for c in range(3):
        total = tl.zeros_like(pos).to(tl.uint32) + (1 << 23)
        for k in range(size):
            at = pos + (_between(i + k - size // 2, 0, length - 1) - i) * step
            value = tl.load(src + c * n + at, mask=live, other=0).to(tl.uint32)
            total += value * tl.load(taps + k).to(tl.uint32)
        tl.store(dst + c * n + pos, (total >> 24).to(tl.uint8), mask=live)


# ---- kernels ----


@_kernel
def slot(
    images, pool, wide, jobs, numbers, tables, made, weights, whole, fill, count, height, width,
    BLOCK: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One operation of each image that has one: a grid of (blocks of pixels, jobs)."""
    job = jobs + tl.program_id(1) * _JOB
    p = numbers + tl.load(job + 6) * _NUMBERS
    n = height * width
    op = tl.load(job)
    src = _place(images, pool, tl.load(job + 1), count, n)
    dst = pool + tl.load(job + 2).to(tl.int64) * (3 * n)
    at = tl.load(job + 3)
    size = tl.load(job + 4)
    extra = tl.load(job + 5)
    first = tl.program_id(0) * BLOCK
    pos = first + tl.arange(0, BLOCK)
    live = pos < n
    y = pos // width
    x = pos - y * width
    if op <= _MADE:
        for c in range(3):
            value = tl.load(src + c * n + pos, mask=live, other=0).to(tl.int32)
            if op == _FIXED:
                result = tl.load(tables + at + value, mask=live, other=0)
            else:
                result = tl.load(made + at + c * 256 + value, mask=live, other=0)
            tl.store(dst + c * n + pos, result, mask=live)
    elif op == _NEAREST:
        _nearest(src, dst, fill, p, n, height, width, x, y, pos, live)
    elif op == _BILINEAR:
        _bilinear(src, dst, fill, extra, p, n, height, width, x, y, pos, live, WIDE)
    elif op == _PIL_NEAREST:
        _pil_nearest(src, dst, fill, p, n, height, width, x, y, pos, live)
    elif op == _PIL_SCALED:
        ix = tl.load(whole + at + x, mask=live, other=0)
        iy = tl.load(whole + at + width + y, mask=live, other=0)
        _take(src, dst, fill, ix, iy, n, height, width, pos, live)
    elif op <= _PIL_BICUBIC:
        _pil_smooth(src, dst, fill, op == _PIL_BICUBIC, p, n, height, width, x, y, pos, live)
    elif op <= _PIL_GRAYSCALE:
        _blends(src, dst, op, p, n, pos, live, WIDE)
    elif op <= _PIL_SHARPNESS:
        _sharpness(src, dst, op, p, n, height, width, x, y, pos, live, WIDE)
    elif op == _HUE:
        _hue(src, dst, p, n, pos, live)
    elif op == _BLUR_ACROSS:
        wide += extra.to(tl.int64) * (3 * n)
        _blur_across(src, wide, weights + at, size, n, width, first, BLOCK, LANES, WIDE)
    elif op == _BLUR_DOWN:
        wide += extra.to(tl.int64) * (3 * n)
        _blur_down(src, dst, wide, weights + at, size, n, height, width, first, BLOCK, LANES, WIDE)
    elif op == _BOX_ACROSS:
        _box(src, dst, whole + at, size, 1, n, x, width, pos, live)
    else:
        _box(src, dst, whole + at, size, width, n, y, height, pos, live)


@_kernel
def tables(
    images, pool, made, jobs, numbers, count, height, width, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """The tables [3, 256] of operations that look at the image: a grid of (channels, jobs)."""
    channel = tl.program_id(0)
    job = jobs + tl.program_id(1) * _JOB
    p = numbers + tl.load(job + 6) * _NUMBERS
    n = height * width
    op = tl.load(job)
    src = _place(images, pool, tl.load(job + 1), count, n)
    out = made + tl.load(job + 3)
    v = tl.arange(0, 256)
    if (op > _PIL_CONTRAST) | (channel == 0):
        counted = tl.zeros((256,), tl.int32)
        for first in range(0, n, BLOCK):
            pos = first + tl.arange(0, BLOCK)
            live = pos < n
            if op > _PIL_CONTRAST:
                value = tl.load(src + channel * n + pos, mask=live, other=0).to(tl.int32)
            else:
                red = tl.load(src + pos, mask=live, other=0).to(tl.int32)
                green = tl.load(src + n + pos, mask=live, other=0).to(tl.int32)
                blue = tl.load(src + 2 * n + pos, mask=live, other=0).to(tl.int32)
                if op == _CONTRAST:
                    value = _gray(red.to(tl.float32), green.to(tl.float32), blue.to(tl.float32), WIDE).to(tl.int32)
                else:
                    value = _pil_gray(red, green, blue)
            counted += tl.histogram(value, 256, mask=live)
        f = v.to(tl.float32)
        low = tl.min(tl.where(counted > 0, v, 255), 0)
        high = tl.max(tl.where(counted > 0, v, 0), 0)
        if op <= _PIL_CONTRAST:
            total = tl.sum(counted.to(tl.int64) * v, 0)
            factor = tl.load(p).to(tl.float32)
            if op == _CONTRAST:
                mean = tl.div_rn(total.to(tl.float32), n.to(tl.float32))
                value = _cut(_fma(mean + 0.0 * f, tl.load(p + 1).to(tl.float32), f * factor, WIDE))
            else:
                mean = tl.floor(total.to(tl.float64) / n.to(tl.float64) + 0.5).to(tl.float32)
                value = _cut((f - mean) * factor + mean)
            for c in range(3):
                tl.store(out + c * 256 + v, value)
        else:
            if op == _AUTO_CONTRAST:
                span = (tl.maximum(high - low, 1) + 0 * v).to(tl.float32) * (1.0 / 255)
                value = _cut(tl.div_rn((v - low).to(tl.float32), span))
            elif op == _PIL_AUTO_CONTRAST:
                scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
                bent = v.to(tl.float64) * scale - low.to(tl.float64) * scale
                value = tl.floor(_between(bent, 0.0, 255.0)).to(tl.int32).to(tl.uint8)
            else:
                last = tl.sum(tl.where(v == high, counted, 0), 0)
                step = (n - last) // 255
                before = tl.cumsum(counted, 0) - counted
                value = _between((before + step // 2) // tl.maximum(step, 1), 0, 255)
                value = tl.where(step == 0, v, value).to(tl.uint8)
            if op <= _PIL_AUTO_CONTRAST:
                value = tl.where(low == high, v.to(tl.uint8), value)
            tl.store(out + channel * 256 + v, value)


@_kernel
def mix(
    images, pool, places, shares, target, chains, mode, count, height, width, BLOCK: tl.constexpr
):  # fmt: skip
    """AugMix's sums; places [B, 1 + chains]: the image and its chains; shares [B, 1 + chains]: of each."""
    row = tl.program_id(1)
    n = height * width
    pos = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pos < n
    places += row * (chains + 1)
    shares += row * (chains + 1)
    original = _place(images, pool, tl.load(places), count, n)
    own = tl.load(shares)
    dst = pool + (target + row).to(tl.int64) * (3 * n)
    for c in range(3):
        value = tl.load(original + c * n + pos, mask=live, other=0).to(tl.float32)
        total = value
        if mode == _TIMM:
            total = value * 0.0
        elif mode != _BLEND:
            total = value * own
        for i in range(chains):
            chain = _place(images, pool, tl.load(places + 1 + i), count, n)
            other = tl.load(chain + c * n + pos, mask=live, other=0).to(tl.float32)
            share = tl.load(shares + 1 + i)
            if mode == _BLEND:
                total = _floor(total + share * (other - total))
            else:
                total = total + other * share
        if mode == _TIMM:
            total = _floor(value + own * (_floor(_between(total, 0.0, 255.0)) - value))
        tl.store(dst + c * n + pos, total.to(tl.int32).to(tl.uint8), mask=live)


@triton.jit
def _log(x):
    """The logarithm of float32 2**-32..1, to a unit in the last place (FreeBSD's e_logf.c): the same everywhere."""
    bits = x.to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    k = ((bits >> 23) - 127).to(tl.float32)
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, 2.0 + f)
    z = s * s
    w = z * z
    rest = z * (0.66666662693 + w * 0.28498786688) + w * (0.40000972152 + w * 0.24279078841)
    half = 0.5 * f * f
    return s * (half + rest) + k * 9.0580006145e-06 - half + f + k * 6.9313812256e-01


@triton.jit
def _cos(x):
    """The cosine of float32 0..2 pi (Cephes' cosf), to 1e-7: the same everywhere."""
    q = _whole(x * 0.6366197723675814)
    r = ((x - q * 1.5703125) - q * 4.837512969970703125e-4) - q * 7.54978995489188216e-8
    z = r * r
    sine = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    cosine = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    k = q.to(tl.int32) & 3
    return tl.where(k == 0, cosine, tl.where(k == 1, -sine, tl.where(k == 2, -cosine, sine)))


@triton.jit
def _noise(key, stream, pixel):
    """`normalize_erase.noise`."""
    z = key + (pixel + (stream.to(tl.int64) << 32) + 1) * _GOLDEN
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX2
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    radius = (((z >> 32) & 0xFFFFFFFF).to(tl.float32) + 1.0) * (2.0**-32)
    angle = (z & 0xFFFFFFFF).to(tl.float32) * _TURN
    return _cos(angle) * tl.sqrt_rn(_log(radius) * -2.0)


@triton.jit
def _covering(boxes, row, most, x, y):
    """The last of an image's boxes that each pixel lies in, or -1."""
    last = tl.full(x.shape, -1, tl.int32)
    for e in range(most):
        box = boxes + (row * most + e) * 4
        top = tl.load(box)
        left = tl.load(box + 1)
        inside = (y >= top) & (y < top + tl.load(box + 2)) & (x >= left) & (x < left + tl.load(box + 3))
        last = tl.where(inside, e, last)
    return last


@triton.jit
def _finished(src, constants, last, key, value, c: tl.constexpr, n, pos, wanted, NOISE: tl.constexpr):
    """One channel of an image, normalized and erased."""
    result = tl.load(src + c * n + pos, mask=wanted & (last < 0), other=0).to(tl.float32)
    result = result * tl.load(constants + c) + tl.load(constants + 3 + c)
    if NOISE == _NO_NOISE:
        result = tl.where(last < 0, result, tl.load(value + c))
    elif tl.max(last, 0) >= 0:
        pixel = pos.to(tl.int64) if NOISE == _NOISE_PIXEL else (pos * 0).to(tl.int64)
        result = tl.where(last < 0, result, _noise(key, c + 3 * last, pixel))
    return result


@_kernel
def tail(
    images, pool, out, constants, places, mixing, boxes, keys, value, most, count, height, width,
    BLOCK: tl.constexpr, NOISE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Normalize, erase, CutMix or Mixup with row count - 1 - row, dtype and layout: a grid of (blocks, count).

    mixing [B, 6]: the share of the own row, of the other, and the pasted box: top, bottom, left, right.
    """
    row = tl.program_id(1)
    other = count - 1 - row
    n = height * width
    pos = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pos < n
    y = pos // width
    x = pos - y * width
    mixing += row * 6
    share = tl.load(mixing)
    rest = tl.load(mixing + 1)
    top = tl.load(mixing + 2)
    left = tl.load(mixing + 4)
    pasted = (y >= top) & (y < tl.load(mixing + 3)) & (x >= left) & (x < tl.load(mixing + 5)) & live
    src = _place(images, pool, tl.load(places + row), count, n)
    src2 = _place(images, pool, tl.load(places + other), count, n)
    last = _covering(boxes, row, most, x, y)
    last2 = _covering(boxes, other, most, x, y)
    key = tl.load(keys + row)
    key2 = tl.load(keys + other)
    for c in tl.static_range(3):
        result = _finished(src, constants, last, key, value, c, n, pos, live & ~pasted, NOISE)
        if rest != 0.0:
            result = result * share + _finished(src2, constants, last2, key2, value, c, n, pos, live, NOISE) * rest
        elif tl.max(pasted.to(tl.int32), 0) > 0:
            result = tl.where(pasted, _finished(src2, constants, last2, key2, value, c, n, pos, pasted, NOISE), result)
        at = out + row.to(tl.int64) * (3 * n)
        if LAST:
            tl.store(at + pos * 3 + c, result.to(out.dtype.element_ty), mask=live)
        else:
            tl.store(at + c * n + pos, result.to(out.dtype.element_ty), mask=live)
