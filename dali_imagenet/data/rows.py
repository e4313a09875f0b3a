"""What an index knows of its N samples: 32 bytes and a name each, in memory or in a file that processes map.

A file holds, one after the other: a line that says its layout, the digest of what follows, three lengths, the rows,
where the names end, the names, and JSON about the whole. Numbers are little-endian; nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.names import Names
from dali_imagenet.formats import FORMATS

Array = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("offset", "<i8"),  # of the sample in its container
        ("size", "<u4"),  # bytes; NO_FILE where there is no regular file, 0 where it is not known
        ("container", "<u4"),  # 0 where samples are files of their own
        ("label", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("components", "u1"),
        ("format", "u1"),
        ("broken", "?"),
        ("spare", "u1"),
    ]
)
NO_FILE = 0xFFFFFFFF
MAX_SIZE = NO_FILE - 1
"""Bytes of a sample; what is larger is broken."""
_MAGIC = b"dali_imagenet rows 1\n"  # the number is the version of the layout
_HEAD = len(_MAGIC) + 16 + 24
_LARGE = 100_000  # rows that are not sent to a process as they are


class Rows:
    """N samples.

    Args:
        array: [N] of ROW; made read-only.
        names: N relative paths, '/'-separated.
        reasons: {position: why} of the broken ones, and of no others.
        file: where the same is written, for other processes to map.
    """

    def __init__(self, array: Array, names: Names, reasons: Mapping[int, str], file: str | None = None) -> None:
        array.setflags(write=False)
        self.array, self.names, self.reasons, self.file = array, names, reasons, file

    def __len__(self) -> int:
        return len(self.array)

    def __getstate__(self) -> dict[str, Any]:
        if self.file is None and len(self) > _LARGE:
            # No cache folder: a file of this process, which lasts as long as the rows do.
            fd, file = tempfile.mkstemp(prefix="dali_imagenet-", suffix=".rows")
            os.close(fd)
            weakref.finalize(self, _remove, file, os.getpid())
            save_rows(file, self, {})
            self.file = file
        if self.file is not None:
            with contextlib.suppress(OSError):  # it was removed: the cache folder is the user's
                return {"file": self.file, "digest": _digest_in(self.file)}
        return {"array": self.array, "names": self.names, "reasons": self.reasons}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "file" not in state:
            self.__init__(**state)  # type: ignore[misc]  # as copy and pickle do
            return
        if _digest_in(state["file"]) != state["digest"]:
            raise ValueError(f"{state['file']} is another index than the one that was sent")
        found, _ = map_rows(state["file"])
        self.__init__(found.array, found.names, found.reasons, state["file"])  # type: ignore[misc]  # as above

    def replace(self, reasons: Mapping[int, str] | None = None, **columns: npt.ArrayLike) -> Rows:
        """A copy with other values in some columns of ROW; `reasons` go with "broken"."""
        array = self.array.copy()
        for name, values in columns.items():
            array[name] = values
        return Rows(array, self.names, self.reasons if reasons is None else reasons)

    def select(self, rows: npt.NDArray[np.intp]) -> Rows:
        """Those rows, in that order."""
        array = self.array[rows]
        broken = np.flatnonzero(array["broken"])
        return Rows(array, self.names.select(rows), {int(i): self.reasons[int(rows[i])] for i in broken})


def _digest_in(file: str) -> bytes:
    """What a file says of its contents."""
    with open(file, "rb") as f:
        return f.read(_HEAD)[len(_MAGIC) :]


def _remove(file: str, owner: int) -> None:
    if os.getpid() == owner:  # not a forked child that ends
        with contextlib.suppress(OSError):
            os.unlink(file)


def new_rows(n: int) -> Array:
    """N rows of zeros."""
    return np.zeros(n, ROW)


def _parts(rows: Rows, info: Mapping[str, Any]) -> list[Any]:
    about = json.dumps({**info, "reasons": sorted(rows.reasons.items())}).encode()
    lengths = struct.pack("<qqq", len(rows), len(rows.names.blob), len(about))
    return [
        lengths,
        np.ascontiguousarray(rows.array).view(np.uint8).data,
        np.ascontiguousarray(rows.names.ends, "<i8").view(np.uint8).data,
        rows.names.blob,
        about,
    ]


def digest_of(parts: Iterable[Any]) -> bytes:
    """16 bytes that tell contents apart."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def content_digest(rows: Rows, info: Mapping[str, Any]) -> str:
    """What a file of these rows may be called by."""
    return digest_of(_parts(rows, info)).hex()


def dump_rows(rows: Rows, info: Mapping[str, Any]) -> bytes:
    """What `save_rows` writes."""
    parts = _parts(rows, info)
    return b"".join([_MAGIC, digest_of(parts), *parts])


def save_rows(file: str | os.PathLike[str], rows: Rows, info: Mapping[str, Any]) -> None:
    """Write beside the file and rename over it, so that readers and other writers see a whole one or none.

    Args:
        info: whatever JSON holds; "reasons" is taken.

    Raises:
        OSError: it cannot be written.
    """
    file = os.fspath(file)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=os.path.basename(file) + ".", dir=os.path.dirname(file))
    try:
        parts = _parts(rows, info)
        with open(fd, "wb") as out:
            out.writelines([_MAGIC, digest_of(parts), *parts])
            out.flush()
            os.fsync(fd)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def map_rows(file: str | os.PathLike[str]) -> tuple[Rows, dict[str, Any]]:
    """The rows of a file of this user's own, mapped: nothing is read of them now. Their contents are trusted.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or not whole.
    """
    with open(file, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < _HEAD:
            raise ValueError("it is damaged or cut short")
        mapped = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    rows, info = _split(mapped, size)
    rows.file = os.fspath(file)
    return rows, info


def read_rows(data: bytes, max_pixels: int | None) -> tuple[Rows, dict[str, Any]]:
    """The rows that a file of unknown origin holds, checked: nothing in them can do harm later.

    Raises:
        ValueError: for anything that `save_rows` did not write.
    """
    if len(data) < _HEAD or digest_of([memoryview(data)[len(_MAGIC) + 16 :]]) != data[len(_MAGIC) : len(_MAGIC) + 16]:
        raise ValueError("it is of another version" if data[: len(_MAGIC)] != _MAGIC else "it is damaged or cut short")
    rows, info = _split(memoryview(data), len(data))
    array, n = rows.array, len(rows)
    pixels = array["height"].astype(np.int64) * array["width"]
    healthy = array["broken"].view(np.uint8) == 0
    found = np.flatnonzero(np.frombuffer(rows.names.blob, np.uint8) == 0)
    sound = (
        bool((array["broken"].view(np.uint8) <= 1).all())
        and len(found) == n
        and bool((found == rows.names.ends).all())
        and (not n or rows.names.blob[-1] == 0)
        and bool((array["format"] < len(FORMATS)).all())
        and bool((array["components"] <= 4).all())
        and bool((array["offset"] >= 0).all())
        and bool((array["height"] >= 0).all() and (array["width"] >= 0).all())
        and bool((healthy == (pixels > 0)).all())
        and (max_pixels is None or int(pixels.max(initial=0)) <= max_pixels)
        and {*rows.reasons} == {*np.flatnonzero(~healthy).tolist()}
    )
    if not sound:
        raise ValueError("its contents make no sense")
    return rows, info


def _split(data: memoryview, size: int) -> tuple[Rows, dict[str, Any]]:
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is of another version")
    n, name_bytes, info_bytes = struct.unpack_from("<qqq", data, len(_MAGIC) + 16)
    if min(n, name_bytes, info_bytes) < 0 or _HEAD + n * (ROW.itemsize + 8) + name_bytes + info_bytes != size:
        raise ValueError("it is damaged or cut short")
    array = np.frombuffer(data, ROW, n, _HEAD)
    at = _HEAD + n * ROW.itemsize
    ends = np.frombuffer(data, "<i8", n, at)
    at += 8 * n
    try:
        info = json.loads(bytes(data[at + name_bytes :]))
        reasons = dict(info.pop("reasons"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its contents make no sense") from error
    if not all(type(i) is int and type(why) is str for i, why in reasons.items()):
        raise ValueError("its contents make no sense")
    return Rows(array, Names(data[at : at + name_bytes], ends), reasons), info
