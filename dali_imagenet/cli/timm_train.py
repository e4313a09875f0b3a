"""Run timm's train.py or validate.py, unmodified, with this loader."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dali_imagenet.cli.common import FINE, CommandError, UsageError

NAME = "timm-train"
HELP = "run timm's train.py or validate.py, unmodified, with this loader"
ON_ITS_OWN = True  # the script logs and fails by itself


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("script", metavar="PATH", help="the script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")


def run(options: argparse.Namespace) -> int:
    """The script logs, fails and exits as by itself."""
    if not Path(options.script).is_file():
        raise UsageError(f"{options.script} does not exist: give the path of timm's train.py")
    sys.path.insert(0, str(Path(options.script).resolve().parent))  # as Python does, so that a timm beside it is taken
    try:
        from dali_imagenet.integrations.timm import run_script
    except ImportError as error:
        raise CommandError(f"{error}: pip install timm") from None
    run_script(options.script, options.arguments)
    return FINE
