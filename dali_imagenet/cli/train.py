"""Train a classifier."""

from __future__ import annotations

import argparse
import importlib

NAME = "train"
HELP = "train a classifier, from a script to start from; see: train --help"
OWN_PARSER = True
ON_ITS_OWN = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own")


def run(options: argparse.Namespace) -> int:
    return int(importlib.import_module("dali_imagenet.train").main(options.arguments))
