"""Errors that users may want to catch."""

from __future__ import annotations


class BadImageError(RuntimeError):
    """An image that cannot be read; the message names its path and the reason."""


class StorageError(RuntimeError):
    """An image that cannot be read although nothing is wrong with it: the storage, the network or the memory fails.

    Stops the run whatever `on_error` says; the message names the path, the cause and what to do.
    """
