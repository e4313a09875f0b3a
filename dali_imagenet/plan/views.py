"""Several views of each sample: which recipes they are of, and what cannot be."""

from __future__ import annotations

from typing import Any

from dali_imagenet import rng
from dali_imagenet.recipe import Recipe, TrainRecipe
from dali_imagenet.validation import boolean, sequence, whole, wrong

MOST = 256  # as many as the draws can tell apart
GEOMETRY = (rng.STREAM_CROP, rng.STREAM_WINDOW, rng.STREAM_FLIP, rng.STREAM_INTERPOLATION)
"""The streams that all views draw alike with `share_geometry`."""
# What there is one of for all views of a sample, and what shared geometry is drawn from.
_OF_THE_SAMPLE = ("label_smoothing", "num_classes", "num_aug_repeats")
_OF_THE_CROP = ("crop", "scale", "ratio", "resize_size", "crop_padding", "crop_padding_mode", "hflip", "vflip")


def recipes_of(recipe: Recipe, views: Any, share_geometry: Any) -> tuple[tuple[Any, ...], bool]:
    """The recipe of each view, and whether they have one geometry; see `create_loader`.

    Raises:
        TypeError: a view that is no TrainRecipe.
        ValueError: recipes that do not go together.
    """
    share, listed = boolean("share_geometry", share_geometry), sequence(views)
    given: tuple[Any, ...] = (recipe,) * whole("views", views, 1, MOST) if listed is None else listed
    if len(given) == 1 and listed is None:
        if share:
            raise wrong("share_geometry", share, "False where there is one view")
        return given, share
    if not 2 <= len(given) <= MOST:
        raise wrong("views", views, f"2 to {MOST} recipes; for one image a sample leave it out")
    for view, each in enumerate((recipe, *given)):
        if not isinstance(each, TrainRecipe):
            name = f"views[{view - 1}]" if view else "recipe"
            raise TypeError(
                f"{name}={each!r}: must be a TrainRecipe where there are views: an EvalRecipe draws nothing. What it "
                "shows is TrainRecipe(crop='center', resize_size=256, hflip=0)"
            )
    if given[0] != recipe:
        raise ValueError(
            "recipe and views[0] differ: views lists all views, of which recipe is the first: create_loader(data, "
            "views[0], views=views)"
        )
    for view, each in enumerate(given):
        if each.mixing:
            raise ValueError(f"views[{view}] mixes, and views are compared row by row: leave out Mixup and CutMix")
        _check_alike(recipe, each, view, _OF_THE_SAMPLE, "the views of a sample have one target and one place")
        if share:
            # of the other crops the box follows from the size of the output
            fields = (*_OF_THE_CROP, *(("input_size",) if each.crop != "rrc" else ()))
            _check_alike(recipe, each, view, fields, "share_geometry draws one crop and flip for all views")
    return given, share


def _check_alike(first: Any, other: Any, view: int, fields: tuple[str, ...], why: str) -> None:
    for name in fields:
        if (a := getattr(first, name)) != (b := getattr(other, name)):
            raise ValueError(f"views[0] has {name}={a!r}, views[{view}] {name}={b!r}: must be equal; {why}")
