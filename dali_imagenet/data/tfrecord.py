"""TFRecords of tf.train.Example: framing and protobuf are walked, image bytes are not read. No TensorFlow is needed."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from dali_imagenet.data.container import Reader
from dali_imagenet.data.scan import CLASSES_KEY, Found, Scanned
from dali_imagenet.data.tar import refuse_packed
from dali_imagenet.escape import escaped, listed

logger = logging.getLogger("dali_imagenet")

IMAGE_KEYS = ("image", "image/encoded")
LABEL_KEYS = ("label", "image/class/synset", "image/class/label")
_NAME_KEYS = ("file_name", "image/filename", "filename")
_FROM_ONE = "image/class/label"
"""The older records of ImageNet count this from 1; other data sets of the same writers count it from 0."""
_FRAME, _CRC = 12, 4  # a length and its checksum before a record, and a checksum behind it
_MOST = 1024  # fields of one message; what has more is no Example of an image
_TEXT = 4096  # bytes of a feature that is read as text
SHARD = re.compile(r"(\.(tfrecords?|tfrec)(-\d+-of-\d+)?|-\d+-of-\d+)(\.gz)?$", re.IGNORECASE)
"""Names of shards: of TFDS `imagenet2012-train.tfrecord-00000-of-01024`, of older scripts `train-00000-of-01024`."""
Read = Callable[[int, int], bytes]


class Damaged(ValueError):
    """Not the protobuf that it should be."""


class Feature(NamedTuple):
    """A feature's first value: where its bytes lie, or a number."""

    at: int
    size: int
    number: int | None = None


@cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def masked_crc(data: bytes) -> int:
    """CRC-32C, masked as TFRecords have it."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Damaged("a number that does not end")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise Damaged("a number that does not end")


def _fields(read: Read, at: int, end: int) -> Iterator[tuple[int, int | None, int, int]]:
    """The fields of a message: (number, value of a varint or None, begin and end of the others)."""
    for _ in range(_MOST):
        if at >= end:
            return
        head = read(at, min(20, end - at))
        tag, i = _varint(head, 0)
        kind, value, size = tag & 7, None, 0
        if kind == 0:
            value, i = _varint(head, i)
        elif kind == 2:
            size, i = _varint(head, i)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise Damaged(f"a field of kind {kind}")
        begin, at = at + i, at + i + size
        if at > end:
            raise Damaged(f"a field of {size} bytes where {end - begin} are left")
        yield tag >> 3, value, begin, at
    if at < end:
        raise Damaged(f"more than {_MOST} fields")


def features(read: Read, at: int, end: int) -> Iterator[tuple[str, Feature]]:
    """The features of a tf.train.Example that lies there; those without a value are left out.

    Raises:
        Damaged: it is none.
    """
    for number, value, begin, stop in _fields(read, at, end):
        if number != 1 or value is not None:
            continue
        for entry, none, first, last in _fields(read, begin, stop):
            if entry != 1 or none is not None:
                continue
            name, found = "", None
            for part, nothing, a, b in _fields(read, first, last):
                if part == 1 and nothing is None:
                    name = read(a, min(b - a, _TEXT)).decode("utf-8", "replace")
                elif part == 2 and nothing is None:
                    found = _value(read, a, b)
            if found is not None:
                yield name, found


def _value(read: Read, at: int, end: int) -> Feature | None:
    """Of a Feature: the first of its bytes (1) or of its integers (3)."""
    for kind, value, begin, stop in _fields(read, at, end):
        if kind not in (1, 3) or value is not None:
            continue
        for number, one, a, b in _fields(read, begin, stop):
            if number != 1 or (kind == 1 and one is not None):
                continue
            if kind == 1:
                return Feature(a, b - a)
            if one is None:  # packed
                one, _ = _varint(read(a, min(10, b - a)), 0)
            return Feature(a, 0, one - (1 << 64) if one >> 63 else one)
    return None


class TFRecord:
    """A `Kind`: TFRecords of tf.train.Example.

    What it remembers: under "labels" the text of each image's label, None where it has none; under "label_key" the
    feature that they come from; under "cut" whether it ends within a record.

    Args:
        image_key: the feature of the images; None: one of IMAGE_KEYS.
        label_key: the feature of the labels; None: one of LABEL_KEYS.
    """

    def __init__(self, image_key: str | None = None, label_key: str | None = None) -> None:
        self._images = IMAGE_KEYS if image_key is None else (image_key,)
        self._labels = LABEL_KEYS if label_key is None else (label_key,)
        self.name = json.dumps(["tfrecord 1", image_key, label_key])

    def parts(self, reader: Reader) -> list[Any]:
        """The whole: a record says where the next one is."""
        return [None]

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        name, size = reader.container.name, reader.container.size
        labels: list[str | None] = []
        key, at, cut = "", 0, False
        while at < size:
            begin, end, cut = _record(found.read, name, at, size)
            here: dict[str, Feature] = {}
            problem = ""
            try:
                for feature, value in features(found.read, begin, end):
                    here[feature] = value
            except Damaged as error:
                problem = "the container ends within its record" if cut else f"its record is damaged: {error}"
            image = next((here[one] for one in self._images if one in here), None)
            if image is None or image.number is not None:
                problem = problem or f"its record holds no {' and no '.join(self._images)}, but {_shown(here)}"
                if not labels and not cut:
                    raise ValueError(f"{escaped(name)}: the first image: {problem}; name it with image_key=")
            called = _text(found.read, next((here[one] for one in _NAME_KEYS if one in here), None))
            label_key = next((one for one in self._labels if one in here), "")
            key = key or label_key
            labels.append(_text(found.read, here.get(key)))
            called = (called or "").replace("\0", "") or f"{len(labels) - 1:08d}"
            if image is None or image.number is not None:
                found.add(called, 0, 0, problem)
            else:
                found.add(called, image.at, image.size, "" if cut else problem)
            at = end + _CRC
        return {"labels": labels, "label_key": key, "cut": cut}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        return abouts[0]


def _record(read: Read, name: str, at: int, size: int) -> tuple[int, int, bool]:
    """Where the record lies whose frame begins there, and whether the container ends before it does."""
    frame = read(at, _FRAME)
    if len(frame) < _FRAME:
        return size, size, True
    length, crc = struct.unpack("<QI", frame)
    if masked_crc(frame[:8]) != crc:
        if not at:
            refuse_packed(name, frame, "gunzip; a TFRecord with GZIP compression is a gzip file")
            raise ValueError(f"{escaped(name)} is no TFRecord, or a compressed one: it starts with {frame!r}")
        raise ValueError(f"{escaped(name)} is damaged: no record at byte {at}")
    end = at + _FRAME + length
    if end + _CRC > size:
        logger.warning("%s ends within a record: it was probably cut short", escaped(name))
    return at + _FRAME, min(end, size), end + _CRC > size


def _shown(here: dict[str, Feature]) -> str:
    return listed(sorted(here)) or "no feature"


def _text(read: Read, feature: Feature | None) -> str | None:
    """A feature as text; None for numbers below 0, which say that there is no label."""
    if feature is None:
        return None
    if feature.number is not None:
        return str(feature.number) if feature.number >= 0 else None
    if feature.size > _TEXT:
        return None
    return os.fsdecode(read(feature.at, feature.size))


def counted_from_zero(scans: Sequence[Scanned], what: str, classes: int, first_label: int | None) -> Sequence[Scanned]:
    """The same with labels that count from 0.

    Args:
        classes: how many there are, 0 if that is not known.
        first_label: the lowest number of a class, None where it is to be found out: by a 0, or else by as many numbers
            from 1 on as there are classes.

    Raises:
        ValueError: it cannot be known.
    """
    if first_label is None:
        if not any(scan.about["label_key"] == _FROM_ONE for scan in scans):
            return scans
        seen = {int(v) for scan in scans for v in scan.about["labels"] if v is not None and v.isdecimal()}
        if not seen or 0 in seen:
            return scans
        if max(seen) != (classes or len(seen)):
            raise ValueError(
                f"{escaped(what)}: labels ({_FROM_ONE}) lie in {min(seen)}..{max(seen)}, and nothing says whether they "
                "count from 0 or, as ImageNet's older records do, from 1: say first_label=0 or first_label=1"
            )
        logger.info("%s: labels count from 1 (%s); here from 0", escaped(what), _FROM_ONE)
        first_label = 1
    if not first_label:
        return scans
    return [scan._replace(about=scan.about | {"labels": _shifted(scan, what)}) for scan in scans]


def _shifted(scan: Scanned, what: str) -> list[str | None]:
    numbers = [v if v is None else int(v) - 1 for v in scan.about["labels"]]
    if any(v is not None and v < 0 for v in numbers):
        raise ValueError(f"first_label=1: {escaped(what)} holds label 0, so that labels count from 0: leave it out")
    return [None if v is None else str(v) for v in numbers]


def named_beside(places: Sequence[str], label_key: str | None) -> list[str] | None:
    """The classes that TFDS has written beside its records: `label.labels.txt`."""
    if label_key not in (None, "label"):
        return None
    file = os.path.join(os.path.dirname(places[0]), "label.labels.txt")
    try:
        with open(file, encoding="utf-8") as lines:
            return [line.rstrip("\r\n") for line in lines if line.strip()] or None
    except OSError:
        return None


def with_classes(scans: Sequence[Scanned], names: Sequence[str] | None) -> Sequence[Scanned]:
    """The same, where numbers are those of these classes."""
    if names is None or any(scan.about["label_key"] != "label" for scan in scans if len(scan.rows)):
        return scans
    return [scan._replace(about=scan.about | {CLASSES_KEY: list(names)}) for scan in scans]
