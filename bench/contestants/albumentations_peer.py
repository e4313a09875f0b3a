"""Albumentations on OpenCV images in a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import albumentations as A
import cv2
from albumentations.pytorch import ToTensorV2
from torchvision.datasets import ImageFolder

from ..core.job import MEAN, STD, Job, Spec
from .torchvision_peers import loader

MODES = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def _rand_augment(count: int, magnitude: int) -> Any:
    """torchvision's operations, at its magnitude of 30 steps, out of Albumentations' own."""
    m = magnitude / 30
    factor = (1 - 0.9 * m, 1 + 0.9 * m)
    degrees = 30 * m
    operations = [
        A.NoOp(p=1),
        A.Affine(shear={"x": (-17 * m, 17 * m), "y": 0}, p=1),
        A.Affine(shear={"x": 0, "y": (-17 * m, 17 * m)}, p=1),
        A.Affine(translate_percent={"x": (-0.67 * m, 0.67 * m), "y": 0}, p=1),
        A.Affine(translate_percent={"x": 0, "y": (-0.67 * m, 0.67 * m)}, p=1),
        A.Rotate((-degrees, degrees), p=1),
        A.ColorJitter(brightness=factor, contrast=(1, 1), saturation=(1, 1), hue=(0, 0), p=1),
        A.ColorJitter(brightness=(1, 1), contrast=factor, saturation=(1, 1), hue=(0, 0), p=1),
        A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=factor, hue=(0, 0), p=1),
        A.Sharpen(alpha=(0.0, 0.9 * m), p=1),
        A.Posterize(num_bits=7, p=1),
        A.Solarize(threshold_range=(1 - m, 1 - m), p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
    ]
    return A.SomeOf(operations, n=count, replace=True, p=1)


def _transform(spec: Spec, size: int) -> Any:
    mode = MODES[spec.interpolation]
    steps: list[Any] = []
    if spec.crop == "random":
        steps += [A.RandomResizedCrop(size=(size, size), interpolation=mode), A.HorizontalFlip(p=spec.flip)]
    else:
        steps += [A.SmallestMaxSize(max_size=size * 256 // 224, interpolation=mode), A.CenterCrop(size, size)]
    if spec.rand_augment:
        steps.append(_rand_augment(*spec.rand_augment))
    if spec.jitter:
        b, c, s, h = spec.jitter
        steps.append(A.ColorJitter((1 - b, 1 + b), (1 - c, 1 + c), (1 - s, 1 + s), (-h, h), p=1))
    steps.append(A.Normalize(MEAN, STD))
    if spec.erase:
        steps.append(A.Erasing(scale=(0.02, 0.33), p=spec.erase))
    return A.Compose([*steps, ToTensorV2()])


def _read(path: str) -> Any:
    image = cv2.imread(path)
    if image is None:
        raise ValueError(f"OpenCV cannot read {path}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class _Apply:
    def __init__(self, spec: Spec, size: int) -> None:
        self.transform = _transform(spec, size)

    def __call__(self, image: Any) -> Any:
        cv2.setNumThreads(0)  # one core a worker, as every other contestant
        return self.transform(image=image)["image"]


def build(job: Job) -> Iterable[Any]:
    dataset = ImageFolder(job.root, _Apply(job.spec, job.size), loader=_read)
    return loader(job, dataset, len(dataset.classes))
