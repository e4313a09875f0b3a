"""Makes the pictures of docs/recipes.md: `python docs/make_pictures.py`. The images are drawn, none is ImageNet's."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dali_imagenet import EvalRecipe, TrainRecipe, create_loader, save_preview
from dali_imagenet.presets import PRESETS

FOLDER = Path(__file__).resolve().parent / "images"
SIDE = 150  # of a tile
SIZE = (360, 270)  # of a drawn image


def boat(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 180, 360, 270), (38, 96, 150))
    for y in range(190, 270, 14):
        draw.line((0, y, 360, y + 4), (70, 130, 180), 2)
    draw.polygon([(90, 185), (280, 185), (245, 220), (120, 220)], (120, 60, 30))
    draw.polygon([(180, 30), (180, 175), (270, 175)], (250, 245, 235))
    draw.polygon([(172, 50), (172, 175), (105, 175)], (220, 60, 50))


def house(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 190, 360, 270), (90, 150, 70))
    draw.rectangle((100, 110, 260, 220), (235, 205, 150))
    draw.polygon([(80, 112), (280, 112), (180, 40)], (165, 55, 45))
    draw.rectangle((165, 155, 200, 220), (90, 55, 35))
    for x in (118, 216):
        draw.rectangle((x, 135, x + 30, 165), (140, 195, 230), (90, 55, 35), 3)


def tree(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 205, 360, 270), (150, 170, 80))
    draw.rectangle((165, 130, 195, 235), (95, 65, 40))
    for x, y, r in ((180, 75, 55), (135, 105, 45), (225, 105, 45), (180, 120, 45)):
        draw.ellipse((x - r, y - r, x + r, y + r), (45, 120 + (x + y) % 40, 55))
    for x, y in ((150, 90), (205, 70), (225, 120), (175, 115), (135, 120)):
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), (215, 45, 40))


def fish(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, 360, 270), (25, 110, 140))
    draw.polygon([(255, 135), (325, 85), (325, 185)], (250, 140, 40))
    draw.ellipse((60, 75, 280, 195), (250, 140, 40))
    for x in (125, 185):
        draw.polygon([(x, 82), (x + 26, 80), (x + 16, 190), (x - 8, 188)], (250, 250, 245))
    draw.ellipse((88, 110, 112, 134), (250, 250, 250))
    draw.ellipse((95, 116, 107, 128), (15, 15, 20))
    for x, y in ((40, 70), (52, 45), (36, 25)):
        draw.ellipse((x, y, x + 12, y + 12), None, (190, 225, 235), 2)


def balloon(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 235, 360, 270), (120, 140, 90))
    for i, colour in enumerate(((215, 50, 60), (250, 205, 70), (60, 110, 190))):
        draw.ellipse((110 + i * 24, 20, 250 - i * 24, 165), colour)
    draw.polygon([(130, 135), (230, 135), (195, 185), (165, 185)], (60, 110, 190))
    draw.line((168, 183, 170, 205), (60, 40, 30), 3)
    draw.line((192, 183, 190, 205), (60, 40, 30), 3)
    draw.rectangle((163, 203, 197, 228), (140, 90, 50))


def cat(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle((0, 0, 360, 270), (200, 170, 190))
    for left in (95, 205):
        draw.polygon([(left, 110), (left + 15, 35), (left + 65, 85)], (95, 90, 95))
    draw.ellipse((90, 65, 270, 235), (125, 120, 125))
    for x in (140, 220):
        draw.ellipse((x - 20, 115, x + 20, 155), (170, 205, 90))
        draw.ellipse((x - 6, 117, x + 6, 153), (20, 20, 20))
    draw.polygon([(168, 170), (192, 170), (180, 184)], (225, 130, 140))
    for side in (-1, 1):
        for y in (175, 190, 205):
            draw.line((180 + side * 22, 185, 180 + side * 105, y), (240, 240, 240), 2)


SUBJECTS: tuple[Callable[[ImageDraw.ImageDraw], None], ...] = (balloon, boat, cat, fish, house, tree)


def drawn(subject: Callable[[ImageDraw.ImageDraw], None], seed: int) -> Image.Image:
    """The subject before a sky, a little blurred and grainy, as a photograph is."""
    sky = np.linspace((110, 165, 225), (225, 235, 240), SIZE[1])[:, None].repeat(SIZE[0], axis=1)
    image = Image.fromarray(sky.astype(np.uint8))
    subject(ImageDraw.Draw(image))
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    grain = np.random.default_rng(seed).normal(0, 3, (*SIZE[::-1], 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def preset(name: str) -> TrainRecipe:
    """A recipe, with outputs as large as a tile."""
    return TrainRecipe(**PRESETS[name].fields).replace(input_size=SIDE)


def recipes() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name of each picture, its recipe and more arguments."""
    yield "evaluation", EvalRecipe(input_size=SIDE), {}
    for name in ("classic", "strong", "advanced", "torchvision_v2", "rsb_a2", "deit", "deit3"):
        yield name, preset(name), {}
    yield "simclr", preset("simclr"), {"views": 2}
    views = [preset("dino_global"), preset("dino_global2"), preset("dino_local").replace(input_size=64)]
    yield "dino", views[0], {"views": views}


def make(folder: Path, names: Collection[str] = ()) -> None:
    """Write every picture, or those that are named."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for number, subject in enumerate(SUBJECTS):
            place = Path(work, subject.__name__)
            place.mkdir()
            drawn(subject, number).save(place / "0.jpg", quality=92)
        for name, recipe, more in recipes():
            if names and name not in names:
                continue
            options = {"batch_size": len(SUBJECTS), "device": "cpu", "num_workers": 0, "split": ".", **more}
            with create_loader(work, recipe, backend="torchvision", **options) as loader:
                save_preview(loader, folder / f"{name}.webp", count=len(SUBJECTS))


if __name__ == "__main__":
    make(FOLDER)
    sys.stdout.write(f"wrote {FOLDER}\n")
