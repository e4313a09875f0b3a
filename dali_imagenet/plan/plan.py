"""Everything random about a batch, drawn before a pixel is touched, as a pure function of (seed, epoch, sample).

numpy only. What executes a :class:`BatchPlan` draws nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dali_imagenet import rng
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.errors import BadImageError
from dali_imagenet.ops import Op
from dali_imagenet.policy import AugmentPolicy, AugMixPlan, OpPlan
from dali_imagenet.recipe import EvalRecipe, Recipe, Size, TrainRecipe

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
OnError = Literal["raise", "replace", "skip"]

PADDING = -100
"""Target of a padding row: the ignore_index of torch.nn.CrossEntropyLoss."""
EPOCHS = 2**32  # as many as the draws can tell apart
_TRIES = 10  # of RandomResizedCrop and RandomErasing, as in torchvision and timm

# DALI's color_twist: RGB -> YIQ, the hue as a rotation there. dali/operators/image/color/color_twist.h
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Row i mixes with row B-1-i, as in timm's Mixup."""

    lam: F32
    """[B], weight of the row itself in its target, and in its pixels where it is not cut."""
    cut: Bools
    """[B], whether a box is pasted (CutMix) rather than blended (Mixup)."""
    box: I32
    """[B, 4]: top, bottom, left, right in pixels of the output; bottom and right are exclusive."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What happens to the B rows that one rank sees in one step."""

    epoch: int
    step: int
    size: tuple[int, int]
    """Height and width of the output in pixels."""
    position: I64
    """[B], place in the order of the epoch; -1 for a padding row."""
    drawn: I64
    """[B], the sample that the order put here, and that keys the draws; -1 for padding."""
    index: I64
    """[B], the sample that is read: `drawn`, or its substitute where that one is broken; -1 for padding."""
    repeat: I64
    """[B], number of the copy under repeated augmentation."""
    label: I64
    """[B], class; -100 for padding."""
    source_size: I32
    """[B, 2], height and width of the stored image in pixels, without EXIF rotation."""
    box: I32
    """[B, 4]: top, left, height, width of the region that is resized, in pixels of the stored image."""
    resize: I32
    """[B, 2], height and width that the region is resized to."""
    crop: I32
    """[B, 2], top and left of the output window in the resized region."""
    hflip: Bools
    vflip: Bools
    color_factors: F32 | None
    """[B, 4]: brightness, contrast, saturation factors and hue in degrees of color_twist."""
    color: F32 | None
    """[B, 3, 4], the same as one matrix and offset: clamp(round(M @ rgb + o)), in 0..255."""
    program: tuple[OpPlan | AugMixPlan, ...]
    """Operations on the uint8 pixels after the colour, in order."""
    erase: I32 | None
    """[B, C, 4]: top, left, height, width of erased boxes in the output; height 0 is none."""
    noise_key: U64 | None
    """[B], key of the erasing noise."""
    mix: MixPlan | None

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Sequence[int] | I64) -> BatchPlan:
        """The plan of some of the rows; without mixing, which is between rows."""
        at = np.asarray(rows, np.int64)

        def pick(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return value[at]
            if isinstance(value, OpPlan | AugMixPlan):
                return type(value)(*(pick(field) for field in value))
            if isinstance(value, tuple):
                return tuple(pick(part) for part in value)
            return value

        fields = {f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "mix"}
        return BatchPlan(**fields, mix=None)


def color_matrix(factors: F32) -> F32:
    """DALI's color_twist as a matrix: [B, 4] factors (brightness, contrast, saturation, degrees) -> [B, 3, 4]."""
    brightness, contrast, saturation, degrees = factors.T.astype(np.float64)
    radians = np.deg2rad(degrees)
    rotate = np.zeros((len(factors), 3, 3))
    rotate[:, 0, 0] = 1
    rotate[:, 1, 1] = rotate[:, 2, 2] = np.cos(radians) * saturation
    rotate[:, 1, 2] = np.sin(radians) * saturation
    rotate[:, 2, 1] = -rotate[:, 1, 2]
    matrix = (brightness * contrast)[:, None, None] * (_RGB @ rotate @ _YIQ)
    offset = np.broadcast_to((brightness * 128 * (1 - contrast))[:, None, None], (len(factors), 3, 1))
    return np.concatenate([matrix, offset], axis=2).astype(np.float32)


class Plan:
    """The order of an epoch and every draw in it, for one rank.

    Args:
        index: the samples.
        recipe: what to draw.
        seed: 0..2**64-1.
        batch_size: rows per rank and step.
        drop_last: leave out the last partial batch. None: yes in training, no in evaluation.
        on_error: what becomes of a sample that the index knows to be broken: "replace" reads the next healthy sample
            (same class, mostly) in its place; "skip" (evaluation only) makes a padding row of it. With "raise" the plan
            draws as if it were healthy; the loader refuses such an index before it gets here.

    Raises:
        ValueError: for a batch that cannot be shared, or is larger than the data.
    """

    def __init__(
        self,
        index: SampleIndex,
        recipe: Recipe,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.train = isinstance(recipe, TrainRecipe)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}, world_size={world_size}: rank must be in [0, world_size)")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed}: must be in [0, 2**64)")
        if recipe.mixing and batch_size % 2:
            raise ValueError(f"batch_size={batch_size}: must be even for Mixup and CutMix, which mix rows in pairs")
        if on_error == "skip" and self.train:
            raise ValueError("on_error='skip' is for evaluation; in training use 'replace' or 'raise'")
        self.index, self.recipe, self.seed = index, recipe, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.drop_last = self.train if drop_last is None else drop_last
        self.on_error = on_error
        self.global_batch = batch_size * world_size
        full, rest = divmod(len(index), self.global_batch)
        self.steps = full if self.drop_last or rest == 0 else full + 1
        if self.steps == 0:
            raise ValueError(
                f"batch_size={batch_size} on {world_size} ranks is larger than the data ({len(index)} images), and "
                "drop_last=True leaves nothing: use a smaller batch or drop_last=False"
            )
        if self.train and self.steps > full and rest % (share := world_size * (2 if recipe.mixing else 1)):
            raise ValueError(
                f"drop_last=False: the last batch of {rest} images cannot be shared evenly (a multiple of {share} is "
                f"needed{' for mixing in pairs' if recipe.mixing else ''}): use drop_last=True or another batch_size"
            )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a saved position depends on; the world size is not in it."""
        return {
            "data": self.index.fingerprint,
            "recipe": self.recipe.fingerprint,
            "seed": self.seed,
            "global_batch_size": self.global_batch,
            "drop_last": self.drop_last,
        }

    def positions(self, step: int) -> I64:
        """Places in the order of the epoch that this rank takes in that step, ascending; -1 for padding."""
        start = step * self.global_batch
        total = min(self.global_batch, len(self.index) - start)
        share = -(-total // self.world_size)
        if self.train and share % 2 == 0:
            front = np.arange(self.rank * share // 2, (self.rank + 1) * share // 2, dtype=np.int64)
            return np.concatenate([front, total - 1 - front[::-1]]) + start
        run = np.arange(self.rank * share, (self.rank + 1) * share, dtype=np.int64)
        return np.where(run < total, run + start, -1)

    def upcoming(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """(epoch, step) from that step on; in training on into the next epochs, so that none waits for its first batch.

        Evaluation ends with the epoch: what was made ahead would hold memory while the model trains.
        """
        for each in range(epoch, EPOCHS if self.train else epoch + 1):
            for at in range(step, self.steps):
                yield each, at
            step = 0

    def batch(self, epoch: int, step: int, failed: Collection[int] = ()) -> BatchPlan:
        """The plan of one step.

        Args:
            failed: samples that turned out to be unreadable; treated like those the index knows to be broken.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step}: the epoch has steps 0..{self.steps - 1}")
        position = self.positions(step)
        drawn, repeat = self._ordered(epoch, position)
        index = drawn if self.on_error == "raise" else self._substituted(drawn, failed)
        real = index >= 0
        size = self.recipe.size_at(epoch)
        source = np.stack([self.index.height[index], self.index.width[index]], axis=1).astype(np.int32)
        source[~real] = size
        common = {
            "epoch": epoch,
            "step": step,
            "size": size,
            "position": position,
            "drawn": drawn,
            "index": index,
            "repeat": repeat,
            "label": np.where(real, self.index.labels[index], PADDING).astype(np.int64),
            "source_size": source,
        }
        if isinstance(self.recipe, EvalRecipe):
            return BatchPlan(**common, **_eval_geometry(self.recipe, source))  # type: ignore[arg-type]  # of many types
        u = rng.streams(self.seed, epoch, _counts(self.recipe), drawn, repeat)
        factors = _color_factors(self.recipe, u)
        erases = self.recipe.re_prob > 0
        return BatchPlan(
            **common,  # type: ignore[arg-type]  # of many types
            box=random_resized_crop(source, self.recipe.scale, self.recipe.ratio, u[rng.STREAM_CROP]),
            resize=np.broadcast_to(np.array(size, np.int32), (len(index), 2)),
            crop=np.zeros((len(index), 2), np.int32),
            hflip=u[rng.STREAM_FLIP][:, 0] < self.recipe.hflip,
            vflip=u[rng.STREAM_FLIP][:, 1] < self.recipe.vflip,
            color_factors=factors,
            color=None if factors is None else color_matrix(factors),
            program=_program(self.recipe, size, u),
            erase=random_erasing(self.recipe, size, u[rng.STREAM_ERASE]) if erases else None,
            noise_key=_noise_key(u[rng.STREAM_NOISE]) if erases else None,
            mix=self._mix(self.recipe, epoch, step, size, position) if self.recipe.mixing else None,
        )

    def samples(self, epoch: int, step: int) -> I64:
        """The samples of this rank in that step, int64 [B]; -1 for padding."""
        return self._ordered(epoch, self.positions(step))[0]

    def _ordered(self, epoch: int, position: I64) -> tuple[I64, I64]:
        """The samples at those places in the order of the epoch, and which copies of them."""
        repeats = self.recipe.num_aug_repeats if isinstance(self.recipe, TrainRecipe) else 1
        real = position >= 0
        place, repeat = np.divmod(np.where(real, position, 0), repeats)
        order = _permutation(len(self.index), self.seed, epoch)(place) if self.train else place
        return np.where(real, order, -1), repeat

    def carry_out(
        self, batch: BatchPlan, make: Callable[[BatchPlan, int], None], rows: Iterable[int] | None = None
    ) -> tuple[BatchPlan, dict[int, str]]:
        """Make a batch row by row; a sample that cannot be read is treated as `on_error` says.

        Args:
            make: makes one real row of a batch; raises BadImageError where its sample cannot be read.
            rows: in this order; None: all, from the first.

        Returns:
            The batch as it was made, and {sample: path and reason} of what could not be read.
        """
        failures: dict[int, str] = {}
        order = list(range(len(batch)) if rows is None else rows)
        done = 0
        while done < len(order):
            row = order[done]
            try:
                if batch.index[row] >= 0:
                    make(batch, row)
                done += 1
            except BadImageError as error:
                if self.on_error == "raise":
                    raise
                failures[int(batch.index[row])] = str(error)
                before, batch = batch.index, self.batch(batch.epoch, batch.step, failures)
                if (batch.index != before)[order[:done]].any():  # the same sample could be read for another row
                    done = 0
        return batch, failures

    def _substituted(self, drawn: I64, failed: Collection[int]) -> I64:
        """Each broken sample's substitute: the next healthy one, around the end; -1 where it is skipped."""
        broken = self.index.broken[drawn] & (drawn >= 0)
        if failed:
            broken |= np.isin(drawn, list(failed))
        if not broken.any():
            return drawn
        result = drawn.copy()
        for row in np.flatnonzero(broken):
            result[row] = -1 if self.on_error == "skip" else self._next_healthy(int(drawn[row]), failed)
        return result

    def _next_healthy(self, sample: int, failed: Collection[int]) -> int:
        n = len(self.index)
        for i in range(1, n):
            candidate = (sample + i) % n
            if not self.index.broken[candidate] and candidate not in failed:
                return candidate
        raise RuntimeError(f"all {n} images are broken: there is nothing to replace them with")

    def _mix(self, recipe: TrainRecipe, epoch: int, step: int, size: Size, position: I64) -> MixPlan:
        """timm's Mixup: parameters a batch, a pair or an element; the last two keyed by the place in the epoch."""
        rows = len(position)
        if recipe.mixup_mode == "batch":
            keys = np.array([step], np.int64)
        elif recipe.mixup_mode == "pair":
            keys = np.minimum(position, position[::-1])
        else:
            keys = position
        u = rng.uniforms(self.seed, epoch, rng.STREAM_MIX, keys, 40)
        mixup, cutmix = recipe.mixup_alpha > 0, recipe.cutmix_alpha > 0 or recipe.cutmix_minmax is not None
        # timm: an alpha of 1 where cutmix_minmax is given; lambda then follows from the box
        cutmix_alpha = 1.0 if recipe.cutmix_minmax is not None else recipe.cutmix_alpha
        cut = np.full(len(keys), cutmix)
        lam = rng.betas(u[:, 8:], cutmix_alpha) if cutmix else rng.betas(u[:, 8:], recipe.mixup_alpha)
        if mixup and cutmix:
            cut = u[:, 1] < recipe.mixup_switch_prob
            lam = np.where(cut, lam, rng.betas(u[:, 8:], recipe.mixup_alpha))
        lam = np.where(u[:, 0] < recipe.mixup_prob, lam, 1.0)
        cut &= lam < 1
        box, area = _cutmix_box(recipe, size, lam, u[:, 2:6])
        if recipe.correct_lam or recipe.cutmix_minmax is not None:
            lam = np.where(cut, 1 - area / (size[0] * size[1]), lam)
        box[~cut] = 0
        copies = rows // len(keys)  # 1, or the whole batch
        return MixPlan(
            lam=np.repeat(lam, copies).astype(np.float32),
            cut=np.repeat(cut, copies),
            box=np.repeat(box, copies, axis=0),
        )


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> rng.Permutation:
    return rng.Permutation(n, seed, epoch)


@functools.lru_cache(maxsize=32)
def policy_of(recipe: TrainRecipe) -> AugmentPolicy | None:
    """The recipe's policy, parsed once."""
    return recipe.policy


def _round(x: F64) -> I64:
    return np.rint(x).astype(np.int64)  # half to even, as Python's round


def random_resized_crop(
    source: I32, scale: tuple[float, float], ratio: tuple[float, float], u: F64, tries: int = _TRIES
) -> I32:
    """torchvision's RandomResizedCrop: up to ten tries at an area and a ratio that fit, else the central crop.

    Args:
        source: int [B, 2], height and width. u: uniforms [B, 2 * tries + 2].

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


def _eval_geometry(recipe: EvalRecipe, source: I32) -> dict[str, object]:
    """torchvision's Resize and CenterCrop: the long side truncates, the anchor rounds half to even; timm's for outputs
    that are not square."""
    rows = len(source)
    size, scale = recipe.size_at(0), recipe.scale_size
    if recipe.crop_mode == "squash":
        resize = np.broadcast_to(np.array(scale, np.int32), (rows, 2))
    elif scale[0] == scale[1]:
        resize = (scale[0] * source.astype(np.int64) // source.min(axis=1, keepdims=True)).astype(np.int32)
    else:  # timm's ResizeKeepRatio with longest=0
        resize = _round(source / (source / scale).min(axis=1, keepdims=True)).astype(np.int32)
    return {
        "box": np.concatenate([np.zeros((rows, 2), np.int32), source], axis=1),
        "resize": resize,
        "crop": _round((resize - size) / 2).astype(np.int32),
        "hflip": np.zeros(rows, np.bool_),
        "vflip": np.zeros(rows, np.bool_),
        "color_factors": None,
        "color": None,
        "program": (),
        "erase": None,
        "noise_key": None,
        "mix": None,
    }


_Uniforms = dict[int, F64]
"""Uniforms [B, count] by stream."""


def _counts(recipe: TrainRecipe) -> dict[int, int]:
    """How many uniforms a sample takes from each stream."""
    counts = {rng.STREAM_CROP: 2 * _TRIES + 2, rng.STREAM_FLIP: 2}
    if recipe.color_twist is not None or recipe.color_jitter is not None:
        counts[rng.STREAM_COLOR] = 9
    if (policy := policy_of(recipe)) is not None:
        counts[rng.STREAM_POLICY] = policy.num_uniforms
    if recipe.grayscale_prob > 0 or recipe.gaussian_blur_prob > 0:
        counts[rng.STREAM_FILTER] = 3
    if recipe.re_prob > 0:
        counts[rng.STREAM_ERASE] = 2 + recipe.re_count[1] * (2 * _TRIES + 2)
        counts[rng.STREAM_NOISE] = 2
    return counts


def _factors(strengths: tuple[float, float, float, float], u: F64) -> F64:
    """Brightness, contrast and saturation factors around 1, not below 0, and the hue in turns around 0."""
    s = np.array(strengths)
    low = np.append(np.maximum(0, 1 - s[:3]), -s[3])
    high = np.append(1 + s[:3], s[3])
    return np.asarray(low + u * (high - low), np.float64)


def _color_factors(recipe: TrainRecipe, u: _Uniforms) -> F32 | None:
    if recipe.color_twist is None:
        return None
    factors = _factors(recipe.color_twist, u[rng.STREAM_COLOR][:, :4])
    return (factors * (1, 1, 1, 360)).astype(np.float32)


def _color_jitter(recipe: TrainRecipe, u: F64) -> OpPlan:
    """torchvision's ColorJitter as four operations in a drawn order; a strength of 0 leaves its operation out."""
    assert recipe.color_jitter is not None
    ops = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE], np.int16)
    ops[np.array(recipe.color_jitter) == 0] = Op.IDENTITY
    order = u[:, 4:8].argsort(1)
    op = ops[order]
    op[u[:, 8] >= recipe.color_jitter_prob] = Op.IDENTITY
    arg = np.take_along_axis(_factors(recipe.color_jitter, u[:, :4]), order, axis=1)
    return OpPlan(op, arg.astype(np.float32), np.zeros_like(op))


def _filters(recipe: TrainRecipe, u: F64) -> OpPlan:
    """Grayscale, then blur."""
    low, high = recipe.gaussian_blur_sigma
    gray, blur = u[:, 0] < recipe.grayscale_prob, u[:, 1] < recipe.gaussian_blur_prob
    op = np.stack([gray * np.int16(Op.GRAYSCALE), blur * np.int16(Op.GAUSSIAN_BLUR)], axis=1).astype(np.int16)
    arg = np.stack([np.zeros(len(u)), low + u[:, 2] * (high - low)], axis=1).astype(np.float32)
    aux = np.stack([np.zeros(len(u)), np.full(len(u), recipe.gaussian_blur_kernel)], axis=1).astype(np.int16)
    return OpPlan(op, arg, aux)


def _program(recipe: TrainRecipe, size: Size, u: _Uniforms) -> tuple[OpPlan | AugMixPlan, ...]:
    parts: list[OpPlan | AugMixPlan] = []
    if recipe.color_jitter is not None:
        parts.append(_color_jitter(recipe, u[rng.STREAM_COLOR]))
    policy = policy_of(recipe)
    if policy is not None:
        parts.append(policy.draw(u[rng.STREAM_POLICY], size))
    if recipe.grayscale_prob > 0 or recipe.gaussian_blur_prob > 0:
        parts.append(_filters(recipe, u[rng.STREAM_FILTER]))
    if len(parts) > 1 and all(isinstance(part, OpPlan) for part in parts):
        return (OpPlan(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))),)
    return tuple(parts)


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
    scale = recipe.re_scale[0] + v[..., :_TRIES] * (recipe.re_scale[1] - recipe.re_scale[0])
    height, width = size
    area = height * width * scale / np.maximum(count, 1)[:, None, None]
    low, high = np.log(recipe.re_ratio[0]), np.log(recipe.re_ratio[1])
    aspect = np.exp(low + v[..., _TRIES : 2 * _TRIES] * (high - low))
    h, w = _round(np.sqrt(area * aspect)), _round(np.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    first = fits.argmax(2)[..., None]
    h, w = np.take_along_axis(h, first, 2)[..., 0], np.take_along_axis(w, first, 2)[..., 0]
    top = np.floor(v[..., -2] * (height - h + 1))
    left = np.floor(v[..., -1] * (width - w + 1))
    result = np.stack([top, left, h, w], axis=2).astype(np.int32)
    result[~fits.any(2) | (np.arange(boxes) >= count[:, None])] = 0
    return result


def _noise_key(u: F64) -> U64:
    words = (u * 2.0**32).astype(np.uint64)
    return words[:, 0] << np.uint64(32) | words[:, 1]


def _cutmix_box(recipe: TrainRecipe, size: Size, lam: F64, u: F64) -> tuple[I32, F64]:
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
