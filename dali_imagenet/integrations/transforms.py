"""Recipes from the transforms that people have: torchvision's pipelines, v1 and v2, and what timm's create_transform
makes.

A pipeline is read, never run: by the names of its classes and their attributes, so that neither library is imported
here. What a recipe cannot say is refused with the line that would have to change; what it says otherwise is a row.
"""

from __future__ import annotations

import dataclasses
import dis
import logging
import math
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dali_imagenet.errors import UntranslatableError
from dali_imagenet.integrations.albumentations import by_albumentations, flat_albumentations, meaning_of
from dali_imagenet.ops import AFFINE_PARTS, FILTERS, Op
from dali_imagenet.policy import (
    Apply,
    AugmentPolicy,
    AugMix,
    AutoAugment,
    Choice,
    Jitter,
    RandAugment,
    Shuffled,
    Step,
    TablePolicy,
    TimmAugMix,
    TimmAutoAugment,
    TimmRandAugment,
    TrivialAugmentWide,
)
from dali_imagenet.policy.compose import moves
from dali_imagenet.policy.custom import step_of
from dali_imagenet.policy.timm import TIMM_MIX, auto_augment_named, rand_augment_named
from dali_imagenet.recipe import EvalRecipe, Recipe, TrainRecipe

log = logging.getLogger("dali_imagenet")

_ROUNDING = "rounds as torchvision does on tensors; PIL's own may differ by 1 of 255"
_WIDTH = 110  # characters of a transform in a message
_COLUMNS, _INDENT = 80, 11  # of the report


class Row(NamedTuple):
    """How one transform was read."""

    yours: str
    """The transform, as it prints itself, in one line."""
    ours: str
    """The fields that say it."""
    exact: bool
    """Whether it means the same: the same distribution, and the same pixels up to rounding."""
    note: str
    """How it differs, or rounds; empty where there is nothing to say."""


class Translation(NamedTuple):
    """A recipe, and how each transform was read."""

    recipe: Recipe
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return table_of(self.rows)


def translate(kind: type[TrainRecipe] | type[EvalRecipe], transform: Any, **changes: Any) -> Translation:
    """Read a pipeline of torchvision's (v1 or v2), timm's or Albumentations' as a recipe of that kind.

    Args:
        kind: `TrainRecipe` or `EvalRecipe`.
        transform: a Compose, a transform, or a sequence of them.
        changes: fields of the recipe, in place of what was read; mixing and label smoothing, which are no transforms.

    Returns:
        The recipe, and a row for each transform.

    Raises:
        UntranslatableError: for what the recipe cannot say; `what` is the transform, and the message names the line
            that would have to change.
    """
    reader = _Reader(train=kind is TrainRecipe, given=changes)
    for each in flat(transform):
        if by_albumentations(each):
            for one in flat_albumentations(each):
                reader.read_meaning(one)
        else:
            reader.read(each)
    fields = reader.train_fields() if kind is TrainRecipe else reader.eval_fields()
    names = [name for name in fields if name not in changes]
    try:
        recipe: Recipe = kind(**{name: fields[name] for name in names})
    except ValueError as error:
        change = "pass another value for that field as an argument"
        raise UntranslatableError(show(transform), str(error), change) from error
    return Translation(recipe.replace(**changes), tuple(reader.rows))


def recipe_from(kind: Any, transform: Any, report: bool, changes: Mapping[str, Any]) -> Any:
    """What `from_transforms` of a recipe does: translate, then tell what is not exact, or with `report` everything."""
    found = translate(kind, transform, **changes)
    tell(found.rows, report)
    return found.recipe


def tell(rows: Sequence[Row], report: bool) -> None:
    """Log what is not exact, as warnings, and with `report` print everything."""
    if report:
        print(table_of(rows))
    for row in rows:
        if not row.exact:
            log.warning("not exactly as in your pipeline: %s is read as %s: %s", row.yours, row.ours, row.note)


def table_of(rows: Sequence[Row]) -> str:
    """The rows as text of 80 columns: for each what is yours, what it became, and what there is to say of it."""
    return "\n".join(_block(row) for row in rows)


def _block(row: Row) -> str:
    wrap = textwrap.TextWrapper(_COLUMNS - _INDENT, break_on_hyphens=False, break_long_words=False)
    lines = wrap.wrap(row.yours)
    wrap.subsequent_indent = "   "
    lines += wrap.wrap(f"-> {row.ours}") if row.ours else []
    wrap.subsequent_indent = ""
    lines += wrap.wrap(row.note)
    marks = ["exact" if row.exact else "NOT exact", *[""] * (len(lines) - 1)]
    return "\n".join(f"{mark:{_INDENT}}{line}" for mark, line in zip(marks, lines, strict=True))


def show(transform: Any) -> str:
    """A transform in one line."""
    try:
        text = " ".join(repr(transform).split())
    except Exception:  # somebody else's code: what it cannot print must not hide why it is refused
        text = f"<{type(transform).__name__}>"
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4].rstrip()} ..."


def flat(transform: Any) -> Iterator[Any]:
    """The transforms of a pipeline, one after the other."""
    transform = _called(transform)
    if isinstance(transform, list | tuple):
        inner: Any = transform
    elif name_of(transform) in ("Compose", "Sequential"):
        inner = transform.transforms if hasattr(transform, "transforms") else transform
    else:
        yield transform
        return
    for each in inner:
        yield from flat(each)


def _called(transform: Any) -> Any:
    """What an object of a script's own class calls, if it only hands the image on: `return self.transforms(image)`."""
    call = None if name_of(transform) else vars(type(transform)).get("__call__")
    if not isinstance(call, types.FunctionType) or call.__code__.co_argcount != 2 or len(call.__code__.co_names) != 1:
        return transform
    done = [step.opname for step in dis.get_instructions(call) if step.opname not in _NOTHING]
    if [name[:9] for name in done] not in (["LOAD_FAST", "LOAD_ATTR", "LOAD_FAST", "CALL", "RETURN_VA"],
                                           ["LOAD_FAST", "LOAD_METH", "LOAD_FAST", "CALL", "RETURN_VA"]):  # fmt: skip
        return transform
    return getattr(transform, call.__code__.co_names[0], transform)


_NOTHING = ("RESUME", "PRECALL", "CACHE", "PUSH_NULL", "NOP", "COPY_FREE_VARS")


def name_of(transform: Any) -> str:
    """The name of a class of torchvision's, timm's or torch's own; "" of any other."""
    kind = type(transform)
    return kind.__name__ if kind.__module__.split(".")[0] in ("torchvision", "timm", "torch") else ""


def _by_timm(transform: Any) -> bool:
    return type(transform).__module__.split(".")[0] == "timm"


def refuse(transform: Any, why: str, change: str) -> UntranslatableError:
    """The error of what cannot be translated: why, and how its line would have to change."""
    return UntranslatableError(show(transform), why, change)


def _filter(transform: Any) -> str:
    """The filter of a transform, as recipes name it."""
    given = transform.interpolation
    if isinstance(given, list | tuple):
        found = tuple(str(getattr(each, "value", each)) for each in given)
        if found == ("bilinear", "bicubic"):
            return "random"
        raise refuse(transform, f"it draws among {', '.join(found)}", "draw among bilinear and bicubic, or take one")
    name = str(getattr(given, "value", given))
    numbers = {str(number): name for name, number in FILTERS.items()}  # of Pillow, which v1 takes, too
    name = {"nearest-exact": "nearest", **numbers}.get(name, name)
    if name not in FILTERS:
        raise refuse(transform, f"no backend has the filter {name!r}", "take interpolation='bilinear' or 'bicubic'")
    return name


def _size(given: Any) -> tuple[int, int]:
    sides = [int(v) for v in given] if isinstance(given, Sequence) else [int(given)]
    return (sides * 2)[0], (sides * 2)[1]


def _fill(transform: Any, given: Any) -> tuple[int, int, int]:
    """A fill of torchvision's as a colour."""
    if given is None:
        return (0, 0, 0)
    if isinstance(given, Mapping):
        raise refuse(transform, "it fills by type", "give it one colour as fill")
    values = [float(v) for v in given] if isinstance(given, Sequence) else [float(given)]
    if len(values) not in (1, 3) or any(v != int(v) or not 0 <= v <= 255 for v in values):
        raise refuse(transform, f"fill={given!r} is no colour of three whole numbers in 0..255", "give it such a fill")
    r, g, b = ([int(v) for v in values] * 3)[:3]
    return r, g, b


def _numbers(given: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in given)


def _constants(given: Any) -> tuple[float, ...]:
    """Numbers of a sequence, or of a tensor as they were before they became float32."""
    return tuple(float(f"{v:.7g}") for v in given.tolist()) if hasattr(given, "tolist") else _numbers(given)


class _Reader:
    """Reads transforms in order, and keeps what the recipe shall say."""

    def __init__(self, *, train: bool, given: Mapping[str, Any]) -> None:
        self.train, self._given = train, given
        self.rows: list[Row] = []
        self._pixels = "PIL"  # then "uint8", "float" and "normalized"
        self._resize: Any = None
        self._crop: Any = None
        self._parts: list[Any] = []
        self._fills: set[tuple[int, int, int]] = set()
        self._fields: dict[str, Any] = {"hflip": 0.0, "vflip": 0.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        self._geometry: dict[str, Any] = {}
        self._erased: Any = None

    # ---- one transform

    def read(self, transform: Any) -> None:
        """Read one transform; raises UntranslatableError for what there is no place for."""
        name = name_of(transform)
        handler: Callable[[Any], tuple[str, bool, str]] | None = getattr(self, f"_read_{name}", None) if name else None
        if handler is None and name in _PARTS:
            handler = self._read_part
        if handler is None:
            what = "a function" if not name else "none that is read"
            raise refuse(
                transform,
                f"it is {what}: what it does cannot be known" if not name else "there is no counterpart",
                "take it out, do it on the batches that the loader yields, or give from_dataloader a recipe=",
            )
        ours, exact, note = handler(transform)
        self.rows.append(Row(show(transform), ours, exact, note))

    def read_meaning(self, transform: Any) -> None:
        """Read what one of Albumentations' transforms means, which takes arrays of 8-bit pixels."""
        self._pixels = "uint8" if self._pixels == "PIL" else self._pixels
        before = len(self.rows)
        try:
            meaning = meaning_of(transform)
            for part in meaning.parts:
                self.read(part)
        except UntranslatableError as error:
            raise refuse(transform, error.why, error.change) from error
        read, self.rows = self.rows[before:], self.rows[:before]
        notes = dict.fromkeys(filter(None, [meaning.note, *(row.note for row in read)]))
        ours = ", ".join(row.ours for row in read if row.ours)
        exact = meaning.exact and all(row.exact for row in read)
        self.rows.append(Row(show(transform), ours, exact, "; ".join(notes)))

    def _random(self, transform: Any) -> None:
        if not self.train:
            raise refuse(transform, "it is random, and an EvalRecipe is not", "use TrainRecipe.from_transforms")

    # ---- size

    def _before_crop(self, transform: Any) -> None:
        if self._parts or self._erased is not None or self._pixels == "normalized":
            raise refuse(transform, "it stands behind what changes pixels", "put it before colours and Normalize")
        if self._crop is not None:
            raise refuse(transform, f"there is a crop already: {show(self._crop)}", "leave one of them out")

    def _resizes(self, transform: Any) -> str:
        """Checks how a transform resizes; what to say of it."""
        if not getattr(transform, "antialias", True) and self._pixels != "PIL":
            raise refuse(transform, "it resizes tensors without antialiasing", "give it antialias=True")
        if _filter(transform) == "nearest" and self._pixels != "PIL":
            raise refuse(transform, "nearest takes other pixels of tensors than of PIL images, and ours are PIL's",
                          "put ToImage, PILToTensor or ToTensor behind it")  # fmt: skip
        on_pil = self._pixels == "PIL" and _filter(transform) not in ("nearest", "lanczos")
        return _ROUNDING if on_pil else "on 8-bit pixels" if self._pixels == "float" else ""

    def _read_RandomResizedCrop(self, t: Any) -> tuple[str, bool, str]:
        self._random(t)
        self._before_crop(t)
        note, exact, before = self._resizes(t), True, self._resize
        if before is not None:
            if len(_sides(before)) != 1 or name_of(before) != "Resize":
                raise refuse(before, "it changes the shape before a RandomResizedCrop", "leave it out")
            note, exact = "resized once, from the stored image, where yours resizes twice", False
        size = _size(t.size)
        self._crop, self._resize = t, None
        self._geometry = {"input_size": size, "crop": "rrc", "scale": _numbers(t.scale), "ratio": _numbers(t.ratio),
                          "interpolation": _filter(t)}  # fmt: skip
        return _say(self._geometry), exact, note

    _read_RandomResizedCropAndInterpolation = _read_RandomResizedCrop

    def _read_Resize(self, t: Any) -> tuple[str, bool, str]:
        self._before_crop(t)
        if self._resize is not None:
            raise refuse(t, f"it was resized before: {show(self._resize)}", "leave one of them out")
        if getattr(t, "max_size", None) is not None or t.size is None:
            raise refuse(t, "max_size depends on the image", "leave max_size out")
        note = self._resizes(t)
        self._resize = t
        self._geometry["interpolation"] = _filter(t)
        return f"resize to {t.size}, {_filter(t)}", True, note

    def _read_ResizeKeepRatio(self, t: Any) -> tuple[str, bool, str]:
        if t.random_scale_prob or t.random_aspect_prob:
            self._random(t)
            if not (t.random_scale_prob == t.random_aspect_prob == 0.5 and t.random_scale_area and t.longest == 0):
                raise refuse(t, "it draws with other probabilities than timm's create_transform gives it",
                              "give both a probability of 0.5, random_scale_area=True and longest=0")  # fmt: skip
        elif t.longest not in (0, 1):
            raise refuse(t, "it is between covering and fitting", "give it longest=0 or longest=1")
        self._before_crop(t)
        note = self._resizes(t)
        self._resize = t
        self._geometry["interpolation"] = _filter(t)
        return f"resize to {_size(t.size)}, the shape kept, {_filter(t)}", True, note

    def _read_CenterCrop(self, t: Any) -> tuple[str, bool, str]:
        self._before_crop(t)
        self._crop = t
        self._geometry["input_size"] = _size(t.size)
        return f"input_size={_size(t.size)}", True, ""

    def _read_RandomCrop(self, t: Any) -> tuple[str, bool, str]:
        self._random(t)
        self._before_crop(t)
        if t.padding_mode not in ("constant", "reflect"):
            raise refuse(t, f"padding_mode={t.padding_mode!r} is not here", "take 'constant' or 'reflect'")
        if self._resize is not None and name_of(self._resize) != "Resize":
            raise refuse(self._resize, "it stands before a RandomCrop", "take Resize")
        self._crop = t
        padding = 0 if t.padding is None else t.padding
        padding = tuple(padding) if isinstance(padding, Sequence) else padding
        self._geometry |= {"input_size": _size(t.size), "crop": "random", "crop_padding": padding,
                           "crop_fill": _fill(t, t.fill), "crop_padding_mode": t.padding_mode}  # fmt: skip
        if self._resize is not None:
            sides = _sides(self._resize)
            self._geometry["resize_size"] = sides[0] if len(sides) == 1 else sides
        note = "" if t.pad_if_needed else "an image that is too small is padded, where yours is an error"
        return _say(self._geometry), True, note

    def _read_CenterCropOrPad(self, t: Any) -> tuple[str, bool, str]:
        self._before_crop(t)
        self._crop = t
        self._geometry["input_size"] = _size(t.size)
        return f"input_size={_size(t.size)}", True, ""

    def _read_RandomCropOrPad(self, t: Any) -> tuple[str, bool, str]:
        self._random(t)
        return self._read_CenterCropOrPad(t)

    def _read_RandomHorizontalFlip(self, t: Any) -> tuple[str, bool, str]:
        return self._flip(t, "hflip")

    def _read_RandomVerticalFlip(self, t: Any) -> tuple[str, bool, str]:
        return self._flip(t, "vflip")

    def _flip(self, t: Any, field: str) -> tuple[str, bool, str]:
        p, before = float(t.p), self._fields[field]
        if p == 0:
            return "nothing", True, ""
        self._random(t)
        if any(_leans(part) for part in self._parts):
            raise refuse(t, "what moves before it leans to one side, so that the order matters", "put it first")
        self._fields[field] = before + p - 2 * before * p  # two flips undo each other
        late = "" if not self._parts else "flipped before, which comes to the same: nothing before it leans"
        return f"{field}={self._fields[field]:g}", True, late

    # ---- types and values

    def _to(self, transform: Any, after: str) -> tuple[str, bool, str]:
        order = ["PIL", "uint8", "float", "normalized"]
        if order.index(after) > order.index(self._pixels):
            self._pixels = after
        return "a loader's batches are tensors", True, ""

    def _read_ToTensor(self, t: Any) -> tuple[str, bool, str]:
        if _by_timm(t):
            raise refuse(t, "timm's ToTensor leaves values in 0..255", "take MaybeToTensor")
        return self._to(t, "float")

    def _read_MaybeToTensor(self, t: Any) -> tuple[str, bool, str]:
        return self._to(t, "float")

    def _read_ToImage(self, t: Any) -> tuple[str, bool, str]:
        return self._to(t, "uint8")

    _read_PILToTensor = _read_MaybePILToTensor = _read_ToImage

    def _read_ToNumpy(self, t: Any) -> tuple[str, bool, str]:
        return self._to(t, "uint8")

    def _read_ToPureTensor(self, t: Any) -> tuple[str, bool, str]:
        return "a loader's batches are tensors", True, ""

    def _read_Identity(self, t: Any) -> tuple[str, bool, str]:
        return "nothing", True, ""

    def _read_RGB(self, t: Any) -> tuple[str, bool, str]:
        return "every image is decoded as RGB", True, ""

    def _read_ToDtype(self, t: Any) -> tuple[str, bool, str]:
        if isinstance(t.dtype, Mapping):
            raise refuse(t, "it converts by type", "give it one dtype")
        floating = t.dtype.is_floating_point
        if floating and self._pixels in ("PIL", "uint8") and not getattr(t, "scale", True):
            raise refuse(t, "without scale=True values stay in 0..255", "give it scale=True, and mean and std of 0..1")
        if not floating and self._pixels in ("float", "normalized"):
            raise refuse(t, "it makes whole numbers of floats", "leave it out")
        if str(t.dtype) not in ("torch.float32", "torch.uint8"):
            self._to(t, "float")
            return f"create_loader(dtype={t.dtype})", False, "the dtype is the loader's; without it batches are float32"
        return self._to(t, "float" if floating else "uint8")

    _read_ConvertImageDtype = _read_ToDtype

    def _read_Normalize(self, t: Any) -> tuple[str, bool, str]:
        if self._pixels == "normalized":
            raise refuse(t, "there is a Normalize already", "make one of the two")
        if self._pixels != "float":
            raise refuse(t, "it normalizes values of 0..255", "put ToTensor or ToDtype(float32, scale=True) before it")
        self._pixels = "normalized"
        mean, std = (_constants(v) for v in (t.mean, t.std))
        if len(mean) == 1:
            mean, std = mean * 3, std * 3
        self._fields |= {"mean": mean, "std": std}
        return f"mean={_short(mean)}, std={_short(std)}", True, ""

    # ---- erasing

    def _read_RandomErasing(self, t: Any) -> tuple[str, bool, str]:
        self._random(t)
        if self._erased is not None:
            raise refuse(t, "there is an erasing already", "leave one of them out")
        if self._pixels == "PIL":
            raise refuse(t, "it stands before the images are tensors", "put it behind ToTensor or ToImage")
        self._erased = t
        fields = self._timms_erasing(t) if _by_timm(t) else self._torchvisions_erasing(t)
        self._fields |= fields
        return _say(fields), True, ""

    def _timms_erasing(self, t: Any) -> dict[str, Any]:
        if self._pixels != "normalized":
            raise refuse(t, "timm's is for normalized images", "put it behind Normalize")
        if t.num_splits > 1:
            raise refuse(t, "num_splits leaves a part of the batch alone", "give it num_splits=0")
        mode = "rand" if t.rand_color else "pixel" if t.per_pixel else "const"
        ratio = tuple(math.exp(v) for v in t.log_aspect_ratio)
        return {"re_prob": float(t.probability), "re_mode": mode, "re_count": (t.min_count, t.max_count),
                "re_scale": (t.min_area, t.max_area), "re_ratio": ratio}  # fmt: skip

    def _torchvisions_erasing(self, t: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {"re_prob": float(t.p), "re_scale": _numbers(t.scale), "re_ratio": _numbers(t.ratio)}
        if t.value is None or t.value == "random":
            if self._pixels != "normalized":
                raise refuse(t, "before Normalize its noise is not about the mean", "put it behind Normalize")
            return {**fields, "re_mode": "pixel"}
        values = _numbers(t.value) if isinstance(t.value, Sequence) else (float(t.value),)
        values = values * 3 if len(values) == 1 else values
        mean, std = self._fields["mean"], self._fields["std"]
        if self._pixels == "normalized":
            shown = tuple(v * s + m for v, m, s in zip(values, mean, std, strict=True))
        else:
            shown = tuple(v / (255 if self._pixels == "uint8" else 1) for v in values)
        if any(not 0 <= v <= 1 for v in shown):
            raise refuse(t, f"it erases to a colour beyond black or white: {_short(shown)}", "take one between")
        return fields if self._pixels == "normalized" and not any(values) else {**fields, "re_value": shown}

    # ---- pixel operations

    def _read_part(self, t: Any) -> tuple[str, bool, str]:
        if not self.train:
            raise refuse(t, "it changes pixels, and an EvalRecipe does not", "use TrainRecipe.from_transforms")
        if self._pixels == "normalized" or self._erased is not None:
            raise refuse(t, "it works on normalized or erased images, here on 8-bit pixels", "put it before them")
        sized = "input_size" in self._given if self._resize is None else len(_sides(self._resize)) == 2
        if self._crop is None and not sized:
            raise refuse(t, "it stands before the crop", "put it behind the crop")
        try:
            part, exact, note = self._part(t)
        except UntranslatableError:
            raise
        except ValueError as error:
            raise refuse(t, str(error), "give it another value, or leave it out") from error
        self._parts.append(part)
        if self._pixels == "float":
            exact, note = False, f"on 8-bit pixels, where yours are floats{'; ' if note else ''}{note}"
        return _say_part(part), exact, note

    def _part(self, t: Any) -> tuple[Any, bool, str]:
        part, exact, note = _PARTS[name_of(t)](self, t)
        return step_of(part) if isinstance(part, Step) else part, exact, note

    def _group(self, t: Any) -> tuple[list[Any], bool, str]:
        """The parts of a transform that holds others."""
        parts, exact, notes = [], True, []
        for each in flat(list(t.transforms)):
            if name_of(each) not in _PARTS:
                raise refuse(t, f"{show(each)} cannot be drawn within another", "take it out of there")
            part, same, note = self._part(each)
            parts.append(part)
            exact &= same
            notes += [note] if note and note not in notes else []
        return parts, exact, "; ".join(notes)

    def _applied(self, t: Any) -> tuple[Any, bool, str]:
        parts, exact, note = self._group(t)
        return Apply(parts=tuple(parts), probability=float(t.p)), exact, note

    def _chosen(self, t: Any) -> tuple[Any, bool, str]:
        inner = [_one(self, t, each) for each in t.transforms]
        weights = None if t.p is None or len(set(t.p)) == 1 else tuple(t.p)
        notes = "; ".join(dict.fromkeys(note for _, _, note in inner if note))
        return Choice(parts=tuple(p for p, _, _ in inner), weights=weights), all(e for _, e, _ in inner), notes

    def _shuffled(self, t: Any) -> tuple[Any, bool, str]:
        inner = [_one(self, t, each) for each in t.transforms]
        notes = "; ".join(dict.fromkeys(note for _, _, note in inner if note))
        return Shuffled(parts=tuple(p for p, _, _ in inner)), all(e for _, e, _ in inner), notes

    def _step(self, t: Any, name: str, p: float, magnitude: Any = 0.0, aux: int | None = None) -> tuple[Any, bool, str]:
        """An operation of the family that the image has: PIL's before it is a tensor, where there is one."""
        op = Op[f"PIL_{name}"] if self._pixels == "PIL" and f"PIL_{name}" in Op.__members__ else Op[name]
        return Step(op, p, magnitude, False, aux), True, ""

    def _solarize(self, t: Any) -> tuple[Any, bool, str]:
        return self._step(t, "SOLARIZE", float(t.p), float(t.threshold) * (255 if self._pixels == "float" else 1))

    def _jitter(self, t: Any) -> tuple[Any, bool, str]:
        names = ("brightness", "contrast", "saturation", "hue")
        ranges = {name: None if getattr(t, name) is None else _numbers(getattr(t, name)) for name in names}
        return Jitter(**ranges), True, _ROUNDING if self._pixels == "PIL" else ""  # type: ignore[arg-type]  # pairs

    def _grayscale(self, t: Any) -> tuple[Any, bool, str]:
        if getattr(t, "num_output_channels", 3) != 3:
            raise refuse(t, "it leaves one channel", "give it num_output_channels=3")
        return self._step(t, "GRAYSCALE", float(getattr(t, "p", 1.0)))

    def _blur(self, t: Any) -> tuple[Any, bool, str]:
        width, height = _size(t.kernel_size)
        if width != height:
            raise refuse(t, "its kernel is not square", "give it one kernel_size")
        # torchvision blurs PIL images by way of tensors
        return Step(Op.GAUSSIAN_BLUR, 1.0, _numbers(t.sigma), False, width), True, ""  # type: ignore[arg-type]  # a pair

    def _rotation(self, t: Any) -> tuple[Any, bool, str]:
        if t.expand or t.center is not None:
            raise refuse(t, "it expands, or turns about another point than the middle", "leave expand and center out")
        return self._warped(t, "ROTATE", _numbers(t.degrees))

    def _warped(self, t: Any, name: str, degrees: tuple[float, ...]) -> tuple[Any, bool, str]:
        filtered, fill = _filter(t), _fill(t, t.fill)
        part, _, _ = self._step(t, name, 1.0, degrees, FILTERS[filtered])
        self._fills.add(fill)
        fades = self._pixels != "PIL" and filtered != "nearest" and fill == (0, 0, 0) and t.fill is not None
        return part, not fades, "the border of what was turned is a little lighter than yours" if fades else ""

    def _affine(self, t: Any) -> tuple[Any, bool, str]:
        if t.center is not None:
            raise refuse(t, "it turns about another point than the middle", "leave center out")
        low, high = _numbers(t.degrees)
        if t.translate is t.scale is t.shear is None:
            if (low, high) == (0, 0):
                raise refuse(t, "it does nothing", "leave it out")
            return self._warped(t, "ROTATE", (-high, -low))  # RandomAffine turns the other way round
        given: list[tuple[Op, tuple[float, ...]]] = []
        if t.translate is not None:
            size = self._geometry.get("input_size", self._given.get("input_size"))
            height, width = _size(_sides(self._resize) if size is None else size)
            most = t.translate[0] * width, t.translate[1] * height
            given += [(op, (-m, m)) for op, m in zip((Op.AFFINE_X, Op.AFFINE_Y), most, strict=True)]
        if t.scale is not None:
            given.append((Op.AFFINE_SCALE, _numbers(t.scale)))
        if t.shear is not None:
            given.append((Op.AFFINE_SHEAR_X, _numbers(t.shear[:2])))
            given += [(Op.AFFINE_SHEAR_Y, _numbers(t.shear[2:]))] if len(t.shear) == 4 else []
        warp, exact, note = self._warped(t, "AFFINE", (low, high))
        # both ends of a range are there: torchvision has checked it
        steps = [Step(op, 1.0, ends) for op, ends in given if ends[0] != ends[1] or ends[0]]  # type: ignore[arg-type]
        return Apply(parts=(*steps, warp), probability=1.0), exact, note

    def _policy(self, t: Any, policy: AugmentPolicy) -> tuple[Any, bool, str]:
        return policy, True, _ROUNDING if self._pixels == "PIL" and not _by_timm(t) else ""

    def _randaugment(self, t: Any) -> tuple[Any, bool, str]:
        if _by_timm(t):
            return self._policy(t, _timms_randaugment(t))
        found = RandAugment(num_ops=t.num_ops, magnitude=t.magnitude, num_magnitude_bins=t.num_magnitude_bins,
                            interpolation=_filter(t), fill=_fill(t, t.fill))  # fmt: skip
        return self._policy(t, found)

    def _autoaugment(self, t: Any) -> tuple[Any, bool, str]:
        if _by_timm(t):
            return self._policy(t, _timms_autoaugment(t))
        name = str(getattr(t.policy, "value", t.policy))
        return self._policy(t, AutoAugment(policy=name, interpolation=_filter(t), fill=_fill(t, t.fill)))

    def _trivial(self, t: Any) -> tuple[Any, bool, str]:
        bins, name = t.num_magnitude_bins, _filter(t)
        return self._policy(t, TrivialAugmentWide(num_magnitude_bins=bins, interpolation=name, fill=_fill(t, t.fill)))

    def _augmix(self, t: Any) -> tuple[Any, bool, str]:
        if _by_timm(t):
            return self._policy(t, _timms_augmix(t))
        return self._policy(t, AugMix(severity=t.severity, mixture_width=t.mixture_width, chain_depth=t.chain_depth,
                                      alpha=t.alpha, all_ops=t.all_ops, interpolation=_filter(t),
                                      fill=_fill(t, t.fill)))  # fmt: skip

    # ---- the recipe

    def _check_end(self) -> None:
        if self._pixels in ("PIL", "uint8"):
            if "mean" in self._given and "std" in self._given:
                return  # timm's PrefetchLoader normalizes
            raise UntranslatableError(
                "the end of the pipeline", "it yields 8-bit values, and a loader yields floats",
                "add ToTensor() or ToDtype(torch.float32, scale=True), and Normalize; or pass mean= and std= (0..1) "
                "where the batches are normalized later, as timm's PrefetchLoader does",
            )  # fmt: skip

    def train_fields(self) -> dict[str, Any]:
        """The fields of a TrainRecipe."""
        self._check_end()
        return {**self._fields, **self._train_geometry(), **self._pixel_fields()}

    def _train_geometry(self) -> dict[str, Any]:
        found, resize, name = dict(self._geometry), self._resize, name_of(self._crop)
        if "crop" in found:  # RandomResizedCrop, RandomCrop
            return found
        if resize is not None and name_of(resize) == "ResizeKeepRatio":
            return self._keep_ratio(found)
        if resize is None and self._crop is None:
            if "input_size" in self._given:
                return {"crop": "center"}
            raise UntranslatableError(
                "the pipeline", "it neither crops nor resizes, so that images keep their own sizes",
                "add CenterCrop(size), or pass input_size= where all images are of that size",
            )  # fmt: skip
        if name == "CenterCropOrPad" and self._crop.padding_mode != "constant":
            raise refuse(self._crop, "it reflects without timm's ResizeKeepRatio before it", "give it 'constant'")
        if resize is not None:
            sides = _sides(resize)
            found["resize_size"] = sides[0] if len(sides) == 1 else sides
            if self._crop is None:
                if len(sides) == 1:
                    raise _one_side(resize)
                found["input_size"] = sides
        return {**found, "crop": "center"}

    def _keep_ratio(self, found: dict[str, Any]) -> dict[str, Any]:
        resize, crop, name = self._resize, self._crop, name_of(self._crop)
        drawn = resize.random_scale_prob > 0
        if not drawn or name not in ("CenterCropOrPad", "RandomCropOrPad") or crop.padding_mode != "reflect":
            change = "take train_crop_mode 'rrc', 'rkrc' or 'rkrr'"
            raise refuse(resize, "with what follows it is none of timm's train_crop_modes", change)
        if _size(resize.size) != _size(crop.size):
            raise refuse(crop, f"it is not of the size of {show(resize)}", "give both one size")
        mode = "rkrr" if name == "RandomCropOrPad" else "rkrc"
        ranges = {"scale": _numbers(resize.random_scale_range), "ratio": _numbers(resize.random_aspect_range)}
        return {**found, **ranges, "crop": mode}

    def _pixel_fields(self) -> dict[str, Any]:
        parts = list(self._parts)
        fills = set(self._fills)
        if fills:  # of steps, which have none of their own
            fills |= {part.fill for part in parts if isinstance(part, AugmentPolicy) and moves(part)}
        if len(fills) > 1:
            why = f"it fills with several colours: {sorted(fills)}"
            raise UntranslatableError("the pipeline", why, "give all one fill")
        for fill in fills - {(0, 0, 0)}:
            return {"program": tuple(_filled(part, fill) for part in parts)}
        canonical = _as_fields(parts)
        return {"program": tuple(parts)} if canonical is None else canonical

    def eval_fields(self) -> dict[str, Any]:
        """The fields of an EvalRecipe."""
        self._check_end()
        fields = {"mean": self._fields["mean"], "std": self._fields["std"]}
        resize, crop = self._resize, self._crop
        if resize is None:
            raise UntranslatableError(
                "the pipeline", "it does not resize, and an EvalRecipe always does", "add Resize before CenterCrop"
            )
        fields["interpolation"] = self._geometry["interpolation"]
        if name_of(resize) == "ResizeKeepRatio":
            return fields | self._eval_keep_ratio()
        sides = _sides(resize)
        if crop is None and len(sides) == 1:
            raise _one_side(resize)
        if name_of(crop) == "CenterCropOrPad":
            raise refuse(crop, "it stands behind Resize", "take CenterCrop")
        size = sides if crop is None else _size(crop.size)
        fields["input_size"] = size
        if len(sides) == 1:
            short = (sides[0], sides[0])
            same = sides[0] >= min(size)
            return fields | ({"resize_size": sides[0]} if same else {"crop_pct": _crop_pct(resize, size, short)})
        fields["crop_mode"] = "squash"
        if sides[0] == sides[1] and sides[0] >= min(size):
            return fields | {"resize_size": sides[0]}
        return fields | {"crop_pct": _crop_pct(resize, size, sides)}

    def _eval_keep_ratio(self) -> dict[str, Any]:
        resize, crop, name = self._resize, self._crop, name_of(self._crop)
        if crop is None:
            raise refuse(resize, "it leaves one side to the image", "add CenterCrop or CenterCropOrPad")
        size, scale = _size(crop.size), _size(resize.size)
        found: dict[str, Any] = {"input_size": size, "crop_pct": _crop_pct(resize, size, scale)}
        if resize.longest == 0 and name == "CenterCrop":
            return found
        mean = [round(255 * m) for m in self._given.get("mean", self._fields["mean"])]
        if resize.longest == 1 and name == "CenterCropOrPad" and list(_fill(crop, crop.fill)) == mean:
            return {**found, "crop_mode": "border"}
        raise refuse(crop, "with what stands before it, it is none of timm's crop_modes",
                      "take 'center', 'squash' or 'border', which fills with the mean")  # fmt: skip


def _one(reader: _Reader, group: Any, transform: Any) -> tuple[Any, bool, str]:
    """One member of a RandomChoice or RandomOrder, which may be a pipeline."""
    if name_of(transform) in ("Compose", "Sequential") or isinstance(transform, list | tuple):
        parts, exact, note = reader._group(_Holder(list(flat(transform))))
        return Apply(parts=tuple(parts), probability=1.0), exact, note
    if name_of(transform) == "Identity":
        return Step(Op.IDENTITY), True, ""
    if name_of(transform) not in _PARTS:
        raise refuse(group, f"{show(transform)} cannot be drawn within another", "take it out of there")
    return reader._part(transform)


class _Holder(NamedTuple):
    transforms: list[Any]


def _sides(resize: Any) -> tuple[int, ...]:
    """The sides of a Resize: one, or height and width."""
    if name_of(resize) == "ResizeKeepRatio":
        return _size(resize.size)
    given = resize.size
    return tuple(int(v) for v in given) if isinstance(given, Sequence) else (int(given),)


def _one_side(resize: Any) -> UntranslatableError:
    side = _sides(resize)[0]
    return refuse(resize, "it leaves one side to the image", f"add CenterCrop({side}), or resize to ({side}, {side})")


def _crop_pct(transform: Any, size: tuple[int, ...], scale: tuple[int, ...]) -> float:
    """The share for which `floor(side / share)` is the scale."""
    share = min(s / t for s, t in zip(size, scale, strict=True))
    for each in (share, math.nextafter(share, 0)):
        if all(math.floor(s / each) == t for s, t in zip(size, scale, strict=True)):
            return each
    raise refuse(transform, f"{scale} is no multiple of the output {size}", "resize both sides by one factor")


def _leans(part: Any) -> bool:
    """Whether a part moves pixels to one side more than to the other."""
    if isinstance(part, Apply | Choice | Shuffled):
        return any(_leans(each) for each in part.parts)
    if not isinstance(part, Step) or part.op not in _LEANING:
        return False
    low, high = part.magnitude  # type: ignore[misc]  # a pair wherever this module makes one
    return low != -high


_MOVING = (Op.ROTATE, Op.PIL_ROTATE, Op.AFFINE, Op.PIL_AFFINE)
_LEANING = (*_MOVING, *(AFFINE_PARTS - {Op.AFFINE_SCALE}))


def _strength(given: tuple[float, float] | None, middle: float) -> float | None:
    """The strength that stands for a range, if one does."""
    if given is None:
        return 0.0
    low, high = given
    strength = round(high - middle, 12)
    least = max(0.0, middle - strength) if middle else -strength
    return strength if math.isclose(low, least, abs_tol=1e-9) and 0 <= strength <= (1 if middle else 0.5) else None


def _color_jitter(part: Any) -> dict[str, Any] | None:
    """A jitter as the field of that name."""
    probability = 1.0
    if isinstance(part, Apply) and len(part.parts) == 1:
        [part], probability = part.parts, part.probability
    if not isinstance(part, Jitter):
        return None
    factors = (part.brightness, part.contrast, part.saturation)
    found = [*(_strength(each, 1) for each in factors), _strength(part.hue, 0)]
    return None if None in found else {"color_jitter": tuple(found), "color_jitter_prob": probability}


def _grayscale_prob(part: Any) -> dict[str, Any] | None:
    gray = isinstance(part, Step) and part.op in (Op.GRAYSCALE, Op.PIL_GRAYSCALE)
    return {"grayscale_prob": part.probability} if gray else None


def _gaussian_blur(part: Any) -> dict[str, Any] | None:
    probability = 1.0
    if isinstance(part, Apply) and len(part.parts) == 1:
        [part], probability = part.parts, part.probability
    if not isinstance(part, Step) or part.op != Op.GAUSSIAN_BLUR:
        return None
    return {"gaussian_blur_prob": probability * part.probability, "gaussian_blur_kernel": part.aux,
            "gaussian_blur_sigma": part.magnitude}  # fmt: skip


def _auto_augment(part: Any) -> dict[str, Any] | None:
    alone = isinstance(part, AugmentPolicy) and not isinstance(part, Jitter | Apply | Choice | Shuffled)
    return {"auto_augment": part} if alone else None


def _as_fields(parts: list[Any]) -> dict[str, Any] | None:
    """The parts as fields of the recipe, if they are in the order that it has."""
    fields: dict[str, Any] = {}
    stages = [_color_jitter, _auto_augment, _color_jitter, _grayscale_prob, _gaussian_blur]
    at = 0
    for part in parts:
        while at < len(stages) and (found := stages[at](part)) is None:
            at += 1
        if at == len(stages) or found is None or found.keys() & fields.keys():
            return None
        fields |= found
        if at == 2 and "auto_augment" in fields:
            fields["color_order"] = "after_policy"
        at += 1
    return fields


def _filled(part: Any, fill: tuple[int, int, int]) -> Any:
    """A step that moves, as a policy that fills with that colour."""
    if isinstance(part, Step) and part.op in _MOVING:
        return TablePolicy(sub_policies=((part,),), fill=fill)
    if isinstance(part, Apply | Choice | Shuffled):
        inner = tuple(_filled(each, fill) for each in part.parts)
        return dataclasses.replace(part, parts=inner, fill=(0, 0, 0))
    return part


# ---- timm's policies


def _common(transform: Any, ops: Sequence[Any], *shared: str) -> dict[str, Any]:
    """What timm's operations have in common: filter, fill, noise; ValueError-like refusal where they differ."""
    first = ops[0]
    pct = 0.3 if name_of(transform) == "AugMixAugment" else 0.45
    for op in ops:
        same = all(getattr(op, name, None) == getattr(first, name, None) for name in shared)
        same = same and op.hparams == first.hparams
        if not same or op.hparams.get("translate_pct", 0.45) != pct:
            raise refuse(transform, "its operations differ in more than timm's strings can say", "make it of a string")
    resample = first.kwargs["resample"]
    names = {number: name for name, number in FILTERS.items()}
    interpolation = None if isinstance(resample, list | tuple) else names[int(resample)]
    return {"fill": _fill(transform, first.kwargs["fillcolor"]), "interpolation": interpolation,
            "magnitude_std": float(first.magnitude_std)}  # fmt: skip


def _operation(op: Any) -> str:
    """Its name; before 0.6 timm's operations had none, nor a magnitude_max."""
    if hasattr(op, "name"):
        return str(op.name)
    table = sys.modules[type(op).__module__]
    same = (n for n, f in table.NAME_TO_OP.items() if f is op.aug_fn and table.LEVEL_TO_ARG[n] is op.level_fn)
    return next(same, "")


def _timms_randaugment(t: Any) -> TimmRandAugment:
    common = _common(t, t.ops, "prob", "magnitude", "magnitude_max")
    weights = None if t.choice_weights is None else [float(w) for w in t.choice_weights]
    found = rand_augment_named([_operation(op) for op in t.ops], weights)
    if found is None:
        raise refuse(t, "its operations are none of timm's sets", "make it of a string, such as 'rand-m9-mstd0.5'")
    transforms, increasing = found
    first = t.ops[0]
    most = getattr(first, "magnitude_max", None) or 10
    return TimmRandAugment(magnitude=first.magnitude, num_layers=t.num_layers, prob=first.prob, magnitude_max=most,
                           increasing=increasing, transforms=transforms, **common)  # fmt: skip


def _timms_autoaugment(t: Any) -> TimmAutoAugment:
    common = _common(t, [op for sub in t.policy for op in sub])
    name = auto_augment_named([[(op.name, op.prob, op.magnitude) for op in sub] for sub in t.policy])
    if name is None:
        raise refuse(t, "it is none of timm's policies", "make it of a string, such as 'original' or 'v0'")
    return TimmAutoAugment(policy=name, **common)


def _timms_augmix(t: Any) -> TimmAugMix:
    common = _common(t, t.ops, "prob", "magnitude", "magnitude_max")
    if [op.name for op in t.ops] != list(TIMM_MIX) or t.ops[0].prob != 1.0:
        raise refuse(t, "its operations are not timm's", "make it of a string, such as 'augmix-m3-w3'")
    first = t.ops[0]
    return TimmAugMix(magnitude=first.magnitude, width=t.width, depth=t.depth, alpha=t.alpha, blended=bool(t.blended),
                      **common)  # fmt: skip


_PARTS: dict[str, Callable[[_Reader, Any], tuple[Any, bool, str]]] = {
    "RandomApply": _Reader._applied,
    "RandomChoice": _Reader._chosen,
    "RandomOrder": _Reader._shuffled,
    "ColorJitter": _Reader._jitter,
    "RandomGrayscale": _Reader._grayscale,
    "Grayscale": _Reader._grayscale,
    "GaussianBlur": _Reader._blur,
    "RandomRotation": _Reader._rotation,
    "RandomAffine": _Reader._affine,
    "RandomSolarize": _Reader._solarize,
    "RandomPosterize": lambda r, t: r._step(t, "POSTERIZE", float(t.p), int(t.bits)),
    "RandomInvert": lambda r, t: r._step(t, "INVERT", float(t.p)),
    "RandomEqualize": lambda r, t: r._step(t, "EQUALIZE", float(t.p)),
    "RandomAutocontrast": lambda r, t: r._step(t, "AUTO_CONTRAST", float(t.p)),
    "RandomAdjustSharpness": lambda r, t: r._step(t, "SHARPNESS", float(t.p), float(t.sharpness_factor)),
    "RandAugment": _Reader._randaugment,
    "AutoAugment": _Reader._autoaugment,
    "TrivialAugmentWide": _Reader._trivial,
    "AugMix": _Reader._augmix,
    "AugMixAugment": _Reader._augmix,
}


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"


def _say(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_say_value(value)}" for name, value in fields.items())


def _say_value(value: Any) -> str:
    floats = isinstance(value, tuple) and any(isinstance(v, float) for v in value)
    return _short(value) if floats else f"{value:.6g}" if isinstance(value, float) else repr(value)


def _say_part(part: Any) -> str:
    if isinstance(part, Step):
        return f"({part.op.name}, {part.probability:g}, {_say_value(part.magnitude)})"
    if isinstance(part, Apply | Choice | Shuffled):
        return f"{type(part).__name__}({', '.join(_say_part(each) for each in part.parts)})"
    return repr(part)
