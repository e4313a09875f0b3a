"""The iterator that users hold, and the one place that chooses a backend."""

from __future__ import annotations

import csv
import json
import logging
import os
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.engine import Engine, EngineOptions, choose_backend, make_engine
from dali_imagenet.errors import BadImageError
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import EPOCHS, OnError, Plan
from dali_imagenet.recipe import EvalRecipe, Recipe, TrainRecipe
from dali_imagenet.samplers import BatchSampler, Sampler
from dali_imagenet.state import position_in, state_of
from dali_imagenet.transforms.postprocess import soft_targets, zero_padding_
from dali_imagenet.transforms.transfer import to_device
from dali_imagenet.validation import choice, probability, real, whole, wrong

log = logging.getLogger("dali_imagenet")

Backend = Literal["auto", "dali", "torchvision", "reference", "reference-tensor"]


def create_loader(
    data: str | os.PathLike[str] | SampleIndex,
    recipe: Recipe,
    *,
    batch_size: int,
    # where
    backend: Backend = "auto",
    device: torch.device | str | None = None,
    num_workers: int | None = None,
    prefetch: int = 2,
    # order and shares
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool | None = None,
    # what comes out
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    # trouble
    on_error: OnError = "raise",
    max_broken: float = 0.01,
    timeout: float = 0,
    # fine points of a backend
    multiprocessing_context: str | None = None,
    roi_decode: bool | None = None,
    hw_decoder_load: float | None = None,
) -> Loader:
    """Make a loader: `for images, targets in create_loader(folder, TrainRecipe.strong(), batch_size=256)`.

    ::

        SampleIndex + recipe -> Plan(seed, epoch) -> Engine (DALI | torchvision workers | reference)
                             -> (images, targets)

    Args:
        data: an ImageFolder tree (or a folder that holds train/ and val/: training takes the one, evaluation the
            other), or a `SampleIndex`.
        recipe: `TrainRecipe` or `EvalRecipe`.
        batch_size: rows per rank; even where the recipe mixes.
        backend: "dali", "torchvision", or "auto": DALI for a GPU where it is installed; torchvision for the CPU, where
            it is the faster one. "reference" and "reference-tensor" carry the plan out by torchvision's and timm's own
            functions on PIL images and on tensors, slowly: what the others are measured against.
        device: where batches are handed over. None: the current CUDA device where there is one, else the CPU.
        num_workers: DALI's threads (0 means 1) or the fallback's processes (0 works in-process). None: one a core, 16
            at most.
        prefetch: batches in flight: in DALI, or per worker (none with num_workers=0 of the fallback). In training the
            first ones of the next epoch are made while this one ends, and held until they are asked for, through a
            validation in between, too; in evaluation none are held between epochs.
        seed: of order and augmentation. The same seed gives the same batches on every backend, for any number of
            workers and for any number of ranks with the same global batch.
        rank: by default that of torch.distributed where it is initialised, else 0.
        world_size: by default that of torch.distributed where it is initialised, else 1.
        drop_last: None drops the last partial batch in training and keeps it in evaluation.
        dtype: float32, float16 or bfloat16.
        memory_format: torch.contiguous_format or torch.channels_last.
        on_error: a broken image stops the run ("raise"), or is replaced by the next healthy one, the same on every
            backend ("replace"), or becomes a padding row with target -100 ("skip", evaluation only). Each is logged
            and listed in `Loader.failures`. That is for what is missing, forbidden, changed or cannot be decoded: where
            the storage or the memory fails, the run stops with a StorageError.
        max_broken: share of the data set above which "replace" and "skip" stop the run, too.
        timeout: seconds without a batch from the fallback's workers after which iteration fails; 0 waits for ever.
        multiprocessing_context: of the fallback's workers: "fork", "spawn" or "forkserver".
        roi_decode: whether DALI decodes only the region that is needed. None: yes on the CPU; on a GPU where a probe in
            a subprocess has shown that it works.
        hw_decoder_load: share of the JPEGs for the GPU's hardware decoder; None is DALI's default.

    Returns:
        A `Loader` of (images [B, 3, H, W], targets): targets int64 [B], or float32 [B, num_classes] where the recipe
        mixes or smooths labels; both on `device`.

    Raises:
        FileNotFoundError: no data.
        TypeError: a recipe that is none.
        ValueError: bad data or arguments.
        RuntimeError: what was asked for is not on this machine.
        BadImageError: the data holds broken images, and on_error is "raise".
    """
    target = _device(device)
    choice("on_error", on_error, ("raise", "replace", "skip"))
    choice("dtype", dtype, (torch.float32, torch.float16, torch.bfloat16))
    choice("memory_format", memory_format, (torch.contiguous_format, torch.channels_last))
    choice("multiprocessing_context", multiprocessing_context, (None, "fork", "spawn", "forkserver"))
    max_broken = probability("max_broken", max_broken)
    timeout = real("timeout", timeout, 0)
    if hw_decoder_load is not None:
        hw_decoder_load = probability("hw_decoder_load", hw_decoder_load)
    if not isinstance(recipe, TrainRecipe | EvalRecipe):
        raise TypeError(f"recipe={recipe!r}: must be a TrainRecipe or an EvalRecipe, such as TrainRecipe.classic()")
    num_workers = min(16, _cores()) if num_workers is None else whole("num_workers", num_workers, 0)
    prefetch = whole("prefetch", prefetch, 1)
    chosen, why = choose_backend(backend, target)
    index = data if isinstance(data, SampleIndex) else _index(data, recipe)
    _check_health(index, on_error, max_broken)
    rank, world_size = _ranks(rank, world_size)
    plan = Plan(
        index,
        recipe,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        on_error=on_error,
    )
    classes = _num_classes(index, recipe)
    engine = make_engine(
        chosen,
        plan,
        EngineOptions(
            device=target,
            dtype=dtype,
            memory_format=memory_format,
            num_workers=num_workers,
            prefetch=prefetch,
            multiprocessing_context=multiprocessing_context,
            timeout=timeout,
            roi_decode=roi_decode,
            hw_decoder_load=hw_decoder_load,
        ),
    )
    log.info("backend %s on %s: %s; %s decodes JPEGs", chosen, target, why, engine.decoder)
    return Loader(plan, engine, target, chosen, classes, max_broken)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = torch.device(device)
    if target.type not in ("cpu", "cuda"):
        raise wrong("device", device, "'cpu', 'cuda' or 'cuda:N'")
    if target.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"device={device!r}, but torch sees no CUDA GPU here: use device='cpu'")
        if target.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if target.index >= torch.cuda.device_count():
            raise RuntimeError(f"device={device!r}, but there are {torch.cuda.device_count()} GPUs")
    return target


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _index(data: str | os.PathLike[str], recipe: Recipe) -> SampleIndex:
    """The index of a folder, or of its train/ or val/ where it is split."""
    folder = Path(data)
    if not ((folder / "train").is_dir() and any((folder / name).is_dir() for name in ("val", "validation", "test"))):
        return SampleIndex.from_folder(folder)
    return SampleIndex.from_folder(folder, split="train" if isinstance(recipe, TrainRecipe) else "val")


def _check_health(index: SampleIndex, on_error: OnError, max_broken: float) -> None:
    broken = index.broken.nonzero()[0]
    if not len(broken):
        return
    lines = [f"{index.path(int(i))}: {index.reason(int(i))}" for i in broken[:10]]
    more = f"\n... and {len(broken) - 10} more (SampleIndex.broken has all)" if len(broken) > 10 else ""
    report = f"{len(broken)} of {len(index)} images are broken:\n" + "\n".join(lines) + more
    if on_error == "raise":
        raise BadImageError(f"{report}\nRemove or repair them, or use on_error='replace' (or 'skip' in evaluation)")
    if len(broken) > max_broken * len(index):
        raise BadImageError(f"{report}\nThat is more than max_broken={max_broken:.1%} allows")
    log.warning("%s", report)


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else 1
    return rank, world_size


def _num_classes(index: SampleIndex, recipe: Recipe) -> int:
    found = len(index.classes)
    asked = recipe.num_classes if isinstance(recipe, TrainRecipe) else None
    if asked is not None and asked < found:
        raise wrong("num_classes", asked, f"at least {found}, the classes of the data")
    return asked or found


class Loader:
    """An iterable of (images, targets), made by `create_loader`. Usable wherever a DataLoader is iterated.

    Each `iter()` goes on to the next epoch unless `set_epoch` said which. One iteration runs at a time: a new one
    ends the one before. A yielded batch stays valid and writable as long as this process holds it; one that is forked
    meanwhile needs a copy (`images.clone()`), for its own references do not count. Cannot be copied or pickled.

    Attributes:
        plan: the draws.
        dataset: the `SampleIndex`.
        sampler: the order of this rank's samples.
        batch_sampler: the same, step by step.
        backend: the name of the engine.
        batch_size: rows per rank.
        drop_last: whether the last partial batch is left out.
        device: where batches are handed over.
        num_classes: of the data, or of the recipe where that says more.
        roi_decode: whether DALI decodes the crop alone; None where it is not DALI that decodes.
        mixup_enabled: False stops mixing from the next yielded batch on; targets stay float and smoothed.
    """

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        device: torch.device,
        backend: str,
        num_classes: int,
        max_broken: float,
    ) -> None:
        self.plan, self.device, self.backend, self.num_classes = plan, device, backend, num_classes
        self.dataset, self.batch_size, self.drop_last = plan.index, plan.batch_size, plan.drop_last
        self.mixup_enabled = plan.recipe.mixing
        self.roi_decode = engine.roi_decode
        self.sampler = Sampler(self)
        self.batch_sampler = BatchSampler(self, self.sampler)
        self._engine: Engine | None = engine
        self._owner = os.getpid()
        self._max_broken = max_broken
        self._failed: dict[int, str] = {}
        self._at = (0, 0)  # epoch, and steps of it that have been handed out
        self._next: tuple[int, int] | None = (0, 0)  # where the next iteration starts; None: the epoch after this one
        self._restored: tuple[int, int] | None = None  # a loaded position, until an iteration has begun
        self._fresh = False  # an iteration has been made, but has not begun
        self._active = False
        self._running: weakref.ref[Any] | None = None

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """A copy would share the engine, or have memory that no worker writes to."""
        raise TypeError("a Loader cannot be copied or pickled: make another with create_loader")

    def __len__(self) -> int:
        """Steps of a whole epoch, whatever has been resumed."""
        return len(self.plan)

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter()` runs."""
        if self._next is not None:
            return self._next[0]
        return self._at[0] + (not self._fresh)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next `iter()` runs: from its first step, or, where this very epoch was just restored
        by `load_state_dict`, from the restored step."""
        epoch = whole("epoch", epoch, 0, EPOCHS - 1)
        restored = self._restored is not None and self._restored[0] == epoch
        self._next = self._restored if restored else (epoch, 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        engine = self._open_engine()
        self._stop()
        # Lightning asks for iterators more than once, and says set_epoch after that: what never began does not count.
        if self._next is not None:
            self._at = self._next
        elif not self._fresh:
            self._at = (self._at[0] + 1, 0)
        self._next, self._fresh = None, True
        iteration = self._run(engine)
        self._running = weakref.ref(iteration)  # weak: leaving the loop frees it, and with it what it has in flight
        return iteration

    def _run(self, engine: Engine) -> Generator[tuple[Tensor, Tensor], None, None]:
        self._at = self._at if self._next is None else self._next
        self._next, self._restored, self._fresh, self._active = None, None, False, True
        epoch, start = self._at
        batches = engine.batches(epoch, start)
        try:
            while True:
                if self._owner != os.getpid():  # neither DALI's threads nor the workers have come along
                    raise RuntimeError("a loader cannot be iterated in a forked child: create it there")
                # Memory that is written from another thread, or again later, must not be an inference tensor.
                with torch.inference_mode(False):
                    engine.mixing = self.mixup_enabled and self.plan.recipe.mixing
                    found = next(batches, None)
                    if found is None:
                        return
                    plan, images, failures = found
                    self._note(plan, failures)
                    zero_padding_(images, plan)
                    batch = images, self._targets(plan, engine.mixing)
                self._at = (epoch, plan.step + 1)
                del found, plan, images
                yield batch
                del batch  # else the user's batch would live on here while the next one is made
        finally:
            self._active = False
            batches.close()

    def _targets(self, plan: BatchPlan, mixed: bool) -> Tensor:
        recipe = self.plan.recipe
        if not isinstance(recipe, TrainRecipe) or not recipe.soft_targets:
            return to_device([plan.label], self.device)[0]
        lam = plan.mix.lam if mixed and plan.mix is not None else None
        return to_device([soft_targets(plan.label, lam, self.num_classes, recipe.label_smoothing)], self.device)[0]

    def _note(self, plan: BatchPlan, failures: dict[int, str]) -> None:
        if self._failed:  # what has been read this time is no failure any more
            for sample in {*plan.source_index.tolist()} - {*failures}:
                self._failed.pop(sample, None)
        for sample, reason in failures.items():
            if sample not in self._failed:
                self._failed[sample] = reason
                log.warning("unreadable image (on_error=%r): %s", self.plan.on_error, reason)
        broken = len(self._failed) + int(self.dataset.broken.sum())
        if failures and broken > self._max_broken * len(self.dataset):
            raise BadImageError(
                f"{broken} of {len(self.dataset)} images cannot be read, more than max_broken={self._max_broken:.1%} "
                f"allows. The last: {next(reversed(failures.values()))}. Loader.failures lists them all"
            )

    @property
    def failures(self) -> dict[str, str]:
        """Path and reason of every image that could not be read: found by the index, or when it was last decoded."""
        known = {int(i): str(self.dataset.reason(int(i))) for i in self.dataset.broken.nonzero()[0]}
        return {self.dataset.path(i): reason for i, reason in sorted((known | self._failed).items())}

    def save_failures(self, file: str | os.PathLike[str]) -> None:
        """Write `failures` as a table of sample, path and reason: CSV where the name ends in .csv, JSON otherwise.

        Bytes of a path that are not text are written as backslash escapes.
        """
        samples = sorted({*self.dataset.broken.nonzero()[0].tolist(), *self._failed})
        table = [
            {"sample": i, "path": path, "reason": reason}
            for i, (path, reason) in zip(samples, self.failures.items(), strict=True)
        ]
        with open(file, "w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            if os.fspath(file).lower().endswith(".csv"):
                writer = csv.DictWriter(out, ("sample", "path", "reason"))
                writer.writeheader()
                writer.writerows(table)
            else:
                json.dump(table, out, indent=1)

    def explain(self, step: int, epoch: int | None = None) -> list[dict[str, Any]]:
        """What happens to each row of this rank's batch in that step, as plain data: see `dali_imagenet.explain`.

        Args:
            epoch: None for the one that is running, or, between epochs, the one that ran last.
        """
        from dali_imagenet.explain import explain

        at = self._at if self._active or self._next is None else self._next
        return explain(self.plan, at[0] if epoch is None else epoch, step, self._failed)

    def render(self, row: dict[str, Any]) -> Tensor:
        """The image [3, H, W] of a row of `explain`, made again: that of the batch before mixing, bit for bit."""
        from dali_imagenet.explain import reproduce

        return reproduce(self.plan, self._open_engine(), row)

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the loader is closed")
        return self._engine

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, as plain JSON: what it depends on, the epoch, and the steps handed out in it."""
        return state_of(self.plan, *(self._at if self._active or self._next is None else self._next))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; decodes nothing of what was seen. Another world size with the same global
        batch is fine.

        Raises:
            ValueError: for a state of other data, recipe, seed or global batch; prints both values of each field.
        """
        epoch, step = position_in(self.plan, state)
        self._stop()
        self._at = self._restored = (epoch, step)
        self._fresh = False
        self._next = None if step == len(self) else self._at  # a finished epoch: the next iteration is the next epoch

    def _stop(self) -> None:
        iteration = None if self._running is None else self._running()
        if iteration is not None:
            iteration.close()
        self._running = None

    def close(self) -> None:
        """End the running iteration, the workers and the pipeline. Batches that are held stay valid."""
        self._stop()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self.dataset.source.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
