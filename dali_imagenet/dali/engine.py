"""The engine on DALI: DALI reads and decodes (on a GPU it resizes, flips and colours, too), the rest runs behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet.dali.roi_probe import probe_roi_decode
from dali_imagenet.dali.stage import DaliBatchError, DaliStage, Rendering, one_torch_thread_each
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.data.source import one_by_one
from dali_imagenet.engine import Batch, EngineOptions
from dali_imagenet.errors import BadImageError, StorageError
from dali_imagenet.escape import escaped
from dali_imagenet.formats import FORMATS
from dali_imagenet.image import announce, decode_and_resize
from dali_imagenet.jpeg_markers import find_marker_anomaly
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.recipe import Recipe, TrainRecipe
from dali_imagenet.rng import unit_hash
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.postprocess import Postprocess
from dali_imagenet.transforms.transfer import to_device

log = logging.getLogger("dali_imagenet")
_PART = 4  # rows that a thread decodes at a time
_READ = 16  # files that a thread reads at a time
_FEW = 8  # files that DALI refuses, which are no sign that it refuses all


class _Others(NamedTuple):
    """The rows of a batch that are not DALI's, while threads decode them."""

    rows: npt.NDArray[np.int64]
    pixels: list[Tensor]
    """Of each view, uint8 [R, 3, H, W], in the order of `rows`; for a GPU in pinned memory."""
    jobs: list[Future[None]]

    def cancel(self) -> None:
        """Nobody wants them any more."""
        for job in self.jobs:
            job.cancel()


_Waiting = tuple[BatchPlan, _Others]


class DaliEngine:
    """See `dali_imagenet.engine.Engine`."""

    decoder = "DALI"

    def __init__(self, plan: Plan, options: EngineOptions) -> None:
        device, roi_decode = options.device, options.roi_decode
        if roi_decode is None:
            roi_decode = device.type == "cpu"
        elif roi_decode and device.type == "cuda" and not probe_roi_decode(device.index or 0):
            raise RuntimeError(
                f"roi_decode=True: a trial in a subprocess did not decode regions on {device} rightly, or not as fast "
                "as whole images; leave roi_decode out"
            )
        self.mixing = False
        self._plan, self._options = plan, dataclasses.replace(options, roi_decode=roi_decode)
        self._postprocess = Postprocess(dtype=options.dtype, memory_format=options.memory_format)
        self._by_path = len(plan.index) > 0 and plan.index.source.local_path(0) is not None
        self._views = [_rendering(recipe, options) for recipe in plan.recipes]
        self._stage_options: dict[str, Any] = {
            "train": plan.train,
            "device": device,
            "roi_decode": roi_decode,
            "hw_decoder_load": options.hw_decoder_load,
            "decoder_args": {"jpeg_fancy_upsampling": options.fancy_upsampling},
            "in_graph": options.in_graph,
            "encoded": not self._by_path,
            **vars(self._views[0]),
            "others": self._views[1:],
        }
        self._needs_cpu_decode = _for_the_cpu(plan.index, options.cpu_share)  # and what DALI turns out not to decode
        self._markers_checked = np.zeros(len(plan.index), bool)  # and found as they should be
        self._said = False  # that DALI decodes next to nothing
        self._tried = 0  # samples that DALI was given alone, since it had failed on their batch
        self.refused = 0  # of these the ones that it did not decode and Pillow does
        threads = max(1, options.num_workers)
        # checks what DALI has read, and on the CPU finishes its images
        self._pool = one_torch_thread_each(threads)
        # decodes what is not DALI's: with a share so much of it that nothing else shall wait behind it
        self._decoders = one_torch_thread_each(threads) if options.cpu_share else self._pool
        self._own = threading.local()  # of each thread that decodes: its Workspace
        self._stage = DaliStage(
            batch_size=plan.batch_size, num_threads=threads, prefetch=options.prefetch, **self._stage_options
        )
        if device.type == "cuda" and len(plan):
            for view, drawn in zip(self._views, plan.batch(0, 0).views, strict=True):
                # now, not in the midst of training; what the graph has normalized needs none
                self._postprocess.compile(drawn, device, torch.uint8 if view.normalize is None else options.dtype)
        self._waiting = deque[_Waiting]()  # what is in flight, in order
        self._schedule: Iterator[tuple[int, int]] = iter(())  # what comes behind it

    @property
    def roi_decode(self) -> bool | None:
        """Whether DALI decodes only the region that is needed."""
        return self._options.roi_decode

    def prepare(self, epoch: int, step: int) -> None:
        """See `dali_imagenet.engine.Engine.prepare`."""

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """See `dali_imagenet.engine.Engine.batches`."""
        coming, _ = next(iter(self._waiting), (None, None))
        if coming is None or (coming.epoch, coming.step) != (epoch, step):
            while self._waiting:  # first: a drain that is interrupted is made up for
                self._waiting.pop()[1].cancel()
            self._stage.drain()
            self._schedule = self._plan.schedule(epoch, step)
        for _ in range(step, len(self._plan)):
            waiting, self._waiting = self._waiting, deque()  # put back below: what fails or is interrupted begins anew
            self._feed(waiting)
            (plan, others), failures = waiting.popleft(), dict[int, str]()
            try:
                images = self._stage.collect()
                for job in others.jobs:
                    job.result()
                images = self._merge_rows(images, others, plan)
                for row in self._rows_to_recheck(plan, others):
                    _put(images, row, self._as_from_dali(self._decode(plan, row), plan))
            except (DaliBatchError, BadImageError):
                others.cancel()
                plan, images, failures = self._retry_per_sample(plan)
            if (seek := self._options.seek_index) is not None:
                seek.add(seek.taken())
            self._feed(waiting)
            done = []
            for view in plan.views:
                done.append(self._postprocess.finish_batch(images.pop(0), view, self._pool, mix=self.mixing))
            self._waiting = waiting
            yield plan, [done.pop(0) for _ in plan.views], failures  # not held here while the user has them

    def for_plan(self, plan: Plan) -> DaliEngine:
        """See `dali_imagenet.engine.Engine.for_plan`."""
        return DaliEngine(plan, dataclasses.replace(self._options, num_workers=1, prefetch=1))

    def close(self) -> None:
        """See `dali_imagenet.engine.Engine.close`."""
        for pool in (self._decoders, self._pool):
            pool.shutdown(cancel_futures=True)
        self._stage.close()

    def _feed(self, waiting: deque[_Waiting]) -> None:
        for epoch, step in itertools.islice(self._schedule, self._options.prefetch - len(waiting)):
            plan = self._plan.batch(epoch, step)
            waiting.append((plan, self._submit(plan)))

    def _submit(self, plan: BatchPlan) -> _Others:
        """Starts DALI on the rows that are its own, and threads on the others, which are returned."""
        announce(self._plan, plan)
        others = ~plan.is_padding & self._needs_cpu_decode[plan.source_index]
        mine = (~plan.is_padding & ~others).nonzero()[0]
        part = plan if len(mine) == len(plan) else plan.select_rows(mine)
        samples = part.source_index.tolist()
        self._stage.submit(part, self._files(samples), self._plan.index.file_size[samples].tolist())
        rows, pinned = others.nonzero()[0], self._options.device.type == "cuda"
        pixels = [
            torch.empty((len(rows), 3, *view.size), dtype=torch.uint8, device="cpu", pin_memory=pinned)
            for view in plan.views
        ]
        places = list(enumerate(rows.tolist()))
        parts = [places[start : start + _PART] for start in range(0, len(places), _PART)]
        return _Others(rows, pixels, [self._decoders.submit(self._decode_into, plan, part, pixels) for part in parts])

    def _decode_into(self, plan: BatchPlan, places: Iterable[tuple[int, int]], pixels: list[Tensor]) -> None:
        """Rows of a plan, each to its place in `pixels`."""
        if not hasattr(self._own, "workspace"):
            self._own.workspace = Workspace()
        for at, row in places:
            made = decode_and_resize(self._plan.index, plan, row, self._own.workspace, self._options.seek_index)
            _put(pixels, at, made)

    def _files(self, samples: Sequence[int]) -> list[bytes]:
        """What DALI is given of the samples: their paths, or the files themselves where they have none."""
        source = self._plan.index.source
        if self._by_path:
            return [os.fsencode(source.local_path(sample) or "") for sample in samples]
        # What cannot be read is empty, so that DALI fails, and `_retry_per_sample` finds out why.
        if one_by_one(source):
            parts = [samples[start : start + _READ] for start in range(0, len(samples), _READ)]
            files = [file for part in self._pool.map(source.read_many, parts) for file in part]
        else:  # it may have requests in flight, and a wait for them is interrupted in this thread alone
            files = source.read_many(samples)
        for file in files:
            if isinstance(file, StorageError):
                raise file
        return [b"" if isinstance(file, Exception) else file for file in files]

    def _merge_rows(self, images: list[Tensor], others: _Others, plan: BatchPlan) -> list[Tensor]:
        """DALI's images and the CPU's at their rows."""
        if len(images[0]) == len(plan):
            return images
        full = self._new_batch(plan)
        mine, theirs = to_device([_rows_of_dali(plan, others), others.rows], self._options.device)
        for batch, some, more in zip(full, images, self._as_from_dali(others.pixels, plan), strict=True):
            batch.index_copy_(0, mine, some).index_copy_(0, theirs, more)
        return full

    def _rows_to_recheck(self, plan: BatchPlan, others: _Others) -> list[int]:
        """Rows that DALI has just decoded, but whose files have markers where none belong: they are Pillow's.

        DALI delivers some of them that Pillow refuses, so that the backends would lose different samples.
        """
        rows = _rows_of_dali(plan, others)
        at = (~self._markers_checked[plan.source_index[rows]]).nonzero()[0]  # of what DALI has made
        new = list(zip(at.tolist(), rows[at].tolist(), strict=True))
        parts = self._pool.map(
            lambda part: [row for at, row in part if find_marker_anomaly(self._stage.file(at))],
            [new[start : start + 32] for start in range(0, len(new), 32)],
        )
        found = [row for part in parts for row in part]
        self._markers_checked[plan.source_index[rows[at]]] = True
        self._markers_checked[plan.source_index[found]] = False
        self._needs_cpu_decode[plan.source_index[found]] = True
        return found

    def _retry_per_sample(self, plan: BatchPlan) -> Batch:
        """A batch that could not be made, sample by sample: a failure costs that sample alone.

        What DALI cannot decode and Pillow can is Pillow's from then on; what neither can is replaced or raised.
        """
        images = self._new_batch(plan)
        with contextlib.closing(DaliStage(batch_size=1, num_threads=1, prefetch=1, **self._stage_options)) as alone:

            def make(plan: BatchPlan, row: int) -> None:
                _put(images, row, self._make_row(alone, plan, row))

            plan, failures = self._plan.execute_rows(plan, make)
        if self.refused >= max(_FEW, self._tried / 2) and not self._said:
            self._said = True
            log.warning(
                "DALI on %s did not decode %d of %d files that Pillow decodes, one by one, on the CPU: if its decoder "
                "does not work here, backend='torchvision' is faster",
                self._options.device,
                self.refused,
                self._tried,
            )
        return plan, images, failures

    def _make_row(self, alone: DaliStage, plan: BatchPlan, row: int) -> list[Tensor]:
        image = self._as_from_dali(self._decode(plan, row), plan)  # first: what neither can costs DALI a new pipeline
        sample = int(plan.source_index[row])
        if self._needs_cpu_decode[sample]:
            return image
        file = self._files([sample])
        there = file != [b""]  # it may be gone, and no fault of DALI's
        self._tried += there
        try:
            alone.submit(plan.select_rows([row]), file, [int(self._plan.index.file_size[sample])])
            found = [view[0] for view in alone.collect()]
            if self._markers_checked[sample] or not find_marker_anomaly(alone.file(0)):
                return found
        except DaliBatchError as error:
            name = escaped(self._plan.index.source.name(sample))
            log.warning("%s is decoded by Pillow from now on: DALI says %r", name, error.reason)
            self.refused += there
        self._needs_cpu_decode[sample] = True
        return image

    def _decode(self, plan: BatchPlan, row: int) -> list[Tensor]:
        return decode_and_resize(self._plan.index, plan, row)

    def _new_batch(self, plan: BatchPlan) -> list[Tensor]:
        device = self._options.device
        return [
            torch.empty((len(plan), 3, *each.size), dtype=view.dtype, device=device, memory_format=view.memory_format)
            for each, view in zip(plan.views, self._views, strict=True)
        ]

    def _as_from_dali(self, pixels: list[Tensor], plan: BatchPlan) -> list[Tensor]:
        """What the graph would have made of these pixels of each view: of one image, or of several."""
        there = [image.contiguous().to(self._options.device, non_blocking=True) for image in pixels]
        return [
            image if view.normalize is None else self._postprocess.normalize(image, each)
            for image, view, each in zip(there, self._views, plan.views, strict=True)
        ]


def _for_the_cpu(index: SampleIndex, share: float) -> npt.NDArray[np.bool_]:
    """Which samples are decoded on the CPU: those that DALI's decoders do not know, and of the others, by a hash of
    their place in the index, as many as are missing from the share."""
    # DALI shows 16-bit PNG and CMYK without Adobe's segment otherwise than Pillow, and its GPU decoders know fewer
    # formats: whatever is no gray or colour JPEG is left to the CPU.
    chosen: npt.NDArray[np.bool_] = (index.format != FORMATS.index("JPEG")) | ~np.isin(index.components, (1, 3))
    unknown = float(chosen.mean()) if len(index) else 0.0
    if share > unknown:
        chosen |= unit_hash(np.arange(len(index))) < (share - unknown) / (1 - unknown)
    return chosen


def _rows_of_dali(plan: BatchPlan, others: _Others) -> npt.NDArray[np.int64]:
    mine = ~plan.is_padding
    mine[others.rows] = False
    return mine.nonzero()[0]


def _put(images: list[Tensor], row: int, made: list[Tensor]) -> None:
    """One row, in each view."""
    for view, image in zip(images, made, strict=True):
        view[row] = image


def _rendering(recipe: Recipe, options: EngineOptions) -> Rendering:
    """What the stage does with a view of that recipe."""
    fused = not recipe.pixel_ops
    return Rendering(
        window=not isinstance(recipe, TrainRecipe) or recipe.crop != "rrc",
        color=isinstance(recipe, TrainRecipe) and recipe.color_twist is not None,
        vflip=isinstance(recipe, TrainRecipe) and recipe.vflip > 0,
        normalize=(recipe.mean, recipe.std) if fused else None,
        dtype=options.dtype if fused else torch.uint8,
        memory_format=options.memory_format if fused else torch.contiguous_format,
        window_fill=recipe.window_fill,
    )
