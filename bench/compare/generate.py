"""Make realistic JPEGs as an ImageFolder: the images that the comparison takes where it is given none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import images

if TYPE_CHECKING:
    from rich.console import Console

NAME = "generate"
HELP = "make realistic JPEGs as an ImageFolder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--train", type=int, metavar="N", default=800, help="training images (800)")
    parser.add_argument("--val", type=int, metavar="N", default=200, help="validation images (200)")
    parser.add_argument("--classes", type=int, metavar="N", default=10, help="classes (10)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the images (0)")


@contextmanager
def bar(console: Console, text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar to be called with (done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console()
    if options.folder.exists():
        print(f"{options.folder} exists already: name a new folder", file=sys.stderr)
        return 2
    with bar(console, "generating images") as progress:
        images.generate(options.folder, options.train, options.val, options.classes, options.seed, progress)
    console.print(f"{options.train} training and {options.val} validation images in {options.folder}")
    return 0
