"""Names of files and objects as users write them: lists, folders, and numbers in braces."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable
from typing import Any

from dali_imagenet.data.hub import resolve_hf
from dali_imagenet.data.layout import folder_path, is_junk, split_of
from dali_imagenet.escape import either, escaped, listed
from dali_imagenet.validation import wrong

logger = logging.getLogger("dali_imagenet")

_BRACES = re.compile(r"\{([^{}]*)\}")
_TAR = re.compile(r"\.tar$", re.IGNORECASE)
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_url(place: str) -> bool:
    """Whether it is an address, not a path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place)) and not place.lower().startswith("file://")


def public(place: str) -> str:
    """A path, or an address without what may be secret in it: user and password, query and fragment."""
    if not is_url(place):
        return place
    scheme, _, rest = place.partition("://")
    rest = rest.partition("?")[0]
    if scheme.lower() in ("http", "https"):  # elsewhere a key may hold one
        rest = rest.partition("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def expand_braces(text: str) -> list[str]:
    """`a{000..002}b` and `a{x,y}b`, as a shell and WebDataset read them.

    Raises:
        ValueError: braces that are neither.
    """
    found = _BRACES.search(text)
    if not found:
        return [text]
    body, span = found[1], _RANGE.fullmatch(found[1])
    if span:
        first, last = int(span[1]), int(span[2])
        if last < first or last - first >= 10_000_000:
            raise ValueError(f"{public(text)!r}: {{{body}}} must count up, as {{000000..000127}}")
        width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
        parts = [f"{i:0{width}d}" for i in range(first, last + 1)]
    elif "," in body:
        parts = body.split(",")
    else:
        raise ValueError(
            f"{public(text)!r}: {{{body}}} must be a range such as {{000000..000127}}, or a list such as {{a,b}}"
        )
    return [whole for part in parts for whole in expand_braces(text[: found.start()] + part + text[found.end() :])]


def expand(data: Any, suffixes: tuple[str, ...]) -> list[str]:
    """The files or objects that are meant, in order: absolute paths and addresses.

    Args:
        data: one, with numbers in braces perhaps; a folder, whose files of these suffixes are taken in the order of
            their names; or a list of either.
        suffixes: ".tar" and the like.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: something else.
    """
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        if isinstance(text, str) and is_url(text):
            place, mark, query = text.partition("?")
            return [one + mark + query for one in expand_braces(place)]
        path = folder_path("data", data)
        if os.path.isdir(path):
            names = sorted(n for n in os.listdir(path) if n.lower().endswith(suffixes) and not is_junk(n))
            if not names:
                raise FileNotFoundError(f"no {' or '.join(suffixes)} in {escaped(path)}")
            return [os.path.join(path, name) for name in names]
        paths = [path] if os.path.lexists(path) else expand_braces(path)
        if any(map(glob.has_magic, paths)):
            paths = [one for pattern in paths for one in sorted(glob.glob(pattern)) or [pattern]]
        missing = [one for one in paths if not os.path.exists(one)]
        if missing:
            more = f", and {len(missing) - 1} more of {len(paths)}" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{escaped(missing[0])} does not exist{more}")
        return paths
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise wrong("data", data, "a path, an address, or a list of them")
    found = [place for one in data for place in expand(one, suffixes)]
    if not found:
        raise wrong("data", data, "at least one file")
    names = [public(place) for place in found]
    if len({*names}) < len(names):
        twice, seen = next(name for name in names if names.count(name) > 1), len({*found}) == len(found)
        raise ValueError(f"{escaped(twice)} is given more than once" + (", with other queries" if seen else ""))
    return found


def expand_tars(data: Any, split: str | None, default_split: str | None) -> list[str]:
    """As `expand`, of tars; in a folder where their names say train, val and the like, those of one part."""
    path = _local(data)
    if path and os.path.isdir(path):
        words = [re.split(r"[-_.]", name) for name in os.listdir(path) if name.lower().endswith(".tar")]
        parts = {part for of in words for part in map(split_of, of) if part}
        if len(parts) > 1 or (parts and split in parts):
            return expand_split(data, _TAR, "tars", split, default_split)
    return expand(data, (".tar",))


def expand_split(
    data: Any, pattern: re.Pattern[str], what: str, split: str | None, default_split: str | None
) -> list[str]:
    """As `expand`, of shards whose names, or folders, say which part of a data set they are.

    Args:
        data: as there; a folder is looked through with all that lies in it, and so is `hf://datasets/owner/name`.
        pattern: found in the names of shards, and in no others of such a folder.
        what: they are called.
        split: which part: "train", "val" or what stands between dashes, dots or slashes (`test-00000-of-00028`). ".":
            all of them. None: all, where there is one part, or where the files were named one by one.
        default_split: the same, where `split` says nothing and there are several parts.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: several parts, and no word of which.
    """
    if split is not None and (not isinstance(split, str) or not split):
        raise wrong("split", split, "'train', 'val', another part of the files' names, '.' for all of them, or None")
    folder = os.path.isdir(path) if (path := _local(data)) else False
    if isinstance(data, str) and data.lower().startswith("hf://"):
        path, folder = data, True
        named = {one.place: one.path for one in resolve_hf(data) if pattern.search(one.path.rpartition("/")[2])}
        if not named:
            raise FileNotFoundError(f"no {what} in {escaped(data)}")
    elif path and folder:
        named = {os.path.join(path, name): name for name in _below(path, pattern)}
        if not named:
            raise FileNotFoundError(f"no {what} in {escaped(path)}")
    else:
        named = {place: place.replace("\\", "/").rpartition("/")[2] for place in expand(data, ())}
    words = {place: re.split(r"[-_./]", name) for place, name in named.items()}
    parts = {place: next((word for word in of if split_of(word)), None) for place, of in words.items()}
    kinds = {split_of(part) if part else None for part in parts.values()}
    if split is None and folder and len(kinds - {None}) > 1:
        split = default_split
    if split is None or split == ".":
        if split is None and folder and len(kinds - {None}) > 1:
            say = either(f"split={kind!r}" for kind in sorted(filter(None, kinds)))
            raise ValueError(f"{escaped(str(path))} holds several parts of a data set: say {say}")
        return list(named) if split == "." else _of_one_folder(list(named), path if folder else None)
    found = [place for place, of in words.items() if split in of] or [
        place for place, part in parts.items() if part and split_of(part) == split
    ]
    if not found and split == "val" and "test" in kinds:
        logger.warning("%s: no part called val, so evaluation reads test", escaped(str(path or data)))
        found = [place for place, part in parts.items() if part and split_of(part) == "test"]
    if not found and split in ("train", "val") and kinds == {None}:
        found = list(named)
    if not found:
        there = sorted({part for part in parts.values() if part})
        raise FileNotFoundError(
            f"split={split!r}: {escaped(str(path or data))} holds no {what} of that name; it holds "
            f"{listed(there) or 'no named parts'}"
        )
    return _of_one_folder(found, path if folder else None)


def _of_one_folder(found: list[str], given: str | None) -> list[str]:
    """Versions and configurations of one data set may lie side by side."""
    folders = sorted({os.path.dirname(place) for place in found})
    if given and len(folders) > 1:
        raise ValueError(
            f"{escaped(given)} holds shards in {len(folders)} folders ({listed(folders, 3)}), which may be versions of "
            "the same images: give one of these folders, or split='.' for all of them"
        )
    return found


def _local(data: Any) -> str | None:
    """The path of one file or folder."""
    if not isinstance(data, str | os.PathLike) or (isinstance(data, str) and is_url(data)):
        return None
    return folder_path("data", data)


def _below(path: str, pattern: re.Pattern[str]) -> list[str]:
    """The names of shards in a folder and its folders, '/'-separated, sorted."""
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not is_junk(name)]
        inside = os.path.relpath(folder, path).replace(os.sep, "/")
        prefix = "" if inside == "." else inside + "/"
        found += [prefix + name for name in files if pattern.search(name) and not is_junk(name)]
    return sorted(found)
