"""What Pillow is given of a file, and how much of it Pillow may look at before it knows the size of the image."""

from __future__ import annotations

import io
from typing import IO, Any, cast

from PIL import Image

from dali_imagenet.formats import pillow_formats
from dali_imagenet.jpeg_markers import MANY_SCANS, MAX_HEADER, MAX_SEGMENTS, has_too_many_scans, strip_metadata

_LONG_READ = MAX_HEADER // MAX_SEGMENTS  # bytes; a longer read is a segment, and counts as this


def open_image(data: bytes) -> Image.Image:
    """The image of an encoded file, not yet decoded.

    A JPEG's metadata are cut out before Pillow sees them: its parsers raise on some that no other decoder looks at.

    Raises:
        OSError, ValueError, SyntaxError and others of PIL: it cannot be opened, its header is too long, or it has too
            many scans.
    """
    if data[:3] == b"\xff\xd8\xff":
        data = strip_metadata(data)
        if has_too_many_scans(data):
            raise ValueError(MANY_SCANS)
    return open_file(io.BytesIO(data), len(data))


def open_file(file: IO[bytes], size: int) -> Image.Image:
    """The image of an open file, of whose `size` bytes Pillow may read each once while it looks for the pixels."""
    counted = _Counted(file, size + MAX_HEADER)
    image = Image.open(cast("IO[bytes]", counted), formats=pillow_formats())
    counted.opened = True
    return image


class _Counted:
    """A file that refuses to be read until `opened` once more than MAX_HEADER bytes have been looked at.

    A read of more than _LONG_READ bytes counts as that, so that there may be MAX_SEGMENTS of them, of any length.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._most = file, most
        self._looked = self._read = 0
        self.opened = False

    def read(self, size: int = -1) -> bytes:
        if self.opened:
            return self._file.read(size)
        left = self._most - self._read
        data = self._file.read(left + 1 if size is None or size < 0 else min(size, left + 1))
        self._read += len(data)
        self._looked += max(1, min(len(data), _LONG_READ))
        if self._looked > MAX_HEADER or self._read > self._most:
            raise ValueError(f"a header of more than {MAX_SEGMENTS} segments or {MAX_HEADER} bytes")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
