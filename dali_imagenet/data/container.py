"""Files that hold many samples: how they are read while they are looked through, and how a sample is read later."""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from dali_imagenet.data.rows import Rows
from dali_imagenet.data.source import read_each
from dali_imagenet.errors import StorageError
from dali_imagenet.escape import escaped

MAX_OPEN = 256
"""Containers that a process keeps open."""


class Container(NamedTuple):
    """One file or object that holds samples.

    Attributes:
        name: an absolute path, or an address without passwords.
        size: bytes.
        stamp: changes whenever the contents do: the modification time in ns, or an object's ETag.
    """

    name: str
    size: int
    stamp: str


class Reader(Protocol):
    """A container, while it is looked through. Several threads may read at once."""

    container: Container

    def read(self, at: int, count: int) -> bytes:
        """The bytes from there on; fewer at the end."""
        ...

    def close(self) -> None: ...


_SEEKING = threading.Lock()


def pread(fd: int, count: int, offset: int) -> bytes:
    """As os.pread, on every system."""
    if sys.platform != "win32":
        return os.pread(fd, count, offset)
    with _SEEKING:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, count)


def stamp_of(info: os.stat_result) -> str:
    """The `Container.stamp` of a local file."""
    return str(info.st_mtime_ns)


class FileReader:
    """A `Reader` of a local file.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        # Not blocking: it may be a pipe.
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(self._fd)
            raise ValueError(f"{escaped(path)} is no regular file")
        self.container = Container(path, info.st_size, stamp_of(info))

    def read(self, at: int, count: int) -> bytes:
        return pread(self._fd, count, at)

    def close(self) -> None:
        os.close(self._fd)


class Part(io.RawIOBase):
    """What `read(at, count)` gives of `size` bytes, as a file for libraries that want one."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        found = self._read(self._at, count) if count else b""
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class _Open:
    """The containers that one process has open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.files: OrderedDict[int, list[int]] = OrderedDict()  # container: [descriptor, threads that read from it]


class ExtentSource:
    """Samples that lie in local files at known places.

    Args:
        containers: what `rows.array["container"]` counts.
        rows: where each sample is, and what it is called.
    """

    fork_safe = True
    one_by_one = True

    def __init__(self, containers: Sequence[Container], rows: Rows) -> None:
        self._containers, self._rows = tuple(containers), rows
        self._start()

    def _start(self) -> None:
        array = self._rows.array
        self._offset, self._size, self._container = array["offset"], array["size"], array["container"]
        self._open = _Open()

    def __getstate__(self) -> dict[str, Any]:
        return {"_containers": self._containers, "_rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    @property
    def place(self) -> object:
        """See `algebra.ByRows`."""
        return self._containers

    def with_rows(self, rows: Rows) -> ExtentSource:
        """See `algebra.ByRows`."""
        return ExtentSource(self._containers, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, sample: int) -> bytes:
        """The bytes of one sample.

        Raises:
            StorageError: the container is not the one that was indexed.
            OSError: it cannot be opened or read.
        """
        size, which, opened = int(self._size[sample]), int(self._container[sample]), self._own()
        entry = self._take(opened, which)
        try:
            data = pread(entry[0], size, int(self._offset[sample]))
        finally:
            with opened.lock:
                entry[1] -= 1
        if len(data) != size:
            raise self._changed(which, f"it ends {size - len(data)} bytes early")
        return data

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        """`read` of each; the file system reads ahead by itself."""
        return read_each(self, samples)

    def will_read(self, samples: Sequence[int]) -> None:
        """Nothing: the file system reads ahead by itself."""

    def name(self, sample: int) -> str:
        """The container, a colon and the name within it."""
        return f"{self._containers[int(self._container[sample])].name}:{self._rows.names[sample]}"

    def local_path(self, sample: int) -> None:
        """None: no file holds a sample alone."""

    def close(self) -> None:
        """Close what this process has open and nobody reads from."""
        opened = self._own()
        with opened.lock:
            for which in [which for which, entry in opened.files.items() if not entry[1]]:
                os.close(opened.files.pop(which)[0])

    def _own(self) -> _Open:
        if self._open.pid != os.getpid():  # what the parent opened stays the parent's
            self._open = _Open()
        return self._open

    def _take(self, opened: _Open, which: int) -> list[int]:
        """The open container, which stays open until its count goes down again."""
        with opened.lock:
            entry = opened.files.get(which)
            if entry is None:
                entry = opened.files[which] = [self._open_container(which), 0]
                idle = (key for key, other in opened.files.items() if not other[1] and key != which)
                while len(opened.files) > MAX_OPEN and (oldest := next(idle, None)) is not None:
                    os.close(opened.files.pop(oldest)[0])
                    idle = (key for key, other in opened.files.items() if not other[1] and key != which)
            else:
                opened.files.move_to_end(which)
            entry[1] += 1
            return entry

    def _open_container(self, which: int) -> int:
        container = self._containers[which]
        try:
            fd = os.open(container.name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (FileNotFoundError, PermissionError) as error:  # no fault of a sample's
            raise self._changed(which, f"{error.strerror}") from error
        info = os.fstat(fd)
        if (info.st_size, stamp_of(info)) != (container.size, container.stamp):
            os.close(fd)
            raise self._changed(which, "its size or modification time is another one")
        return fd

    def _changed(self, which: int, how: str) -> StorageError:
        return StorageError(
            f"{escaped(self._containers[which].name)} has changed since it was indexed: {how}; start "
            "again, which indexes it anew"
        )
