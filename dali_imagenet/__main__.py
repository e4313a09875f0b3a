"""`python -m dali_imagenet`: look at a data folder, and at what a recipe makes of it."""

from __future__ import annotations

import argparse
import logging
import sys

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.escape import escaped, printable
from dali_imagenet.presets import PRESETS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dali_imagenet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="read and cache the index of a folder, and list its broken images")
    index.add_argument("folder")
    preview = commands.add_parser("preview", help="save a grid of augmented images, before and after mixing")
    preview.add_argument("folder")
    preview.add_argument("--recipe", choices=(*PRESETS, "eval"), default="strong")
    preview.add_argument("--backend", choices=("auto", "dali", "torchvision"), default="auto")
    preview.add_argument("--device", help="cpu, cuda or cuda:N; by default the GPU where there is one")
    preview.add_argument("--count", type=int, default=8, help="images (default: 8)")
    preview.add_argument("--epoch", type=int, default=0)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--output", default="preview.png")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return _index(options.folder) if options.command == "index" else _preview(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _index(folder: str) -> int:
    found = SampleIndex.from_folder(folder)
    for i in found.broken.nonzero()[0]:
        print(f"{escaped(found.path(int(i)))}: {printable(str(found.reason(int(i))))}")
    scan = found.scan
    print(
        f"{len(found)} images in {len(found.classes)} classes, {int(found.broken.sum())} broken; "
        f"{scan.files_per_second:.0f} files/s"
    )
    return 0


def _preview(options: argparse.Namespace) -> int:
    from dali_imagenet.preview import save_preview

    recipe = EvalRecipe() if options.recipe == "eval" else getattr(TrainRecipe, options.recipe)()
    with create_loader(
        options.folder,
        recipe,
        batch_size=options.count + options.count % 2,
        backend=options.backend,
        device=options.device,
        num_workers=0,
        seed=options.seed,
        on_error="replace",
        max_broken=1.0,
    ) as loader:
        save_preview(loader, options.output, count=options.count, epoch=options.epoch)
    print(f"saved {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
