"""The fused batch stage against the batched operations of torch on the CPU.

`test_fused.py` runs this in a process of its own: on the CPU with TRITON_INTERPRET=1, else on a GPU. It prints what it
found as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bench.gpu.interpreted import interpreter
from bench.gpu.paper import recipes
from dali_imagenet import Plan, SampleIndex, TrainRecipe
from dali_imagenet.ops import Op
from dali_imagenet.plan.batch_plan import BatchPlan, MixPlan
from dali_imagenet.policy import AugMix, OpPlan, TimmAugMix
from dali_imagenet.transforms import normalize_erase
from dali_imagenet.transforms.fused import program as fused_program
from dali_imagenet.transforms.fused import stage
from dali_imagenet.transforms.normalize_erase import normalize_constants
from dali_imagenet.transforms.pixel_ops import gaussian
from dali_imagenet.transforms.postprocess import Postprocess, run_batch
from tests.helpers import ARGUMENTS, FILL, PIL_WARPS, f32, patterns

Case = Callable[[], dict[str, Any]]
WARPS = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE, Op.AFFINE)
UNSCALED: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
SIZE = (33, 29)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def drawn(recipe: TrainRecipe, rows: int, step: int = 0) -> BatchPlan:
    index = SampleIndex.from_arrays(np.arange(8 * rows) % 5, 300, 400)
    return Plan(index, recipe, batch_size=rows, seed=5).batch(1, step)


def pictures(rows: int, height: int, width: int) -> Tensor:
    """Some of them noise, some smooth, each otherwise."""
    rng = np.random.default_rng(rows + height)
    coarse = torch.from_numpy(rng.integers(0, 256, (rows, 3, 5, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").to(torch.uint8)
    smooth[::3] = torch.from_numpy(rng.integers(0, 256, smooth[::3].shape, np.uint8))
    return smooth


def program(images: Tensor, *steps: tuple[Any, Any, Any], fill: Any = FILL) -> BatchPlan:
    """A plan of one operation for each image, or of several, with their arguments and auxes."""
    op, arg, aux = (np.array(v).reshape(len(images), -1) for v in zip(*steps, strict=True))
    part = OpPlan(op.astype(np.int16), arg.astype(np.float32), aux.astype(np.int16))
    plain = drawn(TrainRecipe(input_size=images.shape[2], **UNSCALED), len(images))
    return dataclasses.replace(plain, size=(images.shape[2], images.shape[3]), ops=(part,), fill=fill)


def finished(images: Tensor, plan: BatchPlan, **options: Any) -> Tensor:
    """By the kernels; on a GPU without waiting for it."""
    there, constants = images.to(DEVICE), normalize_constants(plan.mean, plan.std, DEVICE)
    if not INTERPRETED:
        stage.finish(there, plan, constants, **options)  # compiles
        torch.cuda.set_sync_debug_mode("error")
    result = stage.finish(there, plan, constants, **options)
    if not INTERPRETED:
        torch.cuda.set_sync_debug_mode("default")
    return result.cpu()


def bytes_of(images: Tensor, plan: BatchPlan) -> dict[str, Any]:
    """How many bytes the two ways give otherwise, before anything is normalized."""
    plan = dataclasses.replace(plan, mean=UNSCALED["mean"], std=UNSCALED["std"], erase=None, mix=None)
    before, want = images.clone(), images
    for part in plan.ops:
        want = run_batch(want, part, plan.fill)
    got = finished(images, plan, dtype=torch.float32)
    assert torch.equal(images, before)
    differ = got != want.float()
    return {"differ": int(differ.sum()), "changed": float((want != images).float().mean()), "rows": len(images),
            "where": differ.flatten(1).any(1).nonzero().flatten().tolist()}  # fmt: skip


def operations(op: Op, fill: Any, size: tuple[int, int]) -> dict[str, Any]:
    """One operation with each of its arguments, on a picture and on a noise that leaves the ends of the range free."""
    auxes = (0, 2, 3) if op in PIL_WARPS else (0, 2) if op in WARPS else (3, 7) if op == Op.GAUSSIAN_BLUR else (0,)
    arguments = list(ARGUMENTS[op])
    if op in (*WARPS, *PIL_WARPS):
        arguments = [*arguments[1:3], arguments[-1]] if fill is None or len(auxes) > 2 else arguments[1:]
    if len(auxes) * len(arguments) < 3:
        arguments = [*arguments] * 3
    steps = [(int(op), f32(a), x) for x in auxes for a in arguments]
    noise, bell = patterns(*size)[:2]
    images = torch.stack([bell if i % 3 == 1 else noise for i in range(len(steps))])
    images[::3] = pictures(len(steps), *size)[::3]
    return bytes_of(images, program(images, *steps, fill=fill))


def ties(looked_at: bool) -> dict[str, Any]:
    """One bright pixel, and widths at which two passes round its blur otherwise than the sum of all products."""
    widths = list[float]()
    for half in np.arange(40.5, 240.0):
        low, high = 0.2, 2.0  # the wider, the darker
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if 255 * float(gaussian(f32(middle), 3)[0][1]) ** 2 > half else (low, middle)
        for sigma in np.float32(low) + np.arange(-20, 20, dtype=np.float32) * np.spacing(np.float32(low)):
            peak = gaussian(float(sigma), 3)[0].numpy()[1]
            if np.rint(255 * (peak * peak)) != np.rint(255 * peak * peak):
                widths.append(float(sigma))
                break
        if len(widths) == 4:
            break
    images = torch.zeros((4, 3, 9, 20), dtype=torch.uint8)
    images[:, :, 4, 10] = 255
    with contextlib.ExitStack() as stack:
        if not looked_at:
            never = np.full(8, -0.5, np.float32)
            stack.enter_context(mock.patch.object(fused_program, "blur_bounds", return_value=never))
        return bytes_of(images, program(images, *((Op.GAUSSIAN_BLUR, sigma, 3) for sigma in widths)))


def affine_parts() -> dict[str, Any]:
    """What comes before an affine is of that affine, also where another operation is between."""
    parts = [(Op.AFFINE_X, 3.0), (Op.AFFINE_SCALE, 0.8), (Op.INVERT, 0.0), (Op.AFFINE_SHEAR_Y, 7.5)]
    images = pictures(5, *SIZE)
    rows = [(Op.AFFINE, 0), (Op.AFFINE, 2), (Op.PIL_AFFINE, 0), (Op.PIL_AFFINE, 3), (Op.PIL_AFFINE, 2)]
    op = [[*(o for o, _ in parts), affine, Op.AFFINE_X, affine] for affine, _ in rows]
    arg = [[*(a for _, a in parts), 15.0, 4.0, 0.0]] * 5
    aux = [[0, 0, 0, 0, filter, 0, filter] for _, filter in rows]
    return bytes_of(images, program(images, *zip(op, arg, aux, strict=True)))


def floats(recipe: TrainRecipe, rows: int, size: tuple[int, int], **changed: Any) -> dict[str, Any]:
    """The whole stage: how far the two ways are apart, without noise and with it, and half precision from float32."""
    plan = dataclasses.replace(drawn(recipe, rows), size=size, **changed)
    images, found = pictures(rows, *size), dict[str, Any]()
    way = normalize_erase.per_image
    normalize_erase.per_image = lambda images: False
    want = Postprocess().finish_batch(images, plan, mix=True)
    normalize_erase.per_image = way
    got = finished(images, plan, dtype=torch.float32, mix=True)
    noisy = torch.zeros(rows, 1, *size, dtype=torch.bool)
    if plan.erase is not None and plan.erase_mode != "const":
        for row, boxes in enumerate(plan.erase.tolist()):
            for top, left, height, width in boxes:
                noisy[row, :, top : top + height, left : left + width] = True
        noisy |= noisy.flip(0)
    apart = (got - want).abs()
    found["apart"], found["noise"] = float(apart.masked_fill(noisy, 0).max()), float(apart.max())
    found["values"], found["noisy"] = float(want.std()), int(noisy.sum())
    for dtype in (torch.bfloat16, torch.float16):
        half = finished(images, plan, dtype=dtype, memory_format=torch.channels_last, mix=True)
        assert half.is_contiguous(memory_format=torch.channels_last)
        # the interpreter cuts bfloat16 where a GPU rounds
        found[str(dtype)] = (
            float(((half.float() - got).abs() / got.abs().clamp(min=0.1)).max()) / torch.finfo(dtype).eps
        )
    return found


def boxes(rows: int, *some: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """[B, 2, 4]: an image with one box, one with two that overlap, the others with none."""
    found = np.zeros((rows, 2, 4), np.int32)
    found[0, 0], found[2] = some[0], some[1:3]
    return found


def cases() -> Iterator[tuple[str, Case]]:
    for op in Op:
        yield op.name, partial(operations, op, FILL, SIZE)
        if op in (*WARPS, *PIL_WARPS):
            yield f"{op.name}, black", partial(operations, op, None, SIZE)
    for op in (Op.SHARPNESS, Op.PIL_SHARPNESS, Op.EQUALIZE, Op.ROTATE, Op.PIL_GAUSSIAN_BLUR):
        yield f"{op.name}, tiny", partial(operations, op, FILL, (2, 5))
    yield "ties", partial(ties, True)
    yield "ties, not looked at", partial(ties, False)
    yield "affine parts", affine_parts
    for name, recipe in recipes().items():
        small = recipe.replace(input_size=29)
        if small.gaussian_blur_prob > 0:
            small = small.replace(gaussian_blur_kernel=5)  # the interpreter is slow
        yield f"recipe {name}", partial(bytes_of, pictures(6, 29, 29), drawn(small, 6))
    for name in ("autoaugment", "rand-m9-mstd0.5-inc1", "original", "3-augment"):
        yield f"policy {name}", partial(oblong, TrainRecipe(input_size=27, auto_augment=name))
    for name, augmix in (
        ("torchvision", AugMix(severity=9)),
        ("timm", TimmAugMix(magnitude=6, fill=FILL)),
        ("blend", TimmAugMix(magnitude=6, blended=True)),
    ):
        yield f"augmix {name}", partial(oblong, TrainRecipe(input_size=27, auto_augment=augmix, grayscale_prob=0.5))
    strong = TrainRecipe.strong(input_size=33, mixup_alpha=0.0, cutmix_alpha=0.0)
    cut = np.arange(7) % 2 == 0
    for mode in ("const", "rand", "pixel"):
        changed = {
            "erase": boxes(7, (0, 0, 9, 9), (3, 4, 20, 20), (10, 10, 19, 19)),
            "erase_mode": mode,
            "erase_value": (0.5, -1.0, 2.0),
            "mix": MixPlan(np.full(7, 0.25, np.float32), cut, np.outer(cut, [3, 4, 20, 21]).astype(np.int32)),
        }
        yield f"tail {mode}", partial(floats, strong, 7, SIZE, **changed)
    yield "tail unmixed", partial(floats, strong, 4, SIZE, mix=None, erase=None)
    yield "tail without operations", partial(floats, TrainRecipe.classic(input_size=33), 4, (16, 40))


def oblong(recipe: TrainRecipe) -> dict[str, Any]:
    """A policy on images of 27 x 34 pixels."""
    return bytes_of(pictures(6, 27, 34), dataclasses.replace(drawn(recipe, 6), size=(27, 34)))


def main(only: list[str]) -> None:
    found = {}
    with interpreter() if INTERPRETED else contextlib.nullcontext():
        for name, case in cases():
            if not only or name in only:
                start = time.process_time()
                found[name] = case() | {"seconds": round(time.process_time() - start, 2)}
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
