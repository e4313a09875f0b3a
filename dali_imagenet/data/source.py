"""Where the bytes of a sample come from. To read another kind of data, implement `Source` in a file beside this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from dali_imagenet.cores import local_ranks


class Source(Protocol):
    """The encoded bytes of N samples, by number.

    Processes and threads: a source is pickled to spawned workers and inherited by forked ones, and is read from several
    threads at once. So it holds names and places, not open files or connections: whatever is opened is opened when a
    process first reads, and is kept apart for each process (compare `os.getpid()`) and, where it is not thread-safe,
    for each thread. What pickling must leave out is left out in `__getstate__`.

    Results: the same bytes for the same sample in every process and at every time. What cannot be had is an error,
    never other or fewer bytes.

    Errors: an OSError whose errno is that of a missing or forbidden file (ENOENT, EACCES, ...) or that has none, or a
    ValueError, is the sample's own fault, on which `on_error` may act. An OSError of the storage or the network (EIO,
    ESTALE, ETIMEDOUT, ..., TimeoutError, ConnectionError) is tried again, and stops the run as a StorageError if it
    stays. Whatever else is raised stops the run. A source may refuse a sample, with a ValueError and before it has
    been read as a whole, that is larger than the source knows it to be.
    """

    fork_safe: bool
    """Whether a forked worker may go on with it after its parent has read. Where not, workers are spawned."""

    def __len__(self) -> int:
        """N."""
        ...

    def read(self, sample: int) -> bytes:
        """The encoded file of sample 0..N-1, whole. The bytes are the caller's."""
        ...

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        """`read` of each, in that order; what could not be read is the exception that `read` would have raised.

        The place to have many requests in flight. One that reads local files one after the other is faster in parts,
        from several threads: an attribute `one_by_one`, True, allows that.
        """
        ...

    def will_read(self, samples: Sequence[int]) -> None:
        """A hint that these are read next, in that order, and that earlier hints no longer hold.

        May do nothing, must not wait, and changes no result.
        """
        ...

    def name(self, sample: int) -> str:
        """What messages call the sample: a path or an address, without passwords or keys."""
        ...

    def local_path(self, sample: int) -> str | None:
        """The local file that holds the sample and nothing else, for executors that read by themselves.

        Either every sample has one, or none has: None.
        """
        ...

    def close(self) -> None:
        """Let go of whatever this process has open. The next read opens it again. Closing twice is fine."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """What a `Source` also has that keeps requests in flight for samples that are read later."""

    @property
    def ahead(self) -> int:
        """Samples behind the batch at hand of which it makes use when `will_read` names them, too."""
        ...

    def share(self, processes: int) -> None:
        """As many processes of this machine read from it at once, each through a copy of its own."""
        ...


def one_by_one(source: Source) -> bool:
    """Whether its `read_many` reads one sample of local files after the other, so that several threads, each with a
    part, are faster. A `Source` says so by an attribute `one_by_one`; of one that does not, all is asked at once."""
    return bool(getattr(source, "one_by_one", False))


def samples_ahead(source: Source) -> int:
    """`ReadsAhead.ahead`; 0 where it has no requests in flight."""
    return source.ahead if isinstance(source, ReadsAhead) else 0


def share_among(source: Source, workers: int) -> None:
    """Say that each rank of this machine has as many workers."""
    if isinstance(source, ReadsAhead):
        source.share(max(1, workers) * (local_ranks(os.environ) or 1))


def read_each(source: Source, samples: Sequence[int]) -> list[bytes | Exception]:
    """`Source.read_many`, one after the other: for sources that gain nothing from doing more at once."""
    found: list[bytes | Exception] = []
    for sample in samples:
        try:
            found.append(source.read(sample))
        except Exception as error:  # handed to whoever asked for this sample
            found.append(error)
    return found
