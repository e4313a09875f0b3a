"""Names of files and objects as users write them: lists, folders, and numbers in braces."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from dali_imagenet.data.layout import folder_path, is_junk
from dali_imagenet.escape import escaped
from dali_imagenet.validation import wrong

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_url(place: str) -> bool:
    """Whether it is an address, not a path."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place)) and not place.lower().startswith("file://")


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
            raise ValueError(f"{text!r}: {{{body}}} must count up, as {{000000..000127}}")
        width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
        parts = [f"{i:0{width}d}" for i in range(first, last + 1)]
    elif "," in body:
        parts = body.split(",")
    else:
        raise ValueError(f"{text!r}: {{{body}}} must be a range such as {{000000..000127}}, or a list such as {{a,b}}")
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
            return expand_braces(text)
        path = folder_path("data", data)
        if os.path.isdir(path):
            names = sorted(n for n in os.listdir(path) if n.lower().endswith(suffixes) and not is_junk(n))
            if not names:
                raise FileNotFoundError(f"no {' or '.join(suffixes)} in {escaped(path)}")
            return [os.path.join(path, name) for name in names]
        paths = [path] if os.path.lexists(path) else expand_braces(path)
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
    if len({*found}) < len(found):
        twice = next(place for place in found if found.count(place) > 1)
        raise ValueError(f"{escaped(twice)} is given more than once")
    return found
