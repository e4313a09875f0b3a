"""Say what exactly happened to an image: crop, flips, colour, operations, erasing, mixing.

The same seed, recipe, batch size, rank and world size as in the run give the images of the run.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap

from dali_imagenet.cli.common import (
    FINE,
    UsageError,
    add_json,
    add_recipe,
    add_source,
    number,
    print_json,
    recipe_of,
    source,
)
from dali_imagenet.validation import whole, wrong

NAME = "explain"
HELP = "say what exactly happened to an image of a batch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_recipe(parser)
    group = parser.add_argument_group("which rows")
    group.add_argument("--step", type=number(0), default=0, metavar="N", help="of the epoch, from 0 (default: 0)")
    group.add_argument("--row", type=number(0), metavar="N", help="of the batch, from 0 (default: all)")
    group.add_argument("--batch-size", type=number(1), default=256, metavar="N", help="of each rank (default: 256)")
    group.add_argument("--rank", type=number(0), default=0, metavar="N", help="from 0 (default: 0)")
    group.add_argument("--world-size", type=number(1), default=1, metavar="N", help="ranks in all (default: 1)")
    group.add_argument("--failures", metavar="FILE", help="of Loader.save_failures: what that run had lost by then")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from dali_imagenet import create_loader, read_failures
    from dali_imagenet.explain import explain, in_words
    from dali_imagenet.loader import index_for

    recipe = recipe_of(options)
    index = index_for(options.data, recipe, **source(options))
    lost = [row["sample"] for row in read_failures(options.failures)] if options.failures else []
    if lost and max(lost) >= len(index):
        raise UsageError(
            f"--failures {options.failures!r} is of other data: it names sample {max(lost)} of {len(index)}"
        )
    with create_loader(
        index,
        recipe,
        batch_size=options.batch_size,
        device="cpu",
        backend="torchvision",
        seed=options.seed,
        rank=options.rank,
        world_size=options.world_size,
        on_error="replace",
        max_broken=1.0,
    ) as loader:
        if not len(loader):
            raise wrong("batch_size", options.batch_size, f"at most {len(index)}, the number of images, for a step")
        step = whole("step", options.step, 0, len(loader) - 1)
        rows = explain(loader.plan, options.epoch, step, lost)
    if options.row is not None:
        rows = [rows[whole("row", options.row, 0, len(rows) - 1)]]
    if options.json:
        print_json(rows)
    else:
        print("\n\n".join("\n".join(map(_wrapped, in_words(row))) for row in rows))
    return FINE


def _wrapped(line: str) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    if line.startswith("row"):
        return line
    return textwrap.fill(line, width, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)
