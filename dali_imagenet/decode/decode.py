"""Encoded bytes -> RGB pixels, exactly as torchvision's ImageFolder loader decodes them (PIL, no EXIF rotation).

`DECODERS` are tried in order; what one leaves alone goes to the next. The last is Pillow, whose word counts.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from dali_imagenet._compiled import ORACLE, compiled
from dali_imagenet.decode.seek_index import Slot
from dali_imagenet.jpeg_markers import find_marker_anomaly, lower_height
from dali_imagenet.pillow import open_image

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width
Size = tuple[int, int]  # height, width

_jpeg = compiled("dali_imagenet.decode._jpeg")

# The filters of warnings are the process's: two threads that change them and put them back mix them up.
_QUIET = threading.Lock()
if hasattr(os, "register_at_fork"):  # else a worker that is forked meanwhile would wait for it for ever
    os.register_at_fork(before=_QUIET.acquire, after_in_parent=_QUIET.release, after_in_child=_QUIET.release)


class Decode(Protocol):
    def __call__(
        self, data: bytes, size: Size, box: Box, buffer: Pixels | None, slot: Slot | None = None
    ) -> Pixels | None:
        """The arguments of `decode`; `slot` is the region decoder's."""
        ...


class Decoder(NamedTuple):
    """One way to decode. To add one: an entry of `DECODERS`, before whatever is slower.

    It returns bit for bit the pixels of Pillow, or None for what it does not know or doubts: any file that Pillow would
    refuse must be left to Pillow, or the backends would lose different samples.
    """

    name: str
    available: Callable[[], bool]
    """Whether it takes part in this process."""
    decode: Decode


def decode(data: bytes, size: Size, box: Box, buffer: Pixels | None = None, slot: Slot | None = None) -> Pixels:
    """Decode a box of an image file to RGB.

    Args:
        data: the encoded file.
        size: (height, width) that the image must have; another one is refused before memory is taken for it.
        box: (top, left, height, width) within it.
        buffer: uint8 memory that the result may lie in, large enough for the whole image: fresh memory for every image
            costs a page fault for every 4 KiB.
        slot: what is remembered of this file, which is used and brought up to date; changes no pixel.

    Returns:
        uint8 [height, width, 3], bit for bit those of the whole image. Of a JPEG what lies below the box need not be
        decoded, so damage there may not be seen.

    Raises:
        OSError, ValueError, SyntaxError and others of PIL: the file cannot be decoded.
    """
    if data[:2] == b"\xff\xd8":
        for decoder in DECODERS[:-1]:
            if decoder.available() and (pixels := decoder.decode(data, size, box, buffer, slot)) is not None:
                return pixels
    return _pillow(data, size, box)


def decoder_name() -> str:
    """What decodes the usual JPEGs here: the name of the first decoder that is available."""
    return next(decoder.name for decoder in DECODERS if decoder.available())


def region_decoder() -> Any:
    """What `_image_kernels.row` decodes with, to the same pixels; None where another decoder comes first, or is to."""
    first = next(decoder for decoder in DECODERS if decoder.available())
    return getattr(_jpeg, "decoder", None) if first.decode is _region and not ORACLE else None


def _region(data: bytes, size: Size, box: Box, buffer: Pixels | None, slot: Slot | None = None) -> Pixels | None:
    """Our own: the box of a baseline JPEG and nothing else. It looks at the markers itself."""
    assert _jpeg is not None
    _, _, height, width = box
    made: Pixels = np.empty(height * width * 3, np.uint8) if buffer is None else buffer[: height * width * 3]
    try:
        if slot is None:
            _jpeg.decode_region(data, size, box, made, True, 0 if ORACLE else 1)
        else:
            slot.note(*_jpeg.decode_region(data, size, box, made, True, 1, slot.record))
    except ValueError as error:  # progressive, of a rarer kind, or damaged
        if slot is not None:
            slot.refuse(error.args[1])
        return None
    return made.reshape(height, width, 3)


def _simplejpeg(data: bytes, size: Size, box: Box, buffer: Pixels | None, slot: Slot | None = None) -> Pixels | None:
    """The whole file, strictly: otherwise it says nothing of an error after a warning, and the memory that it returns
    holds another image. Where the header has been lowered there are always warnings."""
    if find_marker_anomaly(data):  # cut short, or with markers where none belong: decoders disagree on these
        return None
    components, found, _ = lower_height(data, size[0])
    if components not in (1, 3) or found != size:
        return None
    top, left, height, width = box
    try:
        pixels = np.asarray(_simplejpeg_module().decode_jpeg(data, colorspace="RGB", buffer=buffer, strict=True))
    except (OSError, ValueError):
        return None
    return pixels[top : top + height, left : left + width]


@cache
def _simplejpeg_module() -> Any:
    return compiled("simplejpeg")


def _pillow_rows(data: bytes, size: Size, box: Box, buffer: Pixels | None, slot: Slot | None = None) -> Pixels | None:
    """Pillow, down to the last row of the box."""
    if find_marker_anomaly(data):
        return None
    components, found, cut = lower_height(data, box[0] + box[2])
    if components not in (1, 3) or found != size or cut is data:
        return None
    try:
        return _pillow(cut, None, box)
    except (OSError, ValueError, SyntaxError):
        return None


def _pillow(data: bytes, size: Size | None, box: Box, buffer: Pixels | None = None, slot: Slot | None = None) -> Pixels:
    top, left, height, width = box
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about palettes: of no use to a training run
        image: Image.Image = open_image(data)
        if size is not None and (image.height, image.width) != size:
            raise ValueError(
                f"{image.height}x{image.width} pixels, but the index says {size[0]}x{size[1]}: the file has changed "
                "since it was indexed"
            )
        if image.mode != "RGB":
            image = image.convert("RGB")
        # a copy: what PIL lends cannot be written, which torch warns about
        return np.array(image.crop((left, top, left + width, top + height)))


DECODERS = (
    Decoder("region decoder", lambda: _jpeg is not None, _region),
    Decoder("simplejpeg", lambda: _simplejpeg_module() is not None, _simplejpeg),
    # not behind simplejpeg: what that refuses is damaged, and Pillow has to see all of it
    Decoder("Pillow", lambda: _simplejpeg_module() is None, _pillow_rows),
    Decoder("Pillow", lambda: True, _pillow),
)
