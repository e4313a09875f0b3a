"""List what is remembered between runs and how much it takes, or remove it.

`cache list` is what `cache` alone does. `cache clear index probe` removes these kinds, `cache clear --all` every kind;
it asks nothing, says what went, and leaves whatever this package did not write. What is removed is made again when it
is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dali_imagenet.cache import KINDS, cache_folder, clear, entries, size_of
from dali_imagenet.cli.common import FINE, UsageError, add_json, print_json, size
from dali_imagenet.escape import either, escaped

NAME = "cache"
HELP = "list what is remembered between runs, or remove it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [kind.name for kind in KINDS]
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "clear"),
        default="list",
        metavar="action",
        help="list (the default) or clear",
    )
    parser.add_argument("kind", nargs="*", help=f"what to clear: {either(names)}")
    parser.add_argument("--all", action="store_true", help="clear every kind")
    parser.add_argument("--local-cache", metavar="DIR", help="the folder that was given as local_cache=, for remote")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    unknown = [name for name in options.kind if name not in {kind.name for kind in KINDS}]
    if unknown:
        raise UsageError(f"there is no kind {unknown[0]!r}: must be {either(kind.name for kind in KINDS)}")
    if options.action == "list" and (options.kind or options.all):
        raise UsageError("cache list takes no kind and no --all: it lists every one")
    if options.action == "clear" and bool(options.kind) == options.all:
        raise UsageError(f"cache clear takes either --all or kinds: {either(kind.name for kind in KINDS)}")
    if "remote" in options.kind and not options.local_cache:
        raise UsageError("remote needs --local-cache DIR, the folder that was given as local_cache=")
    local = Path(options.local_cache).expanduser() if options.local_cache else None
    folder = cache_folder()
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        where = local if kind.local else folder
        if where is None or (options.action == "clear" and not options.all and kind.name not in options.kind):
            continue
        if options.action == "clear":
            count, taken = clear(kind, where)
        else:
            found = list(entries(kind, where))
            count, taken = len(found), sum(map(size_of, found))
        rows.append({"kind": kind.name, "about": kind.about, "entries": count, "bytes": taken})
    if options.json:
        print_json(
            {"folder": None if folder is None else escaped(str(folder)), "action": options.action, "kinds": rows}
        )
        return FINE
    if folder is None:
        print("there is no home folder here, and DALI_IMAGENET_CACHE names none: nothing is remembered")
    elif options.action == "list":
        print(escaped(str(folder)))
    for row in rows:
        removed = "removed " if options.action == "clear" else ""
        print(f"  {row['kind']:7} {removed}{row['entries']:4} file(s) {size(row['bytes']):>9}  {row['about']}".rstrip())
    return FINE
