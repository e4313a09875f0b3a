"""Where the rows of JPEGs begin, remembered in one file a data set, so that a crop's decoding begins at its first row.

The region decoder notes, as it goes, at which bit of a file each row of its blocks begins, and with which predictors.
A record of that lies in a slot, which is found by the number of the sample. Its checksum covers the record and every
byte of the image: what belongs to other bytes, or was written in part, counts as not there.

A file holds, one after the other: a line that says its layout, the number N of samples, where the N slots begin and
the last one ends, and the slots, for which the space was reserved. Numbers are those of the machine. Readers map it;
whoever has decoded rows that nobody knew writes the whole record anew. Nobody waits for anybody.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import mmap
import os
import platform
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet._compiled import ORACLE, compiled
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.escape import escaped
from dali_imagenet.formats import FORMATS

log = logging.getLogger("dali_imagenet")

OUTCOMES = ("from the top", "from a row", "dropped")
"""How a JPEG was decoded, as the region decoder numbers it: nothing was known of it; from the crop's first row, or the
last one before it that is known; from the top, because what was remembered does not fit the file."""

_MAGIC = b"dali_imagenet seek 1\n"  # the number is the version of the layout, records included
_UNIT = 4  # bytes that places count
_HEAD, _ROW_BITS = 25, 42  # of a record, enough for each row of 9 in 10 files; of others every second row is known
_KEPT = 60 * 86400  # seconds after its last use for which a file is kept
_LOCAL = {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}


class NotHere(Exception):
    """Why nothing is remembered."""


def seek_index_for(index: SampleIndex, asked: bool | None) -> SeekIndex | None:
    """The file of a data set, made where there is none yet.

    Args:
        asked: False: none. None: where it can be, else none, which is said in the log.

    Raises:
        RuntimeError: `asked` is True, and there is none; says why.
    """
    if asked is False or ORACLE:
        return None
    try:
        return SeekIndex(_file_for(index), len(index))
    except (NotHere, OSError) as error:
        if asked:
            raise RuntimeError(f"jpeg_index=True, but {error}") from error
        _say(logging.WARNING if isinstance(error, OSError) else logging.INFO, str(error))
        return None


@functools.cache
def _say(level: int, why: str) -> None:
    """Once."""
    log.log(level, "every crop is decoded from the top of its file: %s", escaped(why))


class Slot(NamedTuple):
    """What is remembered of one sample."""

    owner: SeekIndex
    at: int
    record: memoryview

    def note(self, outcome: int, record: bytes) -> None:
        """Count how it was decoded, and keep what has become known."""
        self.owner._now[outcome] += 1
        if record:
            self.owner.write(self.at * _UNIT, record)

    def refuse(self, outcome: int) -> None:
        """The region decoder leaves the file alone: forget what does not fit it."""
        if OUTCOMES[outcome] == "dropped":
            self.note(outcome, bytes(8))


class SeekIndex:
    """A file of records, open in this process. Sent to another process it is opened there, or stays empty.

    Args:
        file: made by `_file_for`.
        count: samples.

    Attributes:
        file: its path.
        nbytes: that it takes.
        counts: how often each of OUTCOMES has been, here and in the processes whose counts were added.

    Raises:
        OSError: it cannot be opened.
        NotHere: it is no such file.
    """

    def __init__(self, file: str, count: int) -> None:
        self.file, self._count, self.nbytes = file, count, 0
        self.counts, self._now = [0] * len(OUTCOMES), [0] * len(OUTCOMES)
        self._close: Callable[[], object] = lambda: None
        fd = os.open(file, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        self._close = weakref.finalize(self, os.close, fd)
        self._fd: int | None = fd
        head = _head_bytes(count)
        self.nbytes = size = os.fstat(fd).st_size
        self._map = memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ)) if size >= head else memoryview(b"")
        if bytes(self._map[: len(_MAGIC) + 8]) != _MAGIC + count.to_bytes(8, "little"):
            raise NotHere(f"{file} is of another version, or damaged: remove it")
        self._places = np.frombuffer(self._map, np.uint32, count + 1, head - 4 * (count + 1))

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "count": self._count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            self.__init__(**state)  # type: ignore[misc]  # as copy and pickle do
        except (NotHere, OSError) as error:  # it was removed meanwhile: the cache folder is the user's
            log.info("nothing is remembered of JPEGs in this process: %s", escaped(str(error)))
            self._forget()

    def _forget(self) -> None:
        self._fd, self._map, self._places = None, memoryview(b""), np.zeros(self._count + 1, np.uint32)

    def close(self) -> None:
        """Let go of the file: all slots are gone. The counts stay. Closing twice is fine."""
        self._close()
        self._forget()

    def slot(self, sample: int) -> Slot | None:
        """That of a sample; None where it has no room, being no JPEG."""
        begin, end = int(self._places[sample]), int(self._places[sample + 1])
        return Slot(self, begin, self._map[begin * _UNIT : end * _UNIT]) if end > begin else None

    def write(self, at: int, record: bytes) -> None:
        """Put a record into its slot. One that is torn, by a crash or by another that is written at once, is seen as
        such."""
        if self._fd is None:
            return
        try:
            os.pwrite(self._fd, record, at)
        except OSError as error:
            self._fd = None
            log.warning("%s is not written to any more: %s", escaped(self.file), error)

    def taken(self) -> tuple[int, ...]:
        """How often each of OUTCOMES has been in this process since it was last asked, for `add` in its parent."""
        now, self._now = tuple(self._now), [0] * len(OUTCOMES)
        return now

    def add(self, counts: Sequence[int]) -> None:
        """Count what was `taken`, here or in another process."""
        self.counts = [sum(pair) for pair in zip(self.counts, counts, strict=True)]


def _head_bytes(count: int) -> int:
    """Up to the slots; the places are aligned."""
    return -(-(len(_MAGIC) + 8) // _UNIT) * _UNIT + 4 * (count + 1)


def _places(index: SampleIndex) -> npt.NDArray[np.int64]:
    """int64 [N + 1], where slots begin and the last one ends, in units: by the number of rows that a file may have."""
    rows = -(-index.height.astype(np.int64) // 8)  # of blocks; half as many with chroma of half the height
    bytes_each = _HEAD + -(-_ROW_BITS * rows // 8)
    jpeg = (index.format == FORMATS.index("JPEG")) & ~index.broken & np.isin(index.components, (1, 3))
    units = np.where(jpeg, -(-bytes_each // _UNIT), 0)
    places = np.concatenate([[-(-_head_bytes(len(index)) // _UNIT)], units]).cumsum()
    if places[-1] > 0xFFFFFFFF:
        raise NotHere(f"{len(index)} images are too many for one file")
    return places


def _file_for(index: SampleIndex) -> str:
    """The file of a data set in the cache folder, made where there is none, or another one."""
    if compiled("dali_imagenet.decode._jpeg") is None:
        raise NotHere("the region decoder was not built (or DALI_IMAGENET_PURE is set)")
    if not (hasattr(os, "posix_fallocate") and hasattr(os, "getuid")):
        raise NotHere("this system reserves no space for a file, or has no owners of files")
    folder = index.cache_folder
    if folder is None:
        raise NotHere("there is no cache folder, or the index was made with cache=False")
    places = _places(index)
    if places[0] == places[-1]:
        raise NotHere("no image is a JPEG that the region decoder knows")
    folder.mkdir(parents=True, exist_ok=True)
    host = "" if _is_local(folder) else f"-{platform.node() or 'here'}"  # others see what is written late, or torn
    file = folder / f"seek-{index.fingerprint}{host}.bin"
    if _owner(file) not in (None, os.getuid()):  # what another user has written is not trusted
        file = file.with_name(f"{file.stem}-{os.getuid()}.bin")
    head = (_MAGIC + len(index).to_bytes(8, "little")).ljust(_head_bytes(len(index)) - 4 * (len(index) + 1), b"\0")
    head += places.astype(np.uint32).tobytes()
    size = int(places[-1]) * _UNIT
    if not _is_that(file, head, size):
        _make(file, head, size)
    return os.fspath(file)


def _owner(file: Path) -> int | None:
    try:
        return file.stat().st_uid
    except OSError:
        return None


def _is_that(file: Path, head: bytes, size: int) -> bool:
    try:
        info = file.stat()
        if info.st_size != size or info.st_uid != os.getuid():
            return False
        with open(file, "rb") as f:
            same = f.read(len(head)) == head
        os.utime(file)
        return same
    except OSError:
        return False


def _make(file: Path, head: bytes, size: int) -> None:
    """Reserve the space and write the head; of several processes that do so at once the first one's file stays."""
    _remove_old(file.parent)
    if 2 * size > shutil.disk_usage(file.parent).free:
        raise OSError(errno.ENOSPC, f"{size / 1e6:.1f} MB are needed, which shall be half of what is free", str(file))
    fd, temporary = tempfile.mkstemp(prefix=file.name + ".", dir=file.parent)
    try:
        with open(fd, "wb") as out:
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError as error:
                raise OSError(error.errno, f"{size / 1e6:.1f} MB: {error.strerror}", str(file)) from error
            out.write(head)
        try:
            os.link(temporary, file)
        except OSError as error:
            # there is one, of another version or damaged; or links are unknown here
            if not (isinstance(error, FileExistsError) and _is_that(file, head, size)):
                os.replace(temporary, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    log.info("%s, of %.1f MB, will hold where the rows of JPEGs begin", escaped(str(file)), size / 1e6)


def _remove_old(folder: Path) -> None:
    """Files of data sets that nobody has used for long."""
    for other in folder.glob("seek-*.bin"):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < time.time() - _KEPT:
                other.unlink()


def _is_local(folder: Path) -> bool:
    """Whether no other host writes there, as far as is known: by the kind of the file system."""
    kinds = {}
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, place, kind, *_ = line.split(" ")
                kinds[re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), place)] = kind
    except OSError:
        return False
    real = folder.resolve()
    return next((kinds[str(at)] for at in (real, *real.parents) if str(at) in kinds), "") in _LOCAL
