"""What exactly happened to an image: the draws of a batch as plain data, and one image made again from them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet.engine import Engine
from dali_imagenet.escape import escaped
from dali_imagenet.ops import FILTERS, OPS, Op
from dali_imagenet.plan.batch_plan import BatchPlan, MixPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.plan.program import color_matrix
from dali_imagenet.policy import AugMixPlan, OpPlan

FILTER_NAMES = {number: name for name, number in FILTERS.items()}
_COLOR = ("brightness", "contrast", "saturation", "hue_degrees")


def explain(plan: Plan, epoch: int, step: int, failed: Collection[int] = ()) -> list[dict[str, Any]]:
    """The rows of one step as dictionaries that JSON takes and gives back unchanged.

    Each holds: epoch, step, row, size (height and width of the output); position in the order of the epoch (of the
    pass, with `steps_per_epoch`); index (the sample that is read), drawn (the one that the order named; another one
    only where that is broken), repeat, path, label, class; source_size, box (top, left, height, width of the region of
    the stored image), resize (height, width) and interpolation, crop (top, left), crop_fill (colour of what it shows
    beside the image) and crop_beside ("constant": that colour, "reflect": the image reflected); hflip, vflip; color
    (factors and degrees of color_twist) or None; program: operations in order, each {"op", "arg", "aux"} (see `Op`), or
    an AugMix {"chains", "weights", "m", "mode"}; fill; mean and std; erase: boxes (top, left, height, width),
    erase_mode, erase_value and noise_key; mix: {"kind", "lam", "box" (top, bottom, left, right) or None, "partner":
    {row, index, label}} or None. All in pixels of what they apply to. A padding row has index -1 and label -100. Of
    several views, view says which it is; the rows of one come after those of another.

    Args:
        failed: samples that turned out to be unreadable.
    """
    batch = plan.batch(epoch, step, failed)
    return [_row(plan, view, row) for view in batch.views for row in range(len(view))]


def _row(plan: Plan, batch: BatchPlan, row: int) -> dict[str, Any]:
    index, label = int(batch.source_index[row]), int(batch.label[row])
    real = index >= 0
    return {
        "epoch": batch.epoch,
        "step": batch.step,
        "row": row,
        "view": batch.view,
        "size": list(batch.size),
        "position": int(batch.position[row]),
        "index": index,
        "drawn": int(batch.sampled_index[row]),
        "repeat": int(batch.repeat[row]),
        "path": plan.index.path(index) if real else None,
        "label": label,
        "class": plan.index.classes[label] if real else None,
        "source_size": batch.source_size[row].tolist(),
        "box": batch.crop_box[row].tolist(),
        "resize": batch.resize[row].tolist(),
        "interpolation": FILTER_NAMES[int(batch.interpolation[row])],
        "crop": batch.window[row].tolist(),
        "crop_fill": list(batch.window_fill),
        "crop_beside": batch.window_mode,
        "hflip": bool(batch.hflip[row]),
        "vflip": bool(batch.vflip[row]),
        "color": None
        if batch.color_factors is None
        else dict(zip(_COLOR, batch.color_factors[row].tolist(), strict=True)),
        "program": [_part(part, row) for part in batch.ops],
        "fill": None if batch.fill is None else list(batch.fill),
        "mean": list(batch.mean),
        "std": list(batch.std),
        "erase": [] if batch.erase is None else [box for box in batch.erase[row].tolist() if box[2] > 0],
        "erase_mode": batch.erase_mode,
        "erase_value": list(batch.erase_value),
        "noise_key": None if batch.noise_key is None else int(batch.noise_key[row]),
        "mix": None if batch.mix is None or batch.mix.lam[row] == 1 else _mix(batch, batch.mix, row),
    }


def _part(part: OpPlan | AugMixPlan, row: int) -> list[dict[str, Any]] | dict[str, Any]:
    if isinstance(part, OpPlan):
        return _operations(part.op[row], part.arg[row], part.aux[row])
    chains = [_operations(*chain) for chain in zip(part.op[row], part.arg[row], part.aux[row], strict=True)]
    return {"chains": chains, "weights": part.weights[row].tolist(), "m": float(part.m[row]), "mode": part.mode}


def _operations(op: npt.NDArray[Any], arg: npt.NDArray[Any], aux: npt.NDArray[Any]) -> list[dict[str, Any]]:
    steps = zip(op.tolist(), arg.tolist(), aux.tolist(), strict=True)
    return [{"op": Op(o).name, "arg": a, "aux": x} for o, a, x in steps if o != Op.IDENTITY]


def _mix(batch: BatchPlan, mix: MixPlan, row: int) -> dict[str, Any]:
    other = len(batch) - 1 - row
    return {
        "kind": "cutmix" if mix.use_cutmix[row] else "mixup",
        "lam": float(mix.lam[row]),
        "box": mix.box[row].tolist() if mix.use_cutmix[row] else None,
        "partner": {"row": other, "index": int(batch.source_index[other]), "label": int(batch.label[other])},
    }


def in_words(row: dict[str, Any]) -> list[str]:
    """A row of `explain` as lines of text, sides as width x height and places as (from the left, from the top)."""
    if row["index"] < 0:
        return [f"row {row['row']}: padding, no image"]
    top, left, height, width = row["box"]
    source_height, source_width = row["source_size"]
    share = height * width / (source_height * source_width)
    read = f", read in the place of sample {row['drawn']}, which is broken" if row["drawn"] != row["index"] else ""
    lines = [
        f"row {row['row']}: {escaped(row['path'])}",
        f"  sample    {row['index']}, class {escaped(row['class'])} ({row['label']}), "
        f"place {row['position']} of the order{read}",
        f"  image     {source_width} x {source_height}",
        f"  region    {width} x {height} at ({left}, {top}), {share:.0%} of it",
        f"  resize    to {row['resize'][1]} x {row['resize'][0]}, {row['interpolation']}",
    ]
    if row["resize"] != row["size"]:
        lines.append(f"  crop      {row['size'][1]} x {row['size'][0]} at ({row['crop'][1]}, {row['crop'][0]})")
    flips = [way for way, drawn in (("horizontal", row["hflip"]), ("vertical", row["vflip"])) if drawn]
    if flips:
        lines.append(f"  flip      {' and '.join(flips)}")
    if row["color"]:
        told = (f"{name.removesuffix('_degrees')} {value:.3g}" for name, value in row["color"].items())
        lines.append(f"  colour    {', '.join(told)} degrees")
    lines += [f"  policy    {_said(part)}" for part in row["program"] if part]
    lines += [f"  erase     {w} x {h} at ({x}, {y}), {_FILLED[row['erase_mode']]}" for y, x, h, w in row["erase"]]
    if row["mix"]:
        lines.append(f"  mixing    {_mixed(row['mix'])}")
    return lines


_FILLED = {"const": "one colour", "rand": "a random colour", "pixel": "noise"}


def said_of(op: dict[str, Any]) -> str:
    """An operation of `explain` in words: its name, its argument with the unit, its filter or kernel."""
    name, info = op["op"].removeprefix("PIL_"), OPS[Op[op["op"]]]
    before, after = _UNITS.get(name, ("", None))
    words = [name.lower().replace("_", " ")]
    if after is not None:
        words += [before, f"{op['arg']:.4g}", after]
    if info.aux == "filter":
        words.append(f"({FILTER_NAMES[op['aux']]})")
    elif info.aux == "kernel":
        words.append(f"(kernel of {op['aux']})")
    return " ".join(word for word in words if word)


_UNITS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("SHEAR_X", "SHEAR_Y"), ("by", "")),
    **dict.fromkeys(("TRANSLATE_X", "TRANSLATE_Y", "AFFINE_X", "AFFINE_Y"), ("by", "pixels")),
    **dict.fromkeys(("ROTATE", "AFFINE", "AFFINE_SHEAR_X", "AFFINE_SHEAR_Y"), ("by", "degrees")),
    **dict.fromkeys(("BRIGHTNESS", "COLOR", "CONTRAST", "SHARPNESS", "AFFINE_SCALE"), ("factor", "")),
    "POSTERIZE": ("to", "bits"),
    "SOLARIZE": ("from", "on"),
    "SOLARIZE_ADD": ("of", "below 128"),
    "HUE": ("by", "turns"),
    "GAUSSIAN_BLUR": ("of", "pixels"),
}
"""What stands before and after an operation's argument; without an entry it has none."""


def _said(part: list[dict[str, Any]] | dict[str, Any]) -> str:
    if isinstance(part, list):
        return ", then ".join(map(said_of, part))
    chains = zip(part["weights"], part["chains"], strict=True)
    told = "; ".join(
        f"{weight:.2f} of {', then '.join(map(said_of, chain)) or 'the image'}" for weight, chain in chains
    )
    return f"AugMix ({part['mode']}), m {part['m']:.2f}: {told}"


def _mixed(mix: dict[str, Any]) -> str:
    other = f"row {mix['partner']['row']} (sample {mix['partner']['index']}, class {mix['partner']['label']})"
    text = f"{mix['kind']} with {other}: {mix['lam']:.2f} of this image"
    if mix["box"] is None:
        return text
    top, bottom, left, right = mix["box"]
    return f"{text}, the other's {right - left} x {bottom - top} at ({left}, {top})"


def to_plan(row: dict[str, Any]) -> BatchPlan:
    """A batch of that one row, without mixing: what `explain` wrote, read back."""

    def one(name: str, dtype: npt.DTypeLike) -> Any:
        return np.array([row[name]], dtype)

    factors = None if row["color"] is None else np.array([[row["color"][name] for name in _COLOR]], np.float32)
    return BatchPlan(
        epoch=row["epoch"],
        step=row["step"],
        size=tuple(row["size"]),
        position=one("position", np.int64),
        sampled_index=one("drawn", np.int64),
        source_index=one("index", np.int64),
        repeat=one("repeat", np.int64),
        label=one("label", np.int64),
        source_size=one("source_size", np.int32),
        crop_box=one("box", np.int32),
        resize=one("resize", np.int32),
        interpolation=np.array([FILTERS[row["interpolation"]]], np.uint8),
        window=one("crop", np.int32),
        # rows that were written before there were these have none
        window_fill=tuple(row.get("crop_fill", (0, 0, 0))),
        window_mode=row.get("crop_beside", "constant"),
        erase_value=tuple(row.get("erase_value", (0.0, 0.0, 0.0))),
        view=row.get("view", 0),
        hflip=one("hflip", np.bool_),
        vflip=one("vflip", np.bool_),
        color_factors=factors,
        color=None if factors is None else color_matrix(factors),
        ops=tuple(_to_part(part) for part in row["program"]),
        fill=None if row["fill"] is None else tuple(row["fill"]),
        mean=tuple(row["mean"]),
        std=tuple(row["std"]),
        erase_mode=row["erase_mode"],
        erase=None if row["noise_key"] is None else np.array([row["erase"] or [[0] * 4]], np.int32),
        noise_key=None if row["noise_key"] is None else one("noise_key", np.uint64),
        mix=None,
    )


def _to_part(part: list[dict[str, Any]] | dict[str, Any]) -> OpPlan | AugMixPlan:
    if isinstance(part, list):
        return OpPlan(*_arrays([part]))
    weights, m = np.array([part["weights"]], np.float32), np.array([part["m"]], np.float32)
    op, arg, aux = (array[None] for array in _arrays(part["chains"]))
    return AugMixPlan(op, arg, aux, weights, m, part["mode"])


def _arrays(chains: list[list[dict[str, Any]]]) -> tuple[Any, Any, Any]:
    """Operations as arrays [chains, longest], filled up with identities."""
    width = max(1, *map(len, chains)) if chains else 1
    filled = [chain + [{"op": "IDENTITY", "arg": 0.0, "aux": 0}] * (width - len(chain)) for chain in chains]
    op = np.array([[Op[step["op"]] for step in chain] for chain in filled], np.int16)
    arg = np.array([[step["arg"] for step in chain] for chain in filled], np.float32)
    return op, arg, np.array([[step["aux"] for step in chain] for chain in filled], np.int16)


class _OneRow(Plan):
    """A plan of one step with one row."""

    def __init__(self, plan: Plan, batch: BatchPlan) -> None:
        # Not Plan's: the draws are there already, and one row need not fit the data.
        self.index, self.train, self.on_error = plan.index, plan.train, "raise"
        self.recipe = plan.recipes[batch.view]
        self.recipes = (self.recipe,)
        self.max_broken = 1.0
        self._batch, self.batch_size = batch, 1
        self.steps = batch.step + 1  # so that executors can start at this one

    def batch(self, epoch: int, step: int, failed: Collection[int] = ()) -> BatchPlan:
        return self._batch

    def schedule(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        yield epoch, step


def reproduce(plan: Plan, engine: Engine, row: dict[str, Any]) -> Tensor:
    """Make the image of an explained row again, as that engine makes it.

    Args:
        plan: of the data and recipe that the row is of.

    Returns:
        [3, H, W], bit for bit the row of the batch before mixing (on a GPU as far as its decoder repeats itself).

    Raises:
        ValueError: for a padding row, or a row of other data.
        BadImageError: the image cannot be read.
    """
    data = plan.index
    if row["index"] < 0:
        raise ValueError(f"row {row['row']} of step {row['step']} is padding: it shows no image")
    size = None if row["index"] >= len(data) else [int(data.height[row["index"]]), int(data.width[row["index"]])]
    if size != row["source_size"]:
        raise ValueError(f"the row is of other data: image {row['index']} is {row['source_size']} there, {size} here")
    batch = to_plan(row)
    if batch.view >= len(plan.recipes):
        raise ValueError(f"the row is of view {batch.view}: there are only {len(plan.recipes)} here")
    with torch.inference_mode(False):
        alone = engine.for_plan(_OneRow(plan, batch))
        with contextlib.closing(alone), contextlib.closing(alone.batches(batch.epoch, batch.step)) as batches:
            return next(batches)[1][0][0]
