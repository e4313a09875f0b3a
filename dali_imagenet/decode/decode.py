"""Encoded bytes -> RGB pixels, exactly as torchvision's ImageFolder loader decodes them (PIL, no EXIF rotation)."""

from __future__ import annotations

import io
import os
import threading
import warnings
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_imagenet._compiled import compiled
from dali_imagenet.data.index import FORMATS
from dali_imagenet.jpeg_markers import doubt

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width

_jpeg = compiled("dali_imagenet.decode._jpeg")

# The filters of warnings are the process's: two threads that change them and put them back mix them up.
_QUIET = threading.Lock()
if hasattr(os, "register_at_fork"):  # else a worker that is forked meanwhile would wait for it for ever
    os.register_at_fork(before=_QUIET.acquire, after_in_parent=_QUIET.release, after_in_child=_QUIET.release)

# Below this share of the rows, decoding stops early: rewriting the header costs some microseconds and a copy.
_WORTH_CUTTING = 0.9
_NO_SIZE = frozenset([0x01, *range(0xD0, 0xD8)])  # markers without a segment
_SOF = frozenset([0xC0, 0xC1])  # baseline and extended; of a progressive file all scans are decoded in any case


@cache
def _simplejpeg() -> Any:
    return compiled("simplejpeg")


@cache
def _formats() -> list[str]:
    """What Pillow may decode: the formats of the index. Others start programs (EPS runs Ghostscript)."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decoder_name() -> str:
    """What decodes the usual JPEGs here: the "region decoder" that was compiled with us, "simplejpeg" or "Pillow"."""
    return "region decoder" if _jpeg else "simplejpeg" if _simplejpeg() else "Pillow"


def decode(data: bytes, size: tuple[int, int], box: Box, buffer: Pixels | None = None) -> Pixels:
    """Decode a box of an image file to RGB.

    Args:
        data: the encoded file.
        size: (height, width) that the image must have; another one is refused before memory is taken for it.
        box: (top, left, height, width) within it.
        buffer: uint8 memory that the result may lie in, large enough for the whole image: fresh memory for every image
            costs a page fault for every 4 KiB.

    Returns:
        uint8 [height, width, 3], bit for bit those of the whole image. Of a JPEG what lies below the box need not be
        decoded, so damage there may not be seen.

    Raises:
        OSError, ValueError, SyntaxError and others of PIL: the file cannot be decoded.
    """
    pixels = _jpeg_box(data, size, box, buffer) if data[:2] == b"\xff\xd8" else None
    if pixels is None:  # no JPEG, or one that a stricter decoder refused: PIL's word counts
        pixels = _pil(data, size, box)
    return pixels


def _jpeg_box(data: bytes, size: tuple[int, int], box: Box, buffer: Pixels | None) -> Pixels | None:
    """The box of a JPEG, decoded no further than needed; None for whatever is left to Pillow."""
    top, left, height, width = box
    if _jpeg is not None:
        made: Pixels = np.empty(height * width * 3, np.uint8) if buffer is None else buffer[: height * width * 3]
        try:
            _jpeg.decode_region(data, size, box, made)  # looks at the markers itself
            return made.reshape(height, width, 3)
        except ValueError:  # progressive, of a rarer kind, or damaged
            pass
    if doubt(data):  # cut short, or with markers where none belong: decoders disagree on these
        return None
    components, found, cut = _cut(data, top + height)
    if components not in (1, 3) or found != size:
        return None
    library = _simplejpeg()
    try:
        if library is not None:
            # The whole file, strictly: otherwise it says nothing of an error after a warning, and the memory that it
            # returns holds another image. Where the header has been lowered there are always warnings.
            pixels = np.asarray(library.decode_jpeg(data, colorspace="RGB", buffer=buffer, strict=True))
            return pixels[top : top + height, left : left + width]
        return None if cut is data else _pil(cut, None, box)
    except (OSError, ValueError, SyntaxError):
        return None


def _pil(data: bytes, size: tuple[int, int] | None, box: Box) -> Pixels:
    top, left, height, width = box
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF and palettes: of no use to a training run
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        if size is not None and (image.height, image.width) != size:
            raise ValueError(
                f"{image.height}x{image.width} pixels, but the index says {size[0]}x{size[1]}: the file has changed "
                "since it was indexed"
            )
        if image.mode != "RGB":
            image = image.convert("RGB")
        # a copy: what PIL lends cannot be written, which torch warns about
        return np.array(image.crop((left, top, left + width, top + height)))


def _cut(data: bytes, rows: int) -> tuple[int, tuple[int, int], bytes]:
    """Number of colour components, height and width, and the JPEG with its height lowered to what is needed.

    Decoders stop at the header's height. One block row more is kept below the last row that is needed, because chroma
    upsampling looks at the next row; so what is left is bit for bit the same.
    """
    at, end = 2, len(data)
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
            if marker not in _SOF or components not in (1, 3) or height == 0:
                return components, (height, width), data
            block = 8 * max((data[i] & 15 for i in range(at + 11, min(end, at + 10 + 3 * components), 3)), default=1)
            keep = (rows + block - 1) // block * block + block
            if keep >= height * _WORTH_CUTTING:
                return components, (height, width), data
            return components, (height, width), b"".join((data[: at + 5], keep.to_bytes(2, "big"), data[at + 7 :]))
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 0, (0, 0), data
