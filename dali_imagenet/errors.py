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


class UntranslatableError(ValueError):
    """A transform of another library that a recipe cannot say.

    Attributes:
        what: the transform, as it prints itself.
        change: what would have to change in its line.
    """

    def __init__(self, what: str, why: str, change: str) -> None:
        super().__init__(f"{what} cannot be translated: {why}. Change that line: {change}")
        self.what, self.why, self.change = what, why, change

    def __reduce__(self) -> tuple[type[UntranslatableError], tuple[str, str, str]]:
        return type(self), (self.what, self.why, self.change)
