"""Parameters of pixel operations for many images at once: the same bits as `pixel_ops` gives for each.

Sines, cosines and tangents stay Python's: numpy's vectorised ones may differ in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dali_imagenet.ops import Op
from dali_imagenet.transforms.pixel_ops import pil_blend, point_lut

_F64 = npt.NDArray[np.float64]
_ROWS = 32  # of a softmax at a time, which torch does not share among threads: waking them takes longer


def affine_thetas(op: int, args: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.float32]:
    """`affine_theta` of one operation but AFFINE, for each argument: float32 [G, 2, 3]."""
    a, b, c, d = (np.full(len(args), value) for value in (1.0, -0.0, 0.0, 1.0))
    cx = cy = 0.0
    tx = ty = np.zeros(len(args))
    if op == Op.ROTATE:
        angle = [math.radians(-(arg % 360)) for arg in args.tolist()]
        c, a = _each(math.sin, angle), _each(math.cos, angle)
        b, d = -(a * 0.0 + c), a - c * 0.0
    elif op == Op.TRANSLATE_X:
        tx = np.trunc(args.astype(np.float64))
    elif op == Op.TRANSLATE_Y:
        ty = np.trunc(args.astype(np.float64))
    else:
        cx, cy = -width * 0.5, -height * 0.5
        shear = [math.radians(math.degrees(math.atan(arg))) for arg in args.tolist()]
        if op == Op.SHEAR_X:
            tangent = _each(math.tan, shear)
            b, d = -(a * tangent + 0.0), d - c * tangent
        else:
            minus = [0.0 - angle for angle in shear]
            a = _each(math.cos, minus) / _each(math.cos, shear)
            c = _each(math.sin, minus) / _each(math.cos, shear)
            b, d = -(a * 0.0 + 0.0), 1.0 - c * 0.0
    x, y = cx + tx, cy + ty
    a, b, c, d = d, -b, -c, a
    six = [a, b, cx - a * x - b * y, c, d, cy - c * x - d * y]
    theta = np.stack(six, axis=1).astype(np.float32).reshape(-1, 2, 3)
    theta /= np.array([[0.5 * width], [0.5 * height]], np.float32)
    return theta


def _each(function: Callable[[float], float], values: Sequence[float]) -> _F64:
    return np.array([function(value) for value in values], np.float64)


def point_luts(op: npt.NDArray[Any], args: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """`point_lut` of each row: uint8 [G, 256]."""
    tables = np.empty((len(op), 256), np.uint8)
    values = np.arange(256, dtype=np.float32)
    for number in np.unique(op).tolist():
        mine = op == number
        given = args[mine].astype(np.float64)
        if number == Op.BRIGHTNESS:
            tables[mine] = np.clip(values * given[:, None].astype(np.float32), 0, 255)
        elif number == Op.PIL_BRIGHTNESS:
            tables[mine] = pil_blend(np.zeros(256, np.float32), values, given[:, None])
        else:  # of few arguments, whose tables are kept
            made = b"".join(point_lut(number, arg) for arg in given.tolist())
            tables[mine] = np.frombuffer(made, np.uint8).reshape(-1, 256)
    return tables


def gaussian_kernels(sigmas: npt.NDArray[Any], size: int) -> npt.NDArray[np.float32]:
    """`gaussian_kernel` of each sigma, which is above 0: float32 [G, size, size]."""
    limit = (size - 1) / (2.0 * math.sqrt(2.0))
    x = torch.linspace(-limit, limit, steps=size, dtype=torch.float32, device="cpu")
    sigma = torch.from_numpy(sigmas.astype(np.float32))[:, None]
    powers = x.div(sigma).pow(2).neg()
    line = torch.cat([torch.softmax(part, dim=1) for part in torch.split(powers, _ROWS)]).numpy()
    kernels: npt.NDArray[np.float32] = line[:, :, None] * line[:, None, :]
    return kernels
