"""The engine without DALI: workers make batches; for a GPU target they make uint8 pixels, and the GPU does the rest."""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from dali_imagenet.data.source import Source
from dali_imagenet.decode.decode import decoder_name
from dali_imagenet.engine import Batch, EngineOptions
from dali_imagenet.plan.plan import Plan
from dali_imagenet.transforms.postprocess import Postprocess
from torchvision_fallback.upload import Upload
from torchvision_fallback.workers import Workers

log = logging.getLogger("dali_imagenet")


def _context(source: Source, options: EngineOptions) -> str | None:
    """How workers start: forked ones cannot go on with every source."""
    asked = options.multiprocessing_context
    if asked is not None or source.fork_safe or not options.num_workers:
        return asked
    # Forked from a process that has read nothing, they share what it has imported.
    chosen = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    log.info("workers start by %s: forked ones cannot go on with %s", chosen, type(source).__name__)
    return chosen


class TorchvisionEngine:
    """See `dali_imagenet.engine.Engine`.

    Args:
        upload: makes what copies batches from the ring's slots to a GPU; None: CUDA, where the device is one.
    """

    roi_decode = None

    def __init__(
        self, plan: Plan, options: EngineOptions, upload: Callable[[Sequence[Tensor]], Upload] | None = None
    ) -> None:
        self._options = options
        self._postprocess = Postprocess(dtype=options.dtype, memory_format=options.memory_format)
        self._mixing = False
        if upload is None and options.device.type != "cpu":
            upload = functools.partial(Upload, options.device)
        self._in_workers = upload is None
        if options.device.type != "cpu" and len(plan):
            for view in plan.batch(0, 0).views:
                self._postprocess.compile(view, options.device, torch.uint8)  # now, not in the midst of training
        self._workers = Workers(
            plan,
            self._postprocess if self._in_workers else None,
            num_workers=options.num_workers,
            prefetch=options.prefetch,
            multiprocessing_context=_context(plan.index.source, options),
            timeout=options.timeout,
            seek_index=options.seek_index,
            ahead=options.ahead,
        )
        self._upload = None if upload is None else upload(self._workers.slots)

    @property
    def decoder(self) -> str:
        """What decodes the usual JPEGs."""
        return decoder_name()

    @property
    def mixing(self) -> bool:
        """Whether the next batch that is handed out is mixed."""
        return self._mixing

    @mixing.setter
    def mixing(self, on: bool) -> None:
        self._mixing = on
        self._workers.mixing = on and self._in_workers

    def prepare(self, epoch: int, step: int) -> None:
        """See `dali_imagenet.engine.Engine.prepare`."""
        self._workers.prepare(epoch, step)

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """See `dali_imagenet.engine.Engine.batches`."""
        batches = self._workers.batches(epoch, step)
        if self._upload is None:
            yield from batches
            return
        while True:
            self._upload.wait()
            batch = next(batches, None)
            if batch is None:
                return
            plan, pixels, failures = batch
            images, done = self._upload(pixels), []
            del batch, pixels
            for view in plan.views:
                done.append(self._postprocess.finish_batch(images.pop(0), view, mix=self.mixing))
            yield plan, [done.pop(0) for _ in plan.views], failures  # not held here while the user has them

    def for_plan(self, plan: Plan) -> TorchvisionEngine:
        """See `dali_imagenet.engine.Engine.for_plan`."""
        return TorchvisionEngine(plan, dataclasses.replace(self._options, num_workers=0, prefetch=1, ahead=False))

    def close(self) -> None:
        """See `dali_imagenet.engine.Engine.close`."""
        if self._upload is not None:
            self._upload.close()
        self._workers.close()
