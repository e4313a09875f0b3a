"""Images that are files of their own, wherever they lie: sizes and health, from the cache or from their headers."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dali_imagenet.data.headers import read_headers
from dali_imagenet.data.index_cache import NO_STAT, Found, cache_file, load_cache, merge_cached, save_cache
from dali_imagenet.data.names import Names
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.data.rows import MAX_SIZE, NO_FILE, Array, Rows, new_rows
from dali_imagenet.data.scan import ScanOptions

_CHUNK = 256  # files that a thread asks for at a time


def read_files(folder: str, found: Found, options: ScanOptions, of: str = "") -> tuple[Rows, int]:
    """Rows of the files found, whose paths are relative to the folder, and how many were read now.

    Args:
        of: what the list of files is called in the cache; "": all files of the folder.
    """
    limits, progress = options.limits, options.progress
    cached = cache_file(folder, limits, options.cache_dir, of) if options.cache else None
    old = load_cache(cached, limits.pixels) if cached else None
    if old is None and of and cached and (whole := cache_file(folder, limits, options.cache_dir)):
        old = load_cache(whole, limits.pixels)  # what is known of the folder
    table, todo = merge_cached(found, old)
    if len(todo):
        try:
            read_headers(folder, table, todo, options.num_threads, progress, limits)
        finally:  # also when interrupted: what was read is kept, the rest is marked as unread
            if cached:
                save_cache(cached, table, old)
    elif cached and old is not None and old.paths != table.paths:
        save_cache(cached, table, old)
    array = new_rows(len(found.labels))
    array["label"] = found.labels
    array["size"] = as_sizes(found.file_size)
    for name in ("height", "width", "components", "format", "broken"):
        array[name] = table.columns[name]
    return Rows(array, Names(table.paths), table.reasons), len(todo)


def as_sizes(given: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Array:
    """Bytes as `Rows` counts them, of -1 for what is no regular file."""
    return np.where(given < 0, NO_FILE, np.minimum(given, MAX_SIZE))


def stat_files(folder: str, names: Sequence[str], labels: Array, options: ScanOptions) -> Found:
    """Those files, as they are now; what is not there has size -1."""

    def look(chunk: Sequence[str]) -> list[tuple[int, int]]:
        found = []
        for name in chunk:
            try:
                info = os.stat(os.path.join(folder, name))
            except (OSError, ValueError):
                found.append((-1, NO_STAT))
                continue
            found.append((info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (-1, NO_STAT))
        return found

    chunks = [names[k : k + _CHUNK] for k in range(0, len(names), _CHUNK)]
    found: list[tuple[int, int]] = []
    with ThreadPoolExecutor(options.num_threads, "dali_imagenet-list") as pool:
        for some in progress_bar(pool.map(look, chunks), len(chunks), "listing", "part", options.progress):
            found += some
    sizes = np.array(found, np.int64).reshape(-1, 2)
    return Found(os.fsencode("".join(f"{name}\0" for name in names)), labels, sizes[:, 0].copy(), sizes[:, 1].copy())
