"""Read the index of data, remember it, and list the images that are broken."""

from __future__ import annotations

import argparse

from dali_imagenet.cli.common import FINDINGS, FINE, add_json, add_source, open_index, print_json
from dali_imagenet.escape import escaped, printable

NAME = "index"
HELP = "read and remember the index of data; list broken images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--write", action="store_true", help="write the index of shards beside them, for everyone")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    found = open_index(options, **({"write_index": True} if options.write else {}))
    broken = [
        {"path": escaped(found.path(int(i))), "reason": printable(str(found.reason(int(i))))}
        for i in found.broken.nonzero()[0]
    ]
    speed = found.scan.files_per_second
    if options.json:
        print_json(
            {
                "images": len(found),
                "classes": len(found.classes),
                "bytes": int(found.file_size.sum()),
                "files_per_second": round(speed),
                "fingerprint": found.fingerprint,
                "broken": broken,
            }
        )
    else:
        for one in broken:
            print(f"{one['path']}: {one['reason']}")
        print(f"{len(found)} images in {len(found.classes)} classes, {len(broken)} broken; {speed:.0f} files/s")
    return FINDINGS if broken else FINE
