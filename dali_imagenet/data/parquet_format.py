"""Parquet's format, as far as tables of images need it: footer, pages, plain and dictionary-encoded values.

Walked by hand: pyarrow may end the process on a footer that makes no sense. Whatever bytes are given, what comes out is
a result or `Damaged`, and memory is bounded by what lies in the file.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.tables import Cells

MAGIC = b"PAR1"
UNCOMPRESSED = 0
INT32, INT64, BYTE_ARRAY = 1, 2, 6
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
PLAIN, PLAIN_DICTIONARY, RLE, BIT_PACKED, RLE_DICTIONARY = 0, 2, 3, 4, 8
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_REQUIRED, _REPEATED = 0, 2
_PAGE = 512  # bytes read of a page's header at first; statistics of images may make it long
_LONGEST = 1 << 20  # bytes of a page's header or of its levels
_FOOTER = 64 << 20  # bytes
_SMALL = 64 << 20  # bytes of a page of labels or names
_MOST_ROWS = 1 << 24  # of one row group
_DEPTH = 16
Read = Callable[[int, int], bytes]


class Damaged(ValueError):
    """Not what Parquet's format says."""


class Unknown(ValueError):
    """What the format allows and nothing here reads."""


# ---- Thrift's compact protocol


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if not 0 <= at < len(data):
        raise Damaged("a header that does not end")
    return data[at], at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte, at = _byte(data, at)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Damaged("a number that does not end")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """{number of a field: integer, bool, bytes, list or struct}, and where it ends."""
    found: dict[int, Any] = {}
    field = 0
    while True:
        head, at = _byte(data, at)
        if not head:
            return found, at
        if head >> 4:
            field += head >> 4
        else:
            value, at = _varint(data, at)
            field = _signed(value)
        kind = head & 15
        found[field], at = (kind == 1, at) if kind in (1, 2) else _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2, 3):  # in a list
        return _byte(data, at)
    if kind in (4, 5, 6):
        value, at = _varint(data, at)
        return _signed(value), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if depth > _DEPTH:
        raise Damaged("a header that is nested too deep")
    if kind == 12:
        return _struct(data, at, depth + 1)
    if kind in (9, 10):
        head, at = _byte(data, at)
        count, inner = head >> 4, head & 15
        if count == 15:
            count, at = _varint(data, at)
        if count > len(data) - at:
            raise Damaged("a list that is longer than its header")
        items = []
        for _ in range(count):
            item, at = _value(data, at, inner, depth + 1)
            items.append(item)
        return items, at
    raise Damaged(f"a header with a field of kind {kind}")


def _number(fields: Any, number: int, default: int | None = None) -> int:
    value = fields.get(number, default) if isinstance(fields, dict) else None
    if type(value) is not int or value < 0:
        raise Damaged("a header that lacks a number")
    return value


def _list(fields: Any, number: int) -> list[dict[int, Any]]:
    """Of structs."""
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Damaged("a header that lacks a list")
    return value


def _text(fields: dict[int, Any], number: int) -> str:
    value = fields.get(number)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


# ---- the footer


class Leaf(NamedTuple):
    """A column of values: its type, and the levels of a value that is there and not in a list (repetition 0)."""

    type: int
    is_text: bool
    definition: int
    repetition: int


class Chunk(NamedTuple):
    """A column in a row group: where its pages lie, and how they are packed."""

    leaf: Leaf
    begin: int
    end: int
    codec: int
    encodings: frozenset[int]
    has_dictionary: bool


class Footer(NamedTuple):
    """What a file says of itself.

    Attributes:
        leaves: {"image.bytes": the column}, in order.
        metadata: what programs have written besides.
        groups: rows, and the chunk of each leaf, of each row group.
    """

    leaves: dict[str, Leaf]
    metadata: dict[str, str]
    groups: list[tuple[int, dict[str, Chunk]]]


def footer_of(read: Read, size: int) -> Footer:
    """The footer of a file of that size.

    Raises:
        Damaged: there is none.
    """
    tail = read(max(0, size - 8), 8)
    if len(tail) < 8 or tail[4:] != MAGIC:
        raise Damaged("it is encrypted" if tail[4:] == b"PARE" else "the file does not end as Parquet files do")
    length = int.from_bytes(tail[:4], "little")
    if length > min(_FOOTER, size - 8):
        raise Damaged(f"a footer of {length} bytes in a file of {size}")
    about, _ = _struct(read(size - 8 - length, length), 0)
    leaves = _leaves(_list(about, 2))
    metadata = {_text(item, 1): _text(item, 2) for item in (_list(about, 5) if 5 in about else ())}
    return Footer(leaves, metadata, [_group(group, leaves, size) for group in _list(about, 4)])


def _leaves(schema: list[dict[int, Any]]) -> dict[str, Leaf]:
    found: dict[str, Leaf] = {}
    # Of the groups around: names, levels, and how many children are still to come.
    around: list[tuple[str, int, int, int]] = []
    for item in schema[1:]:
        prefix, definition, repetition = around[-1][:3] if around else ("", 0, 0)
        kind, name = _number(item, 3, _REQUIRED), prefix + _text(item, 4)
        definition, repetition = definition + (kind != _REQUIRED), repetition + (kind == _REPEATED)
        if around:
            around[-1] = (*around[-1][:3], around[-1][3] - 1)
        children = _number(item, 5, 0)
        if children:
            if len(around) > _DEPTH:
                raise Damaged("a schema that is nested too deep")
            around.append((name + ".", definition, repetition, children))
        elif name in found:
            raise Damaged(f"two columns called {name!r}")
        else:
            text = item.get(6) == 0 or (isinstance(item.get(10), dict) and 1 in item[10])
            found[name] = Leaf(_number(item, 1), text, definition, repetition)
        while around and not around[-1][3]:
            around.pop()
    return found


def _group(group: dict[int, Any], leaves: dict[str, Leaf], size: int) -> tuple[int, dict[str, Chunk]]:
    chunks, rows = _list(group, 1), _number(group, 3)
    if len(chunks) != len(leaves) or rows > min(_MOST_ROWS, size // 4):  # an image has its length before it at least
        raise Damaged(f"a row group of {rows} rows with {len(chunks)} of {len(leaves)} columns")
    return rows, {
        name: _chunk(one.get(3), leaf, size) for (name, leaf), one in zip(leaves.items(), chunks, strict=True)
    }


def _chunk(about: Any, leaf: Leaf, size: int) -> Chunk:
    begin, dictionary = _number(about, 9), _number(about, 11, 0)
    first = min(begin, dictionary) if dictionary else begin
    end = first + _number(about, 7)
    if end > size:
        raise Damaged(f"a column at {first}..{end} of {size} bytes")
    encodings = about.get(2)
    if not isinstance(encodings, list) or not all(type(one) is int for one in encodings):
        raise Damaged("a column without encodings")
    return Chunk(leaf, first, end, _number(about, 4), frozenset(encodings), bool(dictionary))


# ---- pages


class Page(NamedTuple):
    """A page, as its header says: what it is, how many values, and where they and their levels lie.

    Attributes:
        packed: where the compressed part begins.
        unpacked_size: bytes of what the compressed part holds.
    """

    kind: int
    rows: int
    encoding: int
    levels: int
    levels_size: int
    packed: int
    unpacked_size: int
    compressed: bool
    end: int


def _page(read: Read, at: int, end: int) -> Page:
    for most in (_PAGE, 64 * _PAGE, _LONGEST):
        head = read(at, min(most, end - at))
        try:
            fields, size = _struct(head, 0)
            if size <= len(head):
                break
        except Damaged:
            if len(head) < most:
                raise
    else:
        raise Damaged(f"a page whose header has more than {_LONGEST} bytes")
    body = at + size
    kind, stop = _number(fields, 1), body + _number(fields, 3)
    if stop > end:
        raise Damaged(f"a page of {stop - body} bytes where {end - body} are left")
    about = fields.get({DATA: 5, DICTIONARY: 7, DATA_V2: 8}.get(kind, 0))
    whole, count = _number(fields, 2), _number(about, 1)
    if kind != DATA_V2:
        return Page(kind, count, _number(about, 2), body, 0, body, whole, True, stop)
    repetition, levels = _number(about, 6), _number(about, 5)
    packed = body + repetition + levels
    if packed > stop or levels > _LONGEST or repetition + levels > whole:
        raise Damaged("a page that makes no sense")
    left, packs = whole - repetition - levels, not isinstance(about, dict) or about.get(7) is not False
    return Page(kind, count, _number(about, 4), body + repetition, levels, packed, left, packs, stop)


def _hybrid(data: bytes, count: int, bits: int) -> npt.NDArray[np.int64]:
    """Integers of that many bits, from Parquet's hybrid of runs and packed bits."""
    if bits > 32:
        raise Damaged(f"values of {bits} bits")
    if not bits:
        return np.zeros(count, np.int64)
    found, have, at = [np.zeros(0, np.int64)], 0, 0
    while have < count:
        head, at = _varint(data, at)
        if head & 1:
            length = (head >> 1) * bits
            if length > len(data) - at:
                raise Damaged("values that do not end")
            packed = np.unpackbits(np.frombuffer(data, np.uint8, length, at), bitorder="little")
            values = packed.reshape(-1, bits) @ (np.int64(1) << np.arange(bits))
            at += length
            found.append(values[: count - have])
        else:
            value = int.from_bytes(data[at : at + -(-bits // 8)], "little")
            at += -(-bits // 8)
            found.append(np.full(min(head >> 1, count - have), value, np.int64))
        if not len(found[-1]):
            raise Damaged("a run of no values")
        have += len(found[-1])
    return np.concatenate(found)


def _there(data: bytes, page: Page, leaf: Leaf) -> npt.NDArray[np.bool_]:
    """Which of a page's values are there, from its levels."""
    if not leaf.definition:
        return np.ones(page.rows, np.bool_)
    return np.asarray(_hybrid(data, page.rows, leaf.definition.bit_length()) == leaf.definition, np.bool_)


def _check(page: Page, left: int) -> None:
    if page.kind not in (DATA, DATA_V2) or page.rows > left:
        raise Damaged("a page that makes no sense")


def cells_of(read: Read, chunk: Chunk, rows: int) -> Cells:
    """Where the values of a column of bytes lie, which is neither compressed nor in a dictionary.

    Raises:
        Damaged: the pages are not those of such a column.
    """
    offset, size, there = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
    done, at = 0, chunk.begin
    while done < rows:
        if at >= chunk.end:
            raise Damaged(f"{rows - done} of {rows} values are missing")
        page = _page(read, at, chunk.end)
        _check(page, rows - done)
        if page.encoding != PLAIN:
            raise Damaged("a page that is not plain")
        levels, length, values = page.levels, page.levels_size, page.packed
        if page.kind == DATA and chunk.leaf.definition:
            length, levels = int.from_bytes(read(page.packed, 4), "little"), page.packed + 4
            values = levels + length
        if length > _LONGEST or values > page.end:
            raise Damaged("a page that makes no sense")
        which = done + np.flatnonzero(_there(read(levels, length), page, chunk.leaf))
        places = np.array([*_plain_places(read, values, page.end, len(which))], np.int64).reshape(-1, 2)
        offset[which], size[which], there[which] = places[:, 0], places[:, 1], True
        done += page.rows
        at = page.end
    return Cells(offset, size, ~there)


def _plain_places(read: Read, at: int, end: int, count: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of each value: a length of four bytes stands before it."""
    for _ in range(count):
        head = read(at, 4) if at + 4 <= end else b""
        size = int.from_bytes(head, "little")
        at += 4 + size
        if len(head) < 4 or at > end:
            raise Damaged("a page that ends before its values do")
        yield at - size, size


def values_of(read: Read, chunk: Chunk, rows: int) -> list[Any]:
    """The values of a small column: integers or bytes, None where they are missing.

    Raises:
        Damaged: the pages make no sense.
        ImportError: they are compressed, and pyarrow is not installed.
        Unknown: the encoding or the type is none of those.
    """
    found: list[Any] = []
    dictionary: list[Any] = []
    at = chunk.begin
    while len(found) < rows:
        if at >= chunk.end:
            raise Damaged(f"{rows - len(found)} of {rows} values are missing")
        page = _page(read, at, chunk.end)
        at = page.end
        data = _unpacked(read, page, chunk.codec)
        if page.kind == DICTIONARY:
            dictionary = _plain(data, page.rows, chunk.leaf.type)
            continue
        _check(page, rows - len(found))
        levels = read(page.levels, page.levels_size)
        if page.kind == DATA and chunk.leaf.definition:
            length = int.from_bytes(data[:4], "little")
            levels, data = data[4 : 4 + length], data[4 + length :]
        there = _there(levels, page, chunk.leaf)
        values = iter(_decoded(data, int(there.sum()), page.encoding, chunk.leaf.type, dictionary))
        found += [next(values) if one else None for one in there.tolist()]
    return found


def _decoded(data: bytes, count: int, encoding: int, kind: int, dictionary: list[Any]) -> list[Any]:
    if encoding == PLAIN:
        return _plain(data, count, kind)
    if encoding not in (PLAIN_DICTIONARY, RLE_DICTIONARY):
        raise Unknown(f"encoding {encoding}")
    if not count:
        return []
    bits, at = _byte(data, 0)
    numbers = _hybrid(data[at:], count, bits)
    if int(numbers.max()) >= len(dictionary):
        raise Damaged("a value that is not in its dictionary")
    return [dictionary[i] for i in numbers.tolist()]


def _plain(data: bytes, count: int, kind: int) -> list[Any]:
    if kind in (INT32, INT64):
        width = 4 if kind == INT32 else 8
        if count * width > len(data):
            raise Damaged("a page that ends before its values do")
        values: list[Any] = np.frombuffer(data, f"<i{width}", count).tolist()
        return values
    if kind != BYTE_ARRAY:
        raise Unknown(f"values of type {kind}")
    places = _plain_places(lambda at, size: data[at : at + size], 0, len(data), count)
    return [data[at : at + size] for at, size in places]


def _unpacked(read: Read, page: Page, codec: int) -> bytes:
    packed = read(page.packed, page.end - page.packed)
    if max(len(packed), page.unpacked_size) > _SMALL:
        raise Damaged(f"a page of {page.unpacked_size} bytes in a column of labels or names")
    if codec == UNCOMPRESSED or not page.compressed or not packed:
        return packed
    name = _CODECS.get(codec)
    if name is None:
        raise Unknown(f"compression {codec}")
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(f"labels compressed with {name} are read with pyarrow: pip install pyarrow") from error
    try:
        return bytes(arrow.Codec(name).decompress(packed, page.unpacked_size))
    except (arrow.ArrowException, OSError, ValueError, struct.error) as error:
        raise Damaged(f"a page that {name} cannot unpack: {error}") from error
