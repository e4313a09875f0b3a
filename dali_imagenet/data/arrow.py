"""Arrow IPC streams and files, as `datasets` keeps and saves them. Only the places of cells are read, not the images.

Messages are walked by hand: a damaged or hostile container gives a ValueError, and the same walk serves any storage.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.container import Reader
from dali_imagenet.data.scan import CLASSES_KEY, Found, ahead
from dali_imagenet.data.tables import (
    BYTES,
    PATH,
    Cells,
    arrow,
    cell_name,
    cells_in,
    columns_of,
    features_in,
    label_texts,
    no_image,
)
from dali_imagenet.data.tar import refuse_packed
from dali_imagenet.escape import escaped

logger = logging.getLogger("dali_imagenet")

_MAGIC = b"ARROW1"  # of a file, which holds a stream from byte 8 on
_MORE = 0xFFFFFFFF  # before the length of a message
_LONGEST = 64 << 20  # bytes of a message without its body: class names and pandas' notes are in the first
_MOST_ROWS = 1 << 24  # of one batch
_SCHEMA, _BATCH = 1, 3
_INTEGERS = {f"{sign}int{bits}": f"<{sign[:1] or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
Read = Callable[[int, int], bytes]


class Damaged(ValueError):
    """Not what Arrow writes."""


class Message(NamedTuple):
    """A message: `kind` of its header, the header's `meta` bytes, and where its body lies."""

    kind: int
    meta: bytes
    body: int
    length: int


class Batch(NamedTuple):
    """A record batch: rows, [nodes, 2] (length, nulls), [buffers, 2] (offset in the body, length)."""

    rows: int
    nodes: npt.NDArray[np.int64]
    buffers: npt.NDArray[np.int64]


def _get(form: str, data: bytes, at: int) -> int:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise Damaged("a message that points outside itself")
    return int(struct.unpack_from(form, data, at)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table lies, 0 where it has its default."""
    virtual = table - _get("<i", data, table)
    at = 4 + 2 * number
    offset = _get("<H", data, virtual + at) if at + 2 <= _get("<H", data, virtual) else 0
    return table + offset if offset else 0


def _follow(data: bytes, at: int) -> int:
    return at + _get("<I", data, at)


def _pairs(data: bytes, table: int, number: int) -> npt.NDArray[np.int64]:
    """A vector of two 64-bit integers each."""
    at = _field(data, table, number)
    if not at:
        return np.empty((0, 2), np.int64)
    at = _follow(data, at)
    count = _get("<I", data, at)
    if at + 4 + 16 * count > len(data):
        raise Damaged("a message that points outside itself")
    return np.frombuffer(data, "<i8", 2 * count, at + 4).reshape(-1, 2)


def messages(read: Read, name: str, size: int) -> Iterator[Message]:
    """The messages of a stream or file.

    Raises:
        Damaged: one does not lie in the `size` bytes.
    """
    at = 8 if read(0, 6) == _MAGIC else 0
    while at + 4 <= size:
        length = _get("<I", read(at, 4), 0)
        at += 4
        if length == _MORE:
            length = _get("<I", read(at, 4), 0)
            at += 4
        if not length:
            return
        if length > min(_LONGEST, size - at):
            raise Damaged(f"a message of {length} bytes where {size - at} are left")
        meta = read(at, length)
        table = _follow(meta, 0)
        kind, whole = _field(meta, table, 1), _field(meta, table, 3)
        body = _get("<q", meta, whole) if whole else 0
        at += length
        if not 0 <= body <= size - at:
            raise Damaged(f"a batch of {body} bytes where {size - at} are left: it was probably cut short")
        yield Message(_get("<B", meta, kind) if kind else 0, meta, at, body)
        at += body
    logger.warning("%s has no end: it was probably cut short", escaped(name))


def batch_of(message: Message) -> Batch:
    """What a message says of its body.

    Raises:
        Damaged: it makes no sense.
        ValueError: the body is compressed.
    """
    meta = message.meta
    table = _follow(meta, 0)
    header = _field(meta, table, 2)
    if not header:
        raise Damaged("a batch without a header")
    table = _follow(meta, header)
    if _field(meta, table, 3):
        raise ValueError("its batches are compressed: no image in it can be read alone; write it without compression")
    rows = _field(meta, table, 0)
    batch = Batch(_get("<q", meta, rows) if rows else 0, _pairs(meta, table, 1), _pairs(meta, table, 2))
    begin, length = batch.buffers[:, 0], batch.buffers[:, 1]
    inside = (begin >= 0) & (length >= 0) & (begin <= message.length) & (length <= message.length - begin)
    if not inside.all():
        raise Damaged("a batch that points outside itself")
    if not 0 <= batch.rows <= min(_MOST_ROWS, message.length // 4):  # a cell takes 4 bytes at least
        raise Damaged(f"a batch of {batch.rows} rows in {message.length} bytes")
    return batch


class Place(NamedTuple):
    """Where a column stands in the lists of a batch: its type, and the number of its first buffer."""

    type: Any
    buffer: int


def places_of(schema: Any) -> dict[str, Place]:
    """The columns of a pyarrow.Schema, and the fields of structs as "image.bytes", up to one of an unknown layout."""
    found: dict[str, Place] = {}
    at = 0
    for field in schema:
        at = _place(field, "", at, found)
        if at < 0:
            break
    return found


def _place(field: Any, prefix: str, at: int, found: dict[str, Place]) -> int:
    """Adds a column; the number of the buffer behind it, -1 where that is unknown."""
    kind = getattr(field.type, "storage_type", field.type)
    name, shown = prefix + field.name, str(kind).partition("<")[0].partition("[")[0]
    found[name] = Place(kind, at)
    if shown in ("struct", "list", "large_list", "fixed_size_list", "map"):
        at += 1 if shown in ("struct", "fixed_size_list") else 2
        for i in range(kind.num_fields):
            at = _place(kind.field(i), name + ".", at, found) if at >= 0 else at
        return at
    if shown in ("binary", "large_binary", "string", "large_string"):
        return at + 3
    if shown == "null":
        return at
    try:
        return at + 2 if kind.bit_width else -1
    except ValueError:  # of no fixed width, and none of the above
        return -1


class _Batch:
    """The columns of one batch."""

    def __init__(self, read: Read, message: Message, places: dict[str, Place]) -> None:
        self._read, self._message, self._places, self._batch = read, message, places, batch_of(message)
        self.rows = self._batch.rows

    def _buffer(self, number: int) -> tuple[int, int]:
        if number >= len(self._batch.buffers):
            raise Damaged("a batch without one of its columns")
        offset, length = self._batch.buffers[number].tolist()
        return self._message.body + offset, length

    def _array(self, number: int, count: int, kind: str) -> npt.NDArray[Any]:
        at, length = self._buffer(number)
        wanted = count * np.dtype(kind).itemsize
        if wanted > length:
            raise Damaged(f"a column of {length} bytes for {count} values")
        data = self._read(at, wanted)
        if len(data) < wanted:
            raise Damaged("it ends within a batch")
        return np.frombuffer(data, kind)

    def missing(self, name: str) -> npt.NDArray[np.bool_]:
        """bool [rows]."""
        at = self._places[name].buffer
        if self._places[name].type == "null" or not self._buffer(at)[1]:
            return np.zeros(self.rows, np.bool_)
        bits = np.unpackbits(self._array(at, -(-self.rows // 8), "u1"), bitorder="little")
        return np.asarray(bits[: self.rows] == 0, np.bool_)

    def cells(self, name: str) -> Cells:
        """Of a column of bytes or text."""
        place = self._places[name]
        wide = str(place.type).startswith("large_")
        missing = self.missing(name)
        _, length = self._buffer(place.buffer + 1)
        if not self.rows or not length:
            return Cells(np.zeros(self.rows, np.int64), np.zeros(self.rows, np.int64), np.ones(self.rows, np.bool_))
        ends = self._array(place.buffer + 1, self.rows + 1, "<i8" if wide else "<i4").astype(np.int64)
        start, length = self._buffer(place.buffer + 2)
        size = np.diff(ends)
        if ends[0] < 0 or ends[-1] > length or bool((size < 0).any()):
            raise Damaged("cells that lie outside their column")
        return Cells(start + ends[:-1], np.where(missing, 0, size), missing)

    def texts(self, name: str) -> list[str | None]:
        """Of a column of text."""
        cells = self.cells(name)
        if not cells.size.any():
            return [None if missing else "" for missing in cells.missing.tolist()]
        start, end = int(cells.offset[0]), int((cells.offset + cells.size).max())
        data = self._read(start, end - start)
        return [
            None if missing else data[at - start : at - start + size].decode("utf-8", "replace")
            for at, size, missing in zip(*(column.tolist() for column in cells), strict=True)
        ]

    def labels(self, name: str) -> list[str | None]:
        """Of a column of integers or text, as `label_texts`."""
        place = self._places[name]
        if str(place.type) in ("string", "large_string"):
            return label_texts(self.texts(name))
        values = self._array(place.buffer + 1, self.rows, _INTEGERS[str(place.type)]) if self.rows else np.empty(0)
        missing = self.missing(name)
        return label_texts([None if no else v for v, no in zip(values.tolist(), missing.tolist(), strict=True)])


class Arrow:
    """A `Kind`: Arrow IPC streams and files with a column of encoded images.

    What it remembers: under "labels" the text of each image's label; under CLASSES_KEY the classes, if it says them.

    Args:
        image_key: the column of images; None: the only one.
        label_key: the column of labels; None: the only ClassLabel, "label" or "labels".
    """

    def __init__(self, image_key: str | None = None, label_key: str | None = None) -> None:
        self._image, self._label = image_key, label_key
        self.name = json.dumps(["arrow 1", image_key, label_key])

    def parts(self, reader: Reader) -> list[Any]:
        """The batches: (message, columns, classes, number of the first row)."""
        name, size = reader.container.name, reader.container.size
        read, parts, places, row = ahead(reader.read, 4096), list[Any](), dict[str, Place](), 0
        columns = None
        try:
            for message in messages(read, name, size):
                if columns is None:
                    if message.kind != _SCHEMA:
                        raise Damaged("a message that is no schema")
                    schema = _schema(message, name)
                    columns = columns_of(
                        schema.names, cells_in(schema), features_in(schema), name, self._image, self._label
                    )
                    places = _checked(places_of(schema), columns.image, columns.label)
                elif message.kind == _BATCH:
                    parts.append((message, columns, places, row))
                    row += batch_of(message).rows
        except Damaged as error:
            if columns is None:
                head = read(0, 16)
                refuse_packed(name, head, "gunzip and the like")
                raise ValueError(f"{escaped(name)} is no Arrow file: it starts with {head!r} ({error})") from error
            raise ValueError(f"{escaped(name)} is damaged: {error}; copy or download it again") from error
        except ValueError as error:
            raise error if name in str(error) else ValueError(f"{escaped(name)}: {error}") from error
        if columns is None:
            raise ValueError(f"{escaped(name)} is no Arrow file: it has {size} bytes and no schema")
        return parts

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        message, columns, places, row = part
        try:
            batch = _Batch(found.read, message, places)
            image, path = columns.image, f"{columns.image}.{PATH}"
            cells = batch.cells(f"{image}.{BYTES}" if f"{image}.{BYTES}" in places else image)
            missing = cells.missing | batch.missing(image)
            paths = batch.texts(path) if path in places else [None] * batch.rows
            labels = batch.labels(columns.label)
        except Damaged as error:
            what = escaped(reader.container.name)
            raise ValueError(f"{what} is damaged: {error}; copy or download it again") from error
        for i, (at, size, no, called) in enumerate(
            zip(cells.offset.tolist(), cells.size.tolist(), missing.tolist(), paths, strict=True)
        ):
            found.add(cell_name(called, row + i), at, size, no_image(called) if no else "")
        return {"labels": labels, CLASSES_KEY: columns.classes}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        classes = next((about[CLASSES_KEY] for about in abouts), None)
        return {"labels": [label for about in abouts for label in about["labels"]], CLASSES_KEY: classes}


def _schema(message: Message, name: str) -> Any:
    arrow(name)
    from pyarrow import ArrowException, ipc, py_buffer

    head = struct.pack("<II", _MORE, len(message.meta))
    try:
        return ipc.read_schema(py_buffer(head + message.meta))
    except (ArrowException, OSError, ValueError) as error:
        raise Damaged(f"a schema that makes no sense: {error}") from error


def _checked(places: dict[str, Place], image: str, label: str) -> dict[str, Place]:
    for name in (image, label):
        if name not in places:
            raise ValueError(f"column {name!r} stands behind one whose layout is not known; put it first")
    kind = str(places[label].type)
    if kind not in _INTEGERS and kind not in ("string", "large_string"):
        raise ValueError(f"label_key={label!r}: labels of type {kind}: must be integers or text")
    return places
