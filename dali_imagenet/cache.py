"""The one folder in which things are remembered between runs, and what lies there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Kind(NamedTuple):
    """Something that is remembered. Deleting it costs the time to make it again, and nothing else."""

    name: str
    about: str
    files: str
    """Pattern of the names of its files and folders, from the folder on. Only what it matches is its own."""
    local: bool = False
    """Whether it lies in the folder that `local_cache=` names."""


_HEX = "[0-9a-f]{32}"
_BENCH = r"wds-.+\.tar(\..+)?|raw-.+\.uint8|ffcv-.+\.beton|imagefolder|.*_imagefolder_.*\.lock"
KINDS = (
    Kind(
        "index", "sizes and health of images", rf"(index-{_HEX}\.bin|container-{_HEX}\.rows)(\.\w+)?|rows-{_HEX}[-.].+"
    ),
    Kind("seek", "where the rows of JPEGs begin", rf"seek-{_HEX}(-.+)?\.bin(\.\w+)?"),
    Kind("probe", "whether a GPU decodes regions well", r"roi_decode\.json"),
    Kind("trial", "what a trial of the backends measured", r"trial\.json(\.\w+)?"),
    Kind(
        "images",
        "images and copies that bench made",
        rf"images-v\d+-seed\d+|(links|unpacked)/\w{{16}}|converted/({_BENCH})",
    ),
    Kind("remote", "what was read of remote files (--local-cache)", r"[0-9a-f]{24}-[0-9a-f]{24}\.(copy|new)", True),
)
"""The one table of what is remembered: whoever writes to the folder has a line here."""


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path | None:
    """Where to remember what took time: `given`, else `$DALI_IMAGENET_CACHE`, else the user's cache folder.

    `~` is expanded, and an empty variable is as one that is not set. Nothing is made: whoever writes makes the folder.

    Returns:
        None where there is none, as without a home folder: then nothing is remembered, which costs time alone.
    """
    named = given or os.environ.get("DALI_IMAGENET_CACHE")
    if not named:
        import platformdirs

        try:
            named = platformdirs.user_cache_dir("dali-imagenet", False)
        except RuntimeError:  # a user unknown to this machine, and no HOME
            return None
    folder = Path(os.path.expanduser(named))
    # without a home "~" stays as it is: no folder of that name shall appear where the run was started
    return None if str(folder).startswith("~") else folder.absolute()


def entries(kind: Kind, folder: Path) -> Iterator[Path]:
    """The files and folders of that kind. Links are nobody's, and are not followed."""
    for path in _listed(folder):
        if path.is_symlink():
            continue
        if re.fullmatch(kind.files, path.name):
            yield path
        elif path.is_dir() and "/" in kind.files:
            for one in _listed(path):
                if not one.is_symlink() and re.fullmatch(kind.files, f"{path.name}/{one.name}"):
                    yield one


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or another's
        return []


def size_of(path: Path) -> int:
    """Bytes that a file or folder takes on the disk."""
    total = 0
    for place in (path, *(path.rglob("*") if path.is_dir() else ())):
        try:
            status = place.lstat()
        except OSError:  # it has gone meanwhile
            continue
        total += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return total


def clear(kind: Kind, folder: Path) -> tuple[int, int]:
    """Remove what is of that kind, and nothing else.

    Returns:
        How many files and folders went, and the bytes that they took.

    Raises:
        OSError: one cannot be removed.
    """
    count = freed = 0
    for path in entries(kind, folder):
        taken = size_of(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # another process may have been faster
        count, freed = count + 1, freed + taken
    return count, freed
