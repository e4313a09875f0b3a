"""Parts and combinations of indexes: which rows, which labels, and where their bytes come from. Whole arrays at a time.

What is drawn here is a function of (seed, position in the index): the words of Philox, `rng.STREAM_PICK`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from dali_imagenet import rng
from dali_imagenet.data.names import Names
from dali_imagenet.data.rows import Rows
from dali_imagenet.data.source import ReadsAhead, Source, one_by_one, samples_ahead
from dali_imagenet.escape import listed
from dali_imagenet.validation import sequence, wrong

At = npt.NDArray[np.intp]
"""Positions in an index."""


@runtime_checkable
class ByRows(Protocol):
    """A `Source` that needs nothing of a sample but its row."""

    @property
    def place(self) -> object:
        """Sources of equal places read the same bytes for the same row."""
        ...

    def with_rows(self, rows: Rows) -> Source:
        """The same place with other rows."""
        ...


class Picked:
    """Samples of several sources: `container` of a row is the number of a source, `offset` the sample in it.

    Args:
        sources: all of which have local files, or none counts as having some.
        rows: of the samples; their names are not used.
    """

    def __init__(self, sources: Sequence[Source], rows: Rows) -> None:
        self._sources, self._rows = tuple(sources), rows
        self.fork_safe = all(source.fork_safe for source in self._sources)
        self.one_by_one = all(map(one_by_one, self._sources))
        self._local = all(source.local_path(0) is not None for source in self._sources if len(source))

    @property
    def place(self) -> object:
        """See `ByRows`."""
        return self._sources

    def with_rows(self, rows: Rows) -> Picked:
        """See `ByRows`."""
        return Picked(self._sources, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _at(self, sample: int) -> tuple[Source, int]:
        row = self._rows.array[sample]
        return self._sources[int(row["container"])], int(row["offset"])

    def _shares(self, samples: Sequence[int]) -> Iterable[tuple[Source, At, list[int]]]:
        """For each source that has some: where they stand among these, and which samples of its own they are."""
        rows = self._rows.array[np.asarray(samples, np.intp)]
        for number in np.unique(rows["container"]).tolist():
            where = np.flatnonzero(rows["container"] == number)
            yield self._sources[number], where, rows["offset"][where].tolist()

    def read(self, sample: int) -> bytes:
        """What its source reads."""
        source, inside = self._at(sample)
        return source.read(inside)

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        """`read` of each, one source after the other."""
        found: list[bytes | Exception] = [b""] * len(samples)
        for source, where, inside in self._shares(samples):
            for i, one in zip(where.tolist(), source.read_many(inside), strict=True):
                found[i] = one
        return found

    def will_read(self, samples: Sequence[int]) -> None:
        """Tells each source its own."""
        for source, _, inside in self._shares(samples):
            source.will_read(inside)

    @property
    def ahead(self) -> int:
        """See `ReadsAhead.ahead`: as far as one of the sources does."""
        return max(map(samples_ahead, self._sources), default=0)

    def share(self, processes: int) -> None:
        """See `ReadsAhead.share`."""
        for source in self._sources:
            if isinstance(source, ReadsAhead):
                source.share(processes)

    def name(self, sample: int) -> str:
        """What its source calls it."""
        source, inside = self._at(sample)
        return source.name(inside)

    def local_path(self, sample: int) -> str | None:
        """Its file, where the samples of all sources have one."""
        if not self._local:
            return None
        source, inside = self._at(sample)
        return source.local_path(inside)

    def close(self) -> None:
        """Closes the sources."""
        for source in self._sources:
            source.close()


def selected(rows: Rows, source: Source, at: At) -> tuple[Rows, Source]:
    """Those samples, in that order."""
    some = rows.select(at)
    if isinstance(source, ByRows):
        return some, source.with_rows(some)
    array = some.array.copy()
    array["container"], array["offset"] = 0, at
    some = Rows(array, some.names, some.reasons)
    return some, Picked([source], some)


def joined(parts: Sequence[tuple[Rows, Source]], labels: Sequence[npt.NDArray[Any]]) -> tuple[Rows, Source]:
    """One part after the other, with those labels."""
    arrays, reasons, start = [], dict[int, str](), 0
    for (rows, _), numbers in zip(parts, labels, strict=True):
        array = rows.array.copy()
        array["label"] = numbers
        arrays.append(array)
        reasons |= {start + i: why for i, why in rows.reasons.items()}
        start += len(rows)
    names = Names(b"".join(bytes(rows.names.blob) for rows, _ in parts))
    first = parts[0][1]
    if isinstance(first, ByRows) and all(
        type(source) is type(first) and source.place == first.place for _, source in parts
    ):
        whole = Rows(np.concatenate(arrays), names, reasons)
        return whole, first.with_rows(whole)
    sources: list[Source] = []
    for (_, source), array in zip(parts, arrays, strict=True):
        if isinstance(source, Picked):  # its sources in its place
            array["container"] += len(sources)
            sources += source._sources
        else:
            array["container"], array["offset"] = len(sources), np.arange(len(array))
            sources.append(source)
    whole = Rows(np.concatenate(arrays), names, reasons)
    return whole, Picked(sources, whole)


def positions(given: Any, n: int) -> At:
    """Positions in an index of n, from positions (negative ones count from the end) or a mask.

    Raises:
        ValueError: others than the index has, a mask of another length, or neither.
    """
    array = np.asarray(given)
    if array.ndim == 1 and array.dtype == np.bool_:
        if len(array) != n:
            raise ValueError(f"rows is a mask of {len(array)}: must be of {n}, one for each image")
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise wrong("rows", given, "positions in the index, or a mask of one boolean for each image")
    at = array.astype(np.intp)
    if at.size and not (-n <= at.min() and at.max() < n):
        raise ValueError(f"rows from {at.min()} to {at.max()}: must lie in 0..{n - 1}, the images of the index")
    return np.where(at < 0, at + n, at)


def per_sample(
    name: str, given: Any, labels: npt.NDArray[Any], classes: Sequence[str], default: float | None = None
) -> npt.NDArray[Any]:
    """One number for each sample, from one for each sample or each class.

    Args:
        name: of the argument, for messages.
        given: a number; [N]; [C]; or {class: number}.
        default: of classes that a mapping does not name; None: it has to name all.

    Raises:
        ValueError: as many numbers as neither samples nor classes, or as both; unknown or missing classes.
    """
    if isinstance(given, Mapping):
        known = {*classes}
        if unknown := [str(key) for key in given if key not in known]:
            raise ValueError(f"{name} names {listed(unknown)}: must be classes of the data")
        lacking = [key for key in classes if key not in given]
        if lacking and default is None:
            raise ValueError(f"{name} does not name {listed(lacking)}: must name every class of the data")
        return np.asarray(np.array([given.get(key, default) for key in classes])[labels])
    array = np.asarray(given)
    if array.ndim == 0:
        return np.full(len(labels), array)
    if array.ndim == 1 and len(labels) == len(classes) == len(array):
        raise ValueError(
            f"{name} has {len(array)} numbers, as many as there are images and classes: give {{class: number}}, so "
            "that it is clear what is meant"
        )
    if array.ndim != 1 or len(array) not in (len(labels), len(classes)):
        raise ValueError(
            f"{name} has shape {array.shape}: must be one number for each of the {len(labels)} images or of the "
            f"{len(classes)} classes, or {{class: number}}"
        )
    return array if len(array) == len(labels) else array[labels]


def shuffled_by_class(labels: npt.NDArray[Any], seed: int) -> At:
    """All positions, one class after the other, and drawn at random within each."""
    at = np.arange(len(labels), dtype=np.uint64)
    words = rng.philox(seed, at & np.uint64(0xFFFFFFFF), at >> np.uint64(32), rng.STREAM_PICK << 16, 0)
    return np.lexsort((words[1], words[0], labels))


def first_of_each(labels: npt.NDArray[Any], counts: npt.NDArray[np.int64], seed: int) -> At:
    """`counts` [C] drawn positions of each class, in the order of the index. More of one seed include fewer."""
    order = shuffled_by_class(labels, seed)
    sizes = np.bincount(labels, minlength=len(counts))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < np.repeat(counts, sizes)])


def fold_of(labels: npt.NDArray[Any], k: int, seed: int) -> npt.NDArray[np.int32]:
    """Which of k folds each sample is in, int32 [N]: sizes differ by one at most, over all and in each class."""
    fold = np.empty(len(labels), np.int32)
    fold[shuffled_by_class(labels, seed)] = np.arange(len(labels)) % k
    return fold


def unified(classes: Sequence[Sequence[str]]) -> list[str]:
    """The names of the first, then those that the following ones have besides."""
    return list(dict.fromkeys(name for names in classes for name in names))


def renumbered(labels: npt.NDArray[Any], old: Sequence[str], new: Sequence[str]) -> npt.NDArray[np.int64]:
    """The labels under other numbers of the same names; -1 where the name is gone."""
    number = {name: i for i, name in enumerate(new)}
    table = np.array([number.get(name, -1) for name in old], np.int64)
    return np.asarray(table[labels], np.int64)


def new_labels(given: Any, n: int) -> tuple[list[str] | None, npt.NDArray[np.int64]]:
    """N labels as users write them: numbers, or names of classes.

    Returns:
        The names where they are names, in the order of their first use, else None; and numbers.

    Raises:
        ValueError: as many as there are not images, or others than numbers of at least 0 and names.
    """
    items = sequence(given)
    if items is None or len(items) != n:
        count = "" if items is None else f"{len(items)} "
        raise ValueError(f"{count}labels for {n} images: must be a sequence of one label for each")
    if items and all(isinstance(item, str) for item in items):
        names = dict.fromkeys(items)
        number = {name: i for i, name in enumerate(names)}
        return list(names), np.fromiter(map(number.__getitem__, items), np.int64, n)
    try:
        if any(isinstance(item, bool | np.bool_) for item in items):
            raise TypeError
        numbers = np.fromiter(map(operator.index, items), np.int64, n)
    except (TypeError, OverflowError):
        odd = next(item for item in items if not _is_whole(item))
        raise wrong("labels", odd, "numbers of classes, counted from 0, or names of classes, but not both") from None
    if n and numbers.min() < 0:
        raise wrong("labels", int(numbers.min()), "numbers of classes, counted from 0")
    return None, numbers


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | np.bool_)
