"""From decoded pixels to the net's: resize, crop, flip and colour, by compiled modules and by torch, to the bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import interpolate

from dali_imagenet.ops import FILTERS
from dali_imagenet.transforms import normalize_erase, resize

kernels: Any = resize._image_kernels
built = pytest.mark.skipif(kernels is None, reason="dali_imagenet.transforms._image_kernels was not built")

Pixels = npt.NDArray[np.uint8]
CUBIC = {"bilinear": False, "bicubic": True}
# Without AVX2 torch itself is wrong where the output is one pixel wide.
NARROWEST = 1 if "AVX" in torch.backends.cpu.get_cpu_capability() else 2


def reference(pixels: Pixels, size: tuple[int, int], factors: tuple[float, float], interpolation: str) -> Pixels:
    kernel, _ = resize._RESIZE[FILTERS[interpolation]]
    view = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    result: Pixels = kernel(view, size, False, *(f or None for f in factors))[0].numpy()
    return result


def pattern(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Noise, black and white noise, a checkerboard or a plane; a part of a larger one, or not."""
    whole = rng.integers(0, 256, (height + 2, width + 3, 3), dtype=np.uint8)
    kind = rng.integers(4)
    if kind == 1:
        whole = np.where(whole > 127, 255, 0).astype(np.uint8)
    elif kind == 2:
        whole[:] = 255 * (np.indices(whole.shape[:2]).sum(0) % 2)[..., None]
    elif kind == 3:
        whole[:] = rng.choice([0, 255])
    part = whole[1 : height + 1, 2 : width + 2]
    return [part, np.ascontiguousarray(part), whole[2:, 3:], part[::-1].copy()[::-1]][rng.integers(4)]


def length(rng: np.random.Generator) -> int:
    return int(rng.integers(1, (5, 40, 300, 700)[rng.integers(4)]))


@built
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_is_torchs_to_the_bit(interpolation: str) -> None:
    rng = np.random.default_rng(CUBIC[interpolation])
    for trial in range(600):
        height, width, h, w = (length(rng) for _ in range(4))
        if trial % 10 == 0:
            h = height
        if trial % 15 == 0:
            w = width
        if trial % 50 == 1:
            height *= 10
        if trial % 50 == 2:
            width *= 10
        w = max(w, NARROWEST)
        # Enlarged by more than the sizes say: as of an image that goes on to the right and below.
        larger = h / height * rng.uniform(1, 1.3), w / width * rng.uniform(1, 1.3)
        down, across = (f if rng.random() < 0.3 else 0.0 for f in larger)
        factors = down, across
        pixels = pattern(rng, height, width)
        rows, columns = (h, w) if trial % 2 else (int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1)))
        top, left = int(rng.integers(h - rows + 1)), int(rng.integers(w - columns + 1))
        flips = bool(rng.integers(2)), bool(rng.integers(2))
        expected = torch.from_numpy(reference(pixels.copy(), (h, w), factors, interpolation))
        expected = expected[:, top : top + rows, left : left + columns]
        expected = expected.flip([axis + 1 for axis in range(2) if flips[axis]])
        for plain in (False, True):
            out = np.full(3 * rows * columns + 8, 7, np.uint8)
            window = (top, left, rows, columns)
            kernels.resize(pixels, (h, w), factors, CUBIC[interpolation], window, flips, out[:-8], plain)
            assert (out[-8:] == 7).all()
            assert np.array_equal(out[:-8], expected.numpy().ravel()), (pixels.shape, (h, w), factors, window, plain)


@built
def test_lines_may_lie_anywhere() -> None:
    """Upside down, all the same one, overlapping: nothing else is read, whatever memory is beside them."""
    rng = np.random.default_rng(2)
    memory = rng.integers(0, 256, 5000, dtype=np.uint8)
    for stride in (-120, 0, 3, 120, 121):
        for height, width in ((1, 40), (2, 1), (9, 40), (30, 7)):
            start = memory[4000 if stride < 0 else 0 :]
            pixels = np.lib.stride_tricks.as_strided(start, (height, width, 3), (stride, 3, 1))
            for plain in (False, True):
                out = np.empty((3, 12, 10), np.uint8)
                kernels.resize(pixels, (12, 10), (0, 0), True, (0, 0, 12, 10), (False, False), out, plain)
                assert np.array_equal(out, reference(pixels.copy(), (12, 10), (0, 0), "bicubic"))


GOOD: dict[str, Any] = {
    "pixels": np.zeros((8, 9, 3), np.uint8),
    "size": (6, 5),
    "factors": (0.0, 0.0),
    "cubic": True,
    "window": (1, 1, 4, 4),
    "flips": (False, True),
    "out": np.zeros((3, 4, 4), np.uint8),
}
BAD: list[tuple[str, Any]] = [
    ("pixels", np.zeros((8, 9, 4), np.uint8)),
    ("pixels", np.zeros((8, 9, 6), np.uint8)[:, :, ::2]),
    ("pixels", np.zeros((8, 18, 3), np.uint8)[:, ::2]),
    ("pixels", np.zeros((3, 8, 9), np.uint8).transpose(1, 2, 0)),
    ("pixels", np.zeros((8, 9, 3), np.uint8)[:, ::-1]),
    ("pixels", np.zeros((8, 9, 3), np.float32)),
    ("pixels", np.zeros((8, 27), np.uint8)),
    ("pixels", np.zeros((0, 9, 3), np.uint8)),
    ("pixels", np.zeros((8, 0, 3), np.uint8)),
    ("pixels", np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2**40, 1, 3))),
    *[("size", size) for size in ((0, 5), (6, 0), (-6, 5), (2**62, 5), (4, 5), (6, 4))],
    *[("factors", (factor, 1.0)) for factor in (-1.0, np.nan, np.inf, -np.inf, 1e-300, 1e-9)],
    *[("factors", (1.0, factor)) for factor in (-1.0, np.nan, np.inf, -np.inf, 1e-300, 1e-9)],
    *[("window", (top, 1, 4, 4)) for top in (-1, 3, 2**62, -(2**62))],
    *[("window", (1, left, 4, 4)) for left in (-1, 2, 2**62, -(2**62))],
    *[("window", (1, 1, h, w)) for h, w in ((0, 4), (4, 0), (-4, -4), (4, 5), (3, 4), (2**62, 4), (2, 8))],
    *[("out", np.zeros(size, np.uint8)) for size in (0, 47, 49)],
]


@built
@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_makes_no_sense_is_refused(name: str, value: Any) -> None:
    kernels.resize(*GOOD.values())
    with pytest.raises(ValueError, match=r"wants uint8 \[H, W, 3\]"):
        kernels.resize(*(GOOD | {name: value}).values())


@built
def test_memory_is_checked_by_python() -> None:
    read_only = np.zeros((3, 4, 4), np.uint8)
    read_only.flags.writeable = False
    for name, value in (("out", read_only), ("pixels", None), ("pixels", 3)):
        with pytest.raises((TypeError, ValueError, BufferError)):
            kernels.resize(*(GOOD | {name: value}).values())
    frozen = GOOD["pixels"].copy()
    frozen.flags.writeable = False
    kernels.resize(*(GOOD | {"pixels": frozen}).values())


@built
def test_weights_that_integers_cannot_hold_are_refused() -> None:
    """Factors far from the sizes: of a cubic only the negative side and the border of the positive one is inside."""
    refused = 0
    for factor in np.linspace(0.02, 0.3, 400):
        arguments = GOOD | {"size": (20, 5), "factors": (factor, 0.0)}
        try:
            kernels.resize(*arguments.values())
        except ValueError:
            refused += 1
    assert 0 < refused < 100


def row(box: list[int], resized: Any, window: Any, size: tuple[int, int], interpolation: str, **drawn: Any) -> Any:
    """What the resize reads of a plan, for one row."""
    nothing = {"hflip": np.array([False]), "vflip": np.array([False]), "color": None}
    filters = np.array([FILTERS[interpolation]])
    geometry = {
        "size": size,
        "crop_box": np.array([box]),
        "resize": resized,
        "window": window,
        "window_fill": (0, 0, 0),
        "window_mode": "constant",
    }
    return SimpleNamespace(**geometry, interpolation=filters, **(nothing | drawn))


def evaluation(source: tuple[int, int], short: int, size: tuple[int, int], interpolation: str, **drawn: Any) -> Any:
    """The whole image, resized to its short side, and the window in its middle."""
    resized = np.maximum(1, short * np.array([source]) // min(source))
    return row([0, 0, *source], resized, np.round((resized - size) / 2).astype(int), size, interpolation, **drawn)


def plans(rng: np.random.Generator, train: bool, interpolation: str) -> Any:
    """A plan's row with an image's size: random boxes, or evaluation, where images may be smaller than the window."""
    height, width = (int(n) for n in rng.integers(1, 300, 2))
    high, wide = (int(n) for n in rng.choice([2, 31, 32, 96, 224], 2))
    size, short, box = (high, wide), 0, [0, 0, 0, 0]
    if train:
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        box = [int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w]
    else:
        short = int(rng.integers(min(size) // 2 + 1, 2 * min(size)))
    hflip, vflip = rng.integers(0, 2, (2, 1), dtype=bool)
    color = (np.eye(3, 4) + rng.normal(size=(1, 3, 4)) * 0.3).astype(np.float32) if rng.integers(2) else None
    drawn = {"hflip": hflip, "vflip": vflip, "color": color}
    if train:
        plan = row(box, np.array([size]), np.zeros((1, 2), int), size, interpolation, **drawn)
    else:
        plan = evaluation((height, width), short, size, interpolation, **drawn)
    return plan, rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@built
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("train", [True, False])
def test_the_image_stage_is_the_same_without_it(
    train: bool, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    for _ in range(150):
        plan, whole = plans(rng, train, interpolation)
        part = resize.required_region(plan, 0)
        top, left, height, width = part.box
        pixels = whole[top : top + height, left : left + width]
        kept = pixels.copy()
        got = resize.resize_crop_flip(pixels, part, plan, 0)
        held = got.clone()
        with monkeypatch.context() as patch:
            patch.setattr(resize, "_image_kernels", None)
            expected = resize.resize_crop_flip(pixels, part, plan, 0)
        assert torch.equal(got, expected), (plan, part)
        resize.resize_crop_flip(255 - pixels, part, plan, 0)  # nothing that was handed out is used again
        assert torch.equal(got, held)
        assert np.array_equal(pixels, kept)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_the_window_does_not_need_changes_nothing(interpolation: str) -> None:
    rng = np.random.default_rng(4)
    smaller = 0
    for trial in range(300):
        height, width = (int(n) for n in rng.integers(20, 300, 2))
        if trial < 40:  # around the sizes at which torch does not resize
            height = int(rng.integers(94, 130))
        size = int(rng.choice([32, 96, 112]))
        short = int(rng.choice([size, size + 1, size * 8 // 7, size * 2]))
        plan = evaluation((height, width), short, (size, size), interpolation)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        part = resize.required_region(plan, 0)
        smaller += part.box[2:] != (height, width)
        got = resize.resize_crop_flip(pixels[: part.box[2], : part.box[3]], part, plan, 0)
        whole = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = interpolate(whole, size=plan.resize[0].tolist(), mode=interpolation, antialias=True)[0]
        top, left = plan.window[0].tolist()
        assert torch.equal(got, resized[:, top : top + size, left : left + size]), (plan, part)
    assert smaller > 200


def strided(rng: np.random.Generator, height: int, width: int) -> list[torch.Tensor]:
    planar = torch.from_numpy(rng.integers(0, 256, (3, height + 2, width + 3), dtype=np.uint8))
    interleaved = torch.from_numpy(rng.integers(0, 256, (height + 1, width + 2, 3), dtype=np.uint8)).permute(2, 0, 1)
    return [image[:, 1 : height + 1, 2 : width + 2] for image in (planar, interleaved)] + [planar.flip(1)[:, :, 3:]]


@built
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (32, 256), (7, 257), (2, 700), (224, 224)])
def test_compiled_kernels_equal_python(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(height * width)
    constants = normalize_erase.normalize_constants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for image in strided(rng, height, width):
        matrix = (np.eye(3, 4) + rng.normal(size=(3, 4)) * [0.5, 0.5, 0.5, 60]).astype(np.float32)
        out = torch.empty(image.shape)
        compiled = resize.apply_color_matrix(image, matrix), normalize_erase.normalize(image, constants, out.clone())
        with monkeypatch.context() as patch:
            patch.setattr(resize, "_image_kernels", None)
            patch.setattr(normalize_erase, "_image_kernels", None)
            python = resize.apply_color_matrix(image, matrix), normalize_erase.normalize(image, constants, out.clone())
        assert all(map(torch.equal, compiled, python))


def test_recolor_rounds_half_to_even_and_clamps() -> None:
    image = torch.tensor([1, 3, 200], dtype=torch.uint8)[:, None, None].expand(3, 2, 21)
    matrix = np.array([[0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 2, 0]], np.float32)
    for column in (0, 15, 20):  # vectors make sixteen pixels
        for given, expected in ((matrix, [0, 2, 255]), (-matrix, [0, 0, 0]), (matrix * np.float32(1e12), [255] * 3)):
            assert resize.apply_color_matrix(image, given)[:, 1, column].tolist() == expected


@built
def test_kernels_refuse_wrong_memory() -> None:
    pixels, matrix = np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4), np.float32)
    for bad in (
        (pixels[0], matrix, np.zeros((3, 4, 5), np.uint8)),
        (pixels, matrix[:2], np.zeros((3, 4, 5), np.uint8)),
        (pixels, matrix, np.zeros((3, 4, 4), np.uint8)),
        (pixels.astype(np.float32), matrix, np.zeros((3, 4, 5), np.uint8)),
    ):
        with pytest.raises(ValueError, match=r"wants uint8 \[3, H, W\]"):
            kernels.recolor(*bad)
