"""One index a machine: one process makes it, the others, and the workers, map the file that it has written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dali_imagenet.cache import cache_folder
from dali_imagenet.data.rows import Rows, content_digest, map_rows, save_rows
from dali_imagenet.escape import escaped

logger = logging.getLogger("dali_imagenet")

Made = tuple[Rows, dict[str, Any]]
"""Rows, and what belongs to the whole of them, as JSON holds it."""

_KEPT = 7 * 86400  # seconds after its last use for which the index of another state of the data is kept
_SAME_START = 60  # seconds within which the ranks of one launch ask for the same index


def key_of(*parts: Any) -> str:
    """A name for what is made of these: whatever JSON holds."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def shared(
    key: str,
    make: Callable[[], Made],
    cache_dir: str | os.PathLike[str] | None,
    *,
    listed: bool,
) -> tuple[Rows, dict[str, Any], bool]:
    """What `make` gives, or what another process has made of the same.

    Args:
        key: says all that decides the result; where `listed`, all but the state of the data.
        make: under a lock, so that one process of this machine at a time makes what has this key.
        cache_dir: as `cache.cache_folder` takes it.
        listed: the data may change under the same key. Then what another process has made counts only where it began
            after this one had asked, or as another rank of the same launch.

    Returns:
        The rows, mapped where a file could be written; what belongs to them; and whether they were made here.
    """
    folder, asked = cache_folder(cache_dir), time.time()
    if folder is None:
        return *make(), True
    if not listed and (found := _map(folder / f"rows-{key}.rows")):
        return *found, False
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder, key))
        except OSError as error:
            _say_unshared(folder, error)
        else:
            found = _from_another(folder, key, asked) if listed else _map(folder / f"rows-{key}.rows")
            if found:
                return *found, False
        began = time.time()
        made = make()
        return *_written(folder, key, made, began if listed else None), True


def _written(folder: Path, key: str, made: Made, began: float | None) -> Made:
    rows, info = made
    # A process that has mapped another state of the data may still start workers, by the name of that one.
    state = "" if began is None else f"-{content_digest(rows, info)}"
    file = folder / f"rows-{key}{state}.rows"
    try:
        if not file.is_file() or _map(file) is None:  # or it was damaged
            save_rows(file, rows, info)
        if began is not None:
            _note(folder, key, file.name, began)
        return _map(file) or made
    except OSError as error:
        _say_unshared(folder, error)
        return made


def _say_unshared(folder: Path, error: OSError) -> None:
    logger.info("%s cannot be written, each process makes its own index: %s", escaped(str(folder)), error)


def _map(file: Path) -> Made | None:
    try:
        info = file.stat()
        if hasattr(os, "getuid") and info.st_uid != os.getuid():
            return None  # what another user has written is not trusted
        found = map_rows(file)
        os.utime(file)
        return found
    except (OSError, ValueError):
        return None


def _launch() -> list[Any]:
    """The same for the ranks that one launcher started on this machine."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    return [os.environ.get(name) for name in names] + [os.getppid()]


def _note(folder: Path, key: str, name: str, began: float) -> None:
    """Say what was made last, and remove what no process has asked for in a long time."""
    pointer = folder / f"rows-{key}.json"
    temporary = pointer.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"file": name, "began": began, "pid": os.getpid(), "launch": _launch()}))
        os.replace(temporary, pointer)
    finally:
        temporary.unlink(missing_ok=True)
    for other in folder.glob(f"rows-{key}-*.rows"):
        with contextlib.suppress(OSError):
            if other.name != name and other.stat().st_mtime < time.time() - _KEPT:
                other.unlink()


def _from_another(folder: Path, key: str, asked: float) -> Made | None:
    try:
        found = json.loads((folder / f"rows-{key}.json").read_text())
        name, began = str(found["file"]), float(found["began"])
        sibling = found["launch"] == _launch() and found["pid"] != os.getpid() and asked - began < _SAME_START
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ranks = os.environ.get("WORLD_SIZE", "") not in ("", "1")
    if not (began >= asked or (sibling and ranks)) or os.path.basename(name) != name:
        return None
    return _map(folder / name)


@contextlib.contextmanager
def _lock(folder: Path, key: str) -> Iterator[None]:
    """Held by one process of this machine at a time; a process that dies lets go of it."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"rows-{key}-{platform.node() or 'here'}.lock")
    try:
        lock.acquire(timeout=2)
    except Timeout:
        logger.info("waiting for another process of this machine, which makes the same index")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
