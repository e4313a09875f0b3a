"""Parquet files as `ILSVRC/imagenet-1k` has them. Where cells are stored plain, their places are read, not the images.

The footer and the small columns go through pyarrow; the pages of the images are walked by hand.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.container import Part, Reader
from dali_imagenet.data.labels import CLASSES_KEY
from dali_imagenet.data.places import is_url
from dali_imagenet.data.scan import Found
from dali_imagenet.data.tables import (
    BYTES,
    PATH,
    Cells,
    Columns,
    arrow,
    cell_name,
    columns_of,
    features_of,
    label_texts,
    no_image,
)
from dali_imagenet.escape import escaped

FILES = re.compile(r"\.parquet$", re.IGNORECASE)
_PAGE = 512  # bytes read of a page's header at first; statistics of images may make it long
_LONGEST = 1 << 20  # bytes of a page's header or of its levels
_MOST_ROWS = 1 << 24  # of one row group
_DATA, _DATA_V2 = 0, 3
_PLAIN, _RLE = 0, 3
T = TypeVar("T")
Read = Callable[[int, int], bytes]


class Damaged(ValueError):
    """Not what Parquet's format says."""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Damaged("a page whose header does not end")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise Damaged("a number that does not end")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: {number of a field: integer, bool, struct or None}, and where it ends."""
    found: dict[int, Any] = {}
    field = 0
    while True:
        if at >= len(data):
            raise Damaged("a page whose header does not end")
        head = data[at]
        at += 1
        if not head:
            return found, at
        if head >> 4:
            field += head >> 4
        else:
            value, at = _varint(data, at)
            field = _signed(value)
        kind = head & 15
        found[field], at = _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (3, 7):
        return None, at + (1 if kind == 3 else 8)
    if kind in (4, 5, 6):
        value, at = _varint(data, at)
        return _signed(value), at
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12 and depth < 4:
        return _struct(data, at, depth + 1)
    raise Damaged(f"a page whose header has a field of kind {kind}")


class _Page(NamedTuple):
    """A page of data: its values, and where its definition levels and the values lie."""

    rows: int
    levels: int
    levels_size: int
    values: int
    end: int


def _header(read: Read, at: int, end: int) -> tuple[dict[int, Any], int]:
    for count in (_PAGE, 64 * _PAGE, _LONGEST):
        head = read(at, min(count, end - at))
        try:
            fields, size = _struct(head, 0)
        except Damaged:
            if len(head) < count:
                raise
            continue
        if size <= len(head):
            return fields, at + size
    raise Damaged(f"a page whose header has more than {_LONGEST} bytes")


def _number(fields: Any, number: int) -> int:
    value = fields.get(number) if isinstance(fields, dict) else None
    if type(value) is not int or value < 0:
        raise Damaged("a page whose header lacks a number")
    return value


def _page(read: Read, at: int, end: int, nullable: bool) -> _Page:
    """The page whose header lies there."""
    fields, body = _header(read, at, end)
    kind, stop = _number(fields, 1), body + _number(fields, 3)
    if stop > end:
        raise Damaged(f"a page of {stop - body} bytes where {end - body} are left")
    about = fields.get(5 if kind == _DATA else 8)
    plain = kind in (_DATA, _DATA_V2) and _number(about, 2 if kind == _DATA else 4) == _PLAIN
    if not plain or (kind == _DATA and nullable and _number(about, 3) != _RLE):
        raise Damaged("a page that is not plain")
    count = _number(about, 1)
    if kind == _DATA_V2:
        repetition, levels = _number(about, 6), _number(about, 5)
        return _Page(count, body + repetition, levels, body + repetition + levels, stop)
    if not nullable:
        return _Page(count, body, 0, body, stop)
    levels = int.from_bytes(read(body, 4), "little")
    return _Page(count, body + 4, levels, body + 4 + levels, stop)


def _levels(data: bytes, count: int, top: int) -> npt.NDArray[np.bool_]:
    """Which of the values are there: bool [count], from Parquet's hybrid of runs and packed bits."""
    bits = top.bit_length()
    wide = -(-bits // 8)
    found, have, at = list[npt.NDArray[np.bool_]](), 0, 0
    while have < count:
        head, at = _varint(data, at)
        if head & 1:
            groups = head >> 1
            if groups * bits > len(data) - at:
                raise Damaged("levels that do not end")
            packed = np.unpackbits(np.frombuffer(data, np.uint8, groups * bits, at), bitorder="little")
            values = packed.reshape(-1, bits) @ (1 << np.arange(bits))
            at += groups * bits
            found.append(values[: count - have] == top)
        else:
            value = int.from_bytes(data[at : at + wide], "little")
            at += wide
            found.append(np.full(min(head >> 1, count - have), value == top))
        if not len(found[-1]):
            raise Damaged("levels without a value")
        have += len(found[-1])
    return np.concatenate(found) if found else np.zeros(0, np.bool_)


def _plain(read: Read, page: _Page, count: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of each value: a length of four bytes stands before it."""
    at = page.values
    for _ in range(count):
        if at + 4 > page.end:
            raise Damaged("a page that ends before its values do")
        head = read(at, 4)
        size = int.from_bytes(head, "little")
        at += 4 + size
        if len(head) < 4 or at > page.end:
            raise Damaged("a value that is longer than its page")
        yield at - size, size


def cells_of(read: Read, at: int, end: int, rows: int, top: int) -> Cells:
    """Where the values of a column chunk lie.

    Args:
        at: where its first page begins.
        end: of its last one.
        rows: how many values it has, the missing ones counted.
        top: the definition level of a value that is there; 0 where none may be missing.

    Raises:
        Damaged: the pages are not those of such a column.
    """
    offset, size = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    there = np.zeros(rows, np.bool_)
    done = 0
    while done < rows:
        if at >= end:
            raise Damaged(f"{rows - done} of {rows} values are missing")
        page = _page(read, at, end, top > 0)
        if not 0 <= page.levels <= page.values <= page.end or page.rows > rows - done or page.levels_size > _LONGEST:
            raise Damaged("a page that makes no sense")
        here = np.ones(page.rows, np.bool_)
        if top:
            here = _levels(read(page.levels, page.levels_size), page.rows, top)
        which = done + np.flatnonzero(here)
        places = np.array([*_plain(read, page, len(which))], np.int64).reshape(-1, 2)
        offset[which], size[which], there[which] = places[:, 0], places[:, 1], True
        done += page.rows
        at = page.end
    return Cells(offset, size, ~there)


class Parquet:
    """A `Kind`: Parquet files with a column of encoded images, stored plain.

    What it remembers: as `data.arrow.Arrow`.

    Args:
        image_key: the column of images; None: the only one.
        label_key: the column of labels; None: the only ClassLabel, "label" or "labels".
    """

    def __init__(self, image_key: str | None = None, label_key: str | None = None) -> None:
        self._image, self._label = image_key, label_key
        self.name = json.dumps(["parquet 1", image_key, label_key])

    def parts(self, reader: Reader) -> list[Any]:
        """The row groups: (metadata, number, columns, number of the first row)."""
        name = reader.container.name
        arrow(name)
        metadata, schema = _pyarrow(lambda: _footer(reader), lambda error: _no_footer(reader, error))
        columns = columns_of(schema, features_of(schema), name, self._image, self._label)
        return _pyarrow(lambda: _groups(metadata, columns, name), lambda error: _damaged(name, error))

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        metadata, number, columns, first = part
        name, group = reader.container.name, metadata.row_group(number)
        chunk, column = _chunk(group, metadata, columns, name)
        begin = chunk.data_page_offset
        end = begin + chunk.total_compressed_size
        try:
            if not 0 <= group.num_rows <= min(_MOST_ROWS, chunk.total_compressed_size):
                raise Damaged(f"{group.num_rows} rows in {chunk.total_compressed_size} bytes")
            if not 0 <= begin <= end <= reader.container.size:
                raise Damaged(f"a column at {begin}..{end} of {reader.container.size} bytes: it was probably cut short")
            if column.max_repetition_level:
                raise ValueError(f"{escaped(name)}: column {columns.image!r} holds lists of images")
            cells = cells_of(found.read, begin, end, group.num_rows, column.max_definition_level)
            small = _pyarrow(lambda: _small(reader, metadata, number, columns), lambda error: Damaged(str(error)))
        except Damaged as error:
            raise _damaged(name, error) from error
        paths, labels = small
        if len(labels) != group.num_rows:
            raise ValueError(f"{escaped(name)} is damaged: {len(labels)} labels for {group.num_rows} rows")
        for i, (at, size, no, path) in enumerate(
            zip(cells.offset.tolist(), cells.size.tolist(), cells.missing.tolist(), paths, strict=True)
        ):
            found.add(cell_name(path, first + i), at, size, no_image(path) if no else "")
        return {"labels": labels, CLASSES_KEY: columns.classes}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        classes = next((about[CLASSES_KEY] for about in abouts), None)
        return {"labels": [label for about in abouts for label in about["labels"]], CLASSES_KEY: classes}


def _pyarrow(call: Callable[[], T], wrong: Callable[[Exception], Exception]) -> T:
    """What a call of pyarrow gives. What it says of bytes that make no sense, in errors of many kinds, is `wrong`."""
    from pyarrow import ArrowException

    try:
        return call()
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the storage's own
            raise
        raise wrong(error) from error


def _open(reader: Reader, metadata: Any = None) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(io.BufferedReader(Part(reader.read, reader.container.size), 1 << 16), metadata=metadata)


def _footer(reader: Reader) -> tuple[Any, Any]:
    with _open(reader) as file:
        return file.metadata, file.schema_arrow


def _no_footer(reader: Reader, error: Exception) -> ValueError:
    name, head = escaped(reader.container.name), reader.read(0, 16)
    if not head.startswith(b"PAR1"):
        return ValueError(f"{name} is no Parquet file: it starts with {head!r}")
    return ValueError(
        f"{name}: the footer is missing or damaged ({error}): it was probably cut short; copy or download it again"
    )


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{escaped(name)} is damaged: {error}; copy or download it again")


def _groups(metadata: Any, columns: Columns, name: str) -> list[Any]:
    parts, row = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        _refuse_packed(_chunk(group, metadata, columns, name)[0], name)
        parts.append((metadata, number, columns, row))
        row += group.num_rows
    return parts


def _chunk(group: Any, metadata: Any, columns: Columns, name: str) -> tuple[Any, Any]:
    """Of the images: the column chunk in a row group, and its column in the schema."""
    paths = (columns.image, f"{columns.image}.{BYTES}")
    for i in range(group.num_columns):
        chunk = group.column(i)
        if chunk.path_in_schema in paths:
            return chunk, metadata.schema.column(i)
    raise ValueError(f"{escaped(name)}: column {columns.image!r} is not in every row group")


def _refuse_packed(chunk: Any, name: str) -> None:
    """ValueError where cells do not lie in the file as they are."""
    plain = {*chunk.encodings} <= {"PLAIN", "RLE", "BIT_PACKED"} and not chunk.has_dictionary_page
    if chunk.compression == "UNCOMPRESSED" and plain:
        return
    how = "in a dictionary or another encoding" if chunk.compression == "UNCOMPRESSED" else chunk.compression.lower()
    folder = "FOLDER" if is_url(name) else shlex.quote(os.path.dirname(name))
    raise ValueError(
        f"{escaped(name)}: images are stored compressed ({how}), so that none can be read alone. Write the files "
        f"again, plain: {CONVERT} {folder} NEW_FOLDER"
    )


CONVERT = (
    'python -c "import sys, pathlib as l, pyarrow.parquet as p; a, b = map(l.Path, sys.argv[1:]); b.mkdir(); '
    "[p.write_table(p.ParquetFile(f).read(), b / f.name, compression='none', use_dictionary=False, "
    "row_group_size=1000) for f in a.glob('*.parquet')]\""
)
"""Writes the Parquet files of a folder again, with plain cells, into a new one."""


def _small(reader: Reader, metadata: Any, number: int, columns: Columns) -> tuple[list[Any], list[str | None]]:
    """What the cells of a row group call their images, and the labels."""
    with _open(reader, metadata) as file:
        table = file.read_row_group(number, columns=[columns.label, f"{columns.image}.{PATH}"], use_threads=False)
    labels = table.column(columns.label).to_pylist()
    names: list[Any] = [None] * len(labels)
    if columns.image in table.column_names:
        names = [cell.get(PATH) if cell else None for cell in table.column(columns.image).to_pylist()]
    odd = next((label for label in labels if type(label) not in (int, str, type(None))), None)
    if odd is not None:
        raise ValueError(
            f"{escaped(reader.container.name)}: column {columns.label!r} holds {odd!r}: labels must be integers or text"
        )
    return names, label_texts(labels)
