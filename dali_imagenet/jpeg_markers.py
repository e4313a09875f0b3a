"""Is the marker stream of a JPEG as encoders write it?

Decoders differ in what they make of a stray marker: libjpeg as Pillow uses it reads every marker up to the end of the
file and refuses what makes no sense; DALI's decoders stop once they have all rows, and deliver. So that every backend
loses the same images, what looks unusual here is left to Pillow everywhere. Of all other damage to the compressed data
no decoder built on libjpeg complains: all show the same damaged picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dali_imagenet._compiled import compiled

_kernels = compiled("dali_imagenet.transforms._image_kernels")

# ITU-T T.81, table B.1
_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: Huffman-coded
_HEADER = frozenset([*_FRAMES, _DHT, _SOS, 0xDB, _DRI, *range(0xE0, 0xF0), 0xFE])  # tables, APPn and comments
_VERSIONED = (0xE0, 0xEE)  # JFIF and Adobe: Pillow refuses those that end before their version
_BLOCK = 1 << 20
_BETWEEN_SCANS = {0xC0: frozenset[int](), 0xC1: frozenset[int](), 0xC2: frozenset([_DHT, _SOS, _DRI])}


def doubt(data: bytes | memoryview) -> str:
    """What is unusual about the markers of a JPEG file, "" for nothing. Never raises; 0.011 ms for 110 kB.

    Usual are: tables, application segments and one Huffman-coded frame header; a scan, in which 0xFF is followed by 0
    or by restart markers in order, and only where they were announced; in a progressive file more scans with
    tables before them; the end marker. What follows it does not count.
    """
    view, size = memoryview(data), len(data)
    at, frame, restarts, ends = 2, 0, False, None
    while at + 2 <= size and view[at] == 0xFF:
        marker = view[at + 1]
        if marker == _EOI and ends is not None:
            return ""
        if marker not in (_HEADER if ends is None else _BETWEEN_SCANS[frame]):
            return f"marker {marker:02X} at byte {at}, where none of its kind belongs"
        length = view[at + 2] << 8 | view[at + 3] if at + 4 <= size else 0
        if length < (9 if marker in _VERSIONED else 2) or at + 2 + length > size:
            return f"a segment of {length} bytes at byte {at}"
        if marker in _FRAMES:
            if frame:
                return f"a second frame header at byte {at}"
            if length < 8 or view[at + 9] not in (1, 3):
                return f"a frame that is neither gray nor of three colours at byte {at}"
            frame = marker
        elif marker == _DRI:
            restarts = any(view[at + 4 : at + 2 + length])
        at += 2 + length
        if marker == _SOS:
            if not frame:
                return "a scan without a frame header"
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
    return f"no marker at byte {at}, where one is due"


def _markers(view: memoryview, start: int) -> Iterator[int]:
    """Where 0xFF is followed by anything but 0; found block by block, for there may be millions in a hostile file."""
    for at in range(start, len(view) - 1, _BLOCK):
        block = view[at : at + _BLOCK + 1]
        if _kernels is not None:
            found = _kernels.markers(block, 0)
        else:
            array = np.frombuffer(block, np.uint8)
            marked = array[:-1] == 0xFF
            marked &= array[1:] != 0
            found = np.flatnonzero(marked).tolist()
        for place in found:
            yield at + place
