"""A folder tree, listed with the rules of torchvision's `ImageFolder`."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple

import numpy as np

from dali_imagenet.data.index_cache import NO_STAT, Found
from dali_imagenet.data.layout import Classes, is_dir, is_junk, keys_above, stat_key
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.data.rows import NO_FILE, Rows
from dali_imagenet.data.source import read_each
from dali_imagenet.escape import escaped, listed
from dali_imagenet.formats import BYTES_A_PIXEL, IMG_EXTENSIONS, MAX_BYTES

logger = logging.getLogger("dali_imagenet")

MAX_LINKED_FOLDERS = 1_000_000
"""Folders of one class that may be reached through links; links that lead to each other multiply."""


class FileSource:
    """Samples that are files of their own.

    Args:
        root: the folder that the names are relative to.
        rows: of a file that is larger than they say one byte more is read, to know that it is refused. Where they do
            not know the size (0), what `SampleIndex.from_folder` takes for healthy may be read.
    """

    fork_safe = True
    one_by_one = True

    def __init__(self, root: str, rows: Rows, flat: bool = False) -> None:
        self._root, self._rows, self._flat = root, rows, flat

    @property
    def place(self) -> object:
        """See `algebra.ByRows`."""
        return self._root, self._flat

    def with_rows(self, rows: Rows) -> FileSource:
        """See `algebra.ByRows`."""
        return FileSource(self._root, rows, self._flat)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, sample: int) -> bytes:
        """The bytes of the file; b"" of a pipe."""
        row = self._rows.array[sample]
        most = 0 if row["size"] == NO_FILE else int(row["size"])
        if not most:
            most = MAX_BYTES + BYTES_A_PIXEL * int(row["height"]) * int(row["width"])
        parts, left = [], most + 1
        with open(self.name(sample), "rb", opener=_open, buffering=0) as file:
            while left and (part := file.read(left)):  # None: a pipe
                parts.append(part)
                left -= len(part)
            if not left:
                size = max(most + 1, os.fstat(file.fileno()).st_size)
                raise ValueError(f"{size} bytes, but the index says {most}: the file has changed since it was indexed")
        return b"".join(parts)

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        """`read` of each; the file system reads ahead by itself."""
        return read_each(self, samples)

    def will_read(self, samples: Sequence[int]) -> None:
        """Nothing: the file system reads ahead by itself."""

    def name(self, sample: int) -> str:
        """The absolute path; bytes that are not valid text are surrogate-escaped, as os.fsdecode does."""
        name = self._rows.names[sample]
        return os.path.join(self._root, name.rpartition("/")[2] if self._flat else name)

    def local_path(self, sample: int) -> str:
        """As `name`."""
        return self.name(sample)

    def close(self) -> None:
        """Nothing: no file stays open."""


def _open(path: str, flags: int) -> int:
    """Not blocking: a pipe may have taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Listed(NamedTuple):
    """One class: its paths (NUL after each), sizes, modification times, and what was left out of it."""

    paths: str
    sizes: list[int]
    stamps: list[int]
    left_out: list[str]


def _list_class(root: str, name: str, above_root: frozenset[tuple[int, int]]) -> _Listed:
    """The files of `sorted(os.walk(followlinks=True))` that are images."""
    folders: list[tuple[str, list[tuple[str, int, int]]]] = []
    left_out: list[str] = []
    linked_folders = 0
    stack: list[tuple[str, bool, tuple[tuple[int, int], ...]]] = [(name, os.path.islink(os.path.join(root, name)), ())]
    while stack:
        relative, linked, above = stack.pop()
        full = os.path.join(root, relative)
        files: list[tuple[str, int, int]] = []
        linked_folders += linked
        if linked_folders > MAX_LINKED_FOLDERS:
            raise ValueError(
                f"{os.path.join(root, name)!r}: more than {MAX_LINKED_FOLDERS:,} folders are reached through links, "
                "which probably lead to each other; remove the links"
            )
        try:
            key = stat_key(full)
            if key in above_root or key in above:
                logger.warning("%s: left out, it is a link to a folder that it lies in", escaped(full))
                continue
            with os.scandir(full) as entries:
                for entry in entries:
                    file = entry.name
                    if is_dir(entry):
                        if is_junk(file):
                            left_out.append(f"{relative}/{file}/")
                        else:
                            stack.append((f"{relative}/{file}", linked or entry.is_symlink(), (*above, key)))
                    elif file.lower().endswith(IMG_EXTENSIONS):
                        if file.startswith("._"):
                            left_out.append(f"{relative}/{file}")
                            continue
                        try:
                            st = entry.stat()
                        except OSError:
                            files.append((file, -1, NO_STAT))
                            continue
                        if stat.S_ISREG(st.st_mode):
                            files.append((file, st.st_size, st.st_mtime_ns))
                        else:
                            files.append((file, -1, NO_STAT))
        except OSError as error:
            logger.warning("%s: left out, it cannot be listed: %s", escaped(full), error.strerror)
        files.sort()
        folders.append((relative, files))
    folders.sort()
    paths = "".join(f"{relative}/{f[0]}\0" for relative, files in folders for f in files)
    every = [file for _, files in folders for file in files]
    return _Listed(paths, [f[1] for f in every], [f[2] for f in every], left_out)


def list_tree(root: str, classes: Classes, num_threads: int, progress: bool) -> Found:
    """Every image of the classes, in the order of their folders' names, whatever their numbers.

    Raises:
        FileNotFoundError: class folders without an image, where that is not right.
        ValueError: links that multiply the folders of a class.
    """
    folders, left_out = classes.folders, list(classes.left_out)
    paths, sizes, stamps, counts = [], [], [], []
    # Folders on a network answer slowly, one by one.
    with ThreadPoolExecutor(num_threads, "dali_imagenet-list") as pool:
        found = pool.map(_list_class, repeat(root), folders, repeat(keys_above(root)))
        try:
            for one in progress_bar(found, len(folders), "listing", "folder", progress):
                paths.append(os.fsencode(one.paths))
                sizes.append(np.array(one.sizes, np.int64))
                stamps.append(np.array(one.stamps, np.int64))
                counts.append(len(one.sizes))
                left_out += one.left_out
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if left_out:
        dirs = sum(name.endswith("/") for name in left_out)
        logger.warning(
            "%s: left out %d folder(s) and %d file(s) that are hidden or left behind by a system: %s",
            escaped(root),
            dirs,
            len(left_out) - dirs,
            listed(sorted(left_out), 3),
        )
    empty = [name for name, count in zip(folders, counts, strict=True) if not count]
    if empty and not (classes.may_be_empty and any(counts)):
        raise FileNotFoundError(
            f"no image in {len(empty)} of the {len(folders)} class folders of {root!r}: {listed(empty)}; remove these "
            f"folders, fill them with files named {', '.join(IMG_EXTENSIONS)}, or name all classes with classes=[...]"
        )
    lost = len(classes.names) - len(folders) + len(empty)
    if lost:
        logger.info("%s: %d of the %d classes have no image here", escaped(root), lost, len(classes.names))
    number = {name: i for i, name in enumerate(classes.names)}
    labels = np.repeat(np.array([number[name] for name in folders], np.int64), counts)
    return Found(b"".join(paths), labels, np.concatenate(sizes), np.concatenate(stamps))
