"""SPDL: a thread pipeline. FFmpeg decoding, torchvision's tensor transforms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import spdl.io
import torch
from spdl.dataloader import DataLoader
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ..core.job import Job
from .torchvision_peers import MixCollate, OnDevice, transform


class _Shuffled:
    """The samples in a new order at every iteration."""

    def __init__(self, samples: list[tuple[str, int]], shuffle: bool) -> None:
        self.samples, self.shuffle = samples, shuffle

    def __iter__(self) -> Iterator[tuple[str, int]]:
        places = torch.randperm(len(self.samples)).tolist() if self.shuffle else range(len(self.samples))
        for place in places:
            yield self.samples[place]

    def __len__(self) -> int:
        return len(self.samples)


def build(job: Job) -> Iterable[Any]:
    folder = ImageFolder(job.root)
    training = job.spec.crop == "random"
    spdl.io.load_image(folder.samples[0][0])  # its threads would only log that FFmpeg is missing
    change = transform(job.spec, job.size, v2, tensors=True)

    def decode(sample: tuple[str, int]) -> tuple[torch.Tensor, int]:
        path, label = sample
        pixels = spdl.io.to_torch(spdl.io.load_image(path))  # uint8 RGB, height x width x 3
        return change(pixels.permute(2, 0, 1)), label

    collate = MixCollate(job.spec, len(folder.classes)) if job.spec.mixing else default_collate
    loader: Any = DataLoader(
        _Shuffled(folder.samples, training),
        batch_size=job.batch_size,
        drop_last=training,
        preprocessor=decode,
        aggregator=collate,
        buffer_size=2,
        num_threads=max(1, job.workers),
    )
    return loader if job.device == "cpu" else OnDevice(loader, job.device)
