"""A `datasets.Dataset`: where the cells of its rows lie in the Arrow files that it maps, which are read by pread.

The memory map itself is slow where its pages are cold. Where a cell lies in its file is the distance of its address
from the map's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.container import Reader
from dali_imagenet.data.labels import Labelled, joined, labelled, ordered
from dali_imagenet.data.layout import folder_path, split_of
from dali_imagenet.data.places import expand, expand_split
from dali_imagenet.data.scan import Found, Scanned
from dali_imagenet.data.tables import (
    BYTES,
    PATH,
    Cells,
    Columns,
    cell_name,
    cells_in,
    columns_of,
    label_texts,
    no_image,
)
from dali_imagenet.escape import either, escaped, listed

_FILES = re.compile(r"^(?!cache-).*\.arrow$")  # what map() keeps beside them is called cache-...
_PART = 4096  # images that a thread takes at a time
_LOOKED_AT = 64  # bytes of a cell that are compared with what the file holds there
_SAVE = "ds.save_to_disk(folder), and give that folder"
Array = npt.NDArray[Any]


class Table(NamedTuple):
    """The rows of a Dataset, in its order.

    Attributes:
        files: Arrow files.
        cells: [N, 3] of int64: file, offset, size. Offset -1 where a cell holds no bytes.
        paths: [N] what the cells call their images, or None.
        labels: [N] as `label_texts`.
        columns: which of its columns these are.
    """

    files: list[str]
    cells: npt.NDArray[np.int64]
    paths: list[str | None]
    labels: list[str | None]
    columns: Columns


def is_dataset(data: Any) -> bool:
    """Whether it is of Hugging Face's `datasets`."""
    return type(data).__module__.partition(".")[0] == "datasets"


def chosen_split(data: Any, split: str | None, default_split: str | None) -> Any:
    """The Dataset of a DatasetDict.

    Raises:
        ValueError: no or several of its parts fit.
    """
    if type(data).__name__.startswith("Iterable"):
        raise ValueError(
            f"data={type(data).__name__}: an epoch is a permutation of all rows, which a stream does not have; load it "
            "with streaming=False, or give its Parquet files"
        )
    if not isinstance(data, dict):
        if split not in (None, ".", str(getattr(data, "split", None))) and split_of(str(data.split)) != split:
            raise ValueError(f"split={split!r}: the Dataset is {str(data.split)!r}; give that of the split")
        return data
    return data[split_name([*data], "the DatasetDict", split, default_split)]


def split_name(names: Sequence[str], what: str, split: str | None, default_split: str | None) -> str:
    """Which of the splits is meant.

    Raises:
        ValueError: none or several.
    """
    wanted = split or default_split
    if wanted is None and len(names) == 1:
        return names[0]
    found = [name for name in names if name == wanted] or [name for name in names if split_of(name) == wanted]
    if wanted == "val" and not found:
        found = [name for name in names if split_of(name) == "test"]
    if len(found) != 1:
        say = either(f"split={name!r}" for name in names)
        raise ValueError(f"{escaped(what)} holds {listed(names)}: say {say}")
    return found[0]


def saved_files(data: Any, split: str | None, default_split: str | None) -> list[str]:
    """The Arrow files that are meant by a folder of `save_to_disk`, one of them, or a list.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: several parts, and no word of which.
    """
    if not isinstance(data, str | os.PathLike) or not os.path.isdir(path := folder_path("data", data)):
        return expand_split(data, _FILES, "Arrow files", split, default_split)
    whole = _json(os.path.join(path, "dataset_dict.json"))
    if whole is not None:
        names = [name for name in whole.get("splits", ()) if isinstance(name, str) and os.path.basename(name) == name]
        path = os.path.join(path, split_name(names, path, split, default_split))
    state = _json(os.path.join(path, "state.json"))
    if state is None:
        return expand_split(path, _FILES, "Arrow files", split, default_split)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ValueError(f"{escaped(path)} keeps the order of its rows apart: save it again, {_SAVE}")
    names = [str(one.get("filename")) for one in state.get("_data_files", ()) if isinstance(one, dict)]
    if not names or any(os.path.basename(name) != name for name in names):
        raise ValueError(f"{escaped(path)}: state.json names no files of this folder: save it again, {_SAVE}")
    return expand([os.path.join(path, name) for name in names], ())


def _json(file: str) -> dict[str, Any] | None:
    try:
        with open(file, encoding="utf-8") as text:
            found = json.load(text)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{escaped(file)} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


def table_of(dataset: Any, image_key: str | None, label_key: str | None) -> Table:
    """Where the images of a Dataset lie.

    Raises:
        ValueError: its images are made when they are asked for, or lie in memory.
    """
    if dataset._format_type == "custom":
        raise ValueError(
            "the Dataset has a transform of its own (set_transform, with_transform), which would not be applied: call "
            "ds.reset_format(), and say in the recipe what is done to images"
        )
    features = {name: one for name, one in dataset.features.to_dict().items() if isinstance(one, dict)}
    inner = dataset.data.table
    columns = columns_of(inner.schema.names, cells_in(inner.schema), features, "the Dataset", image_key, label_key)
    files: dict[str, int] = {}
    parts, paths = [], list[str | None]()
    for block in _blocks(dataset.data, columns.image):
        path = os.path.abspath(block.path) if getattr(block, "path", None) else None
        for chunk in block.table.column(columns.image).chunks:
            cells, called = _chunk(chunk, path)
            paths += called
            number = files.setdefault(path or "", len(files))
            rows = np.stack([np.full(len(cells.offset), number), np.where(cells.missing, -1, cells.offset), cells.size])
            parts.append(rows.T)
    found = np.concatenate(parts) if parts else np.empty((0, 3), np.int64)
    behind = [path for path, one in zip(paths, found[:, 1].tolist(), strict=True) if one < 0 and path]
    if behind:
        raise ValueError(
            f"{len(behind)} images of the Dataset are not in it but behind paths ({listed(behind, 3)}): give the "
            f"folder of these files, or let the Dataset take them in: {_SAVE}"
        )
    labels = label_texts(inner.column(columns.label).to_pylist())
    if dataset._indices is not None:
        order = dataset._indices.column(0).to_numpy()
        found, paths, labels = found[order], [paths[i] for i in order], [labels[i] for i in order]
    return Table([*files], found.astype(np.int64), paths, labels, columns)


def _blocks(table: Any, column: str) -> Iterator[Any]:
    """The tables, one behind the other, that hold a column."""
    for row in getattr(table, "blocks", [[table]]):
        yield next(block for block in row if column in block.column_names)


def _chunk(chunk: Any, path: str | None) -> tuple[Cells, list[str | None]]:
    """Where the cells of a pyarrow array lie in the file that is mapped, and what they call their images."""
    data = chunk
    called: list[str | None] = [None] * len(chunk)
    missing = np.asarray(chunk.is_null())
    if hasattr(chunk, "field"):
        data = chunk.field(BYTES)
        missing = missing | np.asarray(data.is_null())
        if any(field.name == PATH for field in chunk.type):
            called = chunk.field(PATH).to_pylist()
    if missing.all():
        nothing = np.zeros(len(chunk), np.int64)
        return Cells(nothing, nothing, missing), called
    buffers = data.buffers()
    wide = str(data.type).startswith("large_")
    ends = np.frombuffer(buffers[1], np.int64 if wide else np.int32)[data.offset : data.offset + len(data) + 1]
    ends = ends.astype(np.int64)
    root = buffers[2]
    while root.parent is not None:
        root = root.parent
    start = buffers[2].address - root.address
    cells = Cells(start + ends[:-1], np.where(missing, 0, np.diff(ends)), missing)
    if path is None or root.size != os.path.getsize(path) or not _lies_there(path, buffers[2], ends, cells):
        raise ValueError(f"the images of the Dataset lie in memory, not in a file: {_SAVE}")
    return cells, called


def _lies_there(path: str, data: Any, ends: Array, cells: Cells) -> bool:
    """Whether the file holds the first and the last cell where they should be."""
    some = np.flatnonzero(cells.size > 0)[[0, -1]] if cells.size.any() else ()
    with open(path, "rb") as file:
        for i in some:
            file.seek(int(cells.offset[i]))
            count = min(_LOOKED_AT, int(cells.size[i]))
            if file.read(count) != data.slice(int(ends[i]), count).to_pybytes():
                return False
    return True


class Places:
    """A `Kind`: images whose places are known already.

    Args:
        cells: {container: [N, 2] of int64: offset (-1: no bytes) and size}.
    """

    def __init__(self, cells: dict[str, npt.NDArray[np.int64]]) -> None:
        self._cells = cells
        digest = hashlib.blake2b(digest_size=16)
        for name, one in cells.items():
            digest.update(json.dumps([name, len(one)]).encode() + np.ascontiguousarray(one).tobytes())
        self.name = json.dumps(["places 1", digest.hexdigest()])

    def parts(self, reader: Reader) -> list[Any]:
        """Some images each."""
        cells = self._cells[reader.container.name]
        return [cells[k : k + _PART] for k in range(0, len(cells), _PART)]

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        for offset, size in part.tolist():
            found.add("", max(0, offset), size, no_image(None) if offset < 0 else "")
        return {}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        return {}


class Rowed(NamedTuple):
    """A Table, as `SampleIndex` puts it together.

    Attributes:
        kind: looks at each cell once.
        order: [N] which of the cells that the kind finds is row i.
        digest: of everything besides the cells.
    """

    kind: Places
    order: npt.NDArray[np.intp]
    digest: str


def rowed(table: Table) -> Rowed:
    """Each cell once, however often it is a row."""
    unique, order = np.unique(table.cells, axis=0, return_inverse=True)
    cells = {name: unique[unique[:, 0] == number, 1:] for number, name in enumerate(table.files)}
    about = json.dumps([table.columns, table.paths, table.labels]).encode()
    digest = hashlib.blake2b(about + order.tobytes(), digest_size=16).hexdigest()
    return Rowed(Places(cells), order.reshape(-1), digest)


def with_rows(scans: Sequence[Scanned], table: Table, rows: Rowed, classes: Any) -> Labelled:
    """The rows of a Table, with what was found of its cells."""
    names = [cell_name(path, i) for i, path in enumerate(table.paths)]
    found = ordered(joined(scans), rows.order.tolist(), names, [-1] * len(names))
    return labelled(found, table.labels, "the Dataset", classes=classes, known=table.columns.classes)
