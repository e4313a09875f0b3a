"""What the page shows, as data: the images of a batch, what was done to each in order, and every operation."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.escape import escaped
from dali_imagenet.explain import explain, in_words, said_of
from dali_imagenet.loader import Loader, create_loader
from dali_imagenet.ops import AFFINE_PARTS, FILTERS, OPS, Op
from dali_imagenet.pillow import open_image
from dali_imagenet.recipe import Recipe
from dali_imagenet.validation import whole, wrong

MOST_IMAGES, MOST_SIDE = 64, 1024
_ORIGINAL, _SMALL = 480, 112  # pixels of the longer side, of originals and in the gallery
_FACTORS = (0.1, 0.5, 1.5, 1.9)
_SHIFTS = ("TRANSLATE_X", "TRANSLATE_Y", "AFFINE_X", "AFFINE_Y")
_MAGNITUDES: dict[str, Sequence[float]] = {
    **dict.fromkeys(("SHEAR_X", "SHEAR_Y"), (-0.3, -0.1, 0.1, 0.3)),
    **dict.fromkeys(_SHIFTS, (-0.25, -0.1, 0.1, 0.25)),
    **dict.fromkeys(("ROTATE", "AFFINE"), (-30, -10, 10, 30)),
    **dict.fromkeys(("AFFINE_SHEAR_X", "AFFINE_SHEAR_Y"), (-20, -8, 8, 20)),
    **dict.fromkeys(("BRIGHTNESS", "COLOR", "CONTRAST", "SHARPNESS"), _FACTORS),
    "AFFINE_SCALE": (0.6, 0.85, 1.2, 1.6),
    "POSTERIZE": (1, 2, 4, 6),
    "SOLARIZE": (32, 96, 160, 224),
    "SOLARIZE_ADD": (20, 50, 80, 110),
    "HUE": (-0.4, -0.15, 0.15, 0.4),
    "GAUSSIAN_BLUR": (0.5, 1, 2, 4),
}
"""Arguments that the gallery shows, of shifts as shares of the width; an operation without an entry has none."""
_KERNEL = 23  # of the gallery's blur, pixels


def scene(
    index: SampleIndex, recipe: Recipe, *, count: int, epoch: int, step: int, seed: int, gallery: bool
) -> dict[str, Any]:
    """A batch of `count` images, one more where the recipe mixes and it is odd, as plain data with images in it.

    Args:
        count: 1 to 64.
        epoch: from 0.
        step: from 0 to the last of such batches.
        seed: as `create_loader` takes it.
        gallery: also show every operation, on the first image.

    Returns:
        epoch, step, steps, seed, size (height, width), mixing, and

        - rows, a dictionary each: number, words ([name, text] each), name, class; before, after (None: not mixed) and
          original (None: it cannot be shown); box, the region of the original, as shares (left, top, width, height) of
          it; stages, {"name", "image", "boxes" (what was erased)} each; mix, {"kind", "share", "partner"} or None
        - gallery: {"name", "family", "images": [{"name", "image"}]} each

        where images are data URIs of JPEGs.

    Raises:
        ValueError: a number out of range, or an output of more than 1,024 pixels.
    """
    step_of = 2 if recipe.mixing else 1
    count = whole("count", count, 1, min(MOST_IMAGES, max(1, len(index) // step_of * step_of)))
    if max(side for size in recipe.sizes for side in size) > MOST_SIDE:
        raise wrong("input_size", recipe.size_at(epoch), f"at most {MOST_SIDE} here")
    with (
        _one_thread(),
        create_loader(
            index,
            recipe,
            batch_size=count + count % step_of,
            backend="torchvision",
            device="cpu",
            num_workers=0,
            seed=seed,
            on_error="replace",
            max_broken=1.0,
        ) as loader,
    ):
        step = whole("step", step, 0, len(loader) - 1)
        loader.seek(epoch, step)
        batches = iter(loader)
        mixed, _ = next(batches)
        batches.close()  # type: ignore[attr-defined]  # a Loader's own iterator
        rows = [row for row in explain(loader.plan, epoch, step, [*loader._failed]) if row["index"] >= 0]
        shown = [_row(loader, row, mixed) for row in rows]
        return {
            "epoch": epoch,
            "step": step,
            "steps": len(loader),
            "seed": seed,
            "size": rows[0]["size"],
            "mixing": any(row["mix"] for row in rows),
            "rows": shown,
            "gallery": list(_gallery(loader, rows[0])) if gallery else [],
        }


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Images this small are made faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(loader: Loader, row: dict[str, Any], mixed: Tensor) -> dict[str, Any]:
    stages = [
        {
            "name": name,
            "image": _uri(_pixels(loader, loader.render(part))),
            "boxes": [_shares(box, row["size"]) for box in part["erase"]],
        }
        for name, part in stages_of(row)
    ]
    mix = row["mix"]
    return {
        "number": row["row"],
        "words": [line.strip().split(maxsplit=1) for line in in_words(row)[1:]],
        "name": escaped(loader.dataset.relative_path(row["index"])),
        "class": escaped(row["class"]),
        "before": stages[-1]["image"],
        "after": _uri(_pixels(loader, mixed[row["row"]])) if mix else None,
        "original": _original(loader.dataset, row["index"]),
        "box": _shares(row["box"], row["source_size"]),
        "stages": stages,
        "mix": mix and {"kind": mix["kind"], "share": mix["lam"], "partner": mix["partner"]["row"]},
    }


def _shares(box: Sequence[int], size: Sequence[int]) -> list[float]:
    """(top, left, height, width) in pixels as (left, top, width, height) in shares of (height, width)."""
    top, left, height, width = box
    return [left / size[1], top / size[0], width / size[1], height / size[0]]


def stages_of(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What an image goes through, a name each, and the row that goes so far and no further."""
    drawn: dict[str, Any] = {
        "hflip": False,
        "vflip": False,
        "color": None,
        "program": [[] for _ in row["program"]],
        "erase": [],
    }
    so_far = row | drawn
    yield "region, resized", so_far
    flips = {name: True for name in ("hflip", "vflip") if row[name]}
    if flips:
        so_far = so_far | flips
        yield {1: f"flip {'left-right' if row['hflip'] else 'upside down'}", 2: "flip both ways"}[len(flips)], so_far
    if row["color"]:
        so_far = so_far | {"color": row["color"]}
        yield "colour", so_far
    for at, part in enumerate(row["program"]):
        for name, done in _parts(part):
            so_far = so_far | {"program": [*row["program"][:at], done, *so_far["program"][at + 1 :]]}
            yield name, so_far
    if row["erase"]:
        yield "erase", so_far | {"erase": row["erase"]}


def _parts(part: list[dict[str, Any]] | dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        yield "AugMix", part
        return
    waiting: list[str] = []
    for at, op in enumerate(part):
        waiting.append(said_of(op))
        if Op[op["op"]] not in AFFINE_PARTS:  # these do nothing before the warp that follows
            yield ", ".join(waiting), part[: at + 1]
            waiting = []


def _gallery(loader: Loader, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every operation but the identity, on the cropped image of that row."""
    plain = next(stages_of(row))[1] | {"fill": row["fill"] or [0, 0, 0]}
    for op, info in OPS.items():
        if op == Op.IDENTITY:
            continue
        name = op.name.removeprefix("PIL_")
        aux = _KERNEL if info.aux == "kernel" else info.default_aux or 0
        images = []
        for argument in _MAGNITUDES.get(name, (0.0,)):
            argument = round(argument * row["size"][1]) if name in _SHIFTS else argument
            done = [{"op": op.name, "arg": float(argument), "aux": aux}]
            if op in AFFINE_PARTS:
                done.append({"op": Op.AFFINE.name, "arg": 0.0, "aux": FILTERS["bilinear"]})
            picture = _pixels(loader, loader.render(plain | {"program": [done]}))
            caption = said_of(done[0]).removeprefix(name.lower().replace("_", " ")).strip()
            images.append({"name": caption, "image": _uri(_fitted(picture, _SMALL))})
        yield {"name": name.lower().replace("_", " "), "family": info.family, "images": images}


def _pixels(loader: Loader, image: Tensor) -> Image.Image:
    """A normalized image [3, H, W] as a picture."""
    recipe = loader.plan.recipe
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    floats = image.detach().to("cpu", torch.float32) * std + mean
    return Image.fromarray(np.asarray(floats.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)))


def _original(index: SampleIndex, sample: int) -> str | None:
    with contextlib.suppress(OSError, ValueError, SyntaxError):
        picture = open_image(index.source.read(sample))
        return _uri(_fitted(picture.convert("RGB"), _ORIGINAL))
    return None


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=None)
    return picture


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
