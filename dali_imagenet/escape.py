"""Names of files and classes as logs, errors and reports show them: what could act on a terminal is spelled out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_ESCAPE = re.compile(r"\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def printable(text: str) -> str:
    r"""Text in which whatever prints nothing, moves the cursor or turns the direction is an escape, as `\x1b`.

    Bytes of a name that are no text, which Python holds as lone surrogates, are `\udc80` to `\udcff`. What has been
    through here once stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped(name: str) -> str:
    r"""A name as `printable`, with `\` doubled, so that `unescaped` finds every name again."""
    return printable(name.replace("\\", "\\\\"))


def unescaped(text: str) -> str:
    """The name that `escaped` showed."""
    return _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), text)


def listed(names: Collection[str], most: int = 10) -> str:
    """The first names, escaped, and how many more there are."""
    shown = [escaped(name) for name, _ in zip(names, range(most), strict=False)]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def either(words: Iterable[str]) -> str:
    """Words as "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
