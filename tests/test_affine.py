"""Turn, shift, scale and shear as one warp: what is given adds up to torchvision's affine, in every executor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dali_imagenet.ops import Op
from dali_imagenet.transforms import pixel_ops
from dali_imagenet.transforms.pixel_ops import apply_ops_image
from dali_imagenet.transforms.pixel_ops_batched import apply_ops_batch
from tests.helpers import FILL, f32
from torchvision_fallback.reference import chain

PARTS = [Op.AFFINE_X, Op.AFFINE_Y, Op.AFFINE_SCALE, Op.AFFINE_SHEAR_X, Op.AFFINE_SHEAR_Y]
WARPS: list[tuple[float, ...]] = [  # right, down, scale, shears, degrees
    (0, 0, 1, 0, 0, 0),
    (4.4, -3.6, 1, 0, 0, 0),
    (0, 0, 0.7, 0, 0, 0),
    (0.5, 1.5, 1.3, 0, 0, 0),
    (0, 0, 1, 20, 0, 0),
    (2, -1, 1, 10, -15, 0),
    (-3, 5, 0.83, 12, 7, -33),
    (60, 0, 2.5, 0, 0, 180),
    (0, 0, 0.05, 0, 0, 90),
]
FILTERS = {0: InterpolationMode.NEAREST, 2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}


def images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (count, 3, 37, 52), np.uint8))


def program(warp: tuple[float, ...], op: Op, aux: int) -> tuple[list[int], list[float], list[int]]:
    return [*map(int, PARTS), int(op)], [f32(v) for v in warp], [0] * 5 + [aux]


def expected(image: torch.Tensor, warp: tuple[float, ...], aux: int, pil: bool) -> torch.Tensor:
    x, y, scale, shear_x, shear_y, degrees = map(f32, warp)
    given: Any = F.to_pil_image(image) if pil else image
    moved: Any = F.affine(given, angle=degrees, translate=[round(x), round(y)], scale=scale, shear=[shear_x, shear_y],
                          interpolation=FILTERS[aux], fill=[float(v) for v in FILL])  # fmt: skip
    return F.pil_to_tensor(moved) if pil else torch.as_tensor(moved)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize(("op", "aux"), [(Op.AFFINE, 0), (Op.AFFINE, 2), *((Op.PIL_AFFINE, x) for x in FILTERS)])
def test_every_executor_gives_torchvisions_affine(
    op: Op, aux: int, warp: tuple[float, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(pixel_ops, "_pixel_ops", None)
    [image] = images(1)
    theirs = expected(image, warp, aux, op == Op.PIL_AFFINE)
    ours = apply_ops_image(image, *program(warp, op, aux), FILL)
    ops, args, auxes = map(np.array, program(warp, op, aux))
    reference = chain(image, ops, args, auxes, FILL)
    assert torch.equal(reference, theirs)
    differs = (ours.int() - theirs.int()).abs()
    if op == Op.PIL_AFFINE:
        assert not differs.any()
    else:  # a matrix product that fuses takes another pixel where a sample is on a border
        assert (differs > 0).float().mean() <= (2e-3 if aux == 0 else 2e-4)


@pytest.mark.parametrize(("op", "aux"), [(Op.AFFINE, 0), (Op.AFFINE, 2), *((Op.PIL_AFFINE, x) for x in FILTERS)])
def test_a_batch_equals_its_images(op: Op, aux: int) -> None:
    """Each row with its own, and nothing of one warp in the next."""
    batch = images(len(WARPS))
    rows = [program(warp, op, aux) for warp in WARPS]
    rows = [tuple(part + part[3:] for part in row) for row in rows]  # type: ignore[misc]  # then sheared and turned again
    ops, args, auxes = (np.array(part) for part in zip(*rows, strict=True))
    together = apply_ops_batch(batch, ops, args, auxes, FILL)
    alone = torch.stack([apply_ops_image(i, *row, FILL).clone() for i, row in zip(batch, rows, strict=True)])
    least = 0 if aux == 0 or op == Op.AFFINE else 2  # two warps, each within 1
    assert int((together.int() - alone.int()).abs().max()) <= least


@pytest.mark.parametrize("op", [Op.AFFINE, Op.PIL_AFFINE])
def test_what_was_given_is_used_once(op: Op) -> None:
    [image] = images(1)
    once = apply_ops_image(image, [Op.AFFINE_X, op], [5.0, 0.0], [0, 0]).clone()
    assert not torch.equal(once, image)
    again = apply_ops_image(image, [Op.AFFINE_X, op, op], [5.0, 0.0, 0.0], [0, 0, 0])
    assert torch.equal(again, once)
