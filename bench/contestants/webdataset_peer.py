"""webdataset: the same files as tar shards, torchvision's transforms."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder

from ..core import images
from ..core.job import Job
from .torchvision_peers import MixCollate, OnDevice, transform

SHARDS = 8


def shards(job: Job) -> list[str]:
    """Tar files of the folder's images, written once; named as often as the folder repeats them."""
    folder = ImageFolder(job.root)
    samples, copies = images.distinct_samples(folder.samples)
    name = hashlib.sha256(f"{job.root} {len(folder)} 2".encode()).hexdigest()[:12]
    made = [Path(job.cache) / f"wds-{name}-{i}.tar" for i in range(SHARDS)]
    for number, shard in enumerate(made):
        if shard.exists():
            continue
        partial = shard.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for index in range(number, len(samples), SHARDS):
                path, label = samples[index]
                for suffix, data in (("jpg", Path(path).read_bytes()), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{index:08d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        partial.rename(shard)
    return [str(p) for p in made] * copies


class _Samples:
    """webdataset's sample dictionaries as (image, label)."""

    def __init__(self, job: Job) -> None:
        self.change = transform(job.spec, job.size)

    def __call__(self, sample: Any) -> tuple[Any, int]:
        return self.change(Image.open(io.BytesIO(sample["jpg"])).convert("RGB")), int(sample["cls"])


def build(job: Job) -> Iterable[Any]:
    folder = ImageFolder(job.root)
    training = job.spec.crop == "random"
    files = shards(job)
    data = wds.WebDataset(files, shardshuffle=len(files) if training else False, nodesplitter=wds.split_by_node)
    if training:
        data = data.shuffle(1000)
    data = data.map(_Samples(job))
    batches = DataLoader(
        data,
        batch_size=job.batch_size,
        drop_last=training,
        num_workers=min(job.workers, len(files)),
        collate_fn=MixCollate(job.spec, len(folder.classes)) if job.spec.mixing else default_collate,
        persistent_workers=job.workers > 0,
        pin_memory=job.device == "cuda",
    )
    return batches if job.device == "cpu" else OnDevice(batches, job.device)
