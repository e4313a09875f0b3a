"""`python -m dali_imagenet`: look at a data folder, and at what a recipe makes of it."""

# What a command needs is imported in it: help and wrong options shall not wait for torch (2 s).

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

from dali_imagenet.escape import escaped, printable
from dali_imagenet.presets import PRESETS
from dali_imagenet.validation import whole, wrong

# Arguments of the library, and what they are called here.
_OPTIONS = {"root": "folder", "data": "folder", "batch_size": "--count"} | {
    name: f"--{name}"
    for name in ("split", "classes", "recipe", "backend", "device", "count", "epoch", "seed", "output")
}

BACKENDS = ("auto", "dali", "torchvision", "reference", "reference-tensor")  # engine.ENGINES, without importing torch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dali_imagenet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="read and cache the index of a folder, and list its broken images")
    preview = commands.add_parser("preview", help="save a grid of augmented images, before and after mixing")
    for command in (index, preview):
        command.add_argument("folder")
        command.add_argument("--split", metavar="NAME", help="train, val, a subfolder, or . for the folder itself")
        command.add_argument("--classes", metavar="FILE", help="one class a line, in label order; or: natural")
    names = (*PRESETS, "eval")
    preview.add_argument("--recipe", choices=names, metavar="NAME", default="strong", help=", ".join(names))
    preview.add_argument("--backend", choices=BACKENDS, metavar="NAME", default="auto", help=", ".join(BACKENDS))
    preview.add_argument("--device", help="cpu, cuda or cuda:N; by default the GPU where there is one")
    preview.add_argument("--count", type=int, default=8, help="images (default: 8)")
    preview.add_argument("--epoch", type=int, default=0)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--output", default="preview.png")
    options = parser.parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        return _index(options) if options.command == "index" else _preview(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {_as_options(str(error))}", file=sys.stderr)
        return 1


def _as_options(message: str) -> str:
    """A message about arguments of the library as one about the options of this command."""
    return re.sub(rf"(?<![\w/.'])({'|'.join(_OPTIONS)})=", lambda found: f"{_OPTIONS[found[1]]} ", message)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _as_options(super().format(record))


def _classes(options: argparse.Namespace) -> str | Path:
    words = (None, "sorted", "natural")
    return (options.classes or "sorted") if options.classes in words else Path(options.classes)


def _index(options: argparse.Namespace) -> int:
    from dali_imagenet import SampleIndex

    found = SampleIndex.from_folder(options.folder, split=options.split, classes=_classes(options))
    for i in found.broken.nonzero()[0]:
        print(f"{escaped(found.path(int(i)))}: {printable(str(found.reason(int(i))))}")
    scan = found.scan
    print(
        f"{len(found)} images in {len(found.classes)} classes, {int(found.broken.sum())} broken; "
        f"{scan.files_per_second:.0f} files/s"
    )
    return 0


def _preview(options: argparse.Namespace) -> int:
    from PIL import Image

    if Path(options.output).suffix.lower() not in Image.registered_extensions():
        raise wrong("output", options.output, "a name that ends in .png, .jpg or another image's extension")
    from dali_imagenet import EvalRecipe, TrainRecipe, create_loader, save_preview
    from dali_imagenet.loader import index_for

    recipe = EvalRecipe() if options.recipe == "eval" else getattr(TrainRecipe, options.recipe)()
    index = index_for(options.folder, recipe, options.split, _classes(options))
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
