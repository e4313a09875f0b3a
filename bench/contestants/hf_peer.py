"""Hugging Face: the fast image processor of ViT, and datasets' imagefolder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torchvision.datasets import ImageFolder

from bench.contestants.torchvision_peers import loader, read_rgb, transform
from bench.job import MEAN, STD, Job


def processor(job: Job) -> Iterable[Any]:
    import transformers

    kind = getattr(transformers, "ViTImageProcessorFast", None) or transformers.ViTImageProcessor
    made = kind(
        do_resize=True,
        size={"shortest_edge": job.size * 256 // 224},
        resample=2,
        do_center_crop=True,
        crop_size={"height": job.size, "width": job.size},
        image_mean=MEAN,
        image_std=STD,
    )

    def collate(samples: list[Any]) -> Any:
        images = made([image for image, _ in samples], return_tensors="pt")["pixel_values"]
        return images, torch.tensor([label for _, label in samples])

    dataset = ImageFolder(job.root, loader=read_rgb)
    return loader(job, dataset, len(dataset.classes), collate)


def datasets_transform(job: Job) -> Iterable[Any]:
    import datasets

    datasets.disable_progress_bars()
    table = datasets.load_dataset("imagefolder", data_dir=job.root, split="train", cache_dir=job.cache)
    change = transform(job.spec, job.size)

    def apply(rows: Any) -> Any:
        return {"image": [change(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}

    from bench.contestants.torchvision_peers import MixCollate

    mix = MixCollate(job.spec, table.features["label"].num_classes).mix if job.spec.mixing else None

    def collate(samples: list[Any]) -> Any:
        images = torch.stack([s["image"] for s in samples])
        targets = torch.tensor([s["label"] for s in samples])
        return mix(images, targets) if mix else (images, targets)

    return loader(job, table.with_transform(apply), 0, collate)
