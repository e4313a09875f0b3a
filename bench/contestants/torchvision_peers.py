"""torchvision's ImageFolder + DataLoader as most people write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from ..core.job import MEAN, STD, Job, Spec

MODES = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


def transform(spec: Spec, size: int, t: Any = v1, tensors: bool = False) -> Callable[[Any], torch.Tensor]:
    """The recipe in torchvision's transforms, v1 or v2, from PIL images or (v2) uint8 tensors."""
    mode = MODES[spec.interpolation]
    steps: list[Any] = []
    if spec.crop == "random":
        steps.append(t.RandomResizedCrop(size, interpolation=mode, antialias=True))
    else:
        steps += [t.Resize(size * 256 // 224, interpolation=mode, antialias=True), t.CenterCrop(size)]
    if spec.flip:
        steps.append(t.RandomHorizontalFlip(spec.flip))
    if spec.rand_augment:
        steps.append(t.RandAugment(*spec.rand_augment))
    if spec.jitter:
        steps.append(t.ColorJitter(*spec.jitter))
    if spec.gray:
        steps.append(t.RandomGrayscale(spec.gray))
    if spec.blur:
        steps.append(t.RandomApply([t.GaussianBlur(23, (0.1, 2.0))], spec.blur))
    if t is v1:
        steps.append(v1.ToTensor())
    elif tensors:
        steps.append(v2.ToDtype(torch.float32, scale=True))
    else:
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    steps.append(t.Normalize(MEAN, STD))
    if spec.erase:
        steps.append(t.RandomErasing(spec.erase))
    composed: Callable[[Any], torch.Tensor] = t.Compose(steps)
    return composed


class MixCollate:
    """Mixup or CutMix in the collate function, as torchvision's documentation proposes."""

    def __init__(self, spec: Spec, classes: int) -> None:
        self.mix = v2.RandomChoice(
            [v2.MixUp(alpha=spec.mixup, num_classes=classes), v2.CutMix(alpha=spec.cutmix, num_classes=classes)]
        )

    def __call__(self, samples: list[Any]) -> Any:
        return self.mix(*default_collate(samples))


class OnDevice:
    """Batches moved to the device as a training script does it."""

    def __init__(self, loader: Iterable[Any], device: str) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Any]:
        for images, targets in self.loader:
            yield images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)


def loader(job: Job, dataset: Any, classes: int, collate: Callable[[list[Any]], Any] | None = None) -> Iterable[Any]:
    training = job.spec.crop == "random"
    if collate is None and job.spec.mixing:
        collate = MixCollate(job.spec, classes)
    batches = DataLoader(
        dataset,
        batch_size=job.batch_size,
        shuffle=training,
        drop_last=training,
        num_workers=job.workers,
        pin_memory=job.device == "cuda",
        collate_fn=collate,
        persistent_workers=job.workers > 0,
    )
    return batches if job.device == "cpu" else OnDevice(batches, job.device)


def read_rgb(path: str) -> torch.Tensor:
    pixels: torch.Tensor = decode_image(path, mode=ImageReadMode.RGB)
    return pixels


def v1_pil(job: Job) -> Iterable[Any]:
    dataset = ImageFolder(job.root, transform(job.spec, job.size))
    return loader(job, dataset, len(dataset.classes))


def v2_pil(job: Job) -> Iterable[Any]:
    dataset = ImageFolder(job.root, transform(job.spec, job.size, v2))
    return loader(job, dataset, len(dataset.classes))


def v2_tensor(job: Job) -> Iterable[Any]:
    dataset = ImageFolder(job.root, transform(job.spec, job.size, v2, tensors=True), loader=read_rgb)
    return loader(job, dataset, len(dataset.classes))


class GpuBatch:
    """Crop and resize in the workers, the rest by v2 on the batch."""

    def __init__(self, job: Job, batches: Iterable[Any], classes: int) -> None:
        spec = job.spec
        steps: list[Any] = [v2.RandomHorizontalFlip(spec.flip)]
        if spec.rand_augment:
            steps.append(v2.RandAugment(*spec.rand_augment))
        if spec.jitter:
            steps.append(v2.ColorJitter(*spec.jitter))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        if spec.erase:
            steps.append(v2.RandomErasing(spec.erase))
        self.steps = v2.Compose(steps)
        self.mix = MixCollate(spec, classes).mix if spec.mixing else None
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for images, targets in self.batches:
            images = self.steps(images)
            yield self.mix(images, targets) if self.mix else (images, targets)


def v2_gpu(job: Job) -> Iterable[Any]:
    crop = v2.RandomResizedCrop(job.size, interpolation=MODES[job.spec.interpolation], antialias=True)
    dataset = ImageFolder(job.root, crop, loader=read_rgb)
    return GpuBatch(job, loader(job, dataset, len(dataset.classes), default_collate), len(dataset.classes))
