"""A folder tree, listed with the rules of torchvision's `ImageFolder`."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.index_cache import NO_STAT, Found
from dali_imagenet.data.names import Names
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.data.source import read_each
from dali_imagenet.formats import IMG_EXTENSIONS
from dali_imagenet.validation import wrong

logger = logging.getLogger("dali_imagenet")


class FileSource:
    """Samples that are files of their own.

    Args:
        root: the folder that the paths are relative to.
        paths: relative paths.
        most: int64 [N], bytes; of a larger file one more is read, to know that it is refused.
    """

    fork_safe = True

    def __init__(self, root: str, paths: Names, most: npt.NDArray[np.int64]) -> None:
        self._root, self._paths, self._most = root, paths, most

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, sample: int) -> bytes:
        """The bytes of the file; b"" of a pipe."""
        most = max(0, int(self._most[sample]))
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
        return os.path.join(self._root, self._paths[sample])

    def local_path(self, sample: int) -> str:
        """As `name`."""
        return self.name(sample)

    def close(self) -> None:
        """Nothing: no file stays open."""


def _open(path: str, flags: int) -> int:
    """Not blocking: a pipe may have taken the file's place."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}


def _holds_folders(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() for entry in entries)
    except OSError:
        return False


def resolve_split(root: str, split: str | None) -> str:
    """The folder whose subfolders are the classes. A class may be called "train": a split holds folders itself."""
    if split not in (None, *SPLIT_FOLDERS):
        raise wrong("split", split, "'train', 'val' or None")
    if not os.path.lexists(root):
        raise FileNotFoundError(f"data folder {root!r} does not exist; give the folder that holds one folder a class")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{root!r} is not a folder; give the folder that holds one folder a class")
    there = {
        name: next((f for f in folders if _holds_folders(os.path.join(root, f))), None)
        for name, folders in SPLIT_FOLDERS.items()
    }
    if split is None:
        if all(there.values()):
            raise ValueError(
                f"{root!r} holds both {there['train']}/ and {there['val']}/; say split='train' or split='val', "
                f"or give {os.path.join(root, 'train')!r}"
            )
        return root
    if there[split]:
        return os.path.join(root, str(there[split]))
    other = next((f for f in there.values() if f), None)
    if other:
        wanted = " or ".join(f"{f}/" for f in SPLIT_FOLDERS[split])
        raise FileNotFoundError(
            f"split={split!r}: {root!r} holds {other}/ but no {wanted} with class folders in it; "
            "add it, or give the folder of the classes itself"
        )
    return root


def find_classes(root: str) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        classes = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    if not classes:
        raise FileNotFoundError(f"no class folders in {root!r}; images must lie in one folder a class: {root}/<class>/")
    return classes


def _list_class(root: str, name: str, root_key: tuple[int, int]) -> tuple[str, list[int], list[int]]:
    """Paths (NUL after each), sizes and modification times of one class: `sorted(os.walk(followlinks=True))`."""
    folders: list[tuple[str, list[tuple[str, int, int]]]] = []
    stack: list[tuple[str, tuple[tuple[int, int], ...]]] = [(name, (root_key,))]
    while stack:
        relative, above = stack.pop()
        full = os.path.join(root, relative)
        files: list[tuple[str, int, int]] = []
        try:
            info = os.stat(full)
            key = (info.st_dev, info.st_ino)
            if key in above:
                logger.warning("%s: left out, it is a link to a folder that it lies in", full)
                continue
            with os.scandir(full) as entries:
                for entry in entries:
                    file = entry.name
                    if _is_dir(entry):
                        stack.append((f"{relative}/{file}", (*above, key)))
                    elif file.lower().endswith(IMG_EXTENSIONS):
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
            logger.warning("%s: left out, it cannot be listed: %s", full, error.strerror)
        files.sort()
        folders.append((relative, files))
    folders.sort()
    paths = "".join(f"{relative}/{f[0]}\0" for relative, files in folders for f in files)
    return paths, [f[1] for _, files in folders for f in files], [f[2] for _, files in folders for f in files]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_tree(root: str, classes: Sequence[str], num_threads: int, progress: bool) -> Found:
    info = os.stat(root)
    paths, sizes, stamps, counts = [], [], [], []
    # Folders on a network answer slowly, one by one.
    with ThreadPoolExecutor(num_threads, "dali_imagenet-list") as pool:
        listed = pool.map(_list_class, repeat(root), classes, repeat((info.st_dev, info.st_ino)))
        try:
            for blob, size, stamp in progress_bar(listed, len(classes), "listing", "folder", progress):
                paths.append(os.fsencode(blob))
                sizes.append(np.array(size, np.int64))
                stamps.append(np.array(stamp, np.int64))
                counts.append(len(size))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
        raise FileNotFoundError(
            f"no image in {len(empty)} of the {len(classes)} class folders of {root!r}: {shown}; "
            f"remove these folders, or fill them with files named {', '.join(IMG_EXTENSIONS)}"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return Found(b"".join(paths), labels, np.concatenate(sizes), np.concatenate(stamps))
