"""Which part of an image is shown, erased or pasted: boxes from uniforms, as torchvision and timm draw them."""

from __future__ import annotations

import numpy as np

from dali_imagenet.plan.batch_plan import F64, I32, I64
from dali_imagenet.recipe import EvalRecipe, Size, TrainRecipe

TRIES = 10  # of RandomResizedCrop and RandomErasing, as in torchvision and timm


def _round(x: F64) -> I64:
    return np.rint(x).astype(np.int64)  # half to even, as Python's round


def random_resized_crop(
    source: I32, scale: tuple[float, float], ratio: tuple[float, float], u: F64, tries: int = TRIES
) -> I32:
    """torchvision's RandomResizedCrop: up to ten tries at an area and a ratio that fit, else the central crop.

    Args:
        source: int [B, 2], height and width of the images in pixels.
        scale: range of the share of the area.
        ratio: range of width / height.
        u: uniforms [B, 2 * tries + 2].

    Returns:
        int32 [B, 4]: top, left, height, width.
    """
    height, width = source[:, :1].astype(np.float64), source[:, 1:].astype(np.float64)
    area = height * width * (scale[0] + u[:, :tries] * (scale[1] - scale[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + u[:, tries : 2 * tries] * (high - low))
    w, h = _round(np.sqrt(area * aspect)), _round(np.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first = np.arange(len(source)), fits.argmax(1)
    w, h = w[rows, first], h[rows, first]
    height, width = height[:, 0], width[:, 0]
    top = np.floor(u[:, -2] * (height - h + 1))
    left = np.floor(u[:, -1] * (width - w + 1))
    box = np.stack([top, left, h, w], axis=1).astype(np.int32)
    missed = np.flatnonzero(~fits.any(1))
    if missed.size:
        height, width = height[missed], width[missed]
        w = np.where(width / height > ratio[1], np.minimum(width, _round(height * ratio[1])), width)
        h = np.where(width / height < ratio[0], np.minimum(height, _round(width / ratio[0])), height)
        box[missed] = np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)
    return box


def _short_side(side: int, source: I32) -> I32:
    """torchvision's Resize of the short side: the long one truncates."""
    long: I64 = side * source.astype(np.int64) // source.min(axis=1, keepdims=True)
    return long.astype(np.int32)


def _middle(resize: I32, size: Size) -> I32:
    """CenterCrop's window, and where there is less than the output, the margins of one that pads."""
    padded = -((np.array(size) - resize) // 2)
    middle: I64 = np.where(resize < size, padded, _round((resize - size) / 2))
    return middle.astype(np.int32)


def train_geometry(recipe: TrainRecipe, size: Size, source: I32, u: F64) -> dict[str, object]:
    """Crop, resize and window of a training recipe.

    Args:
        size: height and width of the output in pixels.
        source: int [B, 2], height and width of the images in pixels.
        u: uniforms [B, 2 * TRIES + 2] of the stream of crops, for "rrc"; else [B, 6] of the stream of windows.
    """
    rows = len(source)
    whole = np.concatenate([np.zeros((rows, 2), np.int32), source], axis=1)
    common = {"window_fill": recipe.window_fill, "window_mode": recipe.crop_padding_mode}
    if recipe.crop == "rrc":
        box = random_resized_crop(source, recipe.scale, recipe.ratio, u)
        resize, window = np.full((rows, 2), size, np.int32), np.zeros((rows, 2), np.int32)
        return {**common, "crop_box": box, "resize": resize, "window": window}
    if recipe.crop in ("rkrc", "rkrr"):
        resize = _keep_ratio(recipe, size, source, u)
        window = _middle(resize, size)
        if recipe.crop == "rkrr":  # timm's RandomCropOrPad
            delta = resize - np.array(size)
            window = (np.sign(delta) * np.floor(u[:, 4:6] * (np.abs(delta) + 1))).astype(np.int32)
        return {**common, "window_mode": "reflect", "crop_box": whole, "resize": resize, "window": window}
    if recipe.resize_size is None:
        resize = source
    elif isinstance(recipe.resize_size, int):
        resize = _short_side(recipe.resize_size, source)
    else:
        resize = np.full((rows, 2), recipe.resize_size, np.int32)
    window = _middle(resize, size) if recipe.crop == "center" else _random_window(recipe, size, resize, u[:, 4:6])
    if recipe.resize_size is not None:
        return {**common, "crop_box": whole, "resize": resize, "window": window}
    first, end = np.maximum(window, 0), np.minimum(window + np.array(size), source)
    box = np.concatenate([first, end - first], axis=1).astype(np.int32)  # so that no more than this is decoded
    return {**common, "crop_box": box, "resize": box[:, 2:], "window": np.minimum(window, 0)}


def _keep_ratio(recipe: TrainRecipe, size: Size, source: I32, u: F64) -> I32:
    """timm's ResizeKeepRatio as its rkrc and rkrr have it: scaled by area, and stretched, each for every second."""
    ratio = (source / np.array(size)).min(axis=1, keepdims=True)
    zoom = 1 / np.sqrt(recipe.scale[0] + u[:, 1:2] * (recipe.scale[1] - recipe.scale[0]))
    low, high = np.log(recipe.ratio)
    aspect = np.sqrt(np.exp(low + u[:, 3:4] * (high - low)))
    factor = np.where(u[:, :1] < 0.5, zoom, 1.0)
    factors = factor * np.where(u[:, 2:3] < 0.5, np.concatenate([1 / aspect, aspect], axis=1), 1.0)
    return _round(source * factors / ratio).clip(1).astype(np.int32)


def _random_window(recipe: TrainRecipe, size: Size, resize: I32, u: F64) -> I32:
    """torchvision's RandomCrop with padding: where what is padded is smaller than the output, so much more is added on
    either side as is missing (`pad_if_needed`)."""
    left, top, right, bottom = recipe.margins
    before, after = np.array([top, left]), np.array([bottom, right])
    missing = np.maximum(0, np.array(size) - (resize + before + after))
    room = resize + before + after + 2 * missing - np.array(size)
    window: F64 = np.floor(u * (room + 1)) - before - missing
    return window.astype(np.int32)


def eval_geometry(recipe: EvalRecipe, source: I32) -> dict[str, object]:
    """torchvision's Resize and CenterCrop: the long side truncates, the anchor rounds half to even, and a border that
    cannot be shared evenly is the wider one below and to the right; timm's for borders and outputs that are not
    square."""
    rows = len(source)
    size, scale = recipe.size_at(0), recipe.scale_size
    if recipe.crop_mode == "squash":
        resize = np.full((rows, 2), scale, np.int32)
    elif recipe.crop_mode == "border":  # timm's ResizeKeepRatio with longest=1
        resize = _round(source / (source / scale).max(axis=1, keepdims=True)).clip(1).astype(np.int32)
    elif scale[0] == scale[1]:
        resize = _short_side(scale[0], source)
    else:  # timm's ResizeKeepRatio with longest=0
        resize = _round(source / (source / scale).min(axis=1, keepdims=True)).astype(np.int32)
    return {
        "crop_box": np.concatenate([np.zeros((rows, 2), np.int32), source], axis=1),
        "resize": resize,
        "window": _middle(resize, size),
        "window_fill": recipe.window_fill,
        "hflip": np.zeros(rows, np.bool_),
        "vflip": np.zeros(rows, np.bool_),
        "color_factors": None,
        "color": None,
        "ops": (),
        "fill": None,
        "erase_mode": "const",
        "erase": None,
        "noise_key": None,
        "mix": None,
    }


def random_erasing(recipe: TrainRecipe, size: Size, u: F64) -> I32:
    """torchvision's and timm's RandomErasing: up to ten tries a box, strictly smaller than the image.

    Returns:
        int32 [B, C, 4]: top, left, height, width; height 0 is none.
    """
    boxes = recipe.re_count[1]
    rows = len(u)
    count = recipe.re_count[0] + np.floor(u[:, 1] * (boxes - recipe.re_count[0] + 1))
    count = np.where(u[:, 0] < recipe.re_prob, count, 0)
    v = u[:, 2:].reshape(rows, boxes, -1)
    scale = recipe.re_scale[0] + v[..., :TRIES] * (recipe.re_scale[1] - recipe.re_scale[0])
    height, width = size
    area = height * width * scale / np.maximum(count, 1)[:, None, None]
    low, high = np.log(recipe.re_ratio[0]), np.log(recipe.re_ratio[1])
    aspect = np.exp(low + v[..., TRIES : 2 * TRIES] * (high - low))
    h, w = _round(np.sqrt(area * aspect)), _round(np.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    first = fits.argmax(2)[..., None]
    h, w = np.take_along_axis(h, first, 2)[..., 0], np.take_along_axis(w, first, 2)[..., 0]
    top = np.floor(v[..., -2] * (height - h + 1))
    left = np.floor(v[..., -1] * (width - w + 1))
    result = np.stack([top, left, h, w], axis=2).astype(np.int32)
    result[~fits.any(2) | (np.arange(boxes) >= count[:, None])] = 0
    return result


def cutmix_box(recipe: TrainRecipe, size: Size, lam: F64, u: F64) -> tuple[I32, F64]:
    """timm's rand_bbox, or rand_bbox_minmax: boxes [K, 4] (top, bottom, left, right) and their areas."""
    whole = np.array(size)
    if recipe.cutmix_minmax is None:
        sides = (whole * np.sqrt(1 - lam)[:, None]).astype(np.int64)
        center = np.floor(u[:, :2] * whole).astype(np.int64)
        low = np.clip(center - sides // 2, 0, whole)
        high = np.clip(center + (sides + 1) // 2, 0, whole)
    else:
        least, most = ((whole * share).astype(np.int64) for share in recipe.cutmix_minmax)
        sides = least + np.floor(u[:, 2:4] * np.maximum(1, most - least)).astype(np.int64)
        low = np.floor(u[:, :2] * (whole - sides + 1)).astype(np.int64)
        high = low + sides
    box = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1).astype(np.int32)
    area = np.prod((high - low).astype(np.float64), axis=1)
    return box, np.asarray(area, np.float64)
