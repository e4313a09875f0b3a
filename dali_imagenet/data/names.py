"""N names in one block of memory, which a process of many millions can hold and share with its workers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 16  # names


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

    def select(self, rows: npt.NDArray[np.intp]) -> Names:
        """Those names, in that order."""
        ends = np.asarray(self.ends, np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1])[rows] if len(rows) else ends[:0]
        lengths = ends[rows] + 1 - starts
        stops = np.cumsum(lengths)
        data, parts = np.frombuffer(self.blob, np.uint8), []
        for begin in range(0, len(rows), _CHUNK):  # 8 bytes of numbers for each byte of names
            part = slice(begin, begin + _CHUNK)
            before = stops[begin] - lengths[begin]
            shift = np.repeat(starts[part] - (stops[part] - lengths[part]) + before, lengths[part])
            parts.append(data[np.arange(len(shift)) + shift].tobytes())
        return Names(b"".join(parts), (stops - 1).astype(np.intp))

    @cached_property
    def ends(self) -> npt.NDArray[np.intp]:
        """Where the NUL behind each name stands, int [N]."""
        return name_ends(self.blob)
