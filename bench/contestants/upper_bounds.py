"""What no loader can pass: reading, decoding, pixels made beforehand, no work at all."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from dali_imagenet import Plan, SampleIndex, TrainRecipe
from dali_imagenet.decode.decode import decode
from dali_imagenet.decode.seek_index import seek_index_for
from dali_imagenet.image import read_pixels, read_sample
from dali_imagenet.transforms.normalize_erase import normalize, normalize_constants
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.resize import required_region, resize_crop_flip

from ..core import images
from ..core.job import MEAN, STD, Job
from . import torchvision_peers


class Threads:
    """Calls a function on every file in `workers` threads; a "batch" is how many files were done."""

    def __init__(self, job: Job, call: Callable[[Path], None]) -> None:
        self.files = images.image_files(Path(job.root))
        self.job, self.call = job, call

    def __iter__(self) -> Iterator[Any]:
        groups = [self.files[i : i + self.job.batch_size] for i in range(0, len(self.files), self.job.batch_size)]

        def run(group: list[Path]) -> int:
            for file in group:
                self.call(file)
            return len(group)

        with ThreadPoolExecutor(max(1, self.job.workers)) as pool:
            waiting = [pool.submit(run, g) for g in groups[: 2 * max(1, self.job.workers)]]
            rest = iter(groups[len(waiting) :])
            try:
                while waiting:
                    yield waiting.pop(0).result()
                    waiting += [pool.submit(run, g) for g in itertools.islice(rest, 1)]
            finally:
                pool.shutdown(cancel_futures=True)


def read_only(job: Job) -> Iterable[Any]:
    def call(file: Path) -> None:
        file.read_bytes()

    return Threads(job, call)


def decode_only(job: Job) -> Iterable[Any]:
    def call(file: Path) -> None:
        torchvision_peers.read_rgb(str(file))

    return Threads(job, call)


def decode_crops(job: Job) -> Iterable[Any]:
    """Draws the crops beforehand, as often as there are files."""
    index = SampleIndex.from_folder(job.root)
    plan = Plan(index, TrainRecipe.classic(), batch_size=len(index), seed=job.seed, drop_last=False).batch(0, 0)
    boxes = {
        index.path(int(sample)): (int(sample), tuple(box))
        for sample, box in zip(plan.source_index, plan.crop_box.tolist(), strict=True)
    }
    own = threading.local()

    def call(file: Path) -> None:
        own.workspace = getattr(own, "workspace", None) or Workspace()
        sample, box = boxes[str(file)]
        read_pixels(index, sample, box, own.workspace)

    return Threads(job, call)


class Steps:
    """What no loader of these pixels can do without, on one core: a file's bytes, the crop's pixels (with what earlier
    epochs have shown of the files), the resized image, and the normalized one in memory that is used again. No plan, no
    process, no queue and no consumer is counted.

    Attributes:
        parts_us: CPU microseconds an image, so far.
    """

    PARTS = ("reading", "decoding", "resizing", "normalizing")

    def __init__(self, job: Job) -> None:
        index = SampleIndex.from_folder(job.root)
        recipe = TrainRecipe.classic(input_size=job.size)
        self.plan = Plan(index, recipe, batch_size=job.batch_size, seed=job.seed)
        self.seek_index = seek_index_for(index, None)
        self.constants = normalize_constants(recipe.mean, recipe.std)
        self.out = torch.zeros(job.batch_size, 3, job.size, job.size)
        self.workspace = Workspace()
        self.epoch = self.images = 0
        self.seconds = [0.0] * len(self.PARTS)

    @property
    def parts_us(self) -> dict[str, float]:
        return {part: 1e6 * s / self.images for part, s in zip(self.PARTS, self.seconds, strict=True)}

    def __iter__(self) -> Iterator[Any]:
        for step in range(len(self.plan)):
            batch = self.plan.batch(self.epoch, step)
            for row, sample in enumerate(batch.source_index.tolist()):
                self._row(batch, row, sample)
            self.images += len(batch)
            yield len(batch)
        self.epoch += 1

    def _row(self, batch: Any, row: int, sample: int) -> None:
        index, region, clock = self.plan.index, required_region(batch, row), time.thread_time
        size = int(index.height[sample]), int(index.width[sample])
        slot = None if self.seek_index is None else self.seek_index.slot(sample)
        memory = self.workspace.get("decoded", (size[0] * size[1] * 3,), torch.uint8).numpy()
        times = [clock()]
        data = read_sample(index, sample)
        times.append(clock())
        pixels = decode(data, size, region.box, memory, slot)
        times.append(clock())
        image = resize_crop_flip(pixels, region, batch, row)
        times.append(clock())
        normalize(image, self.constants, self.out[row])
        times.append(clock())
        for part, (start, end) in enumerate(itertools.pairwise(times)):
            self.seconds[part] += end - start


def steps(job: Job) -> Iterable[Any]:
    return Steps(job)


class Synthetic:
    def __init__(self, job: Job) -> None:
        generator = torch.Generator().manual_seed(job.seed)
        shape = (job.batch_size, 3, job.size, job.size)
        self.images = torch.randn(shape, generator=generator).to(job.device)
        self.targets = torch.randint(10, (job.batch_size,), generator=generator).to(job.device)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(100):
            yield self.images, self.targets


def synthetic(job: Job) -> Iterable[Any]:
    return Synthetic(job)


class RawPixels(Dataset[Any]):
    """Crops of the right size, made once and mapped into memory; flip and normalize remain."""

    def __init__(self, file: Path, count: int, size: int) -> None:
        self.file, self.count, self.size = file, count, size
        self.pixels: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.pixels is None:
            self.pixels = np.memmap(self.file, np.uint8, "r", shape=(self.count, 3, self.size, self.size))
        image = torch.from_numpy(np.array(self.pixels[index]))
        return (image.flip(2) if torch.rand(()) < 0.5 else image), index % 10


def _collate(samples: list[Any]) -> Any:
    pixels = torch.stack([s[0] for s in samples]).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    return pixels.sub_(mean).div_(std), torch.tensor([s[1] for s in samples])


def crops(job: Job) -> tuple[Path, int, int]:
    """The file of crops, made once; its number of images, and how often the folder repeats each."""
    found = images.image_files(Path(job.root))
    files = images.distinct(found)
    name = hashlib.sha256(f"{job.root} {job.size} {len(files)}".encode()).hexdigest()[:12]
    target = Path(job.cache) / f"raw-{name}.uint8"
    if not target.exists():
        crop = v2.RandomResizedCrop(job.size, antialias=True)
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            for file in files:
                out.write(crop(torchvision_peers.read_rgb(str(file))).numpy().tobytes())
        partial.rename(target)
    return target, len(files), max(1, len(found) // len(files))


def raw_pixels(job: Job) -> Iterable[Any]:
    file, count, copies = crops(job)
    dataset: Any = torch.utils.data.ConcatDataset([RawPixels(file, count, job.size)] * copies)
    return torchvision_peers.loader(job, dataset, 10, _collate)
