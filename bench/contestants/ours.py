"""This project's loader on each of its backends, through the public interface only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from dali_imagenet import EvalRecipe, TrainRecipe, create_loader

from ..core.job import Job

Backend = Literal["auto", "dali", "torchvision"]


def recipe(job: Job, jitter: bool = False) -> Any:
    """The recipe of the job; colour by color_twist, or by color_jitter where asked."""
    spec = job.spec
    if spec.crop == "center":
        return EvalRecipe(input_size=job.size, resize_size=job.size * 256 // 224, interpolation=spec.interpolation)
    if job.recipe in ("classic", "strong", "advanced"):
        made = getattr(TrainRecipe, job.recipe)(input_size=job.size)
        if jitter:
            made = made.replace(color_twist=None, color_jitter=spec.jitter)
        return made
    return TrainRecipe(
        input_size=job.size,
        interpolation=spec.interpolation,
        color_twist=spec.jitter,
        auto_augment=_policy(spec.rand_augment),
        grayscale_prob=spec.gray,
        gaussian_blur_prob=spec.blur,
        re_prob=spec.erase,
        mixup_alpha=spec.mixup,
        cutmix_alpha=spec.cutmix,
        label_smoothing=spec.smoothing,
    )


def _policy(rand_augment: tuple[int, int] | None) -> Any:
    if rand_augment is None:
        return None
    if rand_augment == (2, 9):
        return "randaugment"
    from dali_imagenet.policy import RandAugment

    return RandAugment(*rand_augment)


def _loader(job: Job, backend: Backend, device: str, jitter: bool = False) -> Iterable[Any]:
    loader: Iterable[Any] = create_loader(
        job.root,
        recipe(job, jitter),
        batch_size=job.batch_size,
        backend=backend,
        device=device,
        seed=job.seed,
        num_workers=job.workers,
    )
    return loader


def torchvision(job: Job) -> Iterable[Any]:
    return _loader(job, "torchvision", job.device)


def dali_cpu(job: Job) -> Iterable[Any]:
    return _loader(job, "dali", "cpu")


def dali_gpu(job: Job) -> Iterable[Any]:
    return _loader(job, "dali", "cuda")


def auto_jitter(job: Job) -> Iterable[Any]:
    return _loader(job, "auto", job.device, jitter=True)
