"""datago: files are read and decoded by its Rust threads, in random order. It has no random crop: torchvision's tensor
transforms follow in a pool of threads."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datago import DatagoClient
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ..core.job import Job
from .torchvision_peers import MixCollate, OnDevice, transform


class Batches:
    def __init__(self, job: Job) -> None:
        self.job, self.threads = job, max(1, job.workers)
        os.environ["DATAGO_MAX_TASKS"] = str(self.threads)
        folder = ImageFolder(job.root)
        self.count, self.labels = len(folder), folder.class_to_idx
        self.change = transform(job.spec, job.size, v2, tensors=True)
        self.collate = MixCollate(job.spec, len(folder.classes)) if job.spec.mixing else default_collate

    def _sample(self, sample: Any) -> tuple[torch.Tensor, int]:
        pixels = torch.from_numpy(np.array(sample["image"].convert("RGB")))
        return self.change(pixels.permute(2, 0, 1)), self.labels[Path(sample["id"]).parent.name]

    def __iter__(self) -> Iterator[Any]:
        training = self.job.spec.crop == "random"
        source = {"root_path": self.job.root, "random_sampling": training, "rank": 0, "world_size": 1}
        config = {"source_type": "file", "source_config": source, "limit": self.count, "samples_buffer_size": 256}
        client = DatagoClient(json.dumps(config))
        client.start()
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                yield from self._batches(client, pool, training)
        finally:
            client.stop()

    def _batches(self, client: Any, pool: ThreadPoolExecutor, training: bool) -> Iterator[Any]:
        running: deque[Any] = deque()
        done: list[Any] = []
        left = self.count
        while left or running:
            while left and len(running) < 2 * self.job.batch_size:
                sample = client.get_sample_auto_convert()
                left = left - 1 if sample else 0
                if sample:
                    running.append(pool.submit(self._sample, sample))
            if running:
                done.append(running.popleft().result())
            if len(done) == self.job.batch_size or (done and not (left or running or training)):
                yield self.collate(done)
                done = []


def build(job: Job) -> Iterable[Any]:
    batches = Batches(job)
    return batches if job.device == "cpu" else OnDevice(batches, job.device)
