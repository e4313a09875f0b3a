"""Images that somebody lists: (path, label) pairs, datasets of torchvision and timm, manifests, any other dataset."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dali_imagenet.data.algebra import positions
from dali_imagenet.data.container import Reader
from dali_imagenet.data.layout import folder_path, split_of
from dali_imagenet.data.places import is_url, public
from dali_imagenet.data.rows import Rows
from dali_imagenet.data.scan import Found
from dali_imagenet.data.source import read_each
from dali_imagenet.escape import either, escaped
from dali_imagenet.validation import wrong

_MIXED = "an address among paths: give addresses alone, or paths alone, and put the indexes together with concat()"


class Listed(NamedTuple):
    """Files in an order.

    Attributes:
        paths: as they were given.
        labels: one for each, numbers or names.
        classes: names in label order, where they are known.
        root: the folder that relative paths are relative to, and whose index this is a part of; None: the current one.
    """

    paths: list[str]
    labels: Sequence[Any]
    classes: Sequence[str] | None = None
    root: str | None = None

    def take(self, at: Iterable[int]) -> Listed:
        """Some of them."""
        at = list(at)
        return self._replace(paths=[self.paths[i] for i in at], labels=[self.labels[i] for i in at])


class Extent(NamedTuple):
    """An image within an archive."""

    archive: str
    name: str
    offset: int
    size: int


class Tarred(NamedTuple):
    """As `Listed`, of images within tar archives."""

    extents: list[Extent]
    labels: Sequence[Any]
    classes: Sequence[str]


def unwrapped(data: Any) -> tuple[Any, Any]:
    """The dataset below `torch.utils.data.Subset`s (`random_split` gives some), and which of its samples they have."""
    if hasattr(data, "dataset") and hasattr(data, "indices"):
        inner, at = unwrapped(data.dataset)
        mine = positions(data.indices, len(data.dataset))
        return inner, mine if at is None else at[mine]
    return data, None


def listing(data: Any) -> Listed | Tarred:
    """What a list or a dataset lists.

    Raises:
        TypeError: nothing of the kind.
        ValueError: samples that are no (path, label).
    """
    if getattr(data, "target_transform", None) is not None:
        raise ValueError(
            f"{type(data).__name__} has a target_transform, which is not known here: leave it out, and give the index "
            "other labels with relabel()"
        )
    if (reader := getattr(data, "reader", None)) is not None:  # timm's ImageDataset
        return _of_timm(reader)
    if hasattr(data, "samples") and hasattr(data, "classes"):  # torchvision's DatasetFolder and its heirs
        classes = getattr(data, "wnids", data.classes)  # of ImageNet the classes are tuples of words
        root = os.path.abspath(os.path.expanduser(getattr(data, "split_folder", data.root)))
        return _absolute(_pairs(data.samples))._replace(classes=classes, root=root)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _pairs(data)
    raise TypeError(
        f"samples={type(data).__name__}: must be [(path, label), ...], or a dataset that lists its files, as "
        "torchvision's ImageFolder and timm's ImageDataset; for other datasets there is SampleIndex.from_dataset"
    )


def _pairs(samples: Sequence[Any]) -> Listed:
    try:
        pairs = [(os.fspath(path), label) for path, label in samples]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or not all(isinstance(path, str) for path, _ in pairs):
        odd = next((one for one in samples if not _is_pair(one)), samples)
        raise wrong("samples", odd, "(path, label): at least one of them, and a path is text")
    return Listed([path for path, _ in pairs], [label for _, label in pairs])


def _absolute(given: Listed) -> Listed:
    """A dataset's paths hold its root, which may be relative to the current folder."""
    if os.path.isabs(given.paths[0]):
        return given
    return given._replace(paths=[os.path.abspath(os.path.expanduser(path)) for path in given.paths])


def _is_pair(one: Any) -> bool:
    return isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], str | os.PathLike)


def _of_timm(reader: Any) -> Listed | Tarred:
    number = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    samples = getattr(reader, "samples", None)
    if number is None or samples is None:
        raise TypeError(
            f"timm's {type(reader).__name__} does not list files: give what it reads (SampleIndex.open finds out what "
            "that is)"
        )
    classes = [str(i) for i in range(max(number.values()) + 1)]
    for name, i in number.items():
        classes[i] = name
    root = os.path.abspath(os.path.expanduser(reader.root))
    if isinstance(samples[0][0], str):
        return _absolute(_pairs(samples))._replace(classes=classes, root=root)
    if hasattr(reader, "targets"):  # (member, archive or None, tar within it or None)
        at = ((os.path.join(root, archive) if archive else root, *rest) for archive, *rest in _turned(samples))
        return Tarred([_extent(*one) for one in at], reader.targets.tolist(), classes)
    return Tarred([_extent(root, member) for member, _ in samples], [label for _, label in samples], classes)


def _turned(samples: Iterable[Any]) -> Iterable[tuple[Any, Any, Any]]:
    return ((archive, member, inner) for member, archive, inner in samples)


def _extent(archive: str, member: Any, inner: Any = None) -> Extent:
    """A member of a tar, or of a tar within it, as `SampleIndex.from_tar` calls it."""
    name = member.name.removeprefix("./")
    if inner is not None:
        return Extent(archive, f"{inner.name[:-4]}/{name}", inner.offset_data + member.offset_data, member.size)
    return Extent(archive, name, member.offset_data, member.size)


def placed(given: Listed, strict: bool) -> tuple[str, list[str]]:
    """The root, and the files as names below it.

    Args:
        strict: refuse files that do not lie below the given root; else a folder that holds all takes its place.

    Raises:
        ValueError: addresses, names that no file has, or files outside of the root.
    """
    for path in given.paths:
        if not path or "\0" in path:
            raise wrong("path", path, "the name of a file")
        if "://" in path and is_url(path):
            raise ValueError(f"{escaped(public(path))}: {_MIXED}")
    base = os.path.join(given.root if given.root is not None else os.getcwd(), "")
    paths = [path if _is_plain(path) else os.path.abspath(os.path.join(base, path)) for path in given.paths]
    root = base
    if given.root is None or (not strict and not all(path.startswith(root) for path in paths)):
        ends = min(paths), max(paths)  # what these two have in common, all have
        root = os.path.join(os.path.commonpath([os.path.dirname(path) for path in ends]), "")
    outside = next((path for path in paths if not path.startswith(root)), None)
    if outside is not None:
        raise ValueError(f"{escaped(outside)} does not lie below root={given.root!r}: leave root out")
    names = [path[len(root) :] for path in paths]
    return root.rstrip(os.sep) or os.sep, [n.replace(os.sep, "/") for n in names] if os.sep != "/" else names


def _is_plain(path: str) -> bool:
    """Whether it is absolute and as `os.path.abspath` would have it."""
    return path.startswith("/") and "/." not in path and "//" not in path and not path.endswith("/")


def read_manifest(file: str | os.PathLike[str], split: str | None, default_split: str | None) -> Listed:
    """The images that a table names, relative to its folder.

    Raises:
        FileNotFoundError: no such file.
        ImportError: Parquet needs pyarrow.
        ValueError: a file of another kind, without the columns, or whose split is not known.
    """
    path = folder_path("file", file)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"file={path!r} does not exist")
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise wrong("file", path, f"a manifest: a name that ends in {either(_READERS)}")
    table = _READERS[suffix](path)
    if not len(table.get("path", ())) or "label" not in table:
        raise ValueError(
            f"{escaped(path)} has columns {', '.join(table) or 'none'}: must have path and label, and at least one row"
        )
    paths, labels = table["path"], table["label"]
    for number, (one, label) in enumerate(zip(paths, labels, strict=True), 1):
        if not isinstance(one, str) or not one or label is None or label == "":
            raise ValueError(f"{escaped(path)}: image {number} has path={one!r} and label={label!r}: must have both")
    if suffix == ".csv":
        plain = [label.isascii() and label.isdecimal() for label in labels]
        if any(plain) and not all(plain):
            odd = labels[plain.index(False)]
            raise ValueError(
                f"{escaped(path)}: label {odd!r} among labels that are numbers: must all be whole numbers from 0 on, "
                "or all names that are no numbers"
            )
        labels = [int(label) for label in labels] if all(plain) else labels
    found = Listed(paths, labels, None, os.path.dirname(path))
    return found if split == "." else _of_split(found, path, table.get("split"), split, default_split)


def _of_split(found: Listed, path: str, of: list[Any] | None, split: str | None, default_split: str | None) -> Listed:
    there = sorted({str(part) for part in of or ()})
    wanted = split or (default_split if len(there) > 1 else None)
    if of is None and (split is None or split_of(split)):
        return found
    if wanted is None and len(there) == 1:
        return found
    parts = [part for part in there if part == wanted] or [part for part in there if split_of(part) == wanted]
    if wanted is None or len(parts) != 1:
        say = either(f"split={part!r}" for part in [*there, "."])
        raise ValueError(f"{escaped(path)} holds {', '.join(there) or 'no split'}: say {say}, the last for all of it")
    return found.take(i for i, part in enumerate(of or ()) if str(part) == parts[0])


def _read_csv(path: str) -> dict[str, list[Any]]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.DictReader(file, restval="")
        rows = list(table)
        return {name: [row[name] for row in rows] for name in table.fieldnames or ()}


def _read_jsonl(path: str) -> dict[str, list[Any]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{escaped(path)}: line {number} is no JSON: {error}") from error
        if not isinstance(rows[-1], dict):
            raise ValueError(f"{escaped(path)}: line {number} is no object with path and label")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: str) -> dict[str, list[Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{escaped(path)} is read with pyarrow: pip install pyarrow, or give CSV or JSONL") from error
    file = parquet.ParquetFile(path)
    names = [name for name in ("path", "label", "split") if name in file.schema_arrow.names]
    return {name: column.to_pylist() for name, column in zip(names, file.read(names).columns, strict=True)}


_READERS: dict[str, Callable[[str], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


class Alone:
    """A `Kind`: an object that is one image. Nobody writes an index beside it."""

    name = "image 1"
    beside = False

    def parts(self, reader: Reader) -> list[Any]:
        """See `Kind.parts`."""
        return [None]

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        found.add(reader.container.name.rpartition("/")[2], 0, reader.container.size)
        return {}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        return {}


class Items:
    """What a map-style dataset gives: an encoded image, or its path, and a label.

    Args:
        data: `data[i]` is an item.
        read: gives the image of an item; None: the item itself, or the first part of it.
        labels: one for each item, or a function of an item; None: the second part of it.
    """

    def __init__(self, data: Any, read: Callable[[Any], Any] | None, labels: Any) -> None:
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise TypeError(f"data={type(data).__name__}: must be a map-style dataset, with data[i] and len(data)")
        if read is not None and not callable(read):
            raise wrong("read", read, "a function of an item that gives its path or encoded bytes, or None")
        self.data, self._read, self._labels = data, read, labels

    def __len__(self) -> int:
        return len(self.data)

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickle.dumps(self._read)
        except Exception as error:
            raise TypeError(
                f"read={self._read!r} cannot be sent to a worker: define it at the top of a module, or say "
                f"fork_safe=True where a forked process may go on with the dataset ({error})"
            ) from error
        return {"data": self.data, "_read": self._read, "_labels": None}

    def image(self, item: Any) -> bytes | str:
        """The encoded image, or a path."""
        found = item if self._read is None else self._read(item)
        if self._read is None and isinstance(item, tuple | list) and item:
            found = item[0]
        if isinstance(found, bytes | bytearray | memoryview):
            return bytes(found)
        if isinstance(found, str | os.PathLike):
            return str(os.fspath(found))
        if isinstance(found, dict):
            raise TypeError(
                f"an item is a dict of {', '.join(map(str, found))}: give read=, a function that gives its encoded "
                "bytes or its path"
            )
        raise TypeError(
            f"an item gives a {type(found).__name__}: must be encoded bytes or a path, not a decoded image; leave out "
            "its transform and loader, or give read=, a function of an item that gives the bytes or the path"
        )

    def label(self, i: int, item: Any) -> Any:
        """Of item i."""
        if callable(self._labels):
            return self._labels(item)
        if self._labels is not None:
            return self._labels[i]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise TypeError(f"an item is a {type(item).__name__} without a label: give labels=")
        return item[1]


class DatasetSource:
    """Encoded images that `data[i]` gives, one at a time in each process. What that raises stops the run.

    Args:
        items: of the dataset.
        rows: whose sizes the images must have.
        fork_safe: whether a forked process may go on with the dataset.
    """

    def __init__(self, items: Items, rows: Rows, fork_safe: bool) -> None:
        self._items, self._rows, self.fork_safe = items, rows, fork_safe
        self._lock = (os.getpid(), threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = (os.getpid(), threading.Lock())

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, sample: int) -> bytes:
        """The bytes of one image."""
        if self._lock[0] != os.getpid():  # another thread may have held it when this process was forked
            self._lock = (os.getpid(), threading.Lock())
        with self._lock[1]:
            data = self._items.image(self._items.data[sample])
        if isinstance(data, str):
            raise ValueError(f"a path ({escaped(data)}), but encoded bytes when it was indexed")
        size = int(self._rows.array["size"][sample])
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes, but the index says {size}: the dataset has changed")
        return data

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        """`read` of each."""
        return read_each(self, samples)

    def will_read(self, samples: Sequence[int]) -> None:
        """Nothing."""

    def name(self, sample: int) -> str:
        """The dataset's class, and the number."""
        return f"{type(self._items.data).__name__}[{sample}]"

    def local_path(self, sample: int) -> None:
        """None: a dataset has no files."""

    def close(self) -> None:
        """Nothing: the dataset is its owner's."""


def digest_key(listed: Sequence[str], labels: np.ndarray[Any, Any]) -> str:
    """32 hex digits that tell lists apart."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(os.fsencode("\0".join(listed)))
    digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()
