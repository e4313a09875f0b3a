"""Compare image loaders on this machine, and check them (the extra compare)."""

from __future__ import annotations

import argparse
import importlib
import importlib.util

from dali_imagenet.cli.common import CommandError

NAME = "bench"
HELP = "compare image loaders on this machine; see: bench --help"
OWN_PARSER = True  # help is its own, too
ON_ITS_OWN = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own")


def run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("dali_imagenet_bench") is None:
        raise CommandError("the comparison is not installed: pip install 'dali-imagenet[compare]'")
    return int(importlib.import_module("dali_imagenet_bench.__main__").main(options.arguments))
