"""The compiled pixel loops against Pillow, and against the Python that takes over where they were not built."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.transforms.v2.functional import adjust_contrast

from dali_imagenet.ops import Op
from dali_imagenet.plan.batch_plan import MixPlan
from dali_imagenet.policy import AugMixPlan
from dali_imagenet.transforms import normalize_erase, pixel_ops, postprocess
from dali_imagenet.transforms.normalize_erase import erase_image_, normalize, normalize_constants
from dali_imagenet.transforms.pixel_ops import Workspace, apply_ops_image, pil_matrix
from dali_imagenet.transforms.postprocess import mix_, run_image
from tests.helpers import FILL, auxes, every_case, per_image

warp = pixel_ops._pixel_ops
pytestmark = pytest.mark.skipif(warp is None, reason="dali_imagenet.transforms._pixel_ops was not built")

SIZES = [(1, 1), (1, 9), (9, 1), (2, 5), (8, 8), (17, 31), (40, 300), (224, 224)]
Matrix = tuple[float, ...]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def compiled(image: NDArray[np.uint8], matrix: Matrix, aux: int) -> NDArray[np.uint8]:
    """The warped image; fails where memory around the result or the scratch memory was written to."""
    assert warp is not None
    _, height, width = image.shape
    sizes, guard = (image.size, 9 * (height + 4) * (width + 4)), 64
    out, room = (np.full(size + 2 * guard, 0xA5, np.uint8) for size in sizes)
    inner = [memory[guard : guard + size] for memory, size in zip((out, room), sizes, strict=True)]
    warp.affine(image, *inner, height, width, matrix, FILL, aux == 3)
    for memory in (out, room):
        assert (memory[:guard] == 0xA5).all()
        assert (memory[-guard:] == 0xA5).all()
    return inner[0].reshape(image.shape)


def pillow(image: NDArray[np.uint8], matrix: Matrix, aux: int) -> NDArray[np.uint8]:
    source = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    filtering = Image.Resampling(aux)
    result = source.transform(source.size, Image.Transform.AFFINE, matrix, resample=filtering, fillcolor=FILL)
    return np.asarray(result).transpose(2, 0, 1)


@pytest.mark.parametrize("aux", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_affine_equals_pillow(size: tuple[int, int], aux: int) -> None:
    rng, image = np.random.default_rng(7), noise(*size)
    shifts = np.array([1, 1, 20, 1, 1, 20])
    for _ in range(12):
        free = tuple(rng.normal(size=6) * shifts)
        quarters = tuple(np.round(rng.normal(size=6) * shifts * 4) / 4)  # samples on and between pixels
        across = (1.0 + rng.choice([0, 1e-15, 0.3]), rng.normal(), rng.normal() * 9, 0.0, 1.0, 0.0)
        down = (1.0, 0.0, 0.0, rng.normal(), 1.0 + rng.choice([0, 1e-15, 0.3]), rng.normal() * 9)
        for matrix in (free, quarters, across, down):
            assert np.array_equal(compiled(image, matrix, aux), pillow(image, matrix, aux)), matrix


@pytest.mark.parametrize("aux", [2, 3])
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (32, 32)])
def test_affine_of_extreme_numbers(size: tuple[int, int], aux: int) -> None:
    rng, image = np.random.default_rng(8), noise(*size)
    values = [
        0.0,
        -0.0,
        5e-324,
        1e-300,
        1e-17,
        0.5,
        1 - 2**-53,
        1.0,
        1 + 2**-52,
        -1.0,
        31.5,
        2.0**31,
        -(2.0**63),
        1e308,
    ]
    for _ in range(80):
        matrix = tuple(rng.choice(values, 6))
        with np.errstate(all="ignore"):
            assert np.array_equal(compiled(image, matrix, aux), pillow(image, matrix, aux)), matrix
    outside = np.broadcast_to(np.array(FILL, np.uint8)[:, None, None], image.shape)
    for place in range(6):
        for value in (math.nan, math.inf, -math.inf):
            matrix = tuple(value if i == place else float(i in (0, 4)) for i in range(6))
            assert np.array_equal(compiled(image, matrix, aux), outside), matrix


@pytest.mark.parametrize("size", [(32, 32), (32, 17)])
@pytest.mark.parametrize("aux", [2, 3])
def test_rotations_that_pillow_treats_apart(size: tuple[int, int], aux: int) -> None:
    image = noise(*size)
    source = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for degrees in (0.0, 90.0, 180.0, 270.0, -90.0, 360.0, 450.0):
        rotated = source.rotate(degrees, resample=Image.Resampling(aux), fillcolor=FILL)
        result = compiled(image, pil_matrix(Op.PIL_ROTATE, degrees, *size), aux)
        assert np.array_equal(result, np.asarray(rotated).transpose(2, 0, 1)), degrees


@pytest.mark.parametrize("size", [(65, 300), (64, 48), (2, 5), (1, 1)])
@pytest.mark.parametrize("op", list(Op), ids=lambda o: o.name)
def test_python_gives_the_same(op: Op, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    if not auxes(op, *size):
        pytest.skip("no kernel fits")
    images, ops, arg, aux = every_case(op, size)
    fast = per_image(images, ops, arg, aux)
    monkeypatch.setattr(pixel_ops, "_pixel_ops", None)
    plain = per_image(images, ops, arg, aux)
    if op == Op.GAUSSIAN_BLUR and not torch_adds_row_by_row():
        assert (fast.int() - plain.int()).abs().max() <= 1
        assert (fast != plain).float().mean() < 1e-3
    else:
        assert torch.equal(fast, plain)


@pytest.mark.parametrize("size", [(257, 256), (256, 258)])  # the last whose sum of grays is exact, and the next
def test_contrast_where_sums_round(size: tuple[int, int]) -> None:
    image = torch.from_numpy(noise(*size) | 0xF0)
    result = apply_ops_image(image, [Op.CONTRAST], [0.1], [0])
    assert torch.equal(result, adjust_contrast(image, 0.1))


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.3, 1.0, 1.99, 2.0, 7.5, 40.0, 100.0])
def test_gaussian_blur_of_any_radius(radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in SIZES[:-1]:
        image = torch.from_numpy(noise(*size))
        case = image[None], np.array([[Op.PIL_GAUSSIAN_BLUR]]), np.array([[radius]]), np.array([[0]])
        fast = per_image(*case)
        with monkeypatch.context() as patch:
            patch.setattr(pixel_ops, "_pixel_ops", None)
            assert torch.equal(fast, per_image(*case)), size


def test_hue_of_every_kind_of_color(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.tensor([0, 1, 2, 84, 127, 128, 129, 200, 254, 255], dtype=torch.uint8)
    image = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 40, 25)
    for turns in (-0.5, -1 / 3, -1e-8, 0.0, 1e-8, 0.1, 1 / 6, 0.5):
        case = image, np.array([[Op.HUE]]), np.array([[turns]]), np.array([[0]])
        fast = per_image(*case)
        with monkeypatch.context() as patch:
            patch.setattr(pixel_ops, "_pixel_ops", None)
            assert torch.equal(fast, per_image(*case)), turns


@pytest.mark.parametrize("mode", ["torchvision", "timm", "blend"])
@pytest.mark.parametrize("size", [(1, 1), (17, 31), (64, 48)])
def test_augmix_gives_the_same(mode: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng, scratch = np.random.default_rng(9), Workspace()
    image = torch.from_numpy(noise(*size))
    for share in (0.0, 0.3, 1.0):
        op = rng.choice([Op.IDENTITY, Op.INVERT, Op.PIL_ROTATE, Op.TRANSLATE_X], (1, 3, 2)).astype(np.int16)
        arg = rng.uniform(-9, 9, op.shape).astype(np.float32)
        weights = rng.dirichlet([1, 1, 1], 1).astype(np.float32)
        aux = np.where(op == Op.PIL_ROTATE, 3, 0).astype(np.int16)
        plan = AugMixPlan(op, arg, aux, weights, np.array([share], np.float32), mode)
        fast = run_image(image, plan, 0, FILL, scratch).clone()
        with monkeypatch.context() as patch:
            patch.setattr(pixel_ops, "_pixel_ops", None)
            assert torch.equal(fast, run_image(image, plan, 0, FILL, scratch))


def test_augmix_of_any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    image, scratch = torch.from_numpy(noise(17, 31)), Workspace()
    op = np.array([[[Op.INVERT]]], np.int16)
    for weight in (1e8, -1e8, 3e9):
        numbers = np.array([[weight]], np.float32), np.ones(1, np.float32)
        plan = AugMixPlan(op, np.zeros(op.shape, np.float32), np.zeros_like(op), *numbers, "timm")
        fast = run_image(image, plan, 0, FILL, scratch).clone()
        with monkeypatch.context() as patch:
            patch.setattr(pixel_ops, "_pixel_ops", None)
            assert torch.equal(fast, run_image(image, plan, 0, FILL, scratch)), weight


@pytest.mark.parametrize("op", [Op.TRANSLATE_X, Op.TRANSLATE_Y], ids=lambda op: op.name)
def test_a_translation_of_any_length_leaves_the_fill(op: Op) -> None:
    for way in (2e8, -2e8, 1e19):
        result = apply_ops_image(torch.from_numpy(noise(5, 7)), [op], [way], [0], FILL)
        assert (result == torch.tensor(FILL)[:, None, None]).all()


def test_gather_stays_inside() -> None:
    assert warp is not None
    image, room = noise(5, 7), np.zeros(36, np.uint32)
    out = np.zeros_like(image)
    index = np.full((5, 7), 35, np.int32)
    index[0] = [0, 34, -1, 2**31 - 1, -(2**31), 35, 36]
    warp.gather(image, out, index, room, FILL)
    assert out[:, 0, :2].tolist() == image.reshape(3, -1)[:, [0, 34]].tolist()
    assert (out.reshape(3, -1)[:, 2:] == np.array(FILL)[:, None]).all()


@pytest.mark.parametrize("down", [-(10**6), -6, -5, -4, 0, 1, 4, 5, 9])
def test_shift_by_any_way(down: int) -> None:
    assert warp is not None
    image = noise(5, 7)
    for right in (-(10**6), -8, -7, -3, 0, 1, 6, 7, 8):
        out, expected = np.zeros_like(image), np.empty_like(image)
        expected[:] = np.array(FILL, np.uint8)[:, None, None]
        for y in range(5):
            for x in range(7):
                if 0 <= y - down < 5 and 0 <= x - right < 7:
                    expected[:, y, x] = image[:, y - down, x - right]
        warp.shift(image, out, 5, 7, down, right, FILL)
        assert np.array_equal(out, expected), right


TABLES: dict[Op, list[float]] = {
    Op.POSTERIZE: [0, 1, 3, 8],
    Op.SOLARIZE: [0, 0.5, 1, 127, 128.25, 255],
    Op.SOLARIZE_ADD: [0, 1, 110, 255],
    Op.INVERT: [0],
    Op.BRIGHTNESS: [0, 0.3, 1, 1.9, 255, 1e6],
    Op.CONTRAST: [0, 0.3, 1, 1.9, 255],
    Op.PIL_CONTRAST: [0, 0.3, 1, 1.9, 255],
    Op.EQUALIZE: [0],
    Op.AUTO_CONTRAST: [0],
    Op.PIL_AUTO_CONTRAST: [0],
}


@pytest.mark.parametrize("op", TABLES, ids=lambda op: op.name)
def test_tables_of_all_kinds_of_images(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value, few values, one value, one pixel of another value; sizes that are no multiple of a vector."""
    rng = np.random.default_rng(10)
    images = [
        np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0),
        rng.choice(np.array([0, 7, 255], np.uint8), (3, 9, 37)),
        np.stack([np.full((33, 1), value, np.uint8) for value in (0, 128, 255)]),
        *(np.full((3, 20, 20), value, np.uint8) for value in (0, 9, 255)),
        (100 + rng.normal(size=(3, 31, 33)) * 4).astype(np.uint8),
        np.where(rng.random((3, 64, 50)) < 0.9, 3, noise(64, 50)).astype(np.uint8),
    ]
    images[-4][:, 3, 4] = [1, 254, 128]
    for image in images:
        for arg in TABLES[op]:
            case = torch.from_numpy(image)[None], np.array([[op]]), np.array([[arg]]), np.array([[0]])
            fast = per_image(*case)
            with monkeypatch.context() as patch:
                patch.setattr(pixel_ops, "_pixel_ops", None)
                assert torch.equal(fast, per_image(*case)), (image.shape, arg)


def test_wrong_memory_is_refused() -> None:
    assert warp is not None
    image, room = noise(5, 7), np.zeros(9 * 9 * 11, np.uint8)
    out, index, one = np.zeros_like(image), np.zeros(35, np.int32), np.ones(1, np.float32)
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    for wrong in (
        (image, out, room, 5, 8),
        (image, out, room, -5, -7),
        (image, out, room, 0, 7),
        (image, out, room, 2**40, 2**40),
        (image[:2].copy(), out, room, 5, 7),
        (image, out[:2], room, 5, 7),
        (image, out, room[:-1], 5, 7),
    ):
        with pytest.raises(ValueError, match="memory"):
            warp.affine(*wrong, identity, FILL, True)
        with pytest.raises(ValueError, match="memory"):
            warp.gaussian_blur(*wrong, 1.0)
    for radius in (math.nan, math.inf, 1e7):
        with pytest.raises(ValueError, match="1e6"):
            warp.gaussian_blur(image, out, room, 5, 7, radius)
    for index_and_room in ((index[:-1], np.zeros(36, np.uint32)), (index, np.zeros(35, np.uint32))):
        with pytest.raises(ValueError, match="int32"):
            warp.gather(image, out, *index_and_room, FILL)
    for wrong_shift in ((image, out, 5, 8, 0, 0), (image, out[:2], 5, 7, 0, 0), (image, out, 5, 7, 2**40, 0)):
        with pytest.raises(ValueError, match="memory"):
            warp.shift(*wrong_shift, FILL)
    with pytest.raises(ValueError, match="chain"):
        warp.mix(image, image[:1].copy(), one, 0.0, 1.0, out)
    with pytest.raises(TypeError, match="read-write"):
        warp.equalize(image, bytes(image.size), room, 5, 7, 0.0)


@cache
def torch_adds_row_by_row() -> bool:
    """Whether conv2d has the order of `_pixel_ops.convolve` here, as with oneDNN on AVX2 and above."""
    assert warp is not None
    image, kernel = torch.from_numpy(noise(53, 114)).float(), pixel_ops.gaussian_kernel(1.5, 23)
    out = np.empty((3, 31, 92), np.float32)
    warp.convolve(image.numpy(), kernel.numpy(), out, 31, 92, 23)
    return np.array_equal(out, conv2d(image[None], kernel.expand(3, 1, 23, 23), groups=3)[0].numpy())


@pytest.mark.parametrize(("height", "width"), [(4, 16), (5, 17), (31, 70), (64, 64), (224, 224)])
@pytest.mark.parametrize("size", [1, 3, 23, 63])
def test_convolve_adds_up_as_torch(height: int, width: int, size: int) -> None:
    if not torch_adds_row_by_row():
        pytest.skip("torch adds up otherwise on this CPU")
    assert warp is not None
    margin = size - 1
    image = torch.from_numpy(noise(height + margin, width + margin)).float()
    for sigma in (0.1, 0.5, 2.0):
        kernel = pixel_ops.gaussian_kernel(sigma, size)
        guarded = np.full(3 * height * width + 32, -1.0, np.float32)
        warp.convolve(image.numpy(), kernel.numpy(), guarded[16:-16], height, width, size)
        expected = conv2d(image[None], kernel.expand(3, 1, size, size), groups=3)[0]
        assert np.array_equal(guarded[16:-16].reshape(3, height, width), expected.numpy())
        assert (guarded[:16] == -1).all()
        assert (guarded[-16:] == -1).all()


def test_convolve_refuses_wrong_memory() -> None:
    assert warp is not None
    image, kernel, out = (np.zeros(shape, np.float32) for shape in ((3, 22, 42), (3, 3), (3, 20, 40)))
    for wrong in (
        (image, kernel, out, 20, 41, 3),
        (image, kernel, out, 2**40, 40, 3),
        (image, kernel, out, -20, -40, 3),
        (image, kernel, out, 20, 40, 0),
        (image, kernel[:2].copy(), out, 20, 40, 3),
        (image, kernel, out[:2].copy(), 20, 40, 3),
        (image[:, :5, :].copy(), kernel, out[:, :3, :].copy(), 3, 40, 3),
        (np.zeros((3, 83, 103), np.float32), np.zeros((64, 64), np.float32), out, 20, 40, 64),
    ):
        with pytest.raises(ValueError, match="memory of the sizes"):
            warp.convolve(*wrong)


def reflected(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    margin = size // 2
    return np.pad(image, [(0, 0), (margin, margin), (margin, margin)], mode="reflect").astype(np.float32)


def reference_sums(image: NDArray[np.uint8], kernel: Tensor) -> NDArray[np.float32]:
    """The blur before it is rounded: row by row, fused."""
    assert warp is not None
    out = np.empty(image.shape, np.float32)
    warp.convolve(reflected(image, len(kernel)), kernel.contiguous().numpy(), out, *image.shape[1:], len(kernel))
    return out


def two_pass_sums(image: NDArray[np.uint8], line: Tensor) -> NDArray[np.float32]:
    """What `blur` has before it looks for ties: a kernel of one column or row adds nothing else."""
    assert warp is not None
    size, (_, height, width) = len(line), image.shape
    down, across = torch.zeros(2, size, size)
    down[:, size // 2] = across[size // 2] = torch.where(line > 1e-12, line, 0)  # TINY in _pixel_ops.c
    rows, out = np.empty((3, height, width), np.float32), np.empty((3, height, width), np.float32)
    warp.convolve(reflected(image, size), down.numpy(), rows, height, width, size)
    margin = size // 2
    padded = np.pad(rows, [(0, 0), (margin, margin), (margin, margin)], mode="reflect")
    warp.convolve(padded, across.numpy(), out, height, width, size)
    return out


def blurred(image: NDArray[np.uint8], line: Tensor, kernel: Tensor, slack: float = 1.0) -> NDArray[np.uint8]:
    """`blur`; fails where memory around the result or the scratch memory was written to."""
    assert warp is not None
    _, height, width = image.shape
    sizes, guard = (image.size, 4 * (height + 2) * (width + len(line) + 44) + 32), 64
    out, room = (np.full(size + 2 * guard, 0xA5, np.uint8) for size in sizes)
    inner = [memory[guard : guard + size] for memory, size in zip((out, room), sizes, strict=True)]
    warp.blur(image, line.numpy(), kernel.contiguous().numpy(), *inner, height, width, slack)
    for memory in (out, room):
        assert (memory[:guard] == 0xA5).all()
        assert (memory[-guard:] == 0xA5).all()
    return inner[0].reshape(image.shape)


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.37, 0.5, 1.0, 2.0, 9.0])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(4, 16, 1), (4, 16, 7), (5, 17, 3), (12, 31, 23), (31, 33, 23), (64, 70, 63), (65, 96, 5), (97, 224, 23)],
)
def test_two_passes_give_the_bytes_of_one(height: int, width: int, size: int, sigma: float) -> None:
    line, kernel = pixel_ops.gaussian(sigma, size)
    rows, columns = np.mgrid[:height, :width]
    patterns = [
        noise(height, width),
        np.stack([rows % 2 + columns % 2, (rows + columns) % 2 * 255, columns % 2]).astype(np.uint8),  # all are ties
        np.stack([np.full((height, width), v) for v in (0, 7, 255)]).astype(np.uint8),
        np.stack([columns // 8 % 2, rows // 9 % 2 * 255, (columns > 9) & (rows > 2)]).astype(np.uint8),
    ]
    for image in patterns:
        expected = np.rint(reference_sums(image, kernel)).astype(np.uint8)
        assert np.array_equal(blurred(image, line, kernel), expected)


def astray(kernel: Tensor, windows: int, seed: int, sign: int) -> NDArray[np.uint8]:
    """Windows [windows, size, size] whose sum goes far from the exact one, and then to near a half.

    A greedy search: step by step the pixel that rounds the sum most to one side; the last ones lead it to a half.
    """
    rng, weights = np.random.default_rng(seed), kernel.double().flatten().numpy()
    rest = weights[::-1].cumsum()[::-1]
    steered = int(np.argmax(rest * 255 < 8))
    total, goal = np.zeros(windows), np.zeros(windows)
    pixels = np.empty((windows, len(weights)), np.uint8)
    for i, weight in enumerate(weights):
        if i < steered:
            tried = rng.integers(128, 256, (windows, 48))
            exact = total[:, None] + tried * weight
            best = (sign * (exact.astype(np.float32) - exact)).argmax(1)
            chosen = tried[np.arange(windows), best]
        else:
            if i == steered:
                goal = np.floor(total + 180 * rest[i]) + 0.5
            chosen = np.clip(np.rint((goal - total) / max(rest[i], 1e-300)), 0, 255).astype(np.int64)
        pixels[:, i] = chosen
        total = (total + chosen * weight).astype(np.float32).astype(np.float64)
    return pixels.reshape(windows, *kernel.shape)


@pytest.mark.parametrize("size", [9, 23, 35])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 5.0])
def test_how_far_two_passes_can_be_from_one(sigma: float, size: int) -> None:
    assert warp is not None
    line, kernel = pixel_ops.gaussian(sigma, size)
    bound = np.array(warp.blur_bounds(torch.where(line > 1e-12, line, 0).numpy(), kernel.contiguous().numpy()))
    tiles = 12
    windows = np.concatenate([astray(kernel, 3 * tiles**2 // 2, seed, 1 - 2 * seed) for seed in (0, 1)])
    image = windows.reshape(3, tiles, tiles, size, size).swapaxes(2, 3).reshape(3, tiles * size, tiles * size)
    image = np.ascontiguousarray(image)
    reference, first = reference_sums(image, kernel), two_pass_sums(image, line)
    apart = np.abs(reference.astype(np.float64) - first)
    binade = np.maximum(np.frexp(first)[1] - 1, 0)
    assert (apart <= bound[binade]).all()
    assert apart.max() > 0.3 * bound[-1]  # the search is worth the name: it reached 0.48 to 0.69
    expected = np.rint(reference).astype(np.uint8)
    assert np.array_equal(blurred(image, line, kernel), expected)
    assert not np.array_equal(blurred(image, line, kernel, slack=0.0), expected)


def test_the_oracle_blurs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = every_case(Op.GAUSSIAN_BLUR, (65, 300))
    fast = per_image(*case)
    monkeypatch.setattr(pixel_ops, "ORACLE", True)
    monkeypatch.delattr("dali_imagenet.transforms._pixel_ops.blur")
    assert torch.equal(fast, per_image(*case))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mixing_equals_torch(memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    for trial in range(120):
        rows, height, width = 5, int(rng.integers(1, 40)), int(rng.integers(1, 400))
        top, left = rng.integers(0, height + 1, rows), rng.integers(0, width + 1, rows)
        bottom, right = rng.integers(top, height + 1), rng.integers(left, width + 1)
        mix = MixPlan(
            lam=rng.choice([1.0, 0.0, 0.3, 0.7713], rows).astype(np.float32),
            use_cutmix=rng.random(rows) < (0.5, 1, 0)[trial % 3],
            box=np.stack([top, bottom, left, right], 1).astype(np.int32),
        )
        if trial % 2:  # one for the batch
            mix.lam[:], mix.use_cutmix[:], mix.box[:] = mix.lam[0], mix.use_cutmix[0], mix.box[0]
        images = torch.from_numpy(rng.normal(size=(rows, 3, height, width)).astype(np.float32))
        made = images.clone(memory_format=memory_format)
        mix_(made, mix)
        with monkeypatch.context() as patch:
            patch.setattr(postprocess, "ORACLE", True)
            mix_(images, mix)
        assert torch.equal(made, images), trial


def test_noise_of_erased_boxes_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    for trial in range(60):
        height, width = int(rng.integers(1, 70)), int(rng.integers(1, 300))
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        boxes = [[rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], [0, 0, 0, 0], [0, 0, 1, 1]]
        key = int(rng.integers(2**64, dtype=np.uint64)) if trial else 2**64 - 1
        made, expected = torch.zeros(2, 3, height, width)
        erase_image_(made, np.array(boxes, np.int32), key, "pixel")
        with monkeypatch.context() as patch:
            patch.setattr(normalize_erase, "ORACLE", True)
            erase_image_(expected, np.array(boxes, np.int32), key, "pixel")
        assert torch.equal(made, expected), trial
        assert made.count_nonzero() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normalize_equals_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    for trial in range(80):
        height, width = int(rng.integers(1, 40)), int(rng.integers(1, 600))
        image = torch.from_numpy(noise(height, width, trial))
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if trial % 2 else image
        mean, std = rng.normal(size=3), 10 ** rng.uniform(-9, 9, 3)  # beyond what float16 holds, on both sides
        constants = normalize_constants(*(([0.485] * 3, [0.229] * 3) if trial % 3 else (mean.tolist(), std.tolist())))
        made, expected = torch.empty(image.shape, dtype=dtype), torch.empty(image.shape, dtype=dtype)
        normalize(image, constants, made)
        with monkeypatch.context() as patch:
            patch.setattr(normalize_erase, "_image_kernels", None)
            normalize(image, constants, expected)
        assert torch.equal(made, expected), trial


def test_mixing_and_noise_refuse_wrong_memory() -> None:
    assert warp is not None
    image, plain = np.zeros((3, 5, 7), np.float32), (0.5, False, (0, 0, 0, 0))
    for wrong in (
        (image, image[:2].copy(), (3, 5, 7, 1), plain, plain),
        (image, image.copy(), (3, 5, 8, 1), plain, plain),
        (image, image.copy(), (2**40, 2**40, 1, 1), plain, plain),
        (image, image.copy(), (3, 5, 7, 1), plain, (1.0, True, (0, 5, -1, 7))),
        (image, image.copy(), (3, 5, 7, 1), (1.0, True, (0, 5, 0, 8)), plain),
    ):
        with pytest.raises(ValueError, match="boxes inside"):
            warp.mix_pair(*wrong)
    for box in ((0, 0, 5, 8), (0, 0, -5, -7), (0, 0, 2**40, 2**40)):
        with pytest.raises(ValueError, match="two float32"):
            warp.hash_noise(1, 0, box, 7, image, image.copy())
    kernels = normalize_erase._image_kernels
    assert kernels is not None
    with pytest.raises(ValueError, match="dtype"):
        kernels.normalize(noise(5, 7), np.zeros(6, np.float32), np.zeros((3, 5, 7), np.int16), 3)


def test_blur_refuses_wrong_memory() -> None:
    assert warp is not None
    image, out, room = np.zeros((3, 20, 40), np.uint8), np.zeros((3, 20, 40), np.uint8), np.zeros(9999, np.uint8)
    line, kernel = np.ones(5, np.float32), np.ones((5, 5), np.float32)
    for wrong in (
        (image, line, kernel, out, room, 20, 41),
        (image, line, kernel, out, room, -20, -40),
        (image, line, kernel, out[:2].copy(), room, 20, 40),
        (image, line, kernel, out, room[: 4 * 22 * 89 + 31], 20, 40),
        (image, line[:4].copy(), kernel, out, room, 20, 40),
        (image, np.ones(4, np.float32), np.ones((4, 4), np.float32), out, room, 20, 40),
        (image, np.ones(41, np.float32), np.ones((41, 41), np.float32), out, np.zeros(99999, np.uint8), 20, 40),
    ):
        with pytest.raises(ValueError, match="memory of the sizes"):
            warp.blur(*wrong)
    with pytest.raises(ValueError, match="outer product"):
        warp.blur_bounds(line, line)
