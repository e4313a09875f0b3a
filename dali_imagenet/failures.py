"""The table of images that could not be read, as a file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from typing import Any

from dali_imagenet.escape import escaped, printable, unescaped

_COLUMNS = ("sample", "path", "reason")


def _is_csv(file: str | os.PathLike[str]) -> bool:
    return os.fspath(file).lower().endswith(".csv")


def write_failures(file: str | os.PathLike[str], rows: Iterable[tuple[int, str, str]]) -> None:
    """Write (sample, path, reason): CSV where the name ends in .csv, JSON otherwise, paths escaped."""
    table = [
        dict(zip(_COLUMNS, (sample, escaped(path), printable(reason)), strict=True)) for sample, path, reason in rows
    ]
    with open(file, "w", encoding="utf-8", newline="") as out:
        if _is_csv(file):
            writer = csv.DictWriter(out, _COLUMNS)
            writer.writeheader()
            writer.writerows(table)
        else:
            json.dump(table, out, indent=1)


def read_failures(file: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `Loader.save_failures` wrote: a {"sample", "path", "reason"} each, the paths as they are on the disk.

    Args:
        file: CSV where the name ends in .csv, JSON otherwise.

    Raises:
        ValueError: for a file that holds anything else.
    """
    try:
        with open(file, encoding="utf-8", newline="") as given:
            table = list(csv.DictReader(given)) if _is_csv(file) else json.load(given)
        if not isinstance(table, list):
            raise TypeError("not a list of rows")
        return [
            {"sample": int(row["sample"]), "path": unescaped(row["path"]), "reason": str(row["reason"])}
            for row in table
        ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{os.fspath(file)!r} is no table of Loader.save_failures: {error!r}") from None
