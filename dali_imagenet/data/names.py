"""N names in one block of memory, which a process of many millions can hold and send to its workers."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


def name_ends(blob: bytes) -> npt.NDArray[np.intp]:
    """Where the NUL behind each name stands."""
    return np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)


class Names:
    """Names by number.

    Args:
        blob: the names in the file system's encoding, '/'-separated, each followed by a NUL, which no file name holds.
    """

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def __getstate__(self) -> dict[str, Any]:
        return {"blob": self.blob}  # where they end is found again

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        """Name 0..N-1; bytes that are not valid text are surrogate-escaped, as os.fsdecode does."""
        begin = int(self._ends[i - 1]) + 1 if i else 0
        return os.fsdecode(self.blob[begin : int(self._ends[i])])

    @cached_property
    def _ends(self) -> npt.NDArray[np.intp]:
        return name_ends(self.blob)
