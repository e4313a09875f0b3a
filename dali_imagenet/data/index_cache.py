"""What was read of the images, remembered in a file outside the data, by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet.cache import cache_folder
from dali_imagenet.data.names import name_ends
from dali_imagenet.escape import escaped
from dali_imagenet.formats import FORMATS

logger = logging.getLogger("dali_imagenet")

Array = npt.NDArray[Any]

_MAGIC = b"dali_imagenet index 1\n"  # the number is the version of the cache's layout
COLUMNS = {
    "file_size": "<i8",
    "stamp": "<i8",
    "height": "<i4",
    "width": "<i4",
    "components": "u1",
    "format": "u1",
    "broken": "?",
}
# Values of `stamp` (modification time, ns) that match no file: it is read again at the next start.
UNREAD, NO_STAT = -1, -2


class Found(NamedTuple):
    """The tree as it is now; `paths` as the blob of `Names`."""

    paths: bytes
    labels: npt.NDArray[np.int64]
    file_size: npt.NDArray[np.int64]
    stamp: npt.NDArray[np.int64]


@dataclass(slots=True)
class Table:
    """The columns of COLUMNS for the files `paths`; `found_stamp` are the times just listed."""

    paths: bytes
    columns: dict[str, Array]
    reasons: dict[int, str]
    found_stamp: npt.NDArray[np.int64]


def merge_cached(found: Found, old: Table | None) -> tuple[Table, npt.NDArray[np.intp]]:
    """A table for the files found, filled from the old one where nothing changed, and the rows left to read."""
    n = len(found.labels)
    if old is not None and old.paths == found.paths:  # the usual case costs no Python per file
        source = np.arange(n)
    elif old is not None:
        row = {path: i for i, path in enumerate(old.paths.split(b"\0")[:-1])}
        source = np.fromiter((row.get(path, -1) for path in found.paths.split(b"\0")[:-1]), np.intp, n)
    else:
        source = np.full(n, -1)
    columns = {name: np.zeros(n, dtype) for name, dtype in COLUMNS.items()}
    reasons: dict[int, str] = {}
    known = source >= 0
    if old is not None:
        for name, now in (("file_size", found.file_size), ("stamp", found.stamp)):
            known[known] = old.columns[name][source[known]] == now[known]
        for name, column in columns.items():
            column[known] = old.columns[name][source[known]]
        reasons = {i: old.reasons[int(source[i])] for i in np.flatnonzero(columns["broken"]).tolist()}
    columns["file_size"][:] = found.file_size
    columns["stamp"][~known] = UNREAD
    return Table(found.paths, columns, reasons, found.stamp), np.flatnonzero(~known)


def cache_file(
    root: str, limits: Sequence[int | None], cache_dir: str | os.PathLike[str] | None, of: str = ""
) -> str | None:
    """The file that remembers what was read of the images below `root`; None where there is no folder for it.

    Args:
        of: which of the images; "": all of them.
    """
    from PIL import ImageFile

    folder = cache_folder(cache_dir)
    if folder is None:
        logger.warning("no home folder here: every start reads every header, unless DALI_IMAGENET_CACHE names a folder")
        return None
    # Everything that decides what counts as broken is part of the name.
    key = [os.fsencode(os.path.realpath(root)).hex(), *limits, bool(ImageFile.LOAD_TRUNCATED_IMAGES)]
    key += [of] if of else []
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
    return os.fspath(folder / f"index-{digest}.bin")


def _pack(table: Table) -> list[bytes]:
    """Counts (rows, bytes of paths, bytes of reasons), the columns, the paths, the reasons as JSON."""
    reasons = json.dumps(list(table.reasons.items())).encode()
    counts = struct.pack("<qqq", len(table.found_stamp), len(table.paths), len(reasons))
    columns = [table.columns[name].astype(dtype).tobytes() for name, dtype in COLUMNS.items()]
    return [counts, *columns, table.paths, reasons]


def _digest(parts: Sequence[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _unpack(data: bytes, max_pixels: int | None) -> Table:
    """The inverse of _pack, magic and digest in front. Raises ValueError for anything that save_cache did not write.

    The digest catches accidents, the checks after it everything that could do harm later.
    """
    body = memoryview(data)[len(_MAGIC) + 16 :]
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is of another version")
    if len(body) < 24 or _digest([body]) != data[len(_MAGIC) : len(_MAGIC) + 16]:
        raise ValueError("it is damaged or cut short")
    n, path_bytes, reason_bytes = struct.unpack_from("<qqq", body)
    width = sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
    if min(n, path_bytes, reason_bytes) < 0 or 24 + n * width + path_bytes + reason_bytes != len(body):
        raise ValueError("its lengths do not fit")
    columns, at = {}, 24
    for name, dtype in COLUMNS.items():
        columns[name] = np.frombuffer(body, "u1" if dtype == "?" else dtype, n, at)
        at += columns[name].nbytes
    paths = bytes(body[at : at + path_bytes])
    reasons = json.loads(bytes(body[at + path_bytes :]))
    ok = columns["broken"] == 0
    height, image_width = columns["height"].astype(np.int64), columns["width"].astype(np.int64)
    pixels = height * image_width
    sound = (
        len(name_ends(paths)) == n
        and (not n or paths.endswith(b"\0"))
        and bool((columns["broken"] <= 1).all())
        and bool((columns["format"] < len(FORMATS)).all())
        and bool((columns["components"] <= 4).all())
        and bool(((height >= 0) & (image_width >= 0)).all())
        and bool((ok == (pixels > 0))[columns["stamp"] != UNREAD].all())
        and (max_pixels is None or int(pixels.max(initial=0)) <= max_pixels)
        and isinstance(reasons, list)
        and all(isinstance(r, list) and [type(v) for v in r] == [int, str] for r in reasons)
        and {r[0] for r in reasons} == set(np.flatnonzero(~ok).tolist())
    )
    if not sound:
        raise ValueError("its contents make no sense")
    columns["broken"] = columns["broken"].astype(np.bool_)
    return Table(paths, columns, dict(reasons), columns["stamp"])


def load_cache(file: str, max_pixels: int | None) -> Table | None:
    """What was remembered; None where nothing was, or where it is not to be trusted."""
    try:
        with open(file, "rb") as f:
            return _unpack(f.read(), max_pixels)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        logger.warning("index cache %s is ignored and made anew: %s", escaped(file), error)
        return None


def save_cache(file: str, table: Table, old: Table | None) -> None:
    """Write beside the file and rename over it, so that readers and other writers see a whole cache or none."""
    temporary = None
    try:
        parts = _pack(table)
        if old is not None and parts == _pack(old):  # what could not be read still cannot
            return
        os.makedirs(os.path.dirname(file), exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=os.path.basename(file) + ".", dir=os.path.dirname(file))
        with open(fd, "wb") as f:
            f.writelines([_MAGIC, _digest(parts), *parts])
        os.replace(temporary, file)
    except OSError as error:
        name = escaped(file)
        logger.warning("index cache %s cannot be written, the next start reads every header again: %s", name, error)
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
