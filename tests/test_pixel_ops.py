"""Pixel operations against torchvision's v2 functional and timm on PIL; batches against images; erasing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm_ops
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dali_imagenet.ops import AFFINE_PARTS, Op
from dali_imagenet.plan.batch_plan import EraseMode
from dali_imagenet.transforms import normalize_erase
from dali_imagenet.transforms.normalize_erase import erase_, erase_image_, noise, normalize, normalize_constants
from dali_imagenet.transforms.pixel_ops import Workspace, affine_theta, apply_ops_image
from dali_imagenet.transforms.pixel_ops_batched import apply_ops_batch
from tests.helpers import (
    ARGUMENTS,
    DTYPES,
    FILL,
    MEMORY_FORMATS,
    PIL_WARPS,
    SCRATCH,
    NoHostReads,
    auxes,
    every_case,
    f32,
    patterns,
    per_image,
)

SIZES = [(224, 224), (17, 31), (64, 48), (1, 1), (2, 5)]
TORCH_OPS = [o for o in Op if o < 100]
PIL_OPS = [o for o in Op if o >= 100]


def torchvision_reference(image: Tensor, op: Op, arg: float, aux: int, fill: Sequence[float] | None) -> Tensor:
    tilt = math.degrees(math.atan(arg))

    def affine(**changed: Any) -> Any:
        fixed: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": fill}
        return F.affine(image, **(fixed | changed))

    references: dict[Op, Callable[[], Tensor]] = {
        Op.IDENTITY: lambda: image,
        Op.SHEAR_X: lambda: affine(shear=[tilt, 0.0], center=[0, 0]),
        Op.SHEAR_Y: lambda: affine(shear=[0.0, tilt], center=[0, 0]),
        Op.TRANSLATE_X: lambda: affine(translate=[int(arg), 0]),
        Op.TRANSLATE_Y: lambda: affine(translate=[0, int(arg)]),
        Op.ROTATE: lambda: F.rotate(image, arg, fill=fill),
        **dict.fromkeys(AFFINE_PARTS, lambda: image),  # what they say, an AFFINE does
        Op.AFFINE: lambda: affine(angle=arg),
        Op.BRIGHTNESS: lambda: F.adjust_brightness(image, arg),
        Op.COLOR: lambda: F.adjust_saturation(image, arg),
        Op.CONTRAST: lambda: F.adjust_contrast(image, arg),
        Op.SHARPNESS: lambda: F.adjust_sharpness(image, arg),
        Op.POSTERIZE: lambda: F.posterize(image, int(arg)),
        Op.SOLARIZE: lambda: F.solarize(image, arg),
        Op.AUTO_CONTRAST: lambda: F.autocontrast(image),
        Op.EQUALIZE: lambda: F.equalize(image),
        Op.INVERT: lambda: F.invert(image),
        Op.HUE: lambda: F.adjust_hue(image, arg),
        Op.GRAYSCALE: lambda: F.rgb_to_grayscale(image, 3),
        Op.GAUSSIAN_BLUR: lambda: F.gaussian_blur(image, [aux, aux], [arg, arg]),
        Op.SOLARIZE_ADD: lambda: torch.where(image < 128, (image.int() + int(arg)).clamp(max=255), image.int()).byte(),
    }
    return references[op]()


def pil_affine(image: Image.Image, degrees: float, resample: Image.Resampling, **changed: Any) -> Any:
    fixed: dict[str, Any] = {"angle": degrees, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    mode = InterpolationMode(resample.name.lower())
    return F.affine(image, **(fixed | changed), interpolation=mode, fill=list(FILL))


def timm_reference(image: Tensor, op: Op, arg: float, aux: int) -> Tensor:
    pil = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    warp: dict[str, Any] = {"fillcolor": FILL, "resample": Image.Resampling(aux)}
    references: dict[Op, Callable[[], Image.Image]] = {
        Op.PIL_SHEAR_X: lambda: timm_ops.shear_x(pil, arg, **warp),
        Op.PIL_SHEAR_Y: lambda: timm_ops.shear_y(pil, arg, **warp),
        Op.PIL_TRANSLATE_X: lambda: timm_ops.translate_x_abs(pil, arg, **warp),
        Op.PIL_TRANSLATE_Y: lambda: timm_ops.translate_y_abs(pil, arg, **warp),
        Op.PIL_ROTATE: lambda: timm_ops.rotate(pil, arg, **warp),
        Op.PIL_AFFINE: lambda: pil_affine(pil, arg, warp["resample"]),
        Op.PIL_BRIGHTNESS: lambda: timm_ops.brightness(pil, arg),
        Op.PIL_COLOR: lambda: timm_ops.color(pil, arg),
        Op.PIL_CONTRAST: lambda: timm_ops.contrast(pil, arg),
        Op.PIL_SHARPNESS: lambda: timm_ops.sharpness(pil, arg),
        Op.PIL_POSTERIZE: lambda: timm_ops.posterize(pil, int(arg)) if arg else Image.new("RGB", pil.size),
        Op.PIL_SOLARIZE: lambda: timm_ops.solarize(pil, int(arg)),
        Op.PIL_AUTO_CONTRAST: lambda: timm_ops.auto_contrast(pil),
        Op.PIL_EQUALIZE: lambda: timm_ops.equalize(pil),
        Op.PIL_INVERT: lambda: timm_ops.invert(pil),
        Op.PIL_GRAYSCALE: lambda: pil.convert("L").convert("RGB"),
        Op.PIL_GAUSSIAN_BLUR: lambda: timm_ops.gaussian_blur(pil, arg),
        Op.PIL_SOLARIZE_ADD: lambda: timm_ops.solarize_add(pil, int(arg)),
    }
    return torch.from_numpy(np.array(references[op]())).permute(2, 0, 1)


def blas_rounds_each_step() -> bool:
    """Whether this CPU's matrix product rounds x*a + y*b + c as v2's affine grid is reproduced here, without fusing."""
    x, y = torch.meshgrid(torch.linspace(-111.5, 111.5, 224), torch.linspace(-111.5, 111.5, 224), indexing="ij")
    row = torch.tensor([0.00881894, 0.00139678, 0.01230781])
    grid = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3)
    return torch.equal(grid.bmm(row.view(1, 3, 1)).view(224, 224), (x * row[0] + y * row[1]) + row[2])


EXACT_WARPS = blas_rounds_each_step()


def near_a_border(op: Op, arg: float, height: int, width: int) -> Tensor:
    """bool [H, W]: where a nearest sample lies so close to the border between two pixels that fusing may move it.

    Round numbers put many there: a shear by 3.0 one in a hundred.
    """
    theta = torch.from_numpy(affine_theta(op, arg, height, width)).double()
    x = torch.arange(width, dtype=torch.float64)[None] - (width - 1) * 0.5
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) * 0.5
    at = [(x * a + y * b + c + 1) * size * 0.5 for (a, b, c), size in zip(theta.tolist(), (width, height), strict=True)]
    return torch.stack([(g - g.round()).abs() < 1e-3 for g in at]).any(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", TORCH_OPS, ids=lambda o: o.name)
def test_one_image_equals_torchvision(op: Op, size: tuple[int, int]) -> None:
    for image in patterns(*size):
        before = image.clone()
        for arg in map(f32, ARGUMENTS[op]):
            for aux in auxes(op, *size):
                for fill in (None, FILL) if op <= Op.ROTATE or op == Op.AFFINE else (None,):
                    expected = torchvision_reference(image, op, arg, aux, fill and [float(f) for f in fill])
                    result = apply_ops_image(image, [op], [arg], [aux], fill, SCRATCH)
                    differs = result != expected
                    if op in (Op.SHEAR_X, Op.SHEAR_Y, Op.ROTATE, Op.AFFINE) and not EXACT_WARPS:
                        if aux == 0:
                            differs &= ~near_a_border(op, arg, *image.shape[1:])
                        assert int(differs.sum()) <= (2e-4 * image.numel() if aux else 0), (arg, aux, fill)
                    else:
                        assert not differs.any(), (arg, aux, fill)
        assert torch.equal(image, before)


@pytest.mark.parametrize("size", [(65, 90), (17, 31), (1, 1), (2, 5)])
@pytest.mark.parametrize("op", PIL_OPS, ids=lambda o: o.name)
def test_one_image_equals_timm(op: Op, size: tuple[int, int]) -> None:
    for image in patterns(*size):
        for arg in map(f32, ARGUMENTS[op]):
            for aux in auxes(op, *size):
                result = apply_ops_image(image, [op], [arg], [aux], FILL, SCRATCH)
                assert torch.equal(result, timm_reference(image, op, arg, aux)), (arg, aux)


@pytest.mark.parametrize("size", [(64, 48), (17, 31), (2, 5), (1, 1)])
@pytest.mark.parametrize("op", list(Op), ids=lambda o: o.name)
def test_batch_equals_images(op: Op, size: tuple[int, int]) -> None:
    if not auxes(op, *size):
        pytest.skip("no kernel fits")
    images, ops, arg, aux = every_case(op, size)
    before = images.clone()
    result = apply_ops_batch(images, ops, arg, aux, FILL)
    expected = per_image(images, ops, arg, aux)
    smooth = np.isin(aux[:, 0], (2, 3)) & (op in PIL_WARPS)
    assert torch.equal(result[~smooth], expected[~smooth])
    difference = (result[smooth].int() - expected[smooth].int()).abs()
    assert difference.numel() == 0 or difference.max() <= 1  # the stated bound
    if min(size) > 2 and difference.numel():
        most = 0.5 if op == Op.PIL_AFFINE else 0.04  # right angles, whose cosine torchvision does not round to 0
        assert (difference > 0).float().flatten(1).mean(1).max() <= most
    assert torch.equal(images, before)


def random_program(
    count: int, slots: int, size: int, seed: int, ops: Sequence[Op]
) -> tuple[Tensor, NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, size, size + 3), dtype=np.uint8))
    op = rng.choice(np.array(ops), (count, slots)).astype(np.int16)
    arg = np.array([[rng.choice(np.array(ARGUMENTS[Op(o)])) for o in row] for row in op], np.float32)
    aux = np.array([[rng.choice((3, 5)) if o == Op.GAUSSIAN_BLUR else 0 for o in row] for row in op], np.int16)
    return images, op, arg.reshape(op.shape), aux.reshape(op.shape)


@pytest.mark.parametrize(("count", "slots"), [(1, 1), (1, 4), (3, 2), (40, 1), (40, 3), (64, 4)])
def test_mixed_programs(count: int, slots: int) -> None:
    program = random_program(count, slots, 33, count + slots, list(Op))
    assert torch.equal(apply_ops_batch(*program, FILL), per_image(*program))


def test_fill_none_is_black_in_a_batch() -> None:
    images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    op = np.array([[Op.TRANSLATE_X], [Op.PIL_TRANSLATE_X]], np.int16)
    result = apply_ops_batch(images, op, np.array([[3], [-3]], np.float32), np.zeros((2, 1), np.int16), None)
    assert (result[..., :3] == 0).all()
    assert (result[..., 3:] == 255).all()


def test_nothing_to_do_gives_the_image_itself() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for slots in (0, 2):
        zeros = np.zeros((2, slots))
        assert apply_ops_batch(images, zeros.astype(np.int16), zeros, zeros.astype(np.int16)) is images
        assert apply_ops_image(images[0], [0] * slots, [0.0] * slots, [0] * slots).data_ptr() == images.data_ptr()


def test_any_strides() -> None:
    image = patterns(40, 50)[0]
    view = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for op in (Op.ROTATE, Op.EQUALIZE, Op.PIL_ROTATE, Op.TRANSLATE_Y, Op.SHARPNESS, Op.PIL_INVERT):
        assert torch.equal(apply_ops_image(view, [op], [5.0], [0]), apply_ops_image(image, [op], [5.0], [0]))
    batch = torch.stack([image, image]).contiguous(memory_format=torch.channels_last)
    op_arg_aux = np.full((2, 1), Op.COLOR, np.int16), np.full((2, 1), 0.3), np.zeros((2, 1), np.int16)
    assert torch.equal(apply_ops_batch(batch, *op_arg_aux), apply_ops_batch(batch.contiguous(), *op_arg_aux))


def test_maps_are_bounded() -> None:
    scratch = Workspace(map_bytes=4 * 32 * 32 * 3)
    image = patterns(32, 32)[0]
    for angle in range(1, 9):
        apply_ops_image(image, [Op.ROTATE], [angle], [0], None, scratch)
    assert len(scratch._maps) == 3
    assert scratch._held == sum(m.nbytes for m in scratch._maps.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(1, 8, 8, dtype=torch.uint8)}, "RGB"),
        ({"image": torch.zeros(3, 8, 8)}, "uint8"),
        ({"op": 99}, "op=99: must be one of IDENTITY"),
        ({"op": Op.POSTERIZE, "arg": 9.0}, r"POSTERIZE: argument=9.0: must be in \[0, 8\]"),
        ({"op": Op.COLOR, "arg": -0.5}, "COLOR: argument=-0.5"),
        ({"op": Op.PIL_CONTRAST, "arg": -0.5}, "PIL_CONTRAST: argument=-0.5"),
        ({"op": Op.HUE, "arg": 0.6}, r"HUE: argument=0.6: must be in \[-0.5, 0.5\]"),
        ({"op": Op.GAUSSIAN_BLUR, "arg": 1.0, "aux": 4}, "an odd number"),
        ({"op": Op.PIL_ROTATE, "arg": 1.0, "aux": 1}, "bilinear"),
        ({"fill": (1, 2)}, "three numbers"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    case: dict[str, Any] = {
        "image": torch.zeros(3, 8, 8, dtype=torch.uint8),
        "op": Op.INVERT,
        "arg": 0.0,
        "aux": 0,
        "fill": None,
    } | change
    with pytest.raises(ValueError, match=message):
        apply_ops_image(case["image"], [case["op"]], [case["arg"]], [case["aux"]], case["fill"])
    op, arg, aux = (np.array([[case[name]]]) for name in ("op", "arg", "aux"))
    with pytest.raises(ValueError, match=message):
        apply_ops_batch(case["image"][None], op, arg, aux, case["fill"])


def test_batch_refuses_a_program_of_another_size() -> None:
    zeros = np.zeros((3, 1), np.int16)
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        apply_ops_batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), zeros, zeros, zeros)


def boxes() -> NDArray[np.int32]:
    erase = np.zeros((6, 2, 4), np.int32)
    erase[1] = [[0, 0, 10, 10], [5, 5, 20, 20]]
    erase[3, 1] = [30, 20, 10, 10]
    erase[4, 0] = [0, 0, 40, 30]
    return erase


KEYS = np.random.default_rng(0).integers(0, 2**64, 6, dtype=np.uint64)


def test_batch_never_waits() -> None:
    program = random_program(60, 3, 33, 5, list(Op))
    smooth = [every_case(op, (9, 9)) for op in PIL_WARPS]
    images = torch.zeros(6, 3, 40, 30)
    with NoHostReads():
        apply_ops_batch(*program, FILL)
        for case in smooth:
            apply_ops_batch(*case, FILL)
        for mode in ("const", "rand", "pixel"):
            normalize_erase._erase_batch(images, np.arange(6), boxes(), KEYS, mode, 0.0)
    with NoHostReads(), pytest.raises(AssertionError, match="wait"):
        torch.ones(1).item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_gives_the_same_without_waiting() -> None:
    program = random_program(128, 3, 64, 7, list(Op))
    images = program[0].cuda()
    constants = normalize_constants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "cuda")
    floats = torch.empty(images.shape, device="cuda", dtype=torch.float16)
    erased = torch.zeros(6, 3, 40, 30, device="cuda")
    apply_ops_batch(images, *program[1:], FILL)  # the first calls may set up libraries
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = apply_ops_batch(images, *program[1:], FILL)
        normalize(result, constants, floats)
        erase_(erased, boxes(), KEYS, "pixel")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = apply_ops_batch(*program, FILL)
    difference = (result.cpu().int() - expected.int()).abs()
    assert (difference > 0).float().mean() < 1e-3  # a blur or a contrast may round otherwise; chains spread it
    host = torch.zeros(6, 3, 40, 30)
    torch.testing.assert_close(erased.cpu(), erase_(host, boxes(), KEYS, "pixel"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_normalize(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.stack(patterns(17, 31))
    out = torch.empty(images.shape, dtype=dtype).contiguous(memory_format=memory_format)
    result = normalize(images, normalize_constants(mean, std), out)
    assert result is out
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(out, expected.to(dtype), atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=8e-3)
    single = normalize(images[1], normalize_constants(mean, std), torch.empty_like(out)[1])
    assert torch.equal(single, out[1])


def test_normalize_refusals() -> None:
    constants = normalize_constants((0, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="uint8"):
        normalize(torch.zeros(1, 4, 4, dtype=torch.uint8), constants, torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="above 0"):
        normalize_constants((0, 0, 0), (1, 0, 1))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_erase(mode: EraseMode, dtype: torch.dtype) -> None:
    original = torch.full((6, 3, 40, 30), 9.0, dtype=dtype)
    images = original.clone()
    assert erase_(images, boxes(), KEYS, mode) is images
    inside = torch.zeros(6, 1, 40, 30, dtype=torch.bool)
    for row, slot in np.argwhere(boxes()[:, :, 2] > 0):
        top, left, height, width = boxes()[row, slot]
        inside[row, :, top : top + height, left : left + width] = True
    assert torch.equal(images != 9.0, inside.expand_as(images))
    if mode == "const":
        assert (images[inside.expand_as(images)] == 0).all()
    else:
        first, second = images[4], images[1, :, 5:25, 5:25]
        levels = 3 if mode == "rand" else 1000
        assert (len(first.unique()) == 3) == (levels == 3)
        assert not torch.equal(first[:, 5:25, 5:25], second)
    device_way = original.clone()
    rows = np.array([1, 3, 4])
    normalize_erase._erase_batch(device_way, rows, boxes()[rows], KEYS[rows], mode, 0.0)
    assert torch.equal(device_way, images)
    single = original[1].clone()
    erase_image_(single, boxes()[1], int(KEYS[1]), mode)
    assert torch.equal(single, images[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_erasing_to_what_the_dtype_does_not_hold(dtype: torch.dtype) -> None:
    images, rows, value = torch.zeros(6, 3, 40, 30, dtype=dtype), np.array([1, 3, 4]), (1e5, -1e5, 0.1)
    device_way = images.clone()
    normalize_erase._erase_batch(device_way, rows, boxes()[rows], KEYS[rows], "const", value)
    assert torch.equal(erase_(images, boxes(), KEYS, "const", value), device_way)
    assert images[4, :, 0, 0].tolist() == torch.tensor(value).to(dtype).tolist()


def test_erase_refusals_and_nothing() -> None:
    images = torch.zeros(6, 3, 40, 30)
    assert erase_(images, None, KEYS) is images
    assert (erase_(images, np.zeros((6, 1, 4), np.int32), KEYS, "pixel") == 0).all()
    with pytest.raises(ValueError, match="mode"):
        erase_(images, boxes(), KEYS, "random")  # type: ignore[arg-type]  # refused
    with pytest.raises(ValueError, match="erase of"):
        erase_(images[:2], boxes(), KEYS)
    erase_(images, boxes(), KEYS, "const", (1.0, 2.0, 3.0))
    assert images[4, :, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_noise_is_standard_normal() -> None:
    stats = pytest.importorskip("scipy.stats")
    keys = torch.from_numpy(KEYS.view(np.int64))[:, None, None]
    values = noise(keys, torch.arange(6)[:, None], torch.arange(8000))
    assert values.shape == (6, 6, 8000)
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.001
    rows = values.flatten(0, 1).double()
    correlation = torch.corrcoef(torch.cat([rows, rows.roll(1, 1)]))
    off_diagonal = correlation - torch.diag(correlation.diag())
    assert off_diagonal.abs().max() < 6 / math.sqrt(8000)
    assert torch.equal(values, noise(keys, torch.arange(6)[:, None], torch.arange(8000)))
