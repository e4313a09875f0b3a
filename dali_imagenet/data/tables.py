"""Tables of images as Hugging Face writes them: which column is which, and what its cells are called."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet.escape import escaped, listed

_LABELS = ("label", "labels")
BYTES, PATH = "bytes", "path"
"""Of an image's cell: its encoded bytes, and what it was called."""


class Columns(NamedTuple):
    """The columns that count.

    Attributes:
        image: of the encoded images: binary, or a struct of BYTES and PATH.
        label: of the labels: integers or text.
        classes: names in label order, if the table says them.
    """

    image: str
    label: str
    classes: list[str] | None


def arrow(what: str) -> Any:
    """The module pyarrow.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(f"{escaped(what)} is read with pyarrow: pip install pyarrow") from error


def features_of(text: bytes | str | None) -> dict[str, dict[str, Any]]:
    """{column: its feature} of what Hugging Face's `datasets` writes into a table's metadata under "huggingface"."""
    try:
        found = json.loads(text or "{}")["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def columns_of(
    every: Sequence[str],
    cells: Sequence[str],
    features: dict[str, dict[str, Any]],
    what: str,
    image_key: str | None,
    label_key: str | None,
) -> Columns:
    """Which columns count.

    Args:
        every: the names of all columns.
        cells: of those that may hold encoded images.
        features: see `features_of`.
        what: the table, for messages.
        image_key: as it was asked for.
        label_key: as it was asked for.

    Raises:
        ValueError: none or several that could be meant, or a key that is no such column.
    """
    kinds = {name: features.get(name, {}).get("_type") for name in every}
    images = [name for name in cells if kinds[name] == "Image"] or cells
    labels = [name for name in every if kinds[name] == "ClassLabel"]
    labels = [name for name in labels if name in _LABELS] or labels or [n for n in _LABELS if n in every]
    image = _one("image_key", image_key, cells, images, every, what, "of encoded images")
    label = _one("label_key", label_key, every, labels, every, what, "of labels")
    names = features.get(label, {}).get("names")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Columns(image, label, names if known else None)


def _one(
    key: str, given: str | None, may: Sequence[str], likely: Sequence[str], every: Sequence[str], what: str, of: str
) -> str:
    if given is not None:
        if given not in may:
            raise ValueError(f"{key}={given!r}: {escaped(what)} has no such column {of}; it has {listed(every)}")
        return given
    if len(likely) != 1:
        many = f"{len(likely)} columns {of} ({listed(likely)})" if likely else f"no column {of} among {listed(every)}"
        raise ValueError(f"{escaped(what)} has {many}; say which with {key}=")
    return likely[0]


def is_binary(kind: Any) -> bool:
    """Whether cells of this type are bytes, one behind the other."""
    return str(kind) in ("binary", "large_binary")


def cells_in(schema: Any) -> list[str]:
    """The columns of a pyarrow.Schema that may hold encoded images."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def features_in(schema: Any) -> dict[str, dict[str, Any]]:
    """As `features_of`, of a pyarrow.Schema."""
    return features_of((schema.metadata or {}).get(b"huggingface"))


def _holds_bytes(kind: Any) -> bool:
    if is_binary(kind):
        return True
    if not str(kind).startswith("struct<"):
        return False
    inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return BYTES in inner and is_binary(inner[BYTES])


def cell_name(path: Any, row: int) -> str:
    """What an image is called: its path, or the number of its row; of absolute paths and addresses only the end."""
    if not isinstance(path, str) or not path:
        return f"{row:08d}"
    path = path.replace("\0", "").replace("\\", "/")
    if os.path.isabs(path) or ":" in path or ".." in path.split("/"):
        path = path.rpartition("/")[2]
    return path or f"{row:08d}"


def label_texts(values: Sequence[Any]) -> list[str | None]:
    """Labels as text; None for what is missing and for numbers below 0, which say that there is no label."""
    return [None if v is None or (not isinstance(v, str) and v < 0) else str(v) for v in values]


class Cells(NamedTuple):
    """Where the cells of a column of bytes lie in a container.

    Attributes:
        offset: int64 [N].
        size: int64 [N], 0 of cells without bytes.
        missing: bool [N], cells without bytes.
    """

    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    missing: npt.NDArray[np.bool_]


def no_image(path: Any) -> str:
    """Why a cell without bytes is broken."""
    if isinstance(path, str) and path:
        return f"its cell holds no bytes, but the path {path[:200]!r}"
    return "its cell holds no image"
