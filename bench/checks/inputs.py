"""Odd and broken image files as a loader meets them in the wild, and how to make them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 90, 70
"""Of every input that has a say in it."""


@dataclass(frozen=True)
class Input:
    """`make` writes the file; `later` changes it after it has been indexed; `readable` says what must become of it."""

    make: Callable[[Path], Any]
    readable: bool = True
    later: Callable[[Path], Any] | None = None
    hidden: bool = False
    """Broken, but only whoever decodes it finds out."""
    same: bytes | None = None
    """An image with the same pixels, where Pillow by itself stumbles over the file."""

    def expected(self, path: str) -> Image.Image:
        """The image as Pillow shows it, RGB."""
        with Image.open(path if self.same is None else io.BytesIO(self.same)) as image:
            return image.convert("RGB")


def picture(mode: str = "RGB", seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth areas, some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 4), np.uint8), "RGBA").resize((width, height))
    noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-6, 7, (height, width, 1))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def encoded(
    mode: str = "RGB", format: str = "JPEG", seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any
) -> bytes:
    out = io.BytesIO()
    picture(mode, seed, *size).save(out, format, **({"quality": 92} if format == "JPEG" else {}) | options)
    return out.getvalue()


def segment(data: bytes, marker: int) -> tuple[int, int]:
    """Start and length, marker included, of a JPEG's first segment of that kind."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at, 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def adobe(transform: int | None) -> bytes:
    """A four-colour JPEG: Adobe's CMYK (0) or YCCK (2), both inverted, or plain CMYK (None: no Adobe segment)."""
    data = encoded("CMYK")
    at, length = segment(data, 0xEE)
    return data[:at] + data[at + length :] if transform is None else patched(data, at + length - 1, bytes([transform]))


def frame(**fields: int) -> bytes:
    """A JPEG whose frame header claims other bits, height or width."""
    data = encoded()
    at, _ = segment(data, 0xC0)
    if "bits" in fields:
        data = patched(data, at + 4, bytes([fields["bits"]]))
    for name, offset in (("height", 5), ("width", 7)):
        if name in fields:
            data = patched(data, at + offset, struct.pack(">H", fields[name]))
    return data


def arithmetic() -> bytes:
    """A JPEG with arithmetic coding (SOF9). Any bytes are a valid arithmetic code, so these are drawn."""
    body = np.random.default_rng(1).integers(0, 255, 3000, np.uint8).tobytes()
    table = b"\xff\xdb\x00\x43\x00" + bytes([8] * 64)
    header = b"\xff\xc9" + struct.pack(">HBHHB", 11, 8, HEIGHT, WIDTH, 1) + b"\x01\x11\x00"
    return b"\xff\xd8" + table + header + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + body + b"\xff\xd9"


def png16(color: int) -> bytes:
    """A PNG with 16 bits a sample, gray (0) or RGB (2)."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    channels = 3 if color == 2 else 1
    values = np.linspace(0, 65535, HEIGHT * WIDTH * channels).astype(">u2").reshape(HEIGHT, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def restarts(damage: str) -> bytes:
    """A JPEG with a restart marker after each row of blocks, one of them missing or with another number."""
    data = encoded(restart_marker_rows=1)
    at = data.index(b"\xff\xd1")
    return data[:at] + data[at + 2 :] if damage == "missing" else patched(data, at, b"\xff\xd6")


def scans(count: int, data: bytes | None = None) -> bytes:
    """A progressive JPEG with that many scans: the last one again and again."""
    data = encoded(progressive=True) if data is None else data
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * (count + 1 - data.count(b"\xff\xda")) + data[-2:]


def exif(orientation: int, padding: int = 0) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    if padding:
        tags[0x010E] = "x" * padding
    return encoded(exif=tags)


def with_segment(marker: int, body: bytes, data: bytes | None = None) -> bytes:
    """A JPEG with a segment of that kind before its tables."""
    data = encoded() if data is None else data
    at, _ = segment(data, 0xDB)
    return data[:at] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[at:]


def without_jfif(data: bytes) -> bytes:
    """A JPEG without its JFIF segment: Pillow then looks for the resolution in the EXIF."""
    at, length = segment(data, 0xE0)
    return data[:at] + data[at + length :]


def behind_jfif(new: bytes, data: bytes | None = None) -> bytes:
    """A JPEG with these bytes behind its first segment."""
    data = encoded() if data is None else data
    at, length = segment(data, 0xE0)
    return data[: at + length] + new + data[at + length :]


def metadata() -> dict[str, Input]:
    """JPEGs on whose metadata Pillow's own parsers raise; nothing is wrong with their pixels."""
    jpeg, progressive = encoded(), encoded(progressive=True)
    tags = struct.pack("<HHHIIHHII", 2, 0x011A, 2, 1, 0, 0x0128, 3, 1, 2)  # XResolution: a text of one NUL
    exif_tags = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags + bytes(4)
    photoshop = b"Photoshop 3.0\x008BIM\x04\x04"
    spoilt = {
        "ICC segment that ends after its name": with_segment(0xE2, b"ICC_PROFILE\0"),
        "Photoshop segment that ends after a code": with_segment(0xED, photoshop),
        "progressive, Photoshop segment that ends after a code": with_segment(0xED, photoshop, progressive),
        "EXIF whose resolution is an empty text": with_segment(0xE1, exif_tags, without_jfif(jpeg)),
    }
    return {
        name: Input(write(data), same=progressive if "progressive" in name else jpeg) for name, data in spoilt.items()
    }


def mpo() -> bytes:
    """Two pictures in one file; the first one counts."""
    out = io.BytesIO()
    picture().save(out, "MPO", quality=92, save_all=True, append_images=[picture(seed=1)])
    return out.getvalue()


def hostile() -> dict[str, Input]:
    """Small or sparse files that cost whoever believes them time or memory."""
    jpeg = encoded()

    def sparse(data: bytes, size: int) -> Callable[[Path], Any]:
        def make(path: Path) -> None:
            path.write_bytes(data)
            os.truncate(path, size)

        return make

    flat = io.BytesIO()
    Image.new("L", (3000, 3000)).save(flat, "JPEG", progressive=True)
    bitmap = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<I", 2**32 - 16)
    tiff = b"II*\0" + struct.pack("<IH", 8, 65_535)
    made = {
        "8 MB of zeros behind the first three bytes": write(jpeg[:3] + bytes(8 << 20)),
        "8 MB of fill bytes": write(behind_jfif(b"\xff" * (8 << 20))),
        "2 million empty segments behind a stray byte": write(behind_jfif(b"\0" + b"\xff\xfe\0\2" * 2_000_000)),
        "2 MB of tables": write(behind_jfif((b"\xff\xdb\xff\xff" + bytes(65_533)) * 32)),
        "a PPM header of 8 MB": write(b"P6\n" + b" " * (8 << 20) + b"9 7 255\n" + bytes(189)),
        "a PPM comment of 8 MB": write(b"P6\n#" + b"x" * (8 << 20) + b"\n9 7 255\n" + bytes(189)),
        "a GIF of 3 million extensions": write(encoded("P", "GIF")[:13] + b"!\xfe\0" * 3_000_000),
        "a PNG of a million chunks": write(encoded(format="PNG")[:33] + (bytes(4) + b"tEXt" + bytes(4)) * 1_000_000),
        "a TIFF whose tags all name the same megabyte": write(
            tiff + struct.pack("<HHII", 700, 1, 1 << 20, 0) * 65_535 + bytes(1 << 20)
        ),
        "a BMP header of 4 GB": sparse(bitmap, 2**32),
        "an image of 100 GB": sparse(jpeg, 100 << 30),
        "text of 100 GB": sparse(b"hello", 100 << 30),
        "a WebP of 100 GB": sparse(encoded(format="WEBP"), 100 << 30),
        "20,000 scans of 9 megapixels": write(scans(20_000, flat.getvalue())),
        "2700 x 65500 in the header of a small file": write(frame(width=2700, height=65_500)),
        "the same, behind a stray byte": write(behind_jfif(b"\0", frame(width=2700, height=65_500))),
    }
    return {name: Input(make, readable=False) for name, make in made.items()}


def within(new: bytes) -> bytes:
    """A JPEG with these bytes over some in the middle of its scan."""
    data = encoded()
    return patched(data, (segment(data, 0xDA)[0] + len(data)) // 2, new)


def scribbled(data: bytes, share: float = 0.5) -> bytes:
    """Some of the scan overwritten, the end marker kept."""
    start = segment(data, 0xDA)[0] + 14
    at = start + int((len(data) - start) * share)
    return patched(data, at, bytes(range(1, 41)))


def write(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def _replace(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _link(path: Path) -> None:
    path.with_suffix(".data").write_bytes(encoded())
    path.symlink_to(path.with_suffix(".data").name)


def _loop(path: Path) -> None:
    other = path.with_suffix(".loop")
    other.symlink_to(path.name)
    path.symlink_to(other.name)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.JPEG").write_bytes(encoded())


def inputs() -> dict[str, Input]:
    """All of them, by what they are called in the table."""
    jpeg = encoded()
    tables, _ = segment(jpeg, 0xDB)
    good = write(jpeg)
    found = {
        "baseline JPEG, 4:2:0": Input(good),
        "JPEG, 4:4:4": Input(write(encoded(subsampling=0))),
        "progressive JPEG": Input(write(encoded(progressive=True))),
        "progressive JPEG of 100 scans": Input(write(scans(100))),
        "gray JPEG": Input(write(encoded("L"))),
        "CMYK JPEG, no Adobe segment": Input(write(adobe(None))),
        "CMYK JPEG, Adobe (inverted)": Input(write(adobe(0))),
        "YCCK JPEG, Adobe (inverted)": Input(write(adobe(2))),
        "arithmetic-coded JPEG": Input(write(arithmetic())),
        "restart marker missing": Input(write(restarts("missing"))),
        "restart marker with a wrong number": Input(write(restarts("wrong"))),
        "bytes of the scan overwritten": Input(write(scribbled(jpeg))),
        "an end marker in the middle of the scan": Input(write(within(b"\xff\xd9"))),
        "bytes between two segments of the header": Input(write(jpeg[:tables] + bytes(9) + jpeg[tables:])),
        **{f"EXIF orientation {n}": Input(write(exif(n))) for n in range(1, 9)},
        "1 MB of ICC blocks before the frame header": Input(write(encoded(icc_profile=bytes(range(256)) * 4096))),
        "60 kB of EXIF before the frame header": Input(write(exif(1, 60_000))),
        "text behind the end": Input(write(jpeg + b"appended by some tool")),
        **metadata(),
        "two images in one file (MPO)": Input(write(mpo())),
        "1 x 1": Input(write(encoded(size=(1, 1)))),
        "1 x 5000": Input(write(encoded(size=(1, 5000)))),
        "5000 x 1": Input(write(encoded(size=(5000, 1)))),
        "PNG named .JPEG": Input(write(encoded(format="PNG"))),
        "PNG with alpha named .JPEG": Input(write(encoded("RGBA", "PNG"))),
        "PNG with a palette named .JPEG": Input(write(encoded("P", "PNG"))),
        "gray PNG named .JPEG": Input(write(encoded("L", "PNG"))),
        "16-bit gray PNG named .JPEG": Input(write(png16(0))),
        "16-bit RGB PNG named .JPEG": Input(write(png16(2))),
        "WebP named .JPEG": Input(write(encoded(format="WEBP"))),
        "WebP with alpha named .JPEG": Input(write(encoded("RGBA", "WEBP"))),
        "BMP named .JPEG": Input(write(encoded(format="BMP"))),
        "GIF named .JPEG": Input(write(encoded("P", "GIF"))),
        "TIFF named .JPEG": Input(write(encoded(format="TIFF"))),
        "CMYK TIFF named .JPEG": Input(write(encoded("CMYK", "TIFF"))),
        "PPM named .JPEG": Input(write(encoded(format="PPM"))),
        "a name that is not UTF-8": Input(good),
        "a link to an image": Input(_link),
        "a folder named x.JPEG": Input(_folder),
        "a stray marker in the scan": Input(write(within(b"\xff\x02")), readable=False, hidden=True),
        "another frame header in the scan": Input(write(within(b"\xff\xc0")), readable=False, hidden=True),
        "another image's header in the scan": Input(write(within(jpeg[:300])), readable=False, hidden=True),
        "progressive JPEG of 101 scans": Input(write(scans(101)), readable=False, hidden=True),
        "cut in the header": Input(write(jpeg[:100]), readable=False),
        "cut in the body": Input(write(jpeg[: len(jpeg) // 2]), readable=False),
        "cut PNG": Input(write(encoded(format="PNG")[:-800]), readable=False),
        "zero bytes": Input(write(b""), readable=False),
        "text": Input(write(b"hello " * 99), readable=False),
        "HTML": Input(write(b"<!DOCTYPE html><html><body>404</body></html>"), readable=False),
        "12-bit JPEG": Input(write(frame(bits=12)), readable=False),
        "30,000 x 30,000 in the header": Input(write(frame(width=30_000, height=30_000)), readable=False),
        **{name: case for name, case in hostile().items() if name.startswith(("8 MB", "a PPM", "a GIF", "a PNG"))},
        "a dangling link": Input(lambda path: path.symlink_to("nowhere"), readable=False),
        "a link loop": Input(_loop, readable=False),
    }
    changes: dict[str, Callable[[Path], Any]] = {
        "vanishes": Path.unlink,
        "shrinks": lambda path: os.truncate(path, len(jpeg) * 4 // 5),
        "becomes empty": lambda path: os.truncate(path, 0),
        "becomes another image": write(encoded(seed=5, size=(60, 40))),
        "becomes text of the same length": write((b"hello " * len(jpeg))[: len(jpeg)]),
        "becomes 30,000 x 30,000, of the same length": write(frame(width=30_000, height=30_000)),
        "becomes a folder": lambda path: _replace(path, Path.mkdir),
        "becomes a link to nowhere": lambda path: _replace(path, lambda p: p.symlink_to("nowhere")),
    }
    return found | {f"after indexing: {name}": Input(good, False, change) for name, change in changes.items()}


def file_name(name: str) -> str:
    """Of the input's file; surrogate-escaped where it is not text."""
    return os.fsdecode(b"\xff\xfe.JPEG") if "UTF-8" in name else "x.JPEG"
