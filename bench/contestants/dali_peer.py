"""DALI as its documentation writes it: its reader, its random numbers, its augmentations, its iterator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nvidia import dali
from nvidia.dali.auto_aug import rand_augment as auto_aug
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from ..core import images
from ..core.job import MEAN, STD, Job
from . import torchvision_peers

fn: Any = dali.fn  # its stubs do not fit what conditionals accept
types: Any = dali.types
pipeline_def: Any = vars(dali)["pipeline_def"]
rand_augment: Any = auto_aug.rand_augment

INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


def _hue_degrees(turns: float) -> float:
    return 360 * turns


def _graph(job: Job, gpu: bool) -> Any:
    spec = job.spec
    training = spec.crop == "random"
    device = "gpu" if gpu else "cpu"
    decoder = "mixed" if gpu else "cpu"
    mode = INTERPOLATION[spec.interpolation]
    named: dict[str, Any] = {"file_root": job.root}
    if gpu and training:  # whose decoder may be faster where a batch holds few images many times
        named = dict(zip(("files", "labels"), images.mixed(Path(job.root)), strict=True))
    encoded, labels = fn.readers.file(
        **named, random_shuffle=training, pad_last_batch=True, name="Reader", seed=job.seed
    )
    if training:
        pixels = fn.decoders.image_random_crop(
            encoded, device=decoder, random_aspect_ratio=[0.75, 4 / 3], random_area=[0.08, 1.0], num_attempts=100
        )
        pixels = fn.resize(pixels, device=device, resize_x=job.size, resize_y=job.size, interp_type=mode)
        mirror = fn.random.coin_flip(probability=spec.flip)
    else:
        pixels = fn.decoders.image(encoded, device=decoder)
        pixels = fn.resize(pixels, device=device, size=job.size * 256 // 224, mode="not_smaller", interp_type=mode)
        mirror = False
    if spec.jitter:
        b, c, s, h = spec.jitter
        pixels = fn.color_twist(
            pixels,
            brightness=fn.random.uniform(range=[1 - b, 1 + b]),
            contrast=fn.random.uniform(range=[1 - c, 1 + c]),
            saturation=fn.random.uniform(range=[1 - s, 1 + s]),
            hue=fn.random.uniform(range=[-_hue_degrees(h), _hue_degrees(h)]),
        )
    if spec.rand_augment:
        n, m = spec.rand_augment
        pixels = rand_augment(pixels, n=n, m=m, shape=[job.size, job.size])
    if spec.erase:
        pixels = _erase(pixels, spec.erase)
    pixels = fn.crop_mirror_normalize(
        pixels,
        dtype=types.FLOAT,
        output_layout="CHW",
        crop=(job.size, job.size),
        mean=[255 * v for v in MEAN],
        std=[255 * v for v in STD],
        mirror=mirror,
    )
    labels = fn.squeeze(labels, axes=0)
    return pixels, (labels.gpu() if gpu else labels)


def _erase(pixels: Any, probability: float) -> Any:
    if fn.random.coin_flip(probability=probability, dtype=types.BOOL):
        pixels = fn.erase(
            pixels,
            anchor=fn.random.uniform(range=[0, 1], shape=[2]),
            shape=fn.random.uniform(range=[0.14, 0.57], shape=[2]),  # sides of 2 to 33% of the area
            axis_names="HW",
            normalized_anchor=True,
            normalized_shape=True,
            fill_value=[255 * v for v in MEAN],
        )
    return pixels


class Batches:
    def __init__(self, job: Job, gpu: bool) -> None:
        graph = pipeline_def(enable_conditionals=True)(_graph)(
            job,
            gpu,
            batch_size=job.batch_size,
            num_threads=max(1, job.workers),
            device_id=0 if gpu else None,
            seed=job.seed,
            prefetch_queue_depth=2,
        )
        training = job.spec.crop == "random"
        policy = LastBatchPolicy.DROP if training else LastBatchPolicy.PARTIAL
        self.iterator = DALIGenericIterator(
            [graph], ["images", "labels"], reader_name="Reader", last_batch_policy=policy, auto_reset=True
        )
        self.to_device = job.device == "cuda" and not gpu
        self.mix = None
        if job.spec.mixing:
            classes = len({p.name for p in _class_folders(job.root)})
            self.mix = torchvision_peers.MixCollate(job.spec, classes).mix

    def __iter__(self) -> Iterator[Any]:
        for (batch,) in self.iterator:
            images, targets = batch["images"], batch["labels"].long()
            if self.to_device:
                images, targets = images.cuda(non_blocking=True), targets.cuda(non_blocking=True)
            yield self.mix(images, targets) if self.mix else (images, targets)


def _class_folders(root: str) -> list[Any]:
    from pathlib import Path

    return [p for p in Path(root).iterdir() if p.is_dir()]


def documented_cpu(job: Job) -> Iterable[Any]:
    return Batches(job, gpu=False)


def documented_gpu(job: Job) -> Iterable[Any]:
    return Batches(job, gpu=True)
