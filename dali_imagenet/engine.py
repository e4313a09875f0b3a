"""What makes the batches that a plan describes: the protocol, and which engine is chosen and why.

An engine is made when it is chosen, from its dotted name in `ENGINES`: to add one, write a class with this protocol in
a module of its own and name it there.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dali_imagenet.decode.seek_index import SeekIndex
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.validation import wrong

Batch = tuple[BatchPlan, list[Tensor], dict[int, str]]
"""The plan as it was executed; the images [B, 3, H, W] of each of its views, whose padding rows hold anything, mixed if
the engine's `mixing` says so; and what could not be read, {sample: path and reason}."""

ENGINES = {
    "dali": "dali_imagenet.dali.engine:DaliEngine",
    "torchvision": "torchvision_fallback.engine:TorchvisionEngine",
    "reference": "torchvision_fallback.reference:ReferenceEngine",
    "reference-tensor": "torchvision_fallback.reference:TensorReferenceEngine",
}


@dataclass(frozen=True)
class EngineOptions:
    """Where and how an engine works. One that has no use for an option leaves it alone."""

    device: torch.device
    """Where batches are handed over."""
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    num_workers: int = 0
    """Processes or threads; 0 works in the caller's, where the engine can."""
    prefetch: int = 2
    """Batches in flight (of each process), at least 1."""
    multiprocessing_context: str | None = None
    timeout: float = 0
    """Seconds without a batch after which an engine of processes raises RuntimeError; 0 waits for ever."""
    roi_decode: bool | None = None
    hw_decoder_load: float | None = None
    fancy_upsampling: bool = True
    cpu_share: float = 0.0
    """Of the samples, that the CPU decodes beside DALI."""
    ahead: bool = False
    """Whether one batch more is held, which was made ahead of its user."""
    in_graph: bool | None = None
    """Whether DALI does on the CPU what it always does on a GPU; None: no, torch is faster."""
    seek_index: SeekIndex | None = None
    """Where the rows of the data set's JPEGs begin."""


class Engine(Protocol):
    """Makes batches and draws nothing. Made as `engine(plan, options)`; used from one thread at a time of one process.

    Whatever it starts (processes, threads, a pipeline) it starts when it is made or first asked, outside
    `torch.inference_mode`; a forked child must not go on with it, nor end it when its copy is collected.

    Memory: a yielded batch belongs to the user for as long as it is held, and may be written to; the engine keeps no
    reference to it, and may use its memory again once the last one is gone.
    """

    mixing: bool
    """Whether the batches that are handed out from now on are mixed."""

    @property
    def decoder(self) -> str:
        """What decodes the usual JPEGs, in a word for the log."""
        ...

    @property
    def roi_decode(self) -> bool | None:
        """Whether DALI decodes regions; None where it is not DALI that decodes."""
        ...

    def prepare(self, epoch: int, step: int) -> None:
        """Start the processes that `batches(epoch, step)` needs, where another thread than this one will ask for it."""
        ...

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """The batches from that step to the end of the epoch.

        In training the first ones of the next epoch are made meanwhile, as `Plan.schedule` orders them. Closing the
        generator or dropping it leaves the engine usable; another call drops what is in flight, unless it goes on where
        the schedule is. A sample that cannot be read is treated as `Plan.execute_rows` treats it.

        Raises:
            StorageError: the storage fails, or the memory; whatever `on_error` says.
            BadImageError: a sample is at fault, and the plan's `on_error` is "raise".
            RuntimeError: a worker died, hangs, or memory or the device failed; no image is ever given in another's
                place.
        """
        ...

    def for_plan(self, plan: Plan) -> Engine:
        """An engine of the same kind and options for another plan, which makes one batch at a time."""
        ...

    def close(self) -> None:
        """End what was started. Batches that are held stay valid. Closing twice is fine."""
        ...


def choose_backend(backend: str, device: torch.device) -> tuple[str, str]:
    """The name of an engine, and why it was chosen.

    "auto" on a GPU takes what a trial on real files here was faster with, where one is remembered for this GPU, these
    versions and so many cores a rank (`dali-imagenet doctor DATA` makes it). Without one it takes DALI: it decodes on
    the GPU, so that it depends on the cores least, and which of the two is faster depends on them most.

    Raises:
        ValueError: for a name that is unknown.
        RuntimeError: what was asked for is not on this machine.
    """
    if backend not in ("auto", *ENGINES):
        raise wrong("backend", backend, f"one of 'auto', {', '.join(map(repr, ENGINES))}")
    if backend == "auto" and device.type == "cpu":
        return "torchvision", "auto takes it on the CPU, where it is faster than DALI (python -m bench shows it)"
    if backend not in ("auto", "dali"):
        return backend, "asked for"
    available, reason = importlib.import_module("dali_imagenet.dali.stage").dali_available()
    if backend == "dali":
        if not available:
            raise RuntimeError(
                f"backend='dali', but {reason}. Install nvidia-dali-cuda120 (Linux), or use backend='torchvision'"
            )
        return "dali", "asked for"
    if not available:
        return "torchvision", f"auto: no DALI here ({reason})"
    tried = importlib.import_module("dali_imagenet.trial").faster_backend(str(device))
    return tried or ("dali", f"auto: {reason}; no trial here is remembered, `dali-imagenet doctor DATA` makes one")


def make_engine(name: str, plan: Plan, options: EngineOptions) -> Engine:
    """The engine of that name in `ENGINES`."""
    module, _, attribute = ENGINES[name].partition(":")
    make: Any = getattr(importlib.import_module(module), attribute)
    with torch.inference_mode(False):  # else what the engine keeps could be written in that mode alone
        engine: Engine = make(plan, options)
    return engine
