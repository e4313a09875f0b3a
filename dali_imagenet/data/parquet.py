"""Parquet files as `ILSVRC/imagenet-1k` has them, with plain cells: their places are read, not the images."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from dali_imagenet.data import parquet_format as fmt
from dali_imagenet.data.container import Reader
from dali_imagenet.data.places import is_url
from dali_imagenet.data.scan import CLASSES_KEY, Found
from dali_imagenet.data.tables import BYTES, PATH, cell_name, columns_of, features_of, label_texts, no_image
from dali_imagenet.escape import escaped

FILES = re.compile(r"\.parquet$", re.IGNORECASE)
_PLAIN = frozenset({fmt.PLAIN, fmt.RLE, fmt.BIT_PACKED})
CONVERT = (
    'python -c "import sys, pathlib as l, pyarrow.parquet as p; a, b = map(l.Path, sys.argv[1:]); b.mkdir(); '
    "[p.write_table(p.ParquetFile(f).read(), b / f.name, compression='none', use_dictionary=False, "
    "row_group_size=1000) for f in a.glob('*.parquet')]\""
)
"""Writes the Parquet files of a folder again, with plain cells, into a new one."""


class Parquet:
    """A `Kind`: Parquet files with a column of encoded images, stored plain.

    What it remembers: as `data.arrow.Arrow`.

    Args:
        image_key: the column of images; None: the only one.
        label_key: the column of labels; None: the only ClassLabel, "label" or "labels".
    """

    def __init__(self, image_key: str | None = None, label_key: str | None = None) -> None:
        self._image, self._label = image_key, label_key
        self.name = json.dumps(["parquet 1", image_key, label_key])

    def parts(self, reader: Reader) -> list[Any]:
        """The row groups: (rows, chunks, names of their columns, classes, number of the first row)."""
        name, size = reader.container.name, reader.container.size
        try:
            footer = fmt.footer_of(reader.read, size)
        except fmt.Damaged as error:
            head = reader.read(0, 16)
            if not head.startswith(fmt.MAGIC):
                raise ValueError(f"{escaped(name)} is no Parquet file: it starts with {head!r}") from error
            raise ValueError(
                f"{escaped(name)}: the footer is missing or damaged ({error}): it was probably cut short; copy or "
                "download it again"
            ) from error
        features = features_of(footer.metadata.get("huggingface"))
        tops = [*dict.fromkeys(leaf.partition(".")[0] for leaf in footer.leaves)]
        leaves = {top: one for top in tops for one in (top, f"{top}.{BYTES}") if _is_binary(footer.leaves.get(one))}
        columns = columns_of(tops, [*leaves], features, name, self._image, self._label)
        image, path = leaves[columns.image], f"{columns.image}.{PATH}"
        if columns.label not in footer.leaves or footer.leaves[columns.label].repetition:
            raise ValueError(f"{escaped(name)}: column {columns.label!r} must hold an integer or a text for each image")
        parts, row = [], 0
        for rows, chunks in footer.groups:
            _refuse_packed(chunks[image], name)
            parts.append((rows, [chunks[image], chunks[columns.label], chunks.get(path)], columns, row))
            row += rows
        return parts

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """See `Kind.scan`."""
        rows, (images, labels, paths), columns, first = part
        name = escaped(reader.container.name)
        try:
            cells = fmt.cells_of(found.read, images, rows)
            said = [_decoded(value) for value in fmt.values_of(reader.read, labels, rows)]
            called = [_decoded(value) for value in fmt.values_of(reader.read, paths, rows)] if paths else [None] * rows
        except fmt.Damaged as error:
            raise ValueError(f"{name} is damaged: {error}; copy or download it again") from error
        except fmt.Unknown as error:
            raise ValueError(f"{name}: labels or names have {error}, which is not read. {_remedy(name)}") from error
        for i, (at, size, no, path) in enumerate(
            zip(cells.offset.tolist(), cells.size.tolist(), cells.missing.tolist(), called, strict=True)
        ):
            found.add(cell_name(path, first + i), at, size, no_image(path) if no else "")
        return {"labels": label_texts(said), CLASSES_KEY: columns.classes}

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Kind.join`."""
        classes = next((about[CLASSES_KEY] for about in abouts), None)
        return {"labels": [label for about in abouts for label in about["labels"]], CLASSES_KEY: classes}


def _is_binary(leaf: fmt.Leaf | None) -> bool:
    return leaf is not None and leaf.type == fmt.BYTE_ARRAY and not leaf.is_text and not leaf.repetition


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _refuse_packed(chunk: fmt.Chunk, name: str) -> None:
    """ValueError where cells do not lie in the file as they are."""
    if chunk.codec == fmt.UNCOMPRESSED and chunk.encodings <= _PLAIN and not chunk.has_dictionary:
        return
    raise ValueError(
        f"{escaped(name)}: images are stored compressed or in a dictionary, so that none can be read alone. "
        f"{_remedy(name)}"
    )


def _remedy(name: str) -> str:
    folder = "FOLDER" if is_url(name) else shlex.quote(os.path.dirname(name))
    return f"Write the files again, plain: {CONVERT} {folder} NEW_FOLDER"
