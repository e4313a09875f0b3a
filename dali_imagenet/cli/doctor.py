"""Say what is installed, what the machine has, what the data are, and where the bottleneck will be.

Takes a minute at most: without an index at most 2,000 images are looked at, and the backends and three models are tried
for some seconds each. Without DATA it tells of the machine and the installation alone. The report can be pasted into a
bug report: it names neither user, home folder nor host.
"""

from __future__ import annotations

import argparse
import logging

from dali_imagenet.cli.common import FINE, add_json, add_source, print_json, source

NAME = "doctor"
HELP = "say what is installed, what the machine can do, what to use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser, optional=True)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from dali_imagenet.doctor.report import examine, text

    if options.json:
        logging.getLogger("dali_imagenet").setLevel(logging.WARNING)
    found = examine(options.data, source(options))
    if options.json:
        print_json(found)
    else:
        print(text(found))
    return FINE
