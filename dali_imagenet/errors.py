"""Errors that users may want to catch."""

from __future__ import annotations


class RankMismatchError(RuntimeError):
    """The ranks of a process group are about to load different data, or in different ways; the message says which."""


class BadImageError(RuntimeError):
    """An image that cannot be read; the message names its path, escaped, and the reason."""


class StorageError(RuntimeError):
    """An image that cannot be read although nothing is wrong with it: the storage, the network or the memory fails.

    Stops the run whatever `on_error` says; the message names the path, the cause and what to do.
    """
