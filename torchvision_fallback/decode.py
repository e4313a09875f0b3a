"""Encoded bytes -> RGB pixels, exactly as torchvision's ImageFolder loader decodes them (PIL, no EXIF rotation)."""

from __future__ import annotations

import importlib
import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_imagenet.index import FORMATS

Pixels = npt.NDArray[np.uint8]

# Below this share of the rows, decoding stops early: rewriting the header costs some microseconds and a copy.
_WORTH_CUTTING = 0.9
_END, _END_WITHIN = b"\xff\xd9", 64  # the end marker, and how far from the end some writers leave it
_NO_SIZE = frozenset([0x01, *range(0xD0, 0xD8)])  # markers without a segment
_SOF = frozenset([0xC0, 0xC1, 0xC2])  # baseline, extended, progressive: Huffman-coded


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


@cache
def _formats() -> list[str]:
    """What Pillow may decode: the formats of the index. Others start programs (EPS runs Ghostscript)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decoder_name() -> str:
    """Which library decodes JPEGs here: "simplejpeg" or "Pillow"."""
    return "simplejpeg" if _simplejpeg() else "Pillow"


def decode(
    data: bytes, rows: int | None = None, buffer: Pixels | None = None, size: tuple[int, int] | None = None
) -> Pixels:
    """Decode an image file to RGB.

    Args:
        data: the encoded file.
        rows: how many rows from the top are needed; the rest may be left out. None: all.
        buffer: uint8 memory that the result may lie in, large enough for the whole image: fresh memory for every image
            costs a page fault for every 4 KiB.
        size: (height, width) that the image must have; another one is refused before memory is taken for it.

    Returns:
        uint8 [H, W, 3]. Of a JPEG at least the first `rows` rows, bit for bit those of the whole image.

    Raises:
        OSError, ValueError, SyntaxError and others of PIL: the file cannot be decoded.
    """
    if data[:2] == b"\xff\xd8":
        components, found, cut = _cut(data, rows)
        library = _simplejpeg()
        if library is not None and components in (1, 3) and (size is None or found == size):
            try:
                # Where the header has been lowered there is more data than rows, about which strict complains.
                return np.asarray(library.decode_jpeg(cut, colorspace="RGB", buffer=buffer, strict=cut is data))
            except ValueError:  # it is stricter than PIL, whose word counts
                pass
        elif cut is not data and (size is None or found == size):
            try:
                return _pil(cut, None)
            except (OSError, ValueError, SyntaxError):
                pass
    return _pil(data, size)


def _pil(data: bytes, size: tuple[int, int] | None) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF and palettes: of no use to a training run
        image = Image.open(io.BytesIO(data), formats=_formats())
        if size is not None and (image.height, image.width) != size:
            raise ValueError(
                f"{image.height}x{image.width} pixels, but the index says {size[0]}x{size[1]}: the file has changed "
                "since it was indexed"
            )
        return np.array(image.convert("RGB"))  # a copy: what PIL lends cannot be written, which torch warns about


def _cut(data: bytes, rows: int | None) -> tuple[int, tuple[int, int], bytes]:
    """Number of colour components, height and width, and the JPEG with its height lowered to what is needed.

    Decoders stop at the header's height. One block row more is kept below the last row that is needed, because chroma
    upsampling looks at the next row; so what is left is bit for bit the same. A file without an end marker is left as
    it is, so that a truncated one is found out.
    """
    at, end = 2, len(data)
    if data.rfind(_END, -_END_WITHIN) < 0:
        rows = None
    while at + 4 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _NO_SIZE:
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if at + 10 > end:
                break
            components = data[at + 9]
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            if marker not in _SOF or rows is None or components not in (1, 3) or height == 0:
                return components, (height, width), data
            block = 8 * max((data[i] & 15 for i in range(at + 11, min(end, at + 10 + 3 * components), 3)), default=1)
            keep = (rows + block - 1) // block * block + block
            if keep >= height * _WORTH_CUTTING:
                return components, (height, width), data
            return components, (height, width), b"".join((data[: at + 5], keep.to_bytes(2, "big"), data[at + 7 :]))
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 0, (0, 0), data
