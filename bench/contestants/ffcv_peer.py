"""FFCV on a beton of JPEGs, its own decoder and crop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from torchvision.datasets import ImageFolder

from ..core import images
from ..core.job import MEAN, STD, Job
from .torchvision_peers import OnDevice


def beton(job: Job) -> tuple[Path, int, int]:
    """The converted data set, its number of images, and how often the folder repeats each."""
    folder = ImageFolder(job.root)
    folder.samples, copies = images.distinct_samples(folder.samples)
    name = hashlib.sha256(f"{job.root} {len(folder)} 2".encode()).hexdigest()[:12]
    target = Path(job.cache) / f"ffcv-{name}.beton"
    if not target.exists():
        partial = target.with_suffix(".partial")
        writer = DatasetWriter(
            str(partial), {"image": RGBImageField(write_mode="jpg"), "label": IntField()}, num_workers=1
        )
        writer.from_indexed_dataset(folder)
        partial.rename(target)
    return target, len(folder), copies


def build(job: Job) -> Iterable[Any]:
    file, count, copies = beton(job)
    training = job.spec.crop == "random"
    shape = (job.size, job.size)
    image: list[Any]
    if training:
        image = [RandomResizedCropRGBImageDecoder(shape), RandomHorizontalFlip(job.spec.flip)]
    else:
        image = [CenterCropRGBImageDecoder(shape, ratio=224 / 256)]
    mean, std = (np.array(v) * 255 for v in (MEAN, STD))
    image += [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(channels_last=False)]
    loader: Iterable[Any] = Loader(
        str(file),
        indices=np.tile(np.arange(count), copies),
        batch_size=job.batch_size,
        num_workers=max(1, job.workers),
        order=OrderOption.RANDOM if training else OrderOption.SEQUENTIAL,
        drop_last=training,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    return loader if job.device == "cpu" else OnDevice(loader, job.device)
