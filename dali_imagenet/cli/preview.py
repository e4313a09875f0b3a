"""Save a grid of augmented images, before and after mixing."""

from __future__ import annotations

import argparse
from pathlib import Path

from dali_imagenet.cli.common import BACKENDS, FINE, add_recipe, add_source, recipe_of, source
from dali_imagenet.validation import whole, wrong

NAME = "preview"
HELP = "save a grid of augmented images, before and after mixing"
WORDS = {"batch_size": "--count"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    add_recipe(parser)
    parser.add_argument("--count", type=int, default=8, metavar="N", help="images (default: 8)")
    parser.add_argument("--backend", choices=BACKENDS, metavar="NAME", default="auto", help=", ".join(BACKENDS))
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default the GPU where there is one")
    parser.add_argument("--output", default="preview.png", metavar="FILE", help="(default: preview.png)")


def run(options: argparse.Namespace) -> int:
    from PIL import Image

    if Path(options.output).suffix.lower() not in Image.registered_extensions():
        raise wrong("output", options.output, "a name that ends in .png, .jpg or another image's extension")
    from dali_imagenet import create_loader, save_preview
    from dali_imagenet.loader import index_for

    recipe = recipe_of(options)
    index = index_for(options.data, recipe, **source(options))
    step = 2 if recipe.mixing else 1
    count = whole("count", options.count, 1, max(1, len(index) // step * step))
    with create_loader(
        index,
        recipe,
        batch_size=count + count % step,
        backend=options.backend,
        device=options.device,
        num_workers=0,
        seed=options.seed,
        on_error="replace",
        max_broken=1.0,
    ) as loader:
        save_preview(loader, options.output, count=count, epoch=options.epoch)
    print(f"saved {options.output}")
    return FINE
