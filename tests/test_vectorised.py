"""Parameters for many images at once are those of each one, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from dali_imagenet.ops import Op
from dali_imagenet.transforms.pixel_ops import (
    PIL_POINT_OPS,
    POINT_OPS,
    affine_theta,
    gaussian_kernel,
    point_lut,
)
from dali_imagenet.transforms.vectorised import affine_thetas, gaussian_kernels, point_luts

DRAW = np.random.default_rng(0)
WARPS = {
    Op.SHEAR_X: DRAW.uniform(-1, 1, 200),
    Op.SHEAR_Y: DRAW.uniform(-1, 1, 200),
    Op.TRANSLATE_X: DRAW.uniform(-150, 150, 200),
    Op.TRANSLATE_Y: DRAW.uniform(-150, 150, 200),
    Op.ROTATE: np.concatenate([DRAW.uniform(-400, 400, 200), [0, 90, -90, 180, 360]]),
}


@pytest.mark.parametrize("op", WARPS)
@pytest.mark.parametrize("size", [(224, 224), (45, 97)])
def test_matrices(op: Op, size: tuple[int, int]) -> None:
    for args in (WARPS[op], WARPS[op].astype(np.float32), np.zeros(1)):
        found = affine_thetas(op, args, *size)
        assert found.tobytes() == b"".join(affine_theta(op, float(arg), *size).tobytes() for arg in args)
    assert affine_thetas(op, np.empty(0), *size).shape == (0, 2, 3)


def test_tables() -> None:
    whole = {Op.POSTERIZE, Op.PIL_POSTERIZE, Op.SOLARIZE_ADD, Op.PIL_SOLARIZE_ADD}
    ops = DRAW.permutation(np.repeat([*POINT_OPS, *PIL_POINT_OPS], 40))
    args = np.where(np.isin(ops, list(whole)), DRAW.integers(1, 8, len(ops)), DRAW.uniform(0, 2.5, len(ops)))
    for given in (args, args.astype(np.float32)):
        expected = b"".join(point_lut(int(op), float(arg)) for op, arg in zip(ops, given, strict=True))
        assert point_luts(ops, given).tobytes() == expected


@pytest.mark.parametrize("size", [3, 9, 23])
def test_kernels(size: int) -> None:
    sigmas = DRAW.uniform(0.05, 3, 100).astype(np.float32)
    expected = np.stack([gaussian_kernel(float(sigma), size).numpy() for sigma in sigmas])
    assert gaussian_kernels(sigmas, size).tobytes() == expected.tobytes()
