"""timm's `create_loader` with its own arguments, so that timm's scripts run with only the import changed.

The transform is the one that timm's `create_transform` makes of these arguments: it is read as a recipe, and not run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import os
import runpy
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform

from dali_imagenet.errors import UntranslatableError
from dali_imagenet.integrations.datasets import read_dataset
from dali_imagenet.integrations.torch_dataloader import mixing_of
from dali_imagenet.integrations.transforms import Row, name_of, tell, translate
from dali_imagenet.loader import Loader
from dali_imagenet.loader import create_loader as _create_loader
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.recipe import EvalRecipe, TrainRecipe
from dali_imagenet.validation import wrong

log = logging.getLogger("dali_imagenet")

SEED = "DALI_IMAGENET_SEED"
"""Environment variable: the seed of order and augmentation. timm's own differs from rank to rank."""


def create_loader(
    dataset: Any,
    input_size: int | tuple[int, int] | tuple[int, int, int],
    batch_size: int,
    is_training: bool = False,
    no_aug: bool = False,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_split: bool = False,
    train_crop_mode: str | None = None,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | tuple[float, ...] = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    num_aug_repeats: float = 0,
    num_aug_splits: int = 0,
    interpolation: str = "bilinear",
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    num_workers: int = 1,
    distributed: bool = False,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    collate_fn: Any = None,
    pin_memory: bool = False,
    fp16: bool = False,
    img_dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cuda"),  # noqa: B008 - timm's own default
    use_prefetcher: bool = True,
    use_multi_epochs_loader: bool = False,
    persistent_workers: bool = True,
    worker_seeding: Any = "all",
    tf_preprocessing: bool = False,
    input_size_choices: Sequence[Any] | None = None,
    batch_size_choices: Sequence[int] | None = None,
    batch_choice_weights: Sequence[float] | None = None,
    batch_choice_seed: int = 0,
    batch_choice_schedule: str = "constant",
    batch_schedule_epochs: int | None = None,
    batch_schedule_spread: float = 0.65,
    batch_schedule_random_mix: float = 0.1,
    num_batches: int | None = None,
) -> TimmLoader:
    """As `timm.data.create_loader`, argument by argument: docs/timm.md says what becomes of each.

    The seed is that of the environment variable DALI_IMAGENET_SEED, by default 0: a script's `--seed` is of its model.
    Unreadable images are replaced by the next ones, as timm does it.

    Args:
        dataset: timm's ImageDataset (folders, tars, Hugging Face's datasets) or AugMixDataset; torchvision's
            ImageFolder.
        input_size: side, (height, width), or (3, height, width).
        num_aug_repeats: a whole number, which may be a float; on one rank, too.
        device: CUDA or the CPU. Without the prefetcher batches stay on the CPU.

    Returns:
        A loader of (images [B, 3, H, W], targets): int64 [B], or float32 [B, num_classes] with FastCollateMixup. With
        augmentation splits B is batch_size * num_aug_splits, the clean ones first.

    Raises:
        UntranslatableError: for arguments that a loader cannot follow.
        ValueError: for values out of range, and data that are none.
    """
    if tf_preprocessing:
        _refuse("tf_preprocessing", True, "TensorFlow's own decoding and resizing are not here", "leave it out")
    if crop_border_pixels:
        _refuse("crop_border_pixels", crop_border_pixels, "no recipe trims a border", "take a smaller crop_pct")
    if input_size_choices is not None:
        why = "the size of a batch is not drawn here"
        _refuse("input_size_choices", input_size_choices, why, "leave it out; a TrainRecipe has sizes by epoch")
    if isinstance(input_size, tuple | list) and len(input_size) == 3 and input_size[0] != 3:
        _refuse("input_size", input_size, "images have three channels", "take (3, height, width)")
    if worker_seeding != "all":
        log.info("worker_seeding=%r has no effect: workers draw nothing", worker_seeding)
    splits, inner = _splits(dataset, num_aug_splits, use_prefetcher, is_training and not no_aug)
    rows: list[Row] = []
    read = read_dataset(inner)
    rows.append(Row(read.says, repr(read.data), True, ""))
    changes: dict[str, Any] = {"mean": tuple(mean), "std": tuple(std)} if use_prefetcher else {}
    if is_training:
        changes |= _mixing(collate_fn, rows) | _repeats(num_aug_repeats)
        if use_prefetcher and not no_aug and re_prob > 0:
            changes |= {"re_prob": re_prob, "re_mode": re_mode, "re_count": (1, max(1, re_count))}
    transform = create_transform(
        input_size,
        is_training=is_training,
        no_aug=no_aug,
        train_crop_mode=train_crop_mode,
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        color_jitter_prob=color_jitter_prob,
        grayscale_prob=grayscale_prob,
        gaussian_blur_prob=gaussian_blur_prob,
        auto_augment=auto_augment,
        interpolation=interpolation,
        mean=mean,
        std=std,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        re_prob=re_prob,
        re_mode=re_mode,
        re_count=re_count,
        use_prefetcher=use_prefetcher,
        separate=splits > 1,
    )
    kind = TrainRecipe if is_training else EvalRecipe
    found = translate(kind, transform, **changes)
    rows += found.rows
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "drop_last": is_training,
        "seed": _seed(),
        "on_error": "replace",
        "padding": "ignore" if is_training else "repeat",
        "device": device if use_prefetcher else "cpu",
        "dtype": (torch.float16 if fp16 else img_dtype or torch.float32) if use_prefetcher else torch.float32,
        **({} if distributed else {"rank": 0, "world_size": 1}),
    }
    recipe = found.recipe
    if splits > 1:
        clean = {**changes, "re_prob": 0.0} if re_split else changes
        recipe = translate(kind, (transform[0], transform[2]), **clean).recipe
        options |= {"views": [recipe, *[found.recipe] * (splits - 1)], "share_geometry": True, "transform": _joined}
    loader = _create_loader(read.data, recipe, **options)
    if re_split and use_prefetcher and is_training and splits < 2:
        made = loader._make_plan
        make: Any = functools.partial(_HalfErased, *made.args, **made.keywords)
        loader._make_plan = make
    tell(rows, False)
    return TimmLoader(loader, dataset, tuple(rows))


def _refuse(name: str, value: Any, why: str, change: str) -> NoReturn:
    raise UntranslatableError(f"{name}={value!r}", why, change)


def _seed() -> int:
    given = os.environ.get(SEED, "0")
    if not (given.isascii() and given.isdigit()):
        raise wrong(SEED, given, "a whole number from 0 on")
    return int(given)


def _repeats(given: float) -> dict[str, Any]:
    """timm's script parses them as a float."""
    if given != int(given):
        why = "a sample comes a whole number of times"
        _refuse("num_aug_repeats", given, why, f"take {int(given)} or {int(given) + 1}")
    return {"num_aug_repeats": int(given)} if given > 1 else {}


def _mixing(collate: Any, rows: list[Row]) -> dict[str, Any]:
    if collate is None or getattr(collate, "__name__", "") == "fast_collate":
        return {}
    if getattr(collate, "multi_label", False):
        _refuse("collate_fn", collate, "it mixes several labels a sample", "leave multi_label out")
    return mixing_of(collate, rows)


# ---- augmentation splits


def _splits(dataset: Any, given: int, use_prefetcher: bool, augmented: bool) -> tuple[int, Any]:
    """How many versions of each image a batch has, and the dataset within timm's AugMixDataset."""
    if name_of(dataset) != "AugMixDataset":
        if given:
            change = "wrap it as timm's train.py does: AugMixDataset(dataset, num_splits=...)"
            _refuse("num_aug_splits", given, "the dataset is no AugMixDataset", change)
        return 1, dataset
    if given < 1 or not use_prefetcher or not augmented:
        why = "an AugMixDataset needs num_aug_splits, is_training without no_aug, and use_prefetcher"
        _refuse("num_aug_splits", given, why, "give all of them, or the dataset without AugMixDataset")
    if dataset.num_splits < 2:
        raise wrong("AugMixDataset: num_splits", dataset.num_splits, "at least 2")
    return int(dataset.num_splits), dataset.dataset


def _joined(images: list[torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of all versions, the clean ones first, as timm's fast_collate makes it."""
    return torch.cat(images), targets.repeat(len(images))


class _HalfErased(Plan):
    """A plan that erases nothing in the first half of a batch."""

    def batch(self, epoch: int, step: int, failed: Collection[int] = ()) -> BatchPlan:
        """See `Plan.batch`."""
        found = super().batch(epoch, step, failed)
        if found.erase is None:
            return found
        kept = np.arange(len(found))[:, None, None] < len(found) // 2
        return dataclasses.replace(found, erase=np.where(kept, np.int32(0), found.erase))


# ---- what is handed out


class TimmLoader:
    """What timm's scripts expect of a loader. All else is asked of the `Loader` behind it.

    Attributes:
        loader: that one.
        dataset: that of timm, so that `loader.dataset.filenames()` works.
        translation: how everything was read: rows (yours, ours, exact, note).
    """

    def __init__(self, loader: Loader, dataset: Any, translation: tuple[Row, ...]) -> None:
        self.loader, self.dataset, self.translation = loader, dataset, translation

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not made yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    @property
    def mixup_enabled(self) -> bool:
        """Whether batches are mixed; False stops it from the next batch on."""
        return bool(self.loader.mixup_enabled)

    @mixup_enabled.setter
    def mixup_enabled(self, on: bool) -> None:
        self.loader.mixup_enabled = on

    def __enter__(self) -> TimmLoader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.loader.close()


# ---- scripts


def _no_naflex(*_: Any, **__: Any) -> NoReturn:
    why = "images of many sizes in a batch are not here"
    raise UntranslatableError("create_naflex_loader", why, "leave out --naflex-loader, or run the script by itself")


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a script of timm's, such as train.py, as `python script arguments` would, with `create_loader` from here.

    What it raises, and its SystemExit, come out.
    """
    for name in ("timm.data", "timm.data.loader"):
        vars(importlib.import_module(name))["create_loader"] = create_loader
    vars(sys.modules["timm.data"])["create_naflex_loader"] = _no_naflex
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
