"""A picture of what the model will see: augmented images with their labels, before and after mixing."""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dali_imagenet.escape import escaped
from dali_imagenet.loader import Loader
from dali_imagenet.output import Output
from dali_imagenet.recipe import Recipe
from dali_imagenet.validation import whole

_EDGE, _TEXT = 6, 18  # pixels around a tile, and of a line of text


def save_preview(loader: Loader, path: str | os.PathLike[str], *, count: int = 8, epoch: int = 0) -> None:
    """Save a grid of the first `count` images of an epoch: a row for each view; where the recipe mixes, one before and
    one after mixing.

    Images and classes are those of the recipe and the index, before a `transform` and whatever the loader's `targets`.
    Ends the loader's running iteration; the next one starts at `epoch`, as if nothing had been.

    Raises:
        ValueError: for a path whose extension PIL does not know, or a count below 1.
    """
    count = whole("count", count, 1)
    enabled, output = loader.mixup_enabled, loader._output
    rows: list[tuple[str, Tensor, list[str]]] = []
    try:
        loader._output = Output()
        for mixing in (False, True) if loader.plan.recipe.mixing else (False,):
            loader.mixup_enabled = mixing
            loader.set_epoch(epoch)
            images, targets = next(iter(loader))
            title = "after mixing" if mixing else "augmented" if loader.plan.train else "as evaluated"
            views = images if len(loader.recipes) > 1 else [images]
            for number, (recipe, view) in enumerate(zip(loader.recipes, views, strict=True)):
                shown = title if len(views) == 1 else f"view {number}"
                rows.append((shown, _pixels(recipe, view[:count]), _labels(loader, targets[:count])))
    finally:
        loader.mixup_enabled, loader._output = enabled, output
        loader.set_epoch(epoch)
    _grid(rows).save(path)


def _pixels(recipe: Recipe, images: Tensor) -> Tensor:
    """Normalized images back to uint8 [B, H, W, 3] on the CPU."""
    mean, std = (torch.tensor(v, dtype=torch.float32, device="cpu")[:, None, None] for v in (recipe.mean, recipe.std))
    floats = images.detach().to("cpu", torch.float32) * std + mean
    return floats.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _labels(loader: Loader, targets: Tensor) -> list[str]:
    classes = [escaped(name) for name in loader.dataset.classes]
    if targets.dim() == 1:
        return ["padding" if t < 0 else classes[t] for t in targets.tolist()]
    smooth = loader.plan.recipe.label_smoothing if hasattr(loader.plan.recipe, "label_smoothing") else 0.0
    texts = []
    for row in targets.cpu():
        share = (row - smooth / len(row)) / (1 - smooth) if smooth < 1 else row
        best = share.topk(min(2, len(row)))
        parts = [(classes[i], s) for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True) if s > 0.005]
        texts.append(parts[0][0] if len(parts) == 1 else " + ".join(f"{s:.2f} {name}" for name, s in parts))
    return texts


def _grid(rows: list[tuple[str, Tensor, list[str]]]) -> Image.Image:
    count, height, width = (max(images.shape[axis] for _, images, _ in rows) for axis in range(3))
    tile = max(width, 150) + _EDGE
    per_row = height + 3 * _TEXT + 2 * _EDGE
    canvas = Image.new("RGB", (count * tile + _EDGE, len(rows) * per_row + _EDGE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for r, (title, images, labels) in enumerate(rows):
        top = r * per_row + _EDGE
        draw.text((_EDGE, top), title, fill="black", font=font)
        for c in range(count):
            left = _EDGE + c * tile
            canvas.paste(Image.fromarray(images[c].numpy()), (left, top + _TEXT))
            for line, text in enumerate(labels[c].split(" + ")):
                fitted = _fit(draw, text, font, tile - _EDGE)
                draw.text((left, top + _TEXT + height + line * _TEXT * 0.8), fitted, fill="black", font=font)
    return canvas


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2] + "…"
    return text
