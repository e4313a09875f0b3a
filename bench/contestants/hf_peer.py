"""Hugging Face: the fast image processor of ViT, and datasets' imagefolder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ..core.job import MEAN, STD, Job
from .torchvision_peers import MixCollate, loader, read_rgb, transform


def _processor(job: Job) -> Any:
    import transformers

    kind = getattr(transformers, "ViTImageProcessorFast", None) or transformers.ViTImageProcessor
    return kind(
        do_resize=True,
        size={"shortest_edge": job.size * 256 // 224},
        resample=2,  # bilinear
        do_center_crop=True,
        crop_size={"height": job.size, "width": job.size},
        image_mean=MEAN,
        image_std=STD,
    )


def processor(job: Job) -> Iterable[Any]:
    made = _processor(job)

    def collate(samples: list[Any]) -> Any:
        images = made([image for image, _ in samples], return_tensors="pt")["pixel_values"]
        return images, torch.tensor([label for _, label in samples])

    dataset = ImageFolder(job.root, loader=read_rgb)
    return loader(job, dataset, len(dataset.classes), collate)


def _table(job: Job) -> Any:
    import datasets

    datasets.disable_progress_bars()
    everything = {"train": "**"}  # else names with "train" in them are a split, such as a bullet train's
    return datasets.load_dataset(
        "imagefolder", data_dir=job.root, data_files=everything, split="train", drop_labels=False, cache_dir=job.cache
    )


class _Pairs:
    """datasets' dictionaries as (images, targets)."""

    def __init__(self, batches: Iterable[Any], device: str) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch["pixel_values"].to(self.device), batch["label"].to(self.device)


def datasets_map(job: Job) -> Iterable[Any]:
    """`map(batched=True)` with the processor, computed while it is read (written out, an image takes 600 KB)."""
    table = _table(job)
    made = _processor(job)

    def apply(rows: Any) -> Any:
        pixels = made([i.convert("RGB") for i in rows["image"]], return_tensors="np")["pixel_values"]
        return {"pixel_values": list(pixels), "label": rows["label"]}

    rows = table.to_iterable_dataset(num_shards=max(1, job.workers))
    rows = rows.map(apply, batched=True, batch_size=job.batch_size, remove_columns=["image"]).with_format("torch")
    batches = DataLoader(rows, batch_size=job.batch_size, num_workers=job.workers, persistent_workers=job.workers > 0)
    return _Pairs(batches, job.device)


def datasets_transform(job: Job) -> Iterable[Any]:
    table = _table(job)
    change = transform(job.spec, job.size)

    def apply(rows: Any) -> Any:
        return {"image": [change(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}

    mix = MixCollate(job.spec, table.features["label"].num_classes).mix if job.spec.mixing else None

    def collate(samples: list[Any]) -> Any:
        images = torch.stack([s["image"] for s in samples])
        targets = torch.tensor([s["label"] for s in samples])
        return mix(images, targets) if mix else (images, targets)

    return loader(job, table.with_transform(apply), 0, collate)
