"""List the images that a run could not read: what Loader.save_failures wrote.

Paths are escaped, as in every message; read_failures in Python gives them as they are on the disk.
"""

from __future__ import annotations

import argparse

from dali_imagenet.cli.common import FINDINGS, FINE, add_json, print_json
from dali_imagenet.escape import escaped, printable
from dali_imagenet.failures import read_failures

NAME = "failures"
HELP = "list the images that a run could not read"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="the table, .csv or .json, of Loader.save_failures")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    rows = [
        {"sample": row["sample"], "path": escaped(row["path"]), "reason": printable(row["reason"])}
        for row in read_failures(options.file)
    ]
    if options.json:
        print_json(rows)
    else:
        for row in rows:
            # a reason begins with the path where decoding failed
            print(f"{row['path']}: {row['reason'].removeprefix(row['path'] + ': ')}")
        print(f"{len(rows)} images could not be read")
    return FINDINGS if rows else FINE
