"""N names in one block of memory, which a process of many millions can hold and share with its workers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


def name_ends(blob: bytes | memoryview) -> npt.NDArray[np.intp]:
    """Where the NUL behind each name stands."""
    return np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)


class Names:
    """Names by number.

    Args:
        blob: the names in the file system's encoding, '/'-separated, each followed by a NUL, which no file name holds.
        ends: where the NULs are, if that is known.
    """

    def __init__(self, blob: bytes | memoryview, ends: npt.NDArray[np.intp] | None = None) -> None:
        self.blob = blob
        if ends is not None:
            self.ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Names as given, none of which holds a NUL."""
        return cls(os.fsencode("".join(f"{name}\0" for name in names)))

    def __getstate__(self) -> dict[str, Any]:
        return {"blob": bytes(self.blob)}  # where they end is found again

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        """Name 0..N-1; bytes that are not valid text are surrogate-escaped, as os.fsdecode does."""
        begin = int(self.ends[i - 1]) + 1 if i else 0
        return os.fsdecode(bytes(self.blob[begin : int(self.ends[i])]))

    @cached_property
    def ends(self) -> npt.NDArray[np.intp]:
        """Where the NUL behind each name stands, int [N]."""
        return name_ends(self.blob)
