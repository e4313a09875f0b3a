"""What the compiled modules give on this processor: one digest a case, to compare with another processor's.

`python other_cpu.py` prints JSON: under "digests" those of every kernel, with and without vector instructions where it
can be chosen; under "pillow", for each operation that follows Pillow's arithmetic, how many of its bytes differ from
those of the Pillow that is installed. `python other_cpu.py FILE` compares with what another processor printed, and
ends with 1 where a digest differs. `.ci/arm` runs it under an emulator.

Imports numpy, Pillow and the modules, by their files: torch takes minutes to import under an emulator.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import io
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

PACKAGE = Path(__file__).parents[2] / "dali_imagenet"
FILL = (12, 250, 77)
SIZES = [(8, 8), (17, 31), (65, 90), (224, 224)]
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}

Bytes = npt.NDArray[np.uint8]


def module(name: str) -> Any:
    """A compiled module of the checkout, without its package."""
    folder, name = (PACKAGE / name).parent, name.rpartition("/")[2]
    spec = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} holds no {name} for this Python: build it first")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def photo(height: int, width: int, seed: int = 0) -> Bytes:
    """uint8 [height, width, 3]: slopes, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((height, width))
    slopes = np.stack([3 * y + x, 255 * ((x // 7 + y // 5) % 2), 255 - y - 2 * x], -1) % 256
    return np.where(rng.random((height, width, 1)) < 0.5, slopes, rng.integers(0, 256, (height, width, 3))).astype(
        np.uint8
    )


def files() -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """JPEGs of every kind that the decoder knows, and damaged ones."""
    kinds: dict[str, dict[str, Any]] = {
        "420": {},
        "422": {"subsampling": 1},
        "444": {"subsampling": 0, "quality": 95},
        "restarts": {"restart_marker_rows": 1},
        "optimized": {"optimize": True, "quality": 30},
    }
    for size in [(1, 1), (33, 50), (120, 161)]:
        for kind, options in kinds.items():
            for mode in ("RGB", "L"):
                buffer = io.BytesIO()
                Image.fromarray(photo(*size)).convert(mode).save(buffer, "JPEG", **options)
                data = buffer.getvalue()
                yield f"{kind} {mode} {size}", data, size
                rng = np.random.default_rng(len(data))
                for trial in range(4):
                    hurt = bytearray(data)
                    for at in rng.integers(len(data) // 2, len(data) - 2, 1 + trial):
                        hurt[at] = rng.integers(256)
                    yield f"{kind} {mode} {size} damaged {trial}", bytes(hurt), size


def decoded(digests: dict[str, str]) -> int:
    """Takes their digests; how many bytes of healthy files that the decoder takes differ from Pillow's."""
    jpeg, wrong = module("decode/_jpeg"), 0
    for name, data, (height, width) in files():
        boxes = [(0, 0, height, width), (height // 3, width // 4, -(-height // 2), -(-width // 2))]
        for number, (top, left, rows, columns) in enumerate(boxes):
            for simd in (True, False):
                out = np.zeros((rows, columns, 3), np.uint8)
                try:
                    jpeg.decode_region(data, (height, width), (top, left, rows, columns), out, simd)
                    result = out.tobytes()
                except ValueError as error:
                    result = str(error).encode()
                refused = result != out.tobytes()
                digests[f"decode {name} {number} {'simd' if simd else 'plain'}"] = digest(result)
                if "damaged" not in name and not refused:
                    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                    wrong += int((out != expected[top : top + rows, left : left + columns]).sum())
    return wrong


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def kernels(digests: dict[str, str]) -> None:
    made, rng = module("transforms/_image_kernels"), np.random.default_rng(1)
    for height, width in [(1, 1), (3, 301), (40, 77)]:
        pixels = photo(height, width).transpose(2, 0, 1)
        recolored = np.zeros((3, height, width), np.uint8)
        matrix = rng.normal(size=(3, 4)).astype(np.float32) * np.array([0.6, 0.6, 0.6, 40], np.float32)
        made.recolor(pixels, matrix, recolored)
        digests[f"recolor {height} x {width}"] = digest(recolored.tobytes())
        numbers = rng.normal(size=6).astype(np.float32)
        for dtype, kind in enumerate((np.float32, np.uint16, np.uint16)):
            out = np.zeros((3, height, width), kind)
            made.normalize(pixels, numbers, out, dtype)
            digests[f"normalize to {('float32', 'bfloat16', 'float16')[dtype]} {height} x {width}"] = digest(
                out.tobytes()
            )
    for trial in range(60):
        height, width, h, w = (int(n) for n in rng.integers(1, (90, 120, 80, 70)))
        top, left = int(rng.integers(h)), int(rng.integers(w))
        cubic, vflip, hflip = (bool(flag) for flag in rng.integers(0, 2, 3))
        window = (top, left, h - top, w - left)
        for plain in (False, True):
            out = np.zeros((3, *window[2:]), np.uint8)
            made.resize(photo(height, width), (h, w), (0.0, 0.0), cubic, window, (vflip, hflip), out, plain)
            digests[f"resize {trial} {'plain' if plain else 'simd'}"] = digest(out.tobytes())


def operations(digests: dict[str, str], wrong: dict[str, int]) -> None:
    """Every operation of `_pixel_ops`, and how many bytes of those that Pillow has differ from Pillow's."""
    ops, rng = module("transforms/_pixel_ops"), np.random.default_rng(2)

    def image_op(name: str, planes: Bytes, *more: Any) -> Bytes:
        _, height, width = planes.shape
        out, room = np.zeros_like(planes), np.zeros(9 * (height + 4) * (width + 4), np.uint8)
        getattr(ops, name)(planes, out, room, height, width, *more)
        return out

    def compare(name: str, made: Bytes, expected: Image.Image) -> None:
        wrong[name] = wrong.get(name, 0) + int((made.transpose(1, 2, 0) != np.asarray(expected)).sum())

    for number, (height, width) in enumerate(SIZES):
        pixels = photo(height, width, number)
        shown, planes = Image.fromarray(pixels), np.ascontiguousarray(pixels.transpose(2, 0, 1))
        for trial in range(6):
            shifts = np.array([0.3, 0.3, 9, 0.3, 0.3, 9])
            matrix = tuple(float(v) for v in rng.normal(size=6) * shifts + [1, 0, 0, 0, 1, 0])
            if trial % 3 == 1:  # along the rows, then along the columns, alone
                matrix = (*matrix[:3], 0.0, 1.0, 0.0)
            elif trial % 3 == 2:
                matrix = (1.0, 0.0, 0.0, *matrix[3:])
            for name, filtering in (("bilinear", 2), ("bicubic", 3)):
                made = image_op("affine", planes, matrix, FILL, filtering == 3)
                digests[f"affine {name} {number} {trial}"] = digest(made.tobytes())
                how = Image.Resampling(filtering)
                compare(
                    f"affine {name}",
                    made,
                    shown.transform(shown.size, Image.Transform.AFFINE, matrix, resample=how, fillcolor=FILL),
                )
        for factor in [0.0, 0.1, 0.37, 0.55, 1.0, 1.45, 1.9, *(float(v) for v in rng.uniform(0, 3, 6))]:
            for name, enhancer in ENHANCERS.items():
                made = image_op(name, planes, factor)
                digests[f"{name} {number} {factor:.3f}"] = digest(made.tobytes())
                compare(name, made, enhancer(shown).enhance(factor))
            for fused in (False, True):
                ops.set_fused(fused)
                for name in ("torch_color", "torch_contrast", "torch_sharpness", "torch_grayscale"):
                    digests[f"{name} {number} {factor:.3f} {fused}"] = digest(image_op(name, planes, factor).tobytes())
            digests[f"hue {number} {factor:.3f}"] = digest(image_op("hue", planes, factor / 3 - 0.5).tobytes())
        for name in ("posterize", "solarize", "solarize_add", "invert", "equalize", "torch_auto_contrast"):
            for arg in (0.0, 3.0, 97.5):
                digests[f"{name} {number} {arg}"] = digest(image_op(name, planes, arg).tobytes())
        for name, operation in (("equalize", ImageOps.equalize), ("pil_auto_contrast", ImageOps.autocontrast)):
            compare(name, image_op(name, planes, 0.0), operation(shown))
        made = image_op("grayscale", planes, 0.0)
        digests[f"grayscale {number}"] = digest(made.tobytes())
        compare("grayscale", made, shown.convert("L").convert("RGB"))
        for radius in (0.01, 0.3, 1.0, 1.99, 2.0, 7.5, 40.0):
            made = image_op("gaussian_blur", planes, radius)
            digests[f"gaussian_blur {number} {radius}"] = digest(made.tobytes())
            compare("gaussian_blur", made, shown.filter(ImageFilter.GaussianBlur(radius)))
        torchs(ops, digests, planes, number, rng)
    tens = rng.integers(0, 26, (3, 64, 64)).astype(np.uint8) * np.uint8(10)  # where a last bit decides: whole results
    shown = Image.fromarray(np.ascontiguousarray(tens.transpose(1, 2, 0)))
    for hundredths in range(1, 100, 3):
        matrix = (1.0, 0.0, hundredths / 100, 0.0, 1.0, hundredths / 50)
        for name, filtering in (("bilinear", 2), ("bicubic", 3)):
            how = Image.Resampling(filtering)
            moved = shown.transform(shown.size, Image.Transform.AFFINE, matrix, resample=how, fillcolor=FILL)
            compare(f"affine {name} by hundredths", image_op("affine", tens, matrix, FILL, filtering == 3), moved)


def torchs(ops: Any, digests: dict[str, str], planes: Bytes, number: int, rng: np.random.Generator) -> None:
    """What follows torch's and numpy's arithmetic."""
    _, height, width = planes.shape
    for size in (1, 3, 9, 23):
        if height < 17 or size // 2 >= min(height, width):
            continue
        line = (rng.random(size) + 0.01).astype(np.float32)
        line /= line.sum()
        kernel = np.outer(line, line)
        padded = np.pad(planes, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)), "reflect").astype(np.float32)
        whole, out = np.zeros(planes.shape, np.float32), np.zeros_like(planes)
        ops.convolve(padded, kernel, whole, height, width, size)
        room = np.zeros(4 * (height + 2) * (width + size + 44) + 32, np.uint8)
        again = [ops.blur(planes, line, kernel, out, room, height, width, slack) for slack in (1.0, 40.0)]
        if not np.array_equal(out, np.rint(whole).astype(np.uint8)):
            raise SystemExit(f"blur and convolve differ: {height} x {width}, size {size}")
        digests[f"blur {number} {size}"] = digest(out.tobytes() + whole.tobytes() + str(again).encode())
        digests[f"blur_bounds {number} {size}"] = digest(str(ops.blur_bounds(line, kernel)).encode())
    room = np.zeros(height * width + 1, np.uint32)
    jobs: dict[str, Callable[[Bytes], None]] = {
        "gather": lambda out: ops.gather(
            planes, out, rng.integers(0, height * width + 9, height * width).astype(np.int32), room, FILL
        ),
        "shift": lambda out: ops.shift(planes, out, height, width, height // 3, -width // 4, FILL),
        "mix": lambda out: ops.mix(
            planes, np.stack([planes[::-1], planes[[1, 2, 0]]]), np.array([0.3, 0.4], np.float32), 0.3, 0.7, out
        ),
    }
    for name, job in jobs.items():
        out = np.zeros_like(planes)
        job(out)
        digests[f"{name} {number}"] = digest(out.tobytes())
    for fused in (False, True):
        ops.set_fused(fused)
        a, b = (rng.normal(size=planes.shape).astype(np.float32) for _ in range(2))
        boxes = (0.3, False, (0, 0, 0, 0)), (0.0, True, (1, 5, 2, 7))
        ops.mix_pair(a, b, (3, height, width, 1), *boxes)
        digests[f"mix_pair {number} {fused}"] = digest(a.tobytes() + b.tobytes())
    radius, angle = np.zeros((2, 3, height, width), np.float32)
    ops.hash_noise(2**64 - 5, 3, (1, 2, height, width), width + 9, radius, angle)
    digests[f"hash_noise {number}"] = digest(radius.tobytes() + angle.tobytes())


def main() -> None:
    digests, wrong = dict[str, str](), dict[str, int]()
    wrong["decode"] = decoded(digests)
    kernels(digests)
    operations(digests, wrong)
    if len(sys.argv) < 2:
        print(json.dumps({"machine": platform.machine(), "digests": digests, "pillow": wrong}))
        return
    other = json.loads(Path(sys.argv[1]).read_text())
    differ = sorted(name for name in digests | other["digests"] if digests.get(name) != other["digests"].get(name))
    print(f"{len(digests)} results on {other['machine']} and {platform.machine()}, {len(differ)} differ")
    print(f"bytes that differ from Pillow's on {other['machine']}: {other['pillow']}")
    print(f"bytes that differ from Pillow's on {platform.machine()}: {wrong}")
    for name in differ[:40]:
        print(name, file=sys.stderr)
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
