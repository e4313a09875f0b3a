"""Copies of remote containers on a local disk: sparse files that are filled as they are read, and never emptied.

Beside the data of a container lies a map: a head (magic, the boot of this machine in which it was last opened, the
bytes that may be kept), then a byte for each block of the container: 0 where it is not here, WRITTEN, or DURABLE.

A block is written before it is marked, so that a process that is killed leaves nothing that is half there; all
processes of a machine see both in that order. After a crash of the machine the disk may hold the mark and not the
block: marks of an earlier boot count only where they are DURABLE, which a block becomes once it was synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
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

from dali_imagenet.data.container import Container, pread
from dali_imagenet.escape import escaped, printable

logger = logging.getLogger("dali_imagenet")

BLOCK = 4096
"""Bytes that are marked together."""
WRITTEN, DURABLE = 1, 2
_MAGIC = b"dali_imagenet copy 1\n"  # the number is the version of the layout
_HEAD = struct.Struct("<24s40sq")
_OPEN = 128  # copies that a process keeps open
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


def _stem(container: Container) -> str:
    """The name of its files: what it is called, and in which version."""
    return f"{_digest(container.name)}-{_digest(container.size, container.stamp)}"


def _blocks(container: Container) -> int:
    return -(-container.size // BLOCK)


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
    """One container's files, open until the last reference is gone."""

    def __init__(self, folder: Path, container: Container) -> None:
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self.fd = -1
        with open(folder / f"{_stem(container)}.map", "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)
        self.fd = os.open(folder / f"{_stem(container)}.data", flags)
        if len(self.map) != _HEAD.size + _blocks(container) or os.fstat(self.fd).st_size != container.size:
            raise OSError("it was cut short")
        self.limit: int = _HEAD.unpack_from(self.map)[2]
        self.dirty = False

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def has(self, start: int, stop: int) -> bool:
        return self.map.find(b"\0", _HEAD.size + start // BLOCK, _HEAD.size + -(-stop // BLOCK)) < 0

    def mark(self, first: int, last: int) -> None:
        at, end = _HEAD.size + first, _HEAD.size + last
        self.map[at:end] = self.map[at:end].replace(b"\0", bytes([WRITTEN]))
        self.dirty = True

    def sync(self) -> None:
        self.dirty = False
        marks = np.frombuffer(self.map, np.uint8, offset=_HEAD.size)
        written = np.flatnonzero(marks == WRITTEN)
        os.fsync(self.fd)
        marks[written] = DURABLE


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
        total, stems = sum(one.size for one in self._containers), {_stem(one) for one in self._containers}
        with FileLock(self._folder / "lock"):
            others = 0
            names = {stem.partition("-")[0] for stem in stems}
            for file in self._folder.glob("*.map"):
                if file.stem in stems:
                    continue
                if file.stem.partition("-")[0] in names:  # of another version of the same object: of no use any more
                    for suffix in (".map", ".data"):
                        with contextlib.suppress(OSError):
                            file.with_suffix(suffix).unlink(missing_ok=True)
                else:
                    others += _limit_of(file)
            share = 1.0 if most is None or not total else max(0.0, min(1.0, (most - others) / total))
            boot = _boot()
            for container in self._containers:
                limit = container.size if share == 1 else int(container.size * share) // BLOCK * BLOCK
                _make(self._folder, container, boot, limit)
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
            data = pread(copy.fd, stop - start, start)
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
            _pwrite(copy.fd, memoryview(data)[first * BLOCK - start : stop - start], first * BLOCK)
            copy.mark(first, last)
            if time.monotonic() - self._synced > _SYNCED_EVERY:
                self.sync()
        except OSError as error:
            self._give_up(error)

    def sync(self) -> None:
        """What this process has written outlasts a crash of the machine from now on."""
        with self._lock:
            self._synced = time.monotonic()
            dirty = [copy for copy in self._open.values() if copy.dirty]
        for copy in dirty:
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
            copy = _Copy(self._folder, self._containers[which])
        except (OSError, ValueError) as error:
            self._missing.add(which)
            self._give_up(error)
            return None
        with self._lock:
            self._open[which] = copy
            old = self._open.popitem(last=False)[1] if len(self._open) > _OPEN else None
        if old is not None and old.dirty:
            with contextlib.suppress(OSError):
                old.sync()
        return copy

    def _give_up(self, error: Exception) -> None:
        if not self._full:
            self._full = True
            folder, why = escaped(str(self._folder)), printable(str(error))
            logger.warning("nothing more is added to the local cache %s: %s", folder, why)


def _limit_of(file: Path) -> int:
    try:
        with open(file, "rb") as opened:
            return max(0, int(_HEAD.unpack(opened.read(_HEAD.size))[2]))
    except (OSError, struct.error):
        return 0


def _make(folder: Path, container: Container, boot: bytes, limit: int) -> None:
    """The files of one container: those that are there, brought up to this boot, or new ones. Under the lock."""
    data, marks = folder / f"{_stem(container)}.data", folder / f"{_stem(container)}.map"
    try:
        info = data.stat()
        if hasattr(os, "getuid") and info.st_uid != os.getuid():
            raise PermissionError(f"{escaped(str(data))} is another user's: give local_cache= a folder of your own")
        if info.st_size == container.size and marks.stat().st_size == _HEAD.size + _blocks(container):
            with open(marks, "r+b") as file, mmap.mmap(file.fileno(), 0) as found:
                magic, before, _ = _HEAD.unpack_from(found)
                if magic.rstrip(b"\0") == _MAGIC:
                    if not boot or before.rstrip(b"\0") != boot:
                        found[_HEAD.size :] = found[_HEAD.size :].replace(bytes([WRITTEN]), b"\0")
                    _HEAD.pack_into(found, 0, _MAGIC, boot, limit)
                    return
    except FileNotFoundError:
        pass
    marks.unlink(missing_ok=True)
    data.unlink(missing_ok=True)
    with open(os.open(data, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.truncate(container.size)
    with open(os.open(marks, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(_HEAD.pack(_MAGIC, boot, limit))
        out.truncate(_HEAD.size + _blocks(container))
