"""Copies of remote containers on a local disk: sparse files that are filled as they are read, and never emptied.

Behind the bytes of a container lies a head (magic, the boot of this machine in which it was last prepared, the bytes
that may be kept), then a byte for each block of the container: 0 where it is not here, WRITTEN, or DURABLE.

A block is written before it is marked, so that a process that is killed leaves nothing that is half there; all
processes of a machine see both in that order. After a crash of the machine the disk may hold the mark and not the
block: marks of an earlier boot count only where they are DURABLE, which a block becomes once it was synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import struct
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dali_imagenet.data.container import MAX_OPEN, Container, pread
from dali_imagenet.escape import escaped, printable

logger = logging.getLogger("dali_imagenet")

BLOCK = 4096
"""Bytes that are marked together."""
WRITTEN, DURABLE = 1, 2
_MAGIC = b"dali_imagenet copy 1\n"  # the number is the version of the layout
HEAD = struct.Struct("<24s40sq")
_SYNCED_EVERY = 60  # seconds
_WRITING = threading.Lock()


def _boot() -> bytes:
    """Tells boots of this machine apart; b"" where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:40]
    except OSError:
        return b""


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _file_name(container: Container) -> str:
    """What it is called, and its version."""
    return f"{_digest(container.name)}-{_digest(container.size, container.stamp)}.copy"


def _blocks(container: Container) -> int:
    return -(-container.size // BLOCK)


def _behind(blocks: int) -> int:
    """What the head and the marks take on the disk, bytes."""
    return -(-(HEAD.size + blocks) // BLOCK) * BLOCK


def head_of(container: Container) -> int:
    """Where the head lies in the file of a container; the marks follow it."""
    return _blocks(container) * BLOCK


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        if sys.platform != "win32":
            done = os.pwrite(fd, data, offset)
        else:
            with _WRITING:
                os.lseek(fd, offset, os.SEEK_SET)
                done = os.write(fd, data)
        data, offset = data[done:], offset + done


class _Copy:
    """One container's file, open until the last reference is gone.

    Raises:
        OSError: it is not there, or not whole.
    """

    def __init__(self, file: Path, container: Container) -> None:
        self._fd = os.open(file, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        at = head_of(container)
        self._marks, self._count = at + HEAD.size, _blocks(container)
        if os.fstat(self._fd).st_size != self._marks + self._count:
            raise OSError(f"{file.name} was cut short")
        self.limit: int = HEAD.unpack(pread(self._fd, HEAD.size, at))[2]

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def has(self, start: int, stop: int) -> bool:
        first, last = start // BLOCK, -(-stop // BLOCK)
        marks = pread(self._fd, last - first, self._marks + first)
        return len(marks) == last - first and 0 not in marks

    def read(self, start: int, stop: int) -> bytes:
        return pread(self._fd, stop - start, start)

    def write(self, data: memoryview, first: int, last: int) -> None:
        """Whole blocks; the last one of the container may be shorter."""
        _pwrite(self._fd, data, first * BLOCK)
        marks = pread(self._fd, last - first, self._marks + first)
        _pwrite(self._fd, memoryview(marks.replace(b"\0", bytes([WRITTEN]))), self._marks + first)

    def sync(self) -> None:
        written = np.frombuffer(pread(self._fd, self._count, self._marks), np.uint8) == WRITTEN
        os.fsync(self._fd)
        edges = np.flatnonzero(np.diff(written, prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            _pwrite(self._fd, memoryview(bytes([DURABLE]) * (last - first)), self._marks + first)


class Copies:
    """Copies of some containers.

    Args:
        folder: on a disk of this machine; made where it is not there. Several processes and data sets may share it.
        containers: what is copied.
        most: bytes that all data sets in the folder may take, as far as this one adds to them; None for no limit.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], containers: Sequence[Container], most: int | None) -> None:
        self._folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self._containers = tuple(containers)
        self._prepare(most)
        self._start()

    def _start(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[int, _Copy] = OrderedDict()
        self._missing = set[int]()  # what could not be opened
        self._dirty = set[int]()  # written to and not synced
        self._full = False  # the disk is, or fails
        self._synced = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_containers": self._containers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    def _prepare(self, most: int | None) -> None:
        """Make the files that are missing, and share out what may be kept."""
        from filelock import FileLock

        self._folder.mkdir(parents=True, exist_ok=True)
        total, files = sum(one.size for one in self._containers), {_file_name(one) for one in self._containers}
        names = {file.partition("-")[0] for file in files}
        with FileLock(self._folder / "lock"):
            others = 0
            for file in self._folder.glob("*.copy"):
                if file.name in files:
                    continue
                if file.name.partition("-")[0] in names:  # of another version of the same object: of no use any more
                    with contextlib.suppress(OSError):
                        file.unlink(missing_ok=True)
                else:
                    others += _limit_of(file)
            marks = sum(_behind(_blocks(one)) for one in self._containers)
            share = 1.0 if most is None or not total else max(0.0, min(1.0, (most - others - marks) / total))
            boot = _boot()
            for container in self._containers:
                limit = container.size if share == 1 else int(container.size * share) // BLOCK * BLOCK
                file = self._folder / _file_name(container)
                if limit or file.exists():
                    _make(file, container, boot, limit)
        logger.info(
            "%s keeps %.1f GB of %.1f GB (%.0f%%)%s",
            escaped(str(self._folder)),
            *(total * share / 1e9, total / 1e9, 100 * share),
            "" if share == 1 else ": what is there stays, the rest is fetched in every epoch (local_cache_size)",
        )

    def has(self, which: int, start: int, stop: int) -> bool:
        """Whether those bytes of a container are here."""
        copy = self._copy(which)
        return copy is not None and copy.has(start, stop)

    def get(self, which: int, start: int, stop: int) -> bytes | None:
        """Those bytes of a container, where they are here."""
        copy = self._copy(which)
        if copy is None or not copy.has(start, stop):
            return None
        try:
            data = copy.read(start, stop)
        except OSError as error:
            self._give_up(error)
            return None
        return data if len(data) == stop - start else None

    def widened(self, which: int, start: int, stop: int) -> tuple[int, int]:
        """What to fetch for those bytes: whole blocks, where they may be kept."""
        copy = self._copy(which)
        if self._full or copy is None or stop > copy.limit:
            return start, stop
        return start // BLOCK * BLOCK, min(-(-stop // BLOCK) * BLOCK, self._containers[which].size)

    def put(self, which: int, start: int, data: bytes) -> None:
        """Keep what was fetched from there on, as far as it is whole blocks that may be kept. Never fails."""
        copy = self._copy(which)
        if self._full or copy is None:
            return
        size = self._containers[which].size
        stop = min(start + len(data), copy.limit)
        first, last = -(-start // BLOCK), _blocks(self._containers[which]) if stop == size else stop // BLOCK
        if first >= last or copy.has(first * BLOCK, min(last * BLOCK, size)):
            return
        try:
            copy.write(memoryview(data)[first * BLOCK - start : stop - start], first, last)
            with self._lock:
                self._dirty.add(which)
            if time.monotonic() - self._synced > _SYNCED_EVERY:
                self.sync()
        except OSError as error:
            self._give_up(error)

    def sync(self) -> None:
        """What this process has written outlasts a crash of the machine from now on."""
        with self._lock:
            self._synced = time.monotonic()
            dirty, self._dirty = self._dirty, set()
        for which in dirty:
            if (copy := self._copy(which)) is not None:
                copy.sync()

    def close(self) -> None:
        """Close what this process has open."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(OSError):
            self.sync()
        with self._lock:
            self._open.clear()

    def _copy(self, which: int) -> _Copy | None:
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            copy = self._open.get(which)
            if copy is not None:
                self._open.move_to_end(which)
                return copy
            if which in self._missing:
                return None
        try:
            copy = _Copy(self._folder / _file_name(self._containers[which]), self._containers[which])
        except OSError as error:
            self._missing.add(which)
            if not isinstance(error, FileNotFoundError):  # none of it is kept
                self._give_up(error)
            return None
        with self._lock:
            self._open[which] = copy
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return copy

    def _give_up(self, error: Exception) -> None:
        if not self._full:
            self._full = True
            folder, why = escaped(str(self._folder)), printable(str(error))
            logger.warning("nothing more is added to the local cache %s: %s", folder, why)


def _limit_of(file: Path) -> int:
    """What another data set may take by a file; its marks take a byte a block, from which its head is found."""
    try:
        size = file.stat().st_size
        blocks = (size - HEAD.size) // (BLOCK + 1)
        with open(file, "rb") as opened:
            opened.seek(blocks * BLOCK)
            magic, _, limit = HEAD.unpack(opened.read(HEAD.size))
        return max(0, int(limit)) + _behind(blocks) if magic.rstrip(b"\0") == _MAGIC else 0
    except (OSError, struct.error):
        return 0


def _make(file: Path, container: Container, boot: bytes, limit: int) -> None:
    """The file of one container: the one that is there, brought up to this boot, or a new one. Under the lock."""
    at, size = head_of(container), head_of(container) + HEAD.size + _blocks(container)
    with contextlib.suppress(FileNotFoundError):
        info = file.stat()
        if hasattr(os, "getuid") and info.st_uid != os.getuid():
            raise PermissionError(f"{escaped(str(file))} is another user's: give local_cache= a folder of your own")
        with open(file, "r+b") as found:
            found.seek(at)
            head = found.read(HEAD.size)
            if info.st_size == size and head[: len(_MAGIC)] == _MAGIC:
                if not boot or HEAD.unpack(head)[1].rstrip(b"\0") != boot:
                    marks = found.read()
                    found.seek(at + HEAD.size)
                    found.write(marks.replace(bytes([WRITTEN]), b"\0"))
                found.seek(at)
                found.write(HEAD.pack(_MAGIC, boot, limit))
                return
        file.unlink()
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.truncate(size)
        out.seek(at)
        out.write(HEAD.pack(_MAGIC, boot, limit))
    os.replace(new, file)
