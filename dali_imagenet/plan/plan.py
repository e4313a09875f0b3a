"""The order of an epoch and every draw in it, as a pure function of (seed, epoch, sample).

numpy only. What executes a `BatchPlan` draws nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dali_imagenet import rng
from dali_imagenet.data.algebra import per_sample
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.errors import BadImageError
from dali_imagenet.ops import FILTERS
from dali_imagenet.plan.batch_plan import F64, I64, PADDING, U8, U64, BatchPlan, MixPlan
from dali_imagenet.plan.geometry import TRIES, cutmix_box, eval_geometry, random_erasing, train_geometry
from dali_imagenet.plan.order import Continued, Order, Weighted, Whole, checked_weights, digest_of
from dali_imagenet.plan.program import Uniforms, color_factors, color_matrix, ops_of, policy_of
from dali_imagenet.plan.views import GEOMETRY, recipes_of
from dali_imagenet.policy.compose import fill_of, uniforms_of
from dali_imagenet.recipe import EvalRecipe, Recipe, Size, TrainRecipe
from dali_imagenet.validation import boolean, choice, probability, whole, wrong

OnError = Literal["raise", "replace", "skip"]
Padding = Literal["ignore", "repeat", "short"]
EPOCHS = 2**32  # as many as the draws can tell apart


class Plan:
    """The order of an epoch and every draw in it, for one rank.

    Args:
        index: the samples.
        recipe: what to draw.
        seed: 0..2**64-1.
        batch_size: rows per rank and step.
        drop_last: leave out the last partial batch. None: yes in training, no in evaluation. With False the last batch
            of a training is filled up to the same number of rows on each rank, with the first samples of the epoch's
            order under the next repeat number.
        padding: what evenly fills up the ranks in evaluation: "ignore" and "short" padding rows, "repeat" the first
            samples again, as DistributedSampler does, which counts them twice.
        on_error: what becomes of a sample that the index knows to be broken: "replace" reads the next healthy sample
            (same class, mostly) in its place; "skip" (evaluation only) makes a padding row of it, unless no row of the
            batch were left: its first row then is the next healthy sample, which counts twice. With "raise" the plan
            draws as if it were healthy; the loader refuses such an index before it gets here.
        max_broken: share of the samples, beyond which `execute_rows` looks for no other in the place of a broken one.
        weights: draw with replacement, a sample as often as its weight says: numbers of at least 0, of which only the
            ratios count, one for each sample or each class, or {class: weight} of all classes.
        epoch_size: samples of an epoch. None: as many as there are. With weights so many are drawn. Without, one
            permutation of all follows another, and an epoch takes the next `epoch_size` places: fewer than there are
            give epochs of other samples until all have come, more give some samples once more than others.
        shuffle: whether each epoch has an order of its own. None: yes in training, no in evaluation. A shuffled
            evaluation recipe is a training without draws: what is said of training here holds for it, but that it pads
            the last batch and keeps it, so that every sample comes once.
        steps_per_epoch: steps of an epoch, whatever the data. What would be an epoch without it is a pass, and step s
            of epoch e is step e * steps_per_epoch + s of all passes, one after the other. The passes key the order and
            the draws, epochs the sizes of a schedule. Training only.
        accumulate: leave out the last steps of an epoch, until their number is a multiple of this one. Training only.
        views: how many views of each sample, each with draws of its own, or the recipe of each, of which `recipe` is
            the first. View 0 is what a plan without views draws.
        share_geometry: crop, flips and filter of all views are those of view 0.

    A sample that comes more than once in an epoch has draws of its own each time.

    Raises:
        ValueError: for arguments out of range, and for fewer images than a batch or than ranks.
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
        padding: Padding = "ignore",
        max_broken: float = 1.0,
        weights: Any = None,
        epoch_size: int | None = None,
        shuffle: bool | None = None,
        steps_per_epoch: int | None = None,
        accumulate: int = 1,
        views: int | Sequence[TrainRecipe] = 1,
        share_geometry: bool = False,
    ) -> None:
        self.train = isinstance(recipe, TrainRecipe)
        self.shuffle = self.train if shuffle is None else boolean("shuffle", shuffle)
        self.training = self.train or self.shuffle
        batch_size = whole("batch_size", batch_size, 1)
        world_size = whole("world_size", world_size, 1)
        rank = whole("rank", rank, 0, world_size - 1)
        seed = whole("seed", seed, 0, 2**64 - 1)
        if recipe.mixing and batch_size % 2:
            raise wrong("batch_size", batch_size, "even for Mixup and CutMix, which mix rows in pairs")
        if on_error == "skip" and self.train:
            raise wrong("on_error", on_error, "'replace' or 'raise' in training; 'skip' is for evaluation")
        drop_last = None if drop_last is None else boolean("drop_last", drop_last)
        choice("padding", padding, ("ignore", "repeat", "short"))
        if self.train and padding != "ignore":
            raise wrong("padding", padding, "'ignore' in training, where no row is padding")
        for name, given in (("weights", weights), ("epoch_size", epoch_size), ("steps_per_epoch", steps_per_epoch)):
            if given is not None and not self.training:
                raise wrong(name, given, "None in evaluation, which has every sample once")
        if weights is not None and not self.shuffle:
            raise wrong("shuffle", shuffle, "True or None with weights, which draw each sample")
        self.index, self.recipe, self.seed = index, recipe, seed
        self.recipes, self.share_geometry = recipes_of(recipe, views, share_geometry)
        self.epoch_size = len(index) if epoch_size is None else whole("epoch_size", epoch_size, 1)
        self._order, self._weights = self._ordering(weights)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.drop_last = self.train if drop_last is None else drop_last
        self.on_error, self.padding = on_error, padding
        self.max_broken = probability("max_broken", max_broken)
        self.global_batch = batch_size * world_size
        full, rest = divmod(self.epoch_size, self.global_batch)
        self.pass_steps = full if self.drop_last or rest == 0 else full + 1
        if self.pass_steps == 0:
            raise ValueError(
                f"batch_size={batch_size} on {world_size} ranks is larger than the data ({self.epoch_size} images"
                f"{'' if epoch_size is None else ' an epoch'}), and "
                "drop_last=True leaves nothing: use a smaller batch or drop_last=False"
            )
        if not self.train and self.epoch_size < world_size:
            raise ValueError(
                f"{self.epoch_size} images for {world_size} ranks: must be at least one for each; evaluate on fewer "
                "ranks, or on one with rank=0, world_size=1"
            )
        self.steps_per_epoch = None if steps_per_epoch is None else whole("steps_per_epoch", steps_per_epoch, 1)
        self.accumulate = whole("accumulate", accumulate, 1)
        self.steps = self._steps()

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    def _steps(self) -> int:
        """Steps of an epoch."""
        m, k = self.accumulate, self.steps_per_epoch
        if m > 1 and not self.training:
            raise wrong("accumulate", m, "1 in evaluation, which leaves no sample out")
        if k is not None and k % m:
            raise wrong("steps_per_epoch", k, f"a multiple of accumulate={m}")
        if k is None and self.pass_steps < m:
            raise wrong("accumulate", m, f"at most {self.pass_steps}, the steps of an epoch")
        return self.pass_steps - self.pass_steps % m if k is None else k

    def _ordering(self, weights: Any) -> tuple[Order, str | None]:
        """The order of an epoch, and what tells its weights from others."""
        n, repeats, seed = len(self.index), self._repeats, self.seed if self.shuffle else None
        if weights is not None:
            each = checked_weights(per_sample("weights", weights, self.index.labels, self.index.classes))
            return Weighted(each, self.seed), digest_of(each)
        if self.epoch_size == n:
            return Whole(n, seed), None
        return Continued(n, seed, -(-self.epoch_size // repeats)), None

    @property
    def _repeats(self) -> int:
        return self.recipe.num_aug_repeats if isinstance(self.recipe, TrainRecipe) else 1

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a saved position depends on; the world size is not in it."""
        other: dict[str, Any] = {} if self._weights is None else {"weights": self._weights}
        other |= {} if self.epoch_size == len(self.index) else {"epoch_size": self.epoch_size}
        other |= {} if self.shuffle == self.train else {"shuffle": self.shuffle}
        other |= {} if self.steps_per_epoch is None else {"steps_per_epoch": self.steps_per_epoch}
        other |= {} if self.accumulate == 1 else {"accumulate": self.accumulate}
        if len(self.recipes) > 1:
            other["views"] = [recipe.fingerprint for recipe in self.recipes[1:]]
            other["share_geometry"] = self.share_geometry
        return other | {
            "data": self.index.fingerprint,
            "recipe": self.recipe.fingerprint,
            "seed": self.seed,
            "global_batch_size": self.global_batch,
            "drop_last": self.drop_last,
        }

    def positions(self, step: int) -> I64:
        """Places in the order of the epoch that this rank takes in that step, ascending; -1 for padding.

        With `steps_per_epoch` both are of a pass.
        In training places from `epoch_size` on are the first ones again, which fill up the last batch.
        """
        start, total = self._bounds(step)
        share = -(-total // self.world_size)
        if self.train and share % 2 == 0:
            front = np.arange(self.rank * share // 2, (self.rank + 1) * share // 2, dtype=np.int64)
            return np.concatenate([front, self.world_size * share - 1 - front[::-1]]) + start
        if self.train:
            return np.arange(self.rank * share, (self.rank + 1) * share, dtype=np.int64) + start
        counts = np.clip(total - np.arange(self.world_size) * share, 0, share)
        if counts[-1] == 0:  # full runs would leave a rank without any
            counts = total // self.world_size + (np.arange(self.world_size) < total % self.world_size)
        count, before = int(counts[self.rank]), int(counts[: self.rank].sum())
        rest = np.arange(share - count, dtype=np.int64)
        if self.padding == "repeat":
            rest = (self.rank * share - before + rest) % self.epoch_size
        else:
            rest[:] = -1
        return np.concatenate([np.arange(before, before + count, dtype=np.int64) + start, rest])

    def _bounds(self, step: int) -> tuple[int, int]:
        """The first place of a step, and how many places it has over all ranks.

        In evaluation a last step with fewer samples than ranks takes some from the step before: each rank needs one, or
        the mean loss of its batch is no number.
        """
        n, batch = self.epoch_size, self.global_batch
        missing = 0 if self.train or n % batch == 0 or self.drop_last else max(0, self.world_size - n % batch)
        last = self.pass_steps - 1
        start, end = (min(at * batch, n) - (missing if at == last else 0) for at in (step, step + 1))
        return (start, n - start) if step == last and not self.drop_last else (start, end - start)

    def schedule(self, epoch: int, step: int) -> Iterator[tuple[int, int]]:
        """(epoch, step) from that step on; in training on into the next epochs, so that none waits for its first batch.

        Evaluation ends with the epoch: what was made ahead would hold memory while the model trains.
        """
        for each in range(epoch, max(epoch + 1, self._epochs if self.training else 0)):
            for at in range(step, self.steps):
                yield each, at
            step = 0

    def batch(self, epoch: int, step: int, failed: Collection[int] = ()) -> BatchPlan:
        """The plan of one step.

        Args:
            failed: samples that turned out to be unreadable; treated like those the index knows to be broken.

        Raises:
            IndexError: for a step that the epoch does not have.
            ValueError: for an epoch out of range.
        """
        epoch = whole("epoch", epoch, 0, EPOCHS - 1)
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step}: the epoch has steps 0..{self.steps - 1}")
        turn, at = self._pass(epoch, step)
        position = self.positions(at)
        sampled, repeat, key = self._ordered(turn, position)
        source_index = sampled if self.on_error == "raise" else self._substituted(sampled, failed)
        real = source_index >= 0
        size = self.recipe.size_at(epoch)
        source = np.stack([self.index.height[source_index], self.index.width[source_index]], axis=1).astype(np.int32)
        source[~real] = size
        common = {
            "epoch": epoch,
            "step": step,
            "size": size,
            "position": position,
            "sampled_index": sampled,
            "source_index": source_index,
            "repeat": repeat,
            "label": np.where(real, self.index.labels[source_index], PADDING).astype(np.int64),
            "source_size": source,
        }
        if isinstance(self.recipe, EvalRecipe):
            common |= {"mean": self.recipe.mean, "std": self.recipe.std}
            common["interpolation"] = np.full(len(position), FILTERS[self.recipe.interpolation], np.uint8)
            return BatchPlan(**common, **eval_geometry(self.recipe, source))  # type: ignore[arg-type]  # of many types
        mix = self._mix(self.recipe, turn, at, size, position) if self.recipe.mixing else None
        drawn = []
        for view, recipe in enumerate(self.recipes):
            u = self._uniforms(view, turn, key, repeat)
            drawn.append(_drawn(recipe, u, {**common, "size": recipe.size_at(epoch), "view": view, "mix": mix}))
        return dataclasses.replace(drawn[0], others=tuple(drawn[1:]))

    def _uniforms(self, view: int, turn: int, key: I64, repeat: I64) -> Uniforms:
        counts = _counts(self.recipes[view])
        if not view or not self.share_geometry:
            return rng.streams(self.seed, turn, counts, key, repeat, view)
        shared = {stream: count for stream, count in counts.items() if stream in GEOMETRY}
        own = {stream: count for stream, count in counts.items() if stream not in GEOMETRY}
        first = rng.streams(self.seed, turn, shared, key, repeat)
        return first | (rng.streams(self.seed, turn, own, key, repeat, view) if own else {})

    def samples(self, epoch: int, step: int) -> I64:
        """The samples of this rank in that step, int64 [B]; -1 for padding."""
        turn, at = self._pass(epoch, step)
        return self._ordered(turn, self.positions(at))[0]

    def _pass(self, epoch: int, step: int) -> tuple[int, int]:
        """What keys the order and the draws of a step, and where it is in it: the epoch itself, or a pass."""
        if self.steps_per_epoch is None:
            return epoch, step
        turn, at = divmod(epoch * self.steps_per_epoch + step, self.pass_steps)
        return whole("epoch * steps_per_epoch / steps of the data", turn, 0, EPOCHS - 1), at

    @property
    def _epochs(self) -> int:
        """How many epochs there are."""
        k = self.steps_per_epoch
        return EPOCHS if k is None else min(EPOCHS, EPOCHS * self.pass_steps // k)

    def rows(self, epoch: int) -> int:
        """How many samples this rank sees in an epoch, padding left out."""
        first = 0 if self.steps_per_epoch is None else epoch * self.steps_per_epoch
        found = self.steps * self.batch_size
        for at in range(max(0, self.pass_steps - 2), self.pass_steps):  # all others are full
            times = (first + self.steps - 1 - at) // self.pass_steps - (first - 1 - at) // self.pass_steps
            found -= times * (self.batch_size - int((self.positions(at) >= 0).sum()))
        return found

    def _ordered(self, epoch: int, position: I64) -> tuple[I64, I64, I64]:
        """The samples at those places in the order of the epoch, which copies of them, and the keys of their draws."""
        if not self.train:
            real = position >= 0
            sample, key = self._order(epoch, np.where(real, position, 0))
            return np.where(real, sample, -1), np.zeros_like(position), key
        place, repeat = np.divmod(position, self._repeats)
        if (again := position >= self.epoch_size).any():
            place[again], repeat[again] = position[again] - self.epoch_size, self._repeats
        sample, key = self._order(epoch, place)
        return sample, repeat, key

    def execute_rows(
        self, batch: BatchPlan, make: Callable[[BatchPlan, int], None], rows: Iterable[int] | None = None
    ) -> tuple[BatchPlan, dict[int, str]]:
        """Make a batch row by row; a sample that cannot be read is treated as `on_error` says.

        Args:
            make: makes one real row of a batch; raises BadImageError where its sample cannot be read.
            rows: in this order; None: all, from the first.

        Returns:
            The batch as it was made, and {sample: path and reason} of what could not be read.

        Raises:
            BadImageError: `on_error` is "raise"; or, for one batch, more than its size and than `max_broken` failed.
            RuntimeError: all samples are broken.
        """
        most = max(len(batch), self.max_broken * len(self.index))
        failures: dict[int, str] = {}
        order = list(range(len(batch)) if rows is None else rows)
        done = 0
        while done < len(order):
            row = order[done]
            try:
                if batch.source_index[row] >= 0:
                    make(batch, row)
                done += 1
            except BadImageError as error:
                if self.on_error == "raise":
                    raise
                failures[int(batch.source_index[row])] = str(error)
                if len(failures) > most:  # the data are gone; to look through all of them would take days
                    raise BadImageError(
                        f"{len(failures)} of {len(self.index)} images in a row cannot be read, more than "
                        f"max_broken={self.max_broken:.1%} allows. The last: {error}"
                    ) from error
                before, batch = batch.source_index, self.batch(batch.epoch, batch.step, failures)
                if (batch.source_index != before)[order[:done]].any():  # the same sample could be read for another row
                    done = 0
        return batch, failures

    def _substituted(self, sampled: I64, failed: Collection[int]) -> I64:
        """Each broken sample's substitute: the next healthy one, around the end; -1 where it is skipped."""
        broken = self.index.broken[sampled] & (sampled >= 0)
        if failed:
            broken |= np.isin(sampled, list(failed))
        if not broken.any():
            return sampled
        result = sampled.copy()
        for row in np.flatnonzero(broken):
            skip = self.on_error == "skip" and self.padding != "repeat"
            result[row] = -1 if skip else self._next_healthy(int(sampled[row]), failed)
        if (result < 0).all():  # without any row the mean loss of the batch is no number
            result[broken.argmax()] = self._next_healthy(int(sampled[broken.argmax()]), failed)
        return result

    def _next_healthy(self, sample: int, failed: Collection[int]) -> int:
        n = len(self.index)
        for i in range(1, n):
            candidate = (sample + i) % n
            if not self.index.broken[candidate] and candidate not in failed and self._order.has(candidate):
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
        box, area = cutmix_box(recipe, size, lam, u[:, 2:6])
        if recipe.correct_lam or recipe.cutmix_minmax is not None:
            lam = np.where(cut, 1 - area / (size[0] * size[1]), lam)
        copies = rows // len(keys)  # 1, or the whole batch
        lam, cut, box = np.repeat(lam, copies), np.repeat(cut, copies), np.repeat(box, copies, axis=0)
        if rows % 2:  # the middle row has no partner
            lam[rows // 2], cut[rows // 2] = 1, False
        box[~cut] = 0
        return MixPlan(lam=lam.astype(np.float32), use_cutmix=cut, box=box)


def _drawn(recipe: TrainRecipe, u: Uniforms, common: Mapping[str, Any]) -> BatchPlan:
    """One view of a batch of training, from its uniforms."""
    size, source = common["size"], common["source_size"]
    factors = color_factors(recipe, u)
    erases = recipe.re_prob > 0
    return BatchPlan(
        **common,
        **train_geometry(recipe, size, source, u[_crop_stream(recipe)]),  # type: ignore[arg-type]  # of many types
        mean=recipe.mean,
        std=recipe.std,
        interpolation=_filters(recipe, u, len(source)),
        hflip=u[rng.STREAM_FLIP][:, 0] < recipe.hflip,
        vflip=u[rng.STREAM_FLIP][:, 1] < recipe.vflip,
        color_factors=factors,
        color=None if factors is None else color_matrix(factors),
        ops=ops_of(recipe, size, u),
        fill=_fill(recipe),
        erase_mode=recipe.re_mode,
        erase_value=recipe.erase_value,
        erase=random_erasing(recipe, size, u[rng.STREAM_ERASE]) if erases else None,
        noise_key=_noise_key(u[rng.STREAM_NOISE]) if erases else None,
    )


def _counts(recipe: TrainRecipe) -> dict[int, int]:
    """How many uniforms a sample takes from each stream."""
    counts = {_crop_stream(recipe): 2 * TRIES + 2 if recipe.crop == "rrc" else 6, rng.STREAM_FLIP: 2}
    if recipe.interpolation == "random":
        counts[rng.STREAM_INTERPOLATION] = 1
    if recipe.program:
        counts[rng.STREAM_PROGRAM] = sum(uniforms_of(part) for part in recipe.program)
    if recipe.color_twist is not None or recipe.color_jitter is not None:
        counts[rng.STREAM_COLOR] = 9
    if (policy := policy_of(recipe)) is not None:
        counts[rng.STREAM_POLICY] = policy.num_uniforms
    if recipe.grayscale_prob > 0 or recipe.gaussian_blur_prob > 0:
        counts[rng.STREAM_FILTER] = 3
    if recipe.re_prob > 0:
        counts[rng.STREAM_ERASE] = 2 + recipe.re_count[1] * (2 * TRIES + 2)
        counts[rng.STREAM_NOISE] = 2
    return counts


def _crop_stream(recipe: TrainRecipe) -> int:
    return rng.STREAM_CROP if recipe.crop == "rrc" else rng.STREAM_WINDOW


def _filters(recipe: TrainRecipe, u: Uniforms, rows: int) -> U8:
    """The filter of each row's resize."""
    if recipe.interpolation != "random":
        return np.full(rows, FILTERS[recipe.interpolation], np.uint8)
    first = u[rng.STREAM_INTERPOLATION][:, 0] < 0.5
    return np.where(first, FILTERS["bilinear"], FILTERS["bicubic"]).astype(np.uint8)


def _fill(recipe: TrainRecipe) -> tuple[int, int, int] | None:
    policy = policy_of(recipe)
    fill = fill_of("program", recipe.program if policy is None else (policy,))
    # torchvision's default, which blends bilinear borders otherwise than a fill of 0
    return None if fill == (0, 0, 0) else fill


def _noise_key(u: F64) -> U64:
    words = (u * 2.0**32).astype(np.uint64)
    return words[:, 0] << np.uint64(32) | words[:, 1]
