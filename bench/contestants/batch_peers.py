"""Libraries that augment a batch: crop and resize in the workers, their operations on the collated batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ..core.job import MEAN, STD, Job
from .torchvision_peers import MODES, MixCollate, loader, read_rgb


class _Batches:
    def __init__(self, job: Job, augment: Callable[[torch.Tensor], torch.Tensor]) -> None:
        crop = v2.RandomResizedCrop(job.size, interpolation=MODES[job.spec.interpolation], antialias=True)
        dataset = ImageFolder(job.root, crop, loader=read_rgb)
        self.batches = loader(job, dataset, len(dataset.classes), default_collate)
        self.augment = augment
        self.mix = MixCollate(job.spec, len(dataset.classes)).mix if job.spec.mixing else None

    def __iter__(self) -> Iterator[Any]:
        for images, targets in self.batches:
            images = self.augment(images)
            yield self.mix(images, targets) if self.mix else (images, targets)


def kornia_batch(job: Job) -> Iterable[Any]:
    import kornia.augmentation as K
    from kornia.augmentation.auto import RandAugment

    spec = job.spec
    steps: list[Any] = [K.RandomHorizontalFlip(p=spec.flip)]
    if spec.rand_augment:
        steps.append(RandAugment(*spec.rand_augment))
    if spec.jitter:
        steps.append(K.ColorJitter(*spec.jitter, p=1.0))
    steps.append(K.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    if spec.erase:
        steps.append(K.RandomErasing(p=spec.erase))
    augment = K.AugmentationSequential(*steps, data_keys=["input"])
    return _Batches(job, lambda images: augment(images.float().div_(255)))


def torchaug_batch(job: Job) -> Iterable[Any]:
    from torchaug import transforms as ta

    spec = job.spec
    steps: list[Any] = [ta.RandomHorizontalFlip(p=spec.flip, batch_transform=True)]
    if spec.rand_augment:
        steps.append(ta.RandAugment(*spec.rand_augment))
    if spec.jitter:
        steps.append(ta.RandomColorJitter(*spec.jitter, p=1.0, batch_transform=True))
    steps += [ta.ToDtype(torch.float32, scale=True), ta.Normalize(MEAN, STD)]
    if spec.erase:
        steps.append(ta.RandomErasing(p=spec.erase, batch_transform=True))
    # In a row: its own SequentialTransform and RandAugment do not go together in 0.6.
    return _Batches(job, torch.nn.Sequential(*steps))
