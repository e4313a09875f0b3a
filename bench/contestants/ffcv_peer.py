"""FFCV on a beton of JPEGs, its own decoder and crop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from torchvision.datasets import ImageFolder

from bench.job import MEAN, STD, Job


def _beton(job: Job) -> Path:
    folder = ImageFolder(job.root)
    name = hashlib.sha256(f"{job.root} {len(folder)}".encode()).hexdigest()[:12]
    target = Path(job.cache) / f"ffcv-{name}.beton"
    if not target.exists():
        partial = target.with_suffix(".partial")
        writer = DatasetWriter(
            str(partial), {"image": RGBImageField(write_mode="jpg"), "label": IntField()}, num_workers=1
        )
        writer.from_indexed_dataset(folder)
        partial.rename(target)
    return target


def build(job: Job) -> Iterable[Any]:
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
        str(_beton(job)),
        batch_size=job.batch_size,
        num_workers=max(1, job.workers),
        order=OrderOption.RANDOM if training else OrderOption.SEQUENTIAL,
        drop_last=training,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    if job.device == "cuda":
        return ((i.to(torch.device("cuda")), t.cuda()) for i, t in loader)
    return loader
