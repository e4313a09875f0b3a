"""Make a page to look at: a batch before and after mixing, and what was done to each image, step by step.

The page is one file that needs nothing else. With --serve it is answered on 127.0.0.1 alone, at an address with a
random token in it, and shows other epochs, steps, seeds and recipes as you change them; Ctrl+C ends it.
"""

from __future__ import annotations

import argparse
from typing import Any

from dali_imagenet.cli.common import (
    FINE,
    RECIPES,
    UsageError,
    add_recipe,
    add_source,
    fields_of,
    number,
    recipe_of,
    source,
)

NAME = "explore"
HELP = "make a page to look at what a recipe makes of data"
WORDS = {"input_size": "--set input_size"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_recipe(parser)
    parser.add_argument("--step", type=number(0), default=0, metavar="N", help="of the epoch, from 0 (default: 0)")
    parser.add_argument("--count", type=number(1, 64), default=12, metavar="N", help="images, up to 64 (default: 12)")
    parser.add_argument("--output", default="explore.html", metavar="FILE", help="(default: explore.html)")
    parser.add_argument("--serve", action="store_true", help="answer on 127.0.0.1 instead of writing a file")
    parser.add_argument(
        "--port", type=number(0, 65535), default=0, metavar="N", help="of --serve (default: a free one)"
    )


def run(options: argparse.Namespace) -> int:
    from dali_imagenet.explore.page import page
    from dali_imagenet.loader import index_for

    index = index_for(options.data, recipe_of(options), **source(options))
    made = _scene(index, options, gallery=True)
    if options.serve:
        return _serve(index, options, made)
    with open(options.output, "w", encoding="utf-8") as file:
        file.write(page(made))
    print(f"saved {options.output}")
    return FINE


def _scene(index: Any, options: argparse.Namespace, gallery: bool = False) -> dict[str, Any]:
    from dali_imagenet.explore.scene import scene

    given = {"count": options.count, "epoch": options.epoch, "step": options.step, "seed": options.seed}
    made = scene(index, recipe_of(options), gallery=gallery, **given)
    recipe = {"name": options.recipe, "fields": options.set, "code": _code(options)}
    return made | {"recipe": recipe, "recipes": RECIPES, "serve": options.serve}


def _code(options: argparse.Namespace) -> str:
    fields = [f"    {name}={value!r},\n" for name, value in fields_of(options.set).items()]
    name = "EvalRecipe" if options.recipe == "eval" else f"TrainRecipe.{options.recipe}"
    inside = "\n" + "".join(fields) if fields else ""
    return f"from dali_imagenet import {name.partition('.')[0]}\n\nrecipe = {name}({inside})"


def _serve(index: Any, options: argparse.Namespace, made: dict[str, Any]) -> int:
    from dali_imagenet.explore.page import page
    from dali_imagenet.explore.serve import Server

    def answer(words: dict[str, str]) -> dict[str, Any]:
        numbers = {name: _whole(name, words.get(name, "0")) for name in ("epoch", "step", "seed")}
        if words.get("recipe") not in RECIPES:
            raise UsageError("there is no such recipe")
        fields = [field.strip() for field in words.get("set", "").split(";") if field.strip()]
        asked = argparse.Namespace(**vars(options) | numbers | {"recipe": words["recipe"], "set": fields})
        return _scene(index, asked)

    with Server(page(made), answer, options.port) as server:
        print(f"open {server.url} (Ctrl+C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return FINE


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise UsageError(f"{name}: must be a whole number, not negative")
    return int(text)
