"""What the commands share: exit codes, the options that say which data and which recipe, printing."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali_imagenet.presets import PRESETS

if TYPE_CHECKING:
    from dali_imagenet.data.index import SampleIndex
    from dali_imagenet.recipe import Recipe

FINE, FAILED, USAGE, FINDINGS = 0, 1, 2, 3
EXIT_CODES = "exit codes: 0 fine, 1 failed, 2 wrong usage, 3 findings (index, failures: some images are broken)"

BACKENDS = ("auto", "dali", "torchvision", "reference", "reference-tensor")  # engine.ENGINES, without importing torch
RECIPES = (*PRESETS, "eval")

_SOURCE = ("split", "classes", "labels", "label_key", "image_key")


class CommandError(Exception):
    """What a command says instead of a result."""

    status = FAILED


class UsageError(CommandError):
    """A wrong option that is found late; the message names it as it is typed."""

    status = USAGE


def number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `low`."""

    def read(text: str) -> int:
        allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r}: must be {allowed}")
        return value

    return read


def add_source(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Which data: the same words in every command."""
    more: dict[str, Any] = {"nargs": "?"} if optional else {}
    parser.add_argument("data", help="a folder, tar, zip, shards ({000..127}.tar), Parquet, or a manifest", **more)
    group = parser.add_argument_group("which images")
    group.add_argument("--split", metavar="NAME", help="train, val, a subfolder, or . for the folder itself")
    group.add_argument("--classes", metavar="FILE", help="one class a line, in label order; or: natural")
    group.add_argument("--labels", metavar="FILE", help="of images in no folder: the devkit, or Kaggle's .csv")
    group.add_argument("--label-key", metavar="NAME", help="field or column that holds the label")
    group.add_argument("--image-key", metavar="NAME", help="which image, where a sample has several")


def source(options: argparse.Namespace) -> dict[str, Any]:
    """What `SampleIndex.open` takes besides the data."""
    given = {name: getattr(options, name) for name in _SOURCE}
    if given["classes"] not in (None, "sorted", "natural"):
        given["classes"] = Path(given["classes"])
    return {name: value for name, value in given.items() if value is not None}


def open_index(options: argparse.Namespace, **more: Any) -> SampleIndex:
    """The index of the data that the options name."""
    from dali_imagenet.data.index import SampleIndex

    try:
        return SampleIndex.open(options.data, **source(options), **more)
    except TypeError as error:
        found = re.search(r"has no option '(\w+)': it takes (.*)", str(error))
        if not found:
            raise
        allowed = [f"--{name.replace('_', '-')}" for name in _SOURCE if name in found[2].split(", ")]
        option = "--" + found[1].replace("_", "-")
        takes = f"such data take {', '.join(allowed)}" if allowed else "such data take none of these options"
        raise UsageError(f"{option} cannot be given here: {takes}") from None


def add_recipe(parser: argparse.ArgumentParser, default: str | None = "strong") -> None:
    """Which recipe, and the draws."""
    group = parser.add_argument_group("the recipe")
    group.add_argument("--recipe", choices=RECIPES, metavar="NAME", default=default, help=", ".join(RECIPES))
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of it, as in --set re_prob=0.1; may be given again",
    )
    group.add_argument("--seed", type=number(0), default=0, metavar="N", help="of order and augmentation (default: 0)")
    group.add_argument("--epoch", type=number(0), default=0, metavar="N", help="from 0 (default: 0)")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the options name."""
    from dali_imagenet.recipe import EvalRecipe, TrainRecipe

    fields = fields_of(options.set)
    try:
        made: Recipe
        made = (
            EvalRecipe().replace(**fields)
            if options.recipe == "eval"
            else getattr(TrainRecipe, options.recipe)(**fields)
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"--set {error}") from None
    return made


def fields_of(given: list[str]) -> dict[str, Any]:
    """The fields that --set names."""
    return dict(map(_field, given))


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--set {text!r}: must be FIELD=VALUE, such as re_prob=0.1")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, as in interpolation=bicubic


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for a script")


def print_json(value: Any) -> None:
    """In ASCII: what could act on a terminal is an escape."""
    print(json.dumps(value, indent=1))


def size(count: float) -> str:
    """Bytes in a unit that reads well: "1.2 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
