"""Reads that are tried again, because it is the storage that fails and not the file."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from dali_imagenet.errors import StorageError
from dali_imagenet.escape import escaped, printable

T = TypeVar("T")

WAITS = (0.5, 2.0)
"""Seconds before the second and the third try."""
# What a file itself can be blamed for: it is missing, forbidden, or no file. Every other error is the storage's, the
# network's or the machine's.
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.EINVAL,
        errno.EILSEQ,
    }
)
_WITHOUT_NUMBER = (TimeoutError, ConnectionError, InterruptedError, BlockingIOError)


def is_storage_failure(error: BaseException) -> bool:
    """Whether an error says nothing of the file that was to be read."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _OF_THE_FILE
    return isinstance(error, (MemoryError, *_WITHOUT_NUMBER))


def storage_error(name: str, error: BaseException) -> StorageError:
    """The error that stops the run: `name` could not be read, and is not to blame."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        cure = "the memory is full, the image is not at fault: use fewer workers, a smaller batch or prefetch=1"
    else:
        cure = (
            "the storage fails, the image is not at fault: look at the mount, the network and the kernel's log, then "
            "go on from the last checkpoint"
        )
    cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return StorageError(f"{escaped(name)}: {printable(cause)}; {cure}")


def patiently(read: Callable[[], T], name: Callable[[], str], waits: tuple[float, ...] | None = None) -> T:
    """`read()`, again after each of the `waits` (None: WAITS) for as long as the storage fails.

    Raises:
        StorageError: it still fails; what failed is its cause.
    """
    waits = WAITS if waits is None else waits
    for wait in (*waits, None):
        try:
            return read()
        except (OSError, MemoryError) as error:
            if not is_storage_failure(error):
                raise
            if wait is None:
                raise storage_error(name(), error) from error
            time.sleep(wait)
    raise AssertionError("unreachable")
