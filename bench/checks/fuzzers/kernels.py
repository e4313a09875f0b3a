"""Calls every kernel with memory of the exact size, of random shapes: a process with AddressSanitizer sees the rest.

`python kernels.py FOLDER SEED SECONDS`, where the folder holds the extension modules, and JPEGs in `jpegs`. Imports
nothing but them: the memory of numpy and torch would not be AddressSanitizer's.
"""

from __future__ import annotations

import importlib
import math
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e6, -1e6, 1e-30, 255.0, 3.7)


def drawn(rng: random.Random, size: int) -> bytearray:
    return bytearray(rng.randbytes(size))


def extent(rng: random.Random) -> int:
    return rng.choice((1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, rng.randint(1, 90)))


def number(rng: random.Random) -> float:
    return rng.choice(FLOATS) if rng.random() < 0.5 else rng.uniform(-8, 8)


def size_of(data: bytes | bytearray) -> tuple[int, int]:
    """Height and width, as the first frame header claims."""
    at = next((at for at in range(len(data) - 9) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC1, 0xC2)), None)
    height, width = (1, 1) if at is None else struct.unpack(">HH", data[at + 5 : at + 9])
    return max(1, min(height, 300)), max(1, min(width, 300))


def one_row(kernels: Any, decoder: Any, files: list[Path], rng: random.Random) -> None:
    """A whole row of a file, as it is or damaged, remembered or not."""
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    height, width = size_of(data)
    damage = rng.random() < 0.5
    for _ in range(rng.randint(1, 4) if damage else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    top, left = rng.randrange(height), rng.randrange(width)
    box = (top, left, rng.randint(1, height - top), rng.randint(1, width - left))
    resized = extent(rng), extent(rng)
    first = rng.randrange(resized[0]), rng.randrange(resized[1])
    window = (*first, rng.randint(1, resized[0] - first[0]), rng.randint(1, resized[1] - first[1]))
    factors = (0.0, 0.0) if rng.random() < 0.5 else (rng.uniform(0.01, 9), rng.uniform(0.01, 9))
    dtype, pixels = rng.randrange(4), 3 * window[2] * window[3]
    numbers = None if dtype == 3 else struct.pack("6f", *(number(rng) for _ in range(6)))
    matrix = struct.pack("12f", *(number(rng) for _ in range(12))) if rng.random() < 0.5 else None
    by_path = not damage and rng.random() < 0.5
    given = (bytes(file), len(data)) if by_path else (data, -1)
    memory = bytearray((len(data) + 1 if by_path else 0) + 3 * box[2] * box[3] + 2 * pixels)
    out = bytearray(2 * pixels * (4, 2, 2, 1)[dtype])
    slot = bytearray(rng.randrange(120)) if rng.random() < 0.7 else None
    flips = (rng.random() < 0.5, rng.random() < 0.5)
    for _ in range(2):
        wanted, to = (resized, factors, rng.random() < 0.5), (out, rng.randrange(2), dtype, rng.random() < 0.5)
        made = kernels.row(
            decoder, given, (height, width), box, wanted, window, flips, matrix, numbers, memory, to, slot
        )
        if made is not None and slot is not None:
            slot[: len(made[1])] = made[1]


def once(ops: Any, kernels: Any, decoder: Any, files: list[Path], rng: random.Random) -> str:
    """One call; the name of the kernel."""
    height, width = extent(rng), extent(rng)
    size = 3 * height * width
    pixels, out, room = drawn(rng, size), drawn(rng, size), drawn(rng, 9 * (height + 4) * (width + 4))
    name = rng.choice(NAMES)
    if name == "affine":
        matrix = tuple(rng.choice((number(rng), 1e300, float("nan"), float("inf"))) for _ in range(6))
        if rng.random() < 0.8:
            matrix = tuple(number(rng) for _ in range(6))
        ops.affine(pixels, out, room, height, width, matrix, (1, 2, 3), rng.random() < 0.5)
    elif name == "convolve":
        height, width, wide = height + 4, width + 16, rng.choice((1, 2, 3, 5, 9, 63 if rng.random() < 0.05 else 4))
        values = drawn(rng, 12 * (width + wide - 1) * (height + wide - 1))
        kernel = struct.pack(f"{wide * wide}f", *(rng.random() for _ in range(wide * wide)))
        ops.convolve(values, kernel, bytearray(12 * height * width), height, width, wide)
    elif name in ("blur", "blur_bounds"):
        height, width, wide = height + 4, width + 16, rng.choice((1, 3, 5, 7, 63 if rng.random() < 0.05 else 9))
        line = struct.pack(f"{wide}f", *(rng.random() for _ in range(wide)))
        kernel = struct.pack(f"{wide * wide}f", *(rng.random() / wide**2 for _ in range(wide * wide)))
        if name == "blur_bounds":
            ops.blur_bounds(line, kernel)
            return name
        pixels, out = drawn(rng, 3 * height * width), drawn(rng, 3 * height * width)
        room = drawn(rng, 4 * (height + 2) * (width + wide + 44) + 32)
        ops.blur(pixels, line, kernel, out, room, height, width, rng.choice((0.0, 1.0)))
    elif name == "gather":
        ops.gather(pixels, out, drawn(rng, 4 * height * width), bytearray(4 * height * width + 4), (0, 127, 255))
    elif name == "shift":
        way = [rng.choice((rng.randint(-9, 9), rng.randint(-120, 120), 10**8, -(10**8))) for _ in range(2)]
        ops.shift(pixels, out, height, width, *way, (0, 127, 255))
    elif name == "mix":
        count = rng.randint(0, 4)
        weights = struct.pack(f"{count}f", *(rng.choice((number(rng), 1e12, math.nan)) for _ in range(count)))
        ops.mix(pixels, drawn(rng, count * size), weights, number(rng), number(rng), out)
    elif name == "mix_pair":
        shape = (3, height, width, 1) if rng.random() < 0.5 else (1, height, width, 3)
        mixing = []
        for _ in range(2):
            left = rng.randint(0, width)
            box = (rng.randint(-9, 99), rng.randint(-9, 99), left, rng.randint(left, width))
            mixing.append((number(rng), rng.random() < 0.5, box))
        ops.mix_pair(drawn(rng, 4 * size), drawn(rng, 4 * size), shape, *mixing)
    elif name == "hash_noise":
        box = (rng.randint(0, 999), rng.randint(0, 999), height, width)
        ops.hash_noise(rng.getrandbits(64), rng.randrange(9), box, 999, bytearray(4 * size), bytearray(4 * size))
    elif name == "usual_markers":
        kernels.usual_markers(bytes(rng.choice((0, 1, 0xD8, 0xDA, 0xFF)) for _ in range(rng.randint(0, 99))))
    elif name == "markers":
        kernels.markers(bytes(rng.choice((0, 1, 255)) for _ in range(rng.randint(0, 99))), rng.randint(-5, 120))
    elif name in ("recolor", "normalize"):
        planes = memoryview(pixels).cast("B", (3, height, width))
        count = 12 if name == "recolor" else 6
        numbers = struct.pack(f"{count}f", *[number(rng) for _ in range(count)])
        if name == "recolor":
            kernels.recolor(planes, numbers, out)
        else:
            dtype = rng.randrange(3)
            kernels.normalize(planes, numbers, bytearray((4, 2, 2)[dtype] * size), dtype, rng.random() < 0.5)
    elif name == "row":
        one_row(kernels, decoder, files, rng)
    elif name == "resize":
        lines = memoryview(pixels).cast("B", (height, width, 3))
        tall, broad = extent(rng), extent(rng)
        top, left = rng.randrange(tall), rng.randrange(broad)
        window = (top, left, rng.randint(1, tall - top), rng.randint(1, broad - left))
        factors = (0.0, 0.0) if rng.random() < 0.5 else (rng.uniform(0.01, 9), rng.uniform(0.01, 9))
        wanted = bytearray(3 * window[2] * window[3])
        flips = (rng.random() < 0.5, rng.random() < 0.5)
        kernels.resize(lines, (tall, broad), factors, rng.random() < 0.5, window, flips, wanted, rng.random() < 0.3)
    else:
        getattr(ops, name)(pixels, out, room, height, width, number(rng))
    return name


NAMES: list[str] = []


def main(folder: str, seed: int, seconds: float) -> None:
    sys.path.insert(0, folder)
    ops, kernels, jpeg = (importlib.import_module(name) for name in ("_pixel_ops", "_image_kernels", "_jpeg"))
    files = sorted((Path(folder) / "jpegs").iterdir())
    for module in (ops, kernels):
        names = (name for name in dir(module) if name[0] != "_" and callable(getattr(module, name)))
        NAMES.extend(name for name in names if name != "set_fused")
    rng, end, done, refused = random.Random(seed), time.monotonic() + seconds, dict.fromkeys(NAMES, 0), 0
    while time.monotonic() < end:
        try:
            done[once(ops, kernels, jpeg.decoder, files, rng)] += 1
        except ValueError:
            refused += 1
    print(sum(done.values()), "calls,", refused, "refused; fewest of", min(done, key=lambda name: done[name]))
    assert min(done.values()) > 0, done


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
