"""The table of operations: complete, and the same for policies and both executors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dali_imagenet.ops import AFFINE_PARTS, OPS, Op, check_op
from dali_imagenet.policy import TablePolicy
from dali_imagenet.transforms import pixel_ops, pixel_ops_batched
from dali_imagenet.transforms.fused import program
from dali_imagenet.transforms.pixel_ops import apply_ops_image
from dali_imagenet.transforms.pixel_ops_batched import apply_ops_batch

EVERY = [op for op in Op if op != Op.IDENTITY]


ARGUMENTS = {
    **{"SOLARIZE_ADD": 50.0, "SOLARIZE": 99.0, "POSTERIZE": 3.0, "ROTATE": 20.0, "TRANSLATE_X": 5.0},
    "AFFINE": 20.0,
}
"""Some that change an image; 0.4 for the others."""


def an_aux(op: Op) -> int:
    """One that the operation takes."""
    aux = OPS[op].default_aux
    return 5 if aux is None else aux


def test_every_operation_has_a_row_and_all_executors() -> None:
    assert set(OPS) == set(Op)
    assert set(pixel_ops.EXECUTORS) == set(EVERY)
    assert set(pixel_ops_batched.EXECUTED) == set(EVERY)
    assert set(program.EXECUTED) == set(Op)


@pytest.mark.parametrize("op", EVERY, ids=lambda op: op.name)
def test_both_executors_carry_it_out(op: Op) -> None:
    arg, aux = ARGUMENTS.get(op.name.removeprefix("PIL_").replace("_Y", "_X"), 0.4), an_aux(op)
    values = np.random.default_rng(0).integers(30, 220, (2, 3, 24, 31), np.uint8)
    images = torch.from_numpy(values)
    step = np.full((2, 1), op), np.full((2, 1), arg, np.float32), np.full((2, 1), aux)
    together = apply_ops_batch(images, *step)
    alone = torch.stack([apply_ops_image(image, [op], [arg], [aux]).clone() for image in images])
    assert torch.equal(alone, images) == (op in AFFINE_PARTS)
    assert int((together.int() - alone.int()).abs().max()) <= 1


def test_an_operation_without_an_executor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_ops_batched, "EXECUTED", frozenset({int(Op.INVERT)}))
    images, one = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), np.ones((1, 1))
    with pytest.raises(NotImplementedError, match="no batched executor for EQUALIZE"):
        apply_ops_batch(images, np.full((1, 1), Op.EQUALIZE), one, one)
    monkeypatch.delitem(pixel_ops.EXECUTORS, Op.TRANSLATE_X)
    with pytest.raises(KeyError):
        apply_ops_image(images[0], [Op.TRANSLATE_X], [1.0], [0])


@pytest.mark.parametrize("op", EVERY, ids=lambda op: op.name)
def test_a_policy_takes_what_the_executors_take(op: Op) -> None:
    info = OPS[op]
    for end in (info.low, info.high):
        if np.isfinite(end):
            aux = an_aux(op)
            TablePolicy(sub_policies=[[(op, 1.0, end, False, aux)]])
            check_op(op, end, aux)
            beyond = end + (1 if end == info.high else -1)
            with pytest.raises(ValueError, match=f"{op.name}: argument"):
                check_op(op, beyond, aux)
            with pytest.raises(ValueError, match=f"{op.name}: magnitude"):
                TablePolicy(sub_policies=[[(op, 1.0, beyond, False, aux)]])
    if info.aux != "none":
        for call in (lambda: check_op(op, 1.0, 4), lambda: TablePolicy(sub_policies=[[(op, 1.0, 1.0, False, 4)]])):
            with pytest.raises(ValueError, match=f"{op.name}: aux=4: must be"):
                call()
