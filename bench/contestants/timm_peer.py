"""timm's create_loader with timm's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import timm.data
import torch

from ..core.job import Job
from .torchvision_peers import OnDevice

data: Any = timm.data  # timm is typed in part only


def _loader(job: Job, prefetcher: bool) -> Iterable[Any]:
    spec = job.spec
    training = spec.crop == "random"
    dataset = data.ImageDataset(job.root)
    mix = None
    if spec.mixing:
        arguments = {
            "mixup_alpha": spec.mixup,
            "cutmix_alpha": spec.cutmix,
            "label_smoothing": spec.smoothing,
            "num_classes": len(dataset.reader.class_to_idx),
        }
        mix = data.FastCollateMixup(**arguments) if prefetcher else data.Mixup(**arguments)
    loader: Iterable[Any] = data.create_loader(
        dataset,
        job.size,
        job.batch_size,
        is_training=training,
        re_prob=spec.erase,
        re_mode="const",
        hflip=spec.flip,
        color_jitter=spec.jitter or 0.0,
        # A policy switches timm's colour jitter off unless a probability is given for it.
        color_jitter_prob=1.0 if spec.jitter else None,
        auto_augment=f"rand-m{spec.rand_augment[1]}-n{spec.rand_augment[0]}" if spec.rand_augment else None,
        interpolation=spec.interpolation,
        num_workers=job.workers,
        collate_fn=mix if prefetcher else None,
        pin_memory=job.device == "cuda",
        device=torch.device(job.device),
        use_prefetcher=prefetcher,
        crop_pct=0.875,
    )
    if prefetcher:
        return loader
    moved: Iterable[Any] = loader if job.device == "cpu" else OnDevice(loader, job.device)
    return moved if mix is None else Mixed(moved, mix)


class Mixed:
    """Mixup after the loader, as timm's training script does without its prefetcher."""

    def __init__(self, loader: Iterable[Any], mix: Any) -> None:
        self.loader, self.mix = loader, mix

    def __iter__(self) -> Iterator[Any]:
        for images, targets in self.loader:
            yield self.mix(images, targets)


def plain(job: Job) -> Iterable[Any]:
    return _loader(job, prefetcher=False)


def prefetch(job: Job) -> Iterable[Any]:
    return _loader(job, prefetcher=True)
