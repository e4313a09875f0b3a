"""Sizes and health of images, from their headers and end markers."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.index_cache import UNREAD, Table
from dali_imagenet.data.names import name_ends
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.formats import FORMATS, pillow_formats
from dali_imagenet.jpeg_markers import BASELINE, DHT, DQT, FILL, FRAMES, PROGRESSIVE, SOS, frame_of, segments

_HEAD = 4096  # bytes read first; most JPEG headers end within it
_TAIL = 64  # bytes searched for the end marker
MAX_SEGMENTS = 4096  # real headers hold below 300: 255 ICC blocks and a few more
_CHUNK = 128  # files a thread takes at a time


class _Image(NamedTuple):
    height: int
    width: int
    components: int
    format: int


class _Broken(Exception):
    """The image cannot be decoded, whatever is done; the message says why."""


def _pread(fd: int, count: int, offset: int) -> bytes:
    if sys.platform != "win32":
        return os.pread(fd, count, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, count)


def _probe(path: bytes, size: int, max_pixels: int | None) -> _Image:
    """Header and end marker of one file. Raises _Broken, or OSError where it cannot be read."""
    if size < 0:
        os.stat(path)  # says what is wrong, if that is still so
        raise OSError("not a regular file when it was listed")
    # Not blocking: a pipe may have taken the file's place.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        head = _pread(fd, _HEAD, 0)
        if not head:
            raise _Broken("empty file")
        doubt = ""
        if head[:3] == b"\xff\xd8\xff":
            image, doubt = _parse_jpeg(fd, head, size)
            _check_pixels(image.height, image.width, max_pixels)
            if not doubt:
                return image
        return _verify_with_pillow(fd, head, doubt, max_pixels)
    finally:
        os.close(fd)


def _check_pixels(height: int, width: int, max_pixels: int | None) -> None:
    if max_pixels is not None and height * width > max_pixels:
        raise _Broken(f"{width} x {height} pixels, above the limit of {max_pixels} (max_pixels)")


def _parse_jpeg(fd: int, head: bytes, size: int) -> tuple[_Image, str]:
    """Walk the segments up to the first scan and look for the end marker.

    Returns the frame header (zeros where none was found) and what is doubtful about the file, "" for nothing.
    """
    window = _Window(fd, head)
    image = _Image(0, 0, 0, 1)
    doubt, tables, end = "", set[int](), 2
    for count, segment in enumerate(segments(window.read)):
        marker, at, length = segment
        header = window.read(at, 10)
        if count == MAX_SEGMENTS:
            raise _Broken(f"more than {MAX_SEGMENTS} segments before the image")
        if len(header) < 10:
            return image, f"header damaged or cut short at byte {at}"
        if marker == SOS:
            break
        if marker != FILL and (length < 2 or marker < 0xC0 or 0xD0 <= marker <= 0xD9):
            return image, f"header damaged at byte {at}"
        if marker in FRAMES:
            bits, height, width, components = frame_of(header, segment._replace(at=0))
            if image.height:
                doubt = "two frame headers"
            elif marker > PROGRESSIVE or bits != 8:
                doubt = f"frame type {marker - BASELINE} with {bits} bits a sample"
            elif components not in (1, 3, 4) or length != 8 + 3 * components:
                doubt = f"frame header of {length} bytes with {components} components"
            elif not height or not width:
                doubt = f"{width} x {height} pixels"
            image = _Image(height, width, components, 1)
        tables.add(marker)
        end = segment.end
    else:
        return image, f"header damaged or cut short at byte {end}"
    if not doubt and (not image.height or not tables >= {DQT, DHT}):
        doubt = "no frame header, quantization or Huffman tables before the image"
    if not doubt:
        tail = head if size <= len(head) else _pread(fd, _TAIL, size - _TAIL)
        if not tail.rstrip(b"\0\xff \t\r\n").endswith(b"\xff\xd9"):
            doubt = "no end marker at the end of the file"
    return image, doubt


class _Window:
    """A part of a file, read again where what is asked for lies outside."""

    def __init__(self, fd: int, head: bytes) -> None:
        self._fd, self._bytes, self._start = fd, head, 0

    def read(self, at: int, count: int) -> bytes:
        """The bytes from there on; fewer at the end of the file."""
        begin = at - self._start
        if begin + count > len(self._bytes):
            self._bytes, self._start, begin = _pread(self._fd, _HEAD, at), at, 0
        return self._bytes[begin : begin + count]


def _verify_with_pillow(fd: int, head: bytes, doubt: str, max_pixels: int | None) -> _Image:
    """Load an unusual file with Pillow, as torchvision's ImageFolder would; what fails there is broken."""
    from PIL import Image, UnidentifiedImageError

    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with open(fd, "rb", closefd=False) as file, Image.open(file, formats=pillow_formats()) as image:
            width, height = image.size
            _check_pixels(height, width, max_pixels)
            name = "JPEG" if image.format == "MPO" else str(image.format)
            components = int(getattr(image, "layers", 0)) if name == "JPEG" else 0
            image.convert("RGB")
            return _Image(height, width, components, FORMATS.index(name))
    except _Broken:
        raise
    except UnidentifiedImageError:
        kind = f"a JPEG that Pillow cannot open ({doubt})" if doubt else f"no known image: it starts with {head[:16]!r}"
        raise _Broken(kind) from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        if isinstance(error, OSError) and error.errno:
            raise
        raise _Broken(f"{error} ({doubt})" if doubt else f"{error or type(error).__name__}") from None


def read_headers(
    root: str, table: Table, todo: npt.NDArray[np.intp], num_threads: int, progress: bool, max_pixels: int | None
) -> None:
    """Fill the rows `todo` of the table. A row that is not reached keeps the stamp UNREAD."""
    prefix = os.fsencode(os.path.join(root, ""))
    ends = name_ends(table.paths)
    columns = table.columns
    stop = threading.Event()

    def read(rows: npt.NDArray[np.intp]) -> int:
        for i in rows.tolist():
            if stop.is_set():
                break
            path = prefix + table.paths[ends[i - 1] + 1 if i else 0 : ends[i]]
            image, reason, stamp = _Image(0, 0, 0, 0), "", table.found_stamp[i]
            try:
                image = _probe(path, int(columns["file_size"][i]), max_pixels)
            except _Broken as error:
                reason = str(error)
            except OSError as error:
                reason, stamp = f"cannot be read: {error.strerror or error}", UNREAD
            columns["height"][i], columns["width"][i], columns["components"][i], columns["format"][i] = image
            columns["broken"][i] = bool(reason)
            if reason:
                table.reasons[i] = reason
            else:
                table.reasons.pop(i, None)
            columns["stamp"][i] = stamp
        return len(rows)

    chunks = [todo[k : k + _CHUNK] for k in range(0, len(todo), _CHUNK)]
    with ThreadPoolExecutor(num_threads, "dali_imagenet-index") as pool:
        try:
            with progress_bar(None, len(todo), "indexing", "file", progress) as bar:
                for count in pool.map(read, chunks):
                    bar.update(count)
        finally:
            stop.set()
