"""Sizes and health of images, from their headers and end markers."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ImageFile, UnidentifiedImageError

from dali_imagenet.data.container import Part, pread
from dali_imagenet.data.index_cache import UNREAD, Table
from dali_imagenet.data.names import name_ends
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.errors import StorageError
from dali_imagenet.formats import BYTES_A_PIXEL, FORMATS
from dali_imagenet.jpeg_markers import (
    BASELINE,
    DHT,
    DQT,
    FILL,
    FRAMES,
    LONG_HEADER,
    MANY_SCANS,
    MAX_HEADER,
    MAX_SEGMENTS,
    METADATA,
    MIN_SCAN,
    PROGRESSIVE,
    SOS,
    count_blocks,
    frame_of,
    has_too_many_scans,
    is_one_scan,
    segments,
    strip_metadata,
)
from dali_imagenet.pillow import open_file, open_image
from dali_imagenet.storage import patiently

_HEAD = 4096  # bytes read first; most JPEG headers end within it
_TAIL = 64  # bytes searched for the end marker
_CHUNK = 128  # files a thread takes at a time
_BLOCK = 1 << 20  # bytes read at a time of a file that is read as a whole
# Pixels, over as many scans as a file has room for: about 10 s of decoding, at 0.8 ns each where a scan holds next to
# nothing. Below it is left to whoever decodes to count the scans, and the index reads the header alone.
_SCANNED = 10**10
_PATIENCE = 64  # files on which the storage has failed, after which it is asked only once


class Limits(NamedTuple):
    """What an image may be at most; None for no limit."""

    pixels: int | None
    bytes: int | None
    """Of a file, besides BYTES_A_PIXEL for each pixel that it claims to have."""


class Image(NamedTuple):
    height: int
    width: int
    components: int
    format: int


class Broken(Exception):
    """The image cannot be decoded, whatever is done; the message says why."""


def _probe_file(path: bytes, size: int, limits: Limits) -> Image:
    """Header and end marker of one file. Raises Broken, or OSError where it cannot be read."""
    if size < 0:
        os.stat(path)  # says what is wrong, if that is still so
        raise OSError("not a regular file when it was listed")
    # Not blocking: a pipe may have taken the file's place.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        return probe(lambda at, count: pread(fd, count, at), size, limits)
    finally:
        os.close(fd)


def probe(read: Callable[[int, int], bytes], size: int, limits: Limits) -> Image:
    """Header and end marker of `size` encoded bytes.

    Args:
        read: gives `count` bytes from `at` on, fewer at the end.

    Raises:
        Broken: they cannot be decoded.
        OSError: they cannot be read.
    """
    window = _Window(read, size)
    head = window.read(0, 16)
    if not head:
        raise Broken("empty file")
    doubt = ""
    if head[:3] == b"\xff\xd8\xff":
        image, doubt = _parse_jpeg(window.read, size, limits)
        if not doubt:
            return image
        _check(image.height, image.width, size, limits)
    return _verify_with_pillow(read, head, size, doubt, limits)


def _check(height: int, width: int, size: int, limits: Limits) -> None:
    if limits.pixels is not None and height * width > limits.pixels:
        raise Broken(f"{width} x {height} pixels, above the limit of {limits.pixels} (max_pixels)")
    if limits.bytes is not None and size > limits.bytes + BYTES_A_PIXEL * height * width:
        raise Broken(
            f"{size} bytes for {width} x {height} pixels, above the limit of {limits.bytes} (max_bytes) and "
            f"{BYTES_A_PIXEL} a pixel"
        )


def _parse_jpeg(read: Callable[[int, int], bytes], size: int, limits: Limits) -> tuple[Image, str]:
    """Walk the segments up to the first scan and look for the end marker.

    Returns the frame header (zeros where none was found) and what is doubtful about the file, "" for nothing.
    """
    image = Image(0, 0, 0, 1)
    doubt, tables, end, looked, blocks, frame = "", set[int](), 2, 0, 0, 0
    for count, segment in enumerate(segments(read)):
        marker, at, length = segment
        header = read(at, 10)
        looked += 0 if marker in METADATA else segment.end - at
        if count == MAX_SEGMENTS or looked > MAX_HEADER:
            raise Broken(LONG_HEADER)
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
            else:
                blocks = count_blocks(read(at, length + 2).ljust(length + 2, b"\0"), segment._replace(at=0))
            image, frame = Image(height, width, components, 1), marker
            _check(height, width, size, limits)
        tables.add(marker)
        end = segment.end
    else:
        return image, f"header damaged or cut short at byte {end}"
    if 8 * (size - segment.end) < blocks and not ImageFile.LOAD_TRUNCATED_IMAGES:
        # Each takes a bit at least. Every decoder would fill up with gray what is missing, megabytes of it.
        raise Broken(f"{max(0, size - segment.end)} bytes of coded data for {blocks} blocks of pixels")
    if not doubt and (not image.height or not tables >= {DQT, DHT}):
        doubt = "no frame header, quantization or Huffman tables before the image"
    room = 1 if is_one_scan(frame, image.components, header[4]) else size // MIN_SCAN
    count = not doubt and room * image.height * image.width > _SCANNED
    if count and has_too_many_scans(b"".join(read(start, _BLOCK) for start in range(0, size, _BLOCK))):
        raise Broken(MANY_SCANS)
    if not doubt:
        tail = read(max(0, size - _TAIL), _TAIL)
        if not tail.rstrip(b"\0\xff \t\r\n").endswith(b"\xff\xd9"):
            doubt = "no end marker at the end of the file"
    return image, doubt


class _Window:
    """A part of a file of that size, read again where what is asked for lies outside."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._bytes, self._start = read, size, b"", 0

    def read(self, at: int, count: int) -> bytes:
        """The bytes from there on; fewer at the end of the file."""
        begin = at - self._start
        if begin < 0 or begin + count > len(self._bytes):
            wanted = min(max(_HEAD, count), self._size - at)
            self._bytes, self._start, begin = self._read(at, wanted) if wanted > 0 else b"", at, 0
        return self._bytes[begin : begin + count]


def _verify_with_pillow(read: Callable[[int, int], bytes], head: bytes, size: int, doubt: str, limits: Limits) -> Image:
    """Load an unusual file with Pillow, as torchvision's ImageFolder would; what fails there is broken."""
    try:
        if limits.bytes is not None and size > limits.bytes and not doubt:
            # No JPEG: only Pillow knows how many pixels it claims to have.
            with io.BufferedReader(Part(read, size)) as file, open_file(file, limits.bytes) as image:
                _check(image.height, image.width, size, limits)
        data = read(0, size)
        if doubt:  # behind what the walk stopped at there may be a frame header, too
            stripped = strip_metadata(data)
            _parse_jpeg(lambda at, count: stripped[at : at + count], len(stripped), limits)
        with open_image(data) as image:
            width, height = image.size
            _check(height, width, size, limits)
            name = str(image.format)
            components = int(getattr(image, "layers", 0)) if name == "JPEG" else 0
            image.convert("RGB")
            return Image(height, width, components, FORMATS.index(name))
    except Broken:
        raise
    except UnidentifiedImageError:
        kind = f"a JPEG that Pillow cannot open ({doubt})" if doubt else f"no known image: it starts with {head[:16]!r}"
        raise Broken(kind) from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        raise Broken(f"{error} ({doubt})" if doubt else f"{error or type(error).__name__}") from None


def read_headers(
    root: str, table: Table, todo: npt.NDArray[np.intp], num_threads: int, progress: bool, limits: Limits
) -> None:
    """Fill the rows `todo` of the table. A row that is not reached keeps the stamp UNREAD."""
    prefix = os.fsencode(os.path.join(root, ""))
    ends = name_ends(table.paths)
    columns = table.columns
    stop = threading.Event()
    failed: list[int] = []  # rows on which the storage failed

    def read(rows: npt.NDArray[np.intp]) -> int:
        for i in rows.tolist():
            if stop.is_set():
                break
            path = prefix + table.paths[ends[i - 1] + 1 if i else 0 : ends[i]]
            probe = partial(_probe_file, path, int(columns["file_size"][i]), limits)
            image, reason, stamp = Image(0, 0, 0, 0), "", table.found_stamp[i]
            try:
                image = patiently(probe, lambda: "", None if len(failed) < _PATIENCE else ())
            except Broken as error:
                reason = str(error)
            except (OSError, StorageError) as error:
                cause = error.__cause__ if isinstance(error, StorageError) else error
                failed.extend([i] if cause is not error else [])
                what = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
                reason, stamp = f"cannot be read: {what}", UNREAD
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
