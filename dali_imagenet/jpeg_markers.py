"""The markers of a JPEG file (ITU-T T.81, annex B): one walk over them, and whether they are as encoders write them.

Decoders differ in what they make of a stray marker: libjpeg as Pillow uses it reads every marker up to the end of the
file and refuses what makes no sense; DALI's decoders stop once they have all rows, and deliver. So that every backend
loses the same images, what looks unusual here is left to Pillow everywhere. Of all other damage to the compressed data
no decoder built on libjpeg complains: all show the same damaged picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dali_imagenet._compiled import ORACLE, compiled

_image_kernels = compiled("dali_imagenet.transforms._image_kernels")

# T.81, table B.1
FILL, DHT, EOI, SOS, DQT, DRI = 0xFF, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2  # frames that are Huffman-coded
_ARITHMETIC = 0xC9  # sequential, too
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (BASELINE, EXTENDED, PROGRESSIVE)
_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])  # without a segment
_HEADER = frozenset([*_HUFFMAN_FRAMES, DHT, SOS, DQT, DRI, *range(0xE0, 0xF0), 0xFE])  # tables, APPn and comments
_VERSIONED = (0xE0, 0xEE)  # JFIF and Adobe: Pillow refuses those that end before their version
# All that is looked at before the first scan: so many segments, and so many bytes besides those that are jumped over.
MAX_SEGMENTS = 4096  # real headers hold below 300: 255 ICC blocks and a few more
MAX_HEADER = 1 << 20
METADATA = frozenset([*range(0xE1, 0xEE), 0xEF, 0xFE])  # jumped over: comments, and all APPn but JFIF's and Adobe's
LONG_HEADER = f"a header of more than {MAX_SEGMENTS} segments or {MAX_HEADER} bytes, metadata not counted"
# Each scan costs a pass over the image, however few bytes it takes. Encoders write 10 for colours; 100 is where libtiff
# (LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER) and GDAL stop, 500 where libjpeg-turbo's fuzzers do (TJPARAM_SCANLIMIT).
MAX_SCANS = 100
MIN_SCAN = 10  # bytes: its marker and header, for one component
MANY_SCANS = f"more than {MAX_SCANS} scans, or {MAX_SEGMENTS} segments around them"
_NEXT = re.compile(rb"\xff[\x01-\xfe]")  # what libjpeg and Pillow take for the next marker: behind stray and fill bytes
_BLOCK = 1 << 20
# Above this share of the rows it is not worth decoding fewer: rewriting the header costs some microseconds and a copy.
_WORTH_CUTTING = 0.9
_BETWEEN_SCANS = {
    BASELINE: frozenset[int](),
    EXTENDED: frozenset[int](),
    PROGRESSIVE: frozenset([DHT, SOS, DRI]),
}


class Segment(NamedTuple):
    """A marker, and what belongs to it."""

    marker: int
    """Its second byte."""
    at: int
    """Where its first byte, 0xFF, stands."""
    length: int
    """Of the segment behind the marker, its two length bytes included; 0 where the file ends before them."""

    @property
    def end(self) -> int:
        """Where the next marker is due; that of a scan's header begins the coded data."""
        if self.marker == FILL:
            return self.at + 1
        return self.at + 2 if self.marker in _ALONE else self.at + 2 + self.length


def segments(read: Callable[[int, int], bytes | memoryview], at: int = 2) -> Iterator[Segment]:
    """The markers from there on, one after the other, for as long as one stands where one is due.

    Goes on behind a scan's header as if no coded data followed: whoever meets one has to stop, or to look for its end.

    Args:
        read: (at, count) -> those bytes of the file, fewer at its end.
        at: where the first marker is due; 2 is behind the start of the image.
    """
    while True:
        head = read(at, 4)
        if len(head) < 2 or head[0] != 0xFF:
            return
        segment = Segment(head[1], at, head[2] << 8 | head[3] if len(head) == 4 else 0)
        yield segment
        at = segment.end


def segments_in(data: bytes | memoryview, at: int = 2) -> Iterator[Segment]:
    """`segments` of a file that is in memory."""
    return segments(lambda start, count: data[start : start + count], at)


class Frame(NamedTuple):
    """A frame header."""

    bits: int
    """Of a sample."""
    height: int
    width: int
    components: int


def frame_of(data: bytes | memoryview, segment: Segment) -> Frame:
    """The frame header at that segment, of which 10 bytes must be there."""
    at = segment.at
    return Frame(data[at + 4], data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9])


def count_blocks(data: bytes | memoryview, segment: Segment) -> int:
    """The 8 x 8 blocks of the frame header at that segment, which must be there as a whole."""
    frame, at = frame_of(data, segment), segment.at + 11
    factors = [(data[i] >> 4, data[i] & 15) for i in range(at, at + 3 * frame.components, 3)]
    most_h, most_v = (max((factor[i] for factor in factors), default=1) or 1 for i in (0, 1))
    return sum(-(-frame.width * h // (8 * most_h)) * -(-frame.height * v // (8 * most_v)) for h, v in factors)


def strip_metadata(data: bytes) -> bytes:
    """The JPEG without what has no say in its pixels: METADATA, and stray and fill bytes before the first scan.

    Pillow parses some of it, and loses the file where it stumbles; every other decoder jumps over it. From the first
    marker on that no decoder goes on behind, nothing is changed.

    Raises:
        ValueError: the header is longer than is looked at.
    """
    view = memoryview(data)
    kept, at, looked, count = [view[:2]], 2, 0, 0
    while (found := _NEXT.search(data, at)) is not None:
        segment = next(segments_in(view, found.start()))
        marker, start, length = segment
        end = start + 4 if marker in METADATA and length < 2 else segment.end
        looked += start - at if marker in METADATA else end - at
        count += 1
        if count > MAX_SEGMENTS or looked > MAX_HEADER:
            raise ValueError(LONG_HEADER)
        alone = 0xD0 <= marker <= 0xD7
        ends = marker < 0xC0 or marker in (0xC8, 0xD8, EOI, SOS) or 0xF0 <= marker <= 0xFD
        if ends or end > len(data) or (length < 2 and not alone and marker not in METADATA):
            kept.append(view[start:])
            break
        if marker not in METADATA:
            kept.append(view[start:end])
        at = end
    return b"".join(kept)


def is_one_scan(frame: int, components: int, in_scan: int) -> bool:
    """Whether a decoder is done after the first scan, which holds that many of a frame's components."""
    return frame in (BASELINE, EXTENDED, _ARITHMETIC) and in_scan == components


def has_too_many_scans(data: bytes | memoryview) -> bool:
    """Whether a JPEG has more scans up to its end marker than any decoder may be shown. 0.02 ms for 110 kB.

    Markers are found as libjpeg finds them: behind stray bytes, restart markers and fill bytes, too.
    """
    view = memoryview(data)
    at, count, scans, frame, components = 2, 0, 0, 0, 0
    for place in _markers(view, at):
        marker = view[place + 1]
        if place < at or marker in (0x01, FILL) or 0xD0 <= marker <= 0xD7:
            continue
        segment = next(segments_in(view, place))
        count += 1
        if marker == EOI or segment.end > len(view):
            return False
        if marker in FRAMES and segment.length >= 8:
            frame, components = marker, frame_of(view, segment).components
        elif marker == SOS:
            scans += 1
            if scans == 1 and segment.length > 2 and is_one_scan(frame, components, view[place + 4]):
                return False
        if scans > MAX_SCANS or count > MAX_SEGMENTS:
            return True
        at = segment.end
    return False


def find_marker_anomaly(data: bytes | memoryview) -> str:
    """What is unusual about the markers of a JPEG file, "" for nothing. Never raises; 0.02 ms for 110 kB.

    Usual are: tables, application segments and one Huffman-coded frame header; a scan, in which 0xFF is followed by 0
    or by restart markers in order, and only where they were announced; in a progressive file more scans with
    tables before them; the end marker. What follows it does not count.
    """
    view, size = memoryview(data), len(data)
    if _image_kernels is not None and not ORACLE and _image_kernels.usual_markers(view):
        return ""
    at, frame, restarts, ends = 2, 0, False, None
    total, looked, scans = 0, 0, 0
    while True:
        scan = None
        for segment in segments_in(view, at):
            marker, at, length = segment
            if marker == EOI and ends is not None:
                return ""
            total += 1
            looked += 0 if ends is not None or marker in METADATA else segment.end - at
            if total > MAX_SEGMENTS or looked > MAX_HEADER:
                return LONG_HEADER
            if marker not in (_HEADER if ends is None else _BETWEEN_SCANS[frame]):
                return f"marker {marker:02X} at byte {at}, where none of its kind belongs"
            if length < (9 if marker in _VERSIONED else 2) or segment.end > size:
                return f"a segment of {length} bytes at byte {at}"
            if marker in _HUFFMAN_FRAMES:
                if frame:
                    return f"a second frame header at byte {at}"
                if length < 8 or frame_of(view, segment).components not in (1, 3):
                    return f"a frame that is neither gray nor of three colours at byte {at}"
                frame = marker
            elif marker == DRI:
                restarts = any(view[at + 4 : segment.end])
            at = segment.end
            if marker == SOS:
                scan = segment
                break
        if scan is None:
            return f"no marker at byte {at}, where one is due"
        if not frame:
            return "a scan without a frame header"
        scans += 1
        if scans > MAX_SCANS:
            return MANY_SCANS
        if ends is None:
            ends = _markers(view, at)
        count = 0
        for end in ends:
            if end < at:  # in a table between scans
                continue
            marker = view[end + 1]
            if not 0xD0 <= marker <= 0xD7:
                at = end
                break
            if not restarts or marker != 0xD0 + count % 8:
                return f"restart marker {marker:02X} at byte {end}, where none or another is due"
            count += 1
        else:
            return "no marker after the last scan"


def _markers(view: memoryview, start: int) -> Iterator[int]:
    """Where 0xFF is followed by anything but 0; found block by block, for there may be millions in a hostile file."""
    for at in range(start, len(view) - 1, _BLOCK):
        block = view[at : at + _BLOCK + 1]
        if _image_kernels is not None:
            found = _image_kernels.markers(block, 0)
        else:
            array = np.frombuffer(block, np.uint8)
            marked = array[:-1] == 0xFF
            marked &= array[1:] != 0
            found = np.flatnonzero(marked).tolist()
        for place in found:
            yield at + place


def lower_height(data: bytes, rows: int) -> tuple[int, tuple[int, int], bytes]:
    """Number of colour components, height and width, and the JPEG with its height lowered to the rows that are needed.

    Decoders stop at the header's height. One block row more is kept below the last row that is needed, because chroma
    upsampling looks at the next row; so what is left is bit for bit the same. The markers must be as
    `find_marker_anomaly` wants them.
    """
    for segment in segments_in(data):
        if segment.marker in FRAMES:
            break
    else:
        return 0, (0, 0), data
    at, (_, height, width, components) = segment.at, frame_of(data, segment)
    # of a progressive one all scans are decoded in any case
    if segment.marker == PROGRESSIVE or components not in (1, 3) or height == 0:
        return components, (height, width), data
    block = 8 * max((data[i] & 15 for i in range(at + 11, min(len(data), at + 10 + 3 * components), 3)), default=1)
    keep = (rows + block - 1) // block * block + block
    if keep >= height * _WORTH_CUTTING:
        return components, (height, width), data
    return components, (height, width), b"".join((data[: at + 5], keep.to_bytes(2, "big"), data[at + 7 :]))
