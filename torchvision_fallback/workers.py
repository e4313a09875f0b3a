"""A DataLoader whose items are whole batches, made by workers in a ring of shared memory.

    caller's process                                      worker process
    ----------------                                      --------------
    Workers.batches --next()--> DataLoader
      _Tasks: next (epoch, step) of the schedule,
              a free slot of the ring     --WorkerTask--> _Batches.__getitem__
                                                            Plan.batch: draws the plan itself
                                                            Plan.execute_rows: read, decode, resize,
                                                              and for a CPU target operations, normalize,
                                                              erase and mix, into the slot's memory
      tensor on the slot's memory       <--WorkerResult--   the plan as executed, slot, failures
    yields (plan, images, failures)
      ... the last tensor on that memory is gone: finalize puts the slot back among the free ones

For a GPU the pixels stay uint8, and a slot is free again when the device has copied it (`upload`).

Where no slot is free the worker allocates, and the DataLoader's own sharing carries the images. In training the workers
are fed across the ends of epochs: to the DataLoader all epochs are one. With num_workers=0 both sides are one process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dali_imagenet.data.source import share_among
from dali_imagenet.decode.seek_index import SeekIndex
from dali_imagenet.engine import Batch
from dali_imagenet.image import announce, decode_and_resize
from dali_imagenet.plain_rows import PlainRows, Target
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.postprocess import Postprocess, mix_pair_
from torchvision_fallback.ring import batch_bytes, batch_dtype, batch_on, make_ring, new_batch

_NO_SLOT = -1


class WorkerTask(NamedTuple):
    """What a worker is asked for."""

    epoch: int
    step: int
    slot: int
    mix: bool


class WorkerResult(NamedTuple):
    """What comes back: the plan as it was executed, the images where they are not in a ring slot, and failures."""

    plan: BatchPlan
    slot: int
    images: list[Tensor] | None
    failures: dict[int, str]
    mixed: bool
    sought: tuple[int, ...] = ()  # `SeekIndex.counts` of these


_PARENTS: list[DataLoader[WorkerResult]] = []  # what a forked child must not end


class _Batches(Dataset[WorkerResult]):
    """Executes tasks; lives in the workers."""

    def __init__(
        self,
        plan: Plan,
        postprocess: Postprocess | None,
        ring: Sequence[Tensor],
        num_workers: int,
        seek_index: SeekIndex | None,
    ) -> None:
        self.plan, self.postprocess, self.ring, self.seek_index = plan, postprocess, ring, seek_index
        self._every = max(1, num_workers)  # step is this worker's: the DataLoader deals them out in turn
        self._workspace = Workspace()
        self._plain = PlainRows(plan.index, postprocess, seek_index)

    def __getitem__(self, task: WorkerTask) -> WorkerResult:
        # A worker inherits the default device of the thread that starts it, and every call of torch would ask for it: a
        # quarter of its time where images are 32 x 32.
        with torch._C.DisableTorchFunction():
            return self._make(task)

    def _make(self, task: WorkerTask) -> WorkerResult:
        plan = self.plan.batch(task.epoch, task.step)
        announce(self.plan, plan, self._every, _pairs if task.mix else range)
        if task.slot == _NO_SLOT:
            images = new_batch(plan, self.postprocess)
        else:
            images = batch_on(self.ring[task.slot], plan, self.postprocess)
        mix, target = plan.mix if task.mix else None, Target.of(images[0])

        def make(plan: BatchPlan, row: int) -> None:
            made, data = self._plain.make(plan, row, target)
            if not made:
                self._row(plan, row, images, data)
            if mix is not None and row >= (len(plan) + 1) // 2:  # the second of a pair
                mix_pair_(images[0], mix, len(plan) - 1 - row)

        plan, failures = self.plan.execute_rows(plan, make, None if mix is None else _pairs(len(plan)))
        sought = () if self.seek_index is None else self.seek_index.taken()
        return WorkerResult(plan, task.slot, images if task.slot == _NO_SLOT else None, failures, task.mix, sought)

    def _row(self, plan: BatchPlan, row: int, out: list[Tensor], data: bytes | None) -> None:
        pixels = decode_and_resize(self.plan.index, plan, row, self._workspace, self.seek_index, data)
        for view, image, images in zip(plan.views, pixels, out, strict=True):
            if self.postprocess is None:
                images[row].copy_(image)
            else:
                self.postprocess.finish_image(image, view, row, images[row])


def _pairs(rows: int) -> Iterator[int]:
    """Each row and the one it is mixed with, both still in the cache then; the middle one of an odd number last."""
    for row in range(rows // 2):
        yield row
        yield rows - 1 - row
    if rows % 2:
        yield rows // 2


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Holds Ctrl-C back while workers start: one that hits a half-made process hangs. The workers, which inherit this,
    never see it: they end with their parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(load_truncated: bool, max_pixels: int | None, worker: int) -> None:
    """Pillow's settings of the process that made the loader, which a spawned worker does not inherit."""
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = load_truncated, max_pixels
    info: Any = get_worker_info()
    share_among(info.dataset.plan.index.source, info.num_workers)


class _Tasks(Sampler[WorkerTask]):
    """What is to be done from a position on, each with a free slot; asked only when a worker is to be fed."""

    def __init__(self, plan: Plan, slots: int) -> None:
        self.plan, self.epoch, self.start, self.mix = plan, 0, 0, False
        self.free = list(range(slots))
        self.in_flight = deque[WorkerTask]()  # given to workers and not come back, in order

    def __iter__(self) -> Iterator[WorkerTask]:
        # What nobody asked for any more has been drained and dropped by now: those slots are free again.
        while self.in_flight:  # one by one: an interrupt may lose a slot, and frees none twice
            slot = self.in_flight.popleft().slot
            if slot != _NO_SLOT:
                self.free.append(slot)
        for epoch, step in self.plan.schedule(self.epoch, self.start):
            self.in_flight.append(WorkerTask(epoch, step, self.free.pop() if self.free else _NO_SLOT, self.mix))
            yield self.in_flight[-1]


class Workers:
    """Images of a plan from torch DataLoader workers.

    Args:
        plan: what to render.
        postprocess: what follows the pixels, for a CPU target; None hands over uint8 pixels (for a GPU).
        num_workers: worker processes; 0 renders in-process.
        prefetch: batches a worker has in hand.
        multiprocessing_context: "fork", "spawn", "forkserver" or None for the platform's default.
        timeout: seconds without a batch after which iteration fails with RuntimeError; 0 waits for ever.
        seek_index: of the plan's index; counts what its workers have.
        ahead: whether the user has one batch more in hand.

    Attributes:
        slots: the ring as this process sees it; a batch of a slot begins where the slot does.
        mixing: whether the next batch that is handed out shall be mixed; only where `postprocess` is given.
    """

    def __init__(
        self,
        plan: Plan,
        postprocess: Postprocess | None,
        *,
        num_workers: int,
        prefetch: int = 2,
        multiprocessing_context: str | None = None,
        timeout: float = 0,
        seek_index: SeekIndex | None = None,
        ahead: bool = False,
    ) -> None:
        self._plan, self._postprocess, self._seek_index = plan, postprocess, seek_index
        self.mixing = False
        largest = [max(height * width for height, width in recipe.sizes) for recipe in plan.recipes]
        nbytes = sum(batch_bytes(plan.batch_size, largest, batch_dtype(postprocess).itemsize))
        slots = (
            num_workers * prefetch + 2 + ahead
        )  # in flight, one in the user's hands and one that is exchanged for it
        for_device = postprocess is None
        self._ring = make_ring(slots, nbytes, num_workers, multiprocessing_context, for_device=for_device)
        self.slots: Sequence[Tensor] = self._ring.for_device() if for_device else self._ring
        self._tasks = _Tasks(plan, len(self._ring))
        self._results: Iterator[WorkerResult] | None = None  # where they come from; None: from a new iteration
        self._loader: DataLoader[WorkerResult] | None = DataLoader(
            _Batches(plan, postprocess, self._ring, num_workers, seek_index),
            batch_size=None,
            sampler=self._tasks,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            persistent_workers=num_workers > 0,
            multiprocessing_context=multiprocessing_context if num_workers else None,
            timeout=(int(timeout) if timeout == int(timeout) else timeout) if num_workers else 0,
            worker_init_fn=functools.partial(_start_worker, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
            generator=torch.Generator("cpu"),  # else it draws a base seed from torch's global generator
        )
        self._owner = os.getpid()

    def prepare(self, epoch: int, start: int) -> None:
        """Start the workers on what `batches` of that step needs, unless they are at it."""
        self._look_for(epoch, start)
        if self._results is None and start < len(self._plan):
            try:
                self._results = self._begin(epoch, start)
            except BaseException:
                self._stop_workers()
                raise

    def _look_for(self, epoch: int, start: int) -> None:
        """Forget what is in flight where that step is not the next."""
        if self._loader is None:
            raise RuntimeError("the loader is closed")
        coming = next(iter(self._tasks.in_flight), None)
        if coming is None or coming[:2] != (epoch, start):
            self._results = None

    def _begin(self, epoch: int, start: int) -> Iterator[WorkerResult]:
        assert self._loader is not None
        self._tasks.epoch, self._tasks.start, self._tasks.mix = epoch, start, self.mixing
        # Workers that are there already are asked for what they had in flight, which may take time.
        # The DataLoader makes a tensor of its own, on the user's default device unless told otherwise.
        starting = self._loader._iterator is None
        with _no_interrupt() if starting else contextlib.nullcontext(), torch.device("cpu"):
            return iter(self._loader)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The plan as executed, the images and the failures {sample: reason}, from that step to the epoch's end."""
        self._look_for(epoch, start)
        while start < len(self._plan):
            results, self._results = self._results, None  # put back below: what fails or is interrupted begins anew
            self._tasks.mix = self.mixing
            try:
                if results is None:
                    results = self._begin(epoch, start)
                done = [next(results)]
            except BaseException as error:
                # A worker died or hangs, or the start was interrupted: the next iteration starts new ones.
                if results is None or isinstance(error, Exception):
                    results = None
                    self._stop_workers()
                raise
            plan, failures = done[0].plan, done[0].failures
            if self._seek_index is not None:
                self._seek_index.add(done[0].sought)
            if (plan.epoch, plan.step) != (epoch, start):
                raise RuntimeError(f"expected step {start} of epoch {epoch}, got {plan.step} of {plan.epoch}")
            self._tasks.in_flight.popleft()
            if done[0].mixed != self.mixing:  # switched meanwhile: what was in flight is made again
                self._images(done.pop())  # dropped: its slot is free
                continue
            start += 1
            self._results = results
            yield plan, self._images(done.pop()), failures  # not held here while the user has it

    def _images(self, done: WorkerResult) -> list[Tensor]:
        if done.images is not None:
            return done.images
        # The tensors' memory keeps `lent` alive, views included; with the last of them the slot is free again.
        lent = self.slots[done.slot].numpy()[:]
        weakref.finalize(lent, self._tasks.free.append, done.slot).atexit = False
        return batch_on(torch.from_numpy(lent), done.plan, self._postprocess)

    def close(self) -> None:
        """Stop the workers. The batches that the user holds stay valid."""
        if self._loader is not None:
            self._stop_workers()
            self._loader = None

    def _stop_workers(self) -> None:
        """Now, not when the last traceback that holds them is gone, which would be in a destructor."""
        assert self._loader is not None
        self._results = None
        if self._owner != os.getpid():  # a forked child's copy, whose destructor would stop the parent's workers
            _PARENTS.append(self._loader)
            return
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # private; nothing public ends them now
