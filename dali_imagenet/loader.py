"""The iterator that users hold, and the one place that chooses a backend."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import logging
import os
import sys
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Never, NoReturn, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet.ahead import Ahead, hand_over, makes_ahead
from dali_imagenet.cores import worker_count
from dali_imagenet.data.index import Classes, SampleIndex
from dali_imagenet.decode.seek_index import OUTCOMES, SeekIndex, seek_index_for
from dali_imagenet.engine import Batch, Engine, EngineOptions, choose_backend, make_engine
from dali_imagenet.errors import BadImageError
from dali_imagenet.escape import escaped, printable
from dali_imagenet.failures import write_failures
from dali_imagenet.machine import hidden_gpu
from dali_imagenet.output import (
    NAMES,
    Form,
    Output,
    StaticBuffers,
    Transform,
    checked_output,
    copy_of,
    digest_of,
    own_targets,
    tensors_of,
)
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.plan.plan import EPOCHS, OnError, Padding, Plan
from dali_imagenet.plan.views import recipes_of
from dali_imagenet.ranks import check_agreement, check_group, in_group, resolve_ranks
from dali_imagenet.recipe import EvalRecipe, Recipe, TrainRecipe
from dali_imagenet.samplers import BatchSampler, Sampler
from dali_imagenet.state import position_in, state_of
from dali_imagenet.transforms.postprocess import soft_targets, zero_padding_
from dali_imagenet.transforms.transfer import to_device
from dali_imagenet.validation import boolean, choice, probability, real, sequence, whole, wrong

if TYPE_CHECKING:
    from dali_imagenet.integrations.as_dataloader import TorchDataLoader

log = logging.getLogger("dali_imagenet")
_F = TypeVar("_F", bound=Callable[..., Any])

Backend = Literal["auto", "dali", "torchvision", "reference", "reference-tensor"]


def create_loader(
    data: Any,
    recipe: Recipe,
    *,
    batch_size: int,
    # which images
    split: str | None = None,
    classes: Classes | Loader | None = None,
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
    shuffle: bool | None = None,
    padding: Padding = "ignore",
    steps_per_epoch: int | None = None,
    accumulate: int = 1,
    weights: npt.ArrayLike | Mapping[str, float] | None = None,
    epoch_size: int | None = None,
    # what comes out
    views: int | Sequence[TrainRecipe] = 1,
    share_geometry: bool = False,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    output: Form = "tuple",
    output_names: tuple[str, str] = NAMES,
    with_index: bool = False,
    with_path: bool = False,
    targets: Tensor | None = None,
    transform: Transform | None = None,
    # trouble
    on_error: OnError = "raise",
    max_broken: float = 0.01,
    timeout: float = 0,
    # fine points of a backend
    static_buffers: int | None = None,
    multiprocessing_context: str | None = None,
    roi_decode: bool | None = None,
    hw_decoder_load: float | None = None,
    fancy_upsampling: bool = True,
    jpeg_index: bool | None = None,
    cpu_share: float | None = None,
    **others: Never,
) -> Loader:
    """Make a loader: `for images, targets in create_loader(folder, TrainRecipe.strong(), batch_size=256)`.

    ::

        SampleIndex + recipe -> Plan(seed, epoch) -> Engine (DALI | torchvision workers | reference)
                             -> (images, targets)

    Args:
        data: an ImageFolder tree (or a folder that holds train/ and val/: training takes the one, evaluation the
            other, with the numbers that training gives the classes), whatever else `SampleIndex.open` reads (tars,
            WebDataset's shards, zips, TFRecords, Parquet, lists, datasets), or a `SampleIndex`.
        recipe: `TrainRecipe` or `EvalRecipe`.
        batch_size: rows per rank; even where the recipe mixes.
        split: which part of the data: "train", "val", a subfolder's name, or "." for the folder itself; see
            `SampleIndex.from_folder`. None: as the recipe says where the data have such parts, else all.
        classes: which class has which number: "sorted" (as None), "natural", names in label order, an index or a loader
            that has them, or the `Path` of a text file; see `SampleIndex.from_folder`.
        backend: "dali", "torchvision", or "auto": for a GPU what a trial (`dali-imagenet doctor DATA`) found to be the
            faster one, without a trial DALI where it is installed; torchvision for the CPU, where it is the faster one.
            "reference" and "reference-tensor" carry the plan out by torchvision's and timm's own functions on PIL
            images and on tensors, slowly: what the others are measured against.
        device: where batches are handed over. None: the current CUDA device where there is one, else the CPU.
        num_workers: DALI's threads (0 means 1) or the fallback's processes (0 works in-process). None: one for each
            core that this process may use, divided among the ranks of this machine, 16 at most.
        prefetch: batches in flight: in DALI, or per worker (none with num_workers=0 of the fallback). In training the
            first ones of the next epoch are made while this one ends, and held until they are asked for, through a
            validation in between, too; in evaluation (but a shuffled one) none are held between epochs.
        seed: of order and augmentation. The same seed gives the same batches on every backend, for any number of
            workers and for any number of ranks with the same global batch.
        rank: by default that of torch.distributed, asked when the loader is first used, else 0.
        world_size: by default that of torch.distributed, asked when the loader is first used, else 1.
        drop_last: None drops the last partial batch in training and keeps it in evaluation. A partial batch that is
            kept in training is filled up to the same number of rows on each rank with the first samples of the epoch.
        shuffle: None: training is shuffled, evaluation is not. True with an `EvalRecipe`: a training without
            augmentation, such as a linear probe's: each epoch has an order of its own, that of a training with this
            seed, and every sample once, the last batch padded as `padding` says; what is for training only may be
            given. False with a `TrainRecipe`: the data's order in every epoch, augmented anew each time; on several
            ranks each global batch is the next run of it.
        padding: `EvalRecipe` only: what fills up the last batch, so that all ranks take as many steps. "ignore": rows
            with target -100, which CrossEntropyLoss leaves out. "repeat": the first samples again, as
            DistributedSampler does, so that not every sample counts once. "short": nothing; batches are ragged. On
            every rank each step has at least one image. Samples that on_error="skip" loses are such rows too: of target
            -100, the next healthy sample, or left out. Where that leaves a batch without any image, the next healthy
            one stands in for the first, with its own target: it counts twice, and a warning names it; the mean loss of
            such a batch would be no number.
        steps_per_epoch: training only: `len(loader)`, whatever the data. What is an epoch without it is a pass, and the
            epochs cut the passes anew: step s of epoch e is step e * steps_per_epoch + s of all passes, one after the
            other, so that nothing is lost at the end of an epoch, and a sample's draws differ from pass to pass. A
            schedule of sizes goes by epochs. `drop_last`, `epoch_size` and `weights` say what a pass is.
        accumulate: training only: leave out the last steps of an epoch until len(loader) is a multiple of this, so that
            gradients of so many steps add up without a rest; `steps_per_epoch` has to be a multiple of it.
        weights: training only: draw with replacement, each sample as often as its weight says, as
            WeightedRandomSampler, but exactly the same for any number of ranks and after a resume. Numbers of at least
            0, of which only the ratios count: one for each sample [N] or each class [C], or {class: weight}. For
            classes in equal shares: 1 / numpy.bincount(index.labels). What has weight 0 is never read.
        epoch_size: training only: samples of an epoch over all ranks. None: N. With `weights` so many are drawn.
            Without, one permutation of all samples follows another, and each epoch takes the next `epoch_size` places:
            shorter epochs go through the data before they begin again. A sample that comes several times in an epoch,
            here or by `weights`, is augmented differently each time. `batch_size` and `drop_last` apply as to N.
        views: training only: how many views of each image, or the recipe of each, which may differ in all, the size
            too; `recipe` is the first of them. Images then are a list of so many tensors, [B, 3, H, W] each, whose rows
            belong together; targets and the length of an epoch are those without views. The file is read and decoded
            once. Each view has draws of its own; those of the first are those of a loader without views. There is no
            mixing, and `label_smoothing`, `num_classes` and `num_aug_repeats` are equal in all. See docs/views.md.
        share_geometry: whether all views show the same crop, flipped alike, each in its own size; what the recipes say
            of crop and flips must be equal then. For a clean image beside an augmented one.
        dtype: float32, float16 or bfloat16.
        memory_format: torch.contiguous_format or torch.channels_last.
        output: "tuple": (images, targets), and behind them index and path where these are asked for. "dict": the same
            under `output_names`, "index" and "path", as Hugging Face's Trainer takes it.
        output_names: keys of images and targets in a dictionary.
        with_index: hand out which sample each row shows, its place in the data: int64 [B] on `device`, -1 in padding
            rows. Where one stands in for a broken image, or `num_aug_repeats` shows one twice, its own place each time;
            with mixing that of the row itself, whose partner is row B-1-i.
        with_path: hand out what `SampleIndex.path` calls that sample: a list of B texts, "" in padding rows.
        targets: handed out in the place of the class numbers: a tensor [N, ...] with a row for each sample in the order
            of the index, on any device. Floats (soft labels, several labels, numbers to regress) keep their dtype and
            mix as labels do, by lambda with the row's partner; padding rows are 0, which weighs nothing in the
            cross-entropy of soft labels, but counts in other losses (`with_index` says which rows they are,
            padding="short" leaves them out). Integers are handed out as int64, -100 in padding rows, and are refused
            where the recipe mixes; `label_smoothing` is refused beside either. A row is that of the image shown, also
            where one stands in for a broken image. The tensor is read as batches are handed out: what is written to it
            counts from the next batch on. No part of a saved state; ranks compare some of its rows.
        transform: your own function of the finished batch, (images, targets) -> (images, targets), called in the
            process, thread and stream that iterates, before a dictionary is made. It may return anything in their
            place. Its randomness is its own: nothing that is said here of seeds, ranks and resuming holds for it. What
            it raises ends the iteration, unchanged. Transforms of single images are the recipe's matter
            (`TrainRecipe.from_transforms`).
        on_error: a broken image stops the run ("raise"), or is replaced by the next healthy one, the same on every
            backend ("replace"), or becomes a padding row with target -100 ("skip", evaluation only). Each is logged
            and listed in `Loader.failures`. That is for what is missing, forbidden, changed or cannot be decoded: where
            the storage or the memory fails, the run stops with a StorageError.
        max_broken: share of the data set above which "replace" and "skip" stop the run, too; so does the search for a
            healthy image in the place of one, which else would go through all data where they are gone.
        timeout: seconds without a batch from the fallback's workers after which iteration fails; 0 waits for ever.
        multiprocessing_context: of the fallback's workers: "fork", "spawn" or "forkserver". None: the platform's
            default, and "forkserver" (where there is none, "spawn") for data in object storage, with which forked
            processes cannot go on.
        static_buffers: hand batches out in so many sets of tensors in turn, whose addresses stay: what a CUDA graph
            reads. Batch k then is overwritten by batch k + static_buffers of the same shapes, by a copy that the
            `next()` queues on the current stream; what is to be kept longer needs a clone. None: each batch has memory
            of its own for as long as it is held.
        roi_decode: whether DALI decodes only the region that is needed. None: yes on the CPU, whole images on a GPU.
            True on a GPU asks a probe in a subprocess first, and raises RuntimeError where it fails.
        hw_decoder_load: share of the JPEGs for the GPU's hardware decoder; None is DALI's default.
        fancy_upsampling: whether DALI's GPU decoders interpolate chroma as libjpeg does, hence the CPU, Pillow and
            torchvision. False repeats it, which may be faster, and moves pixels a little where chroma is subsampled.
        jpeg_index: whether the torchvision backend (or DALI's, with a `cpu_share`) remembers, in a file in the cache
            folder (300 bytes an image), where the rows of each JPEG begin, so that from the second epoch on a crop's
            decoding begins at its first row. Changes no pixel. None: yes where the cache folder can hold it. True
            raises RuntimeError where it cannot. See docs/data.md.
        cpu_share: share of the samples, in [0, 1], that the CPU decodes and resizes beside DALI, in `num_workers`
            threads more: the same ones in every epoch, on every rank and for every batch size, by a hash of their place
            in the data; what DALI's decoders do not know goes there first and counts. Draws are the same; pixels of
            those samples are the torchvision backend's. In the saved state. None: that of the state that is loaded,
            else 0. See docs/gpu.md.

    Returns:
        A `Loader` of (images [B, 3, H, W], targets): targets int64 [B], or float32 [B, num_classes] where the recipe
        mixes or smooths labels; both on `device`. With `views` images are a list. `output`, `with_index`, `with_path`,
        `targets` and `transform` change that.

    Raises:
        FileNotFoundError: no data, or no such part of it.
        TypeError: a recipe that is none, or with `views` no TrainRecipe; targets that are no tensor; an argument that
            does not exist.
        ValueError: bad data or arguments; a folder whose subfolders are probably not the classes.
        RuntimeError: what was asked for is not on this machine.
        BadImageError: the data holds broken images, and on_error is "raise".
    """
    _refuse(others)
    target = _device(device)
    choice("on_error", on_error, ("raise", "replace", "skip"))
    choice("dtype", dtype, (torch.float32, torch.float16, torch.bfloat16))
    choice("memory_format", memory_format, (torch.contiguous_format, torch.channels_last))
    choice("multiprocessing_context", multiprocessing_context, (None, "fork", "spawn", "forkserver"))
    choice("jpeg_index", jpeg_index, (None, False, True))
    max_broken = probability("max_broken", max_broken)
    timeout = real("timeout", timeout, 0)
    if hw_decoder_load is not None:
        hw_decoder_load = probability("hw_decoder_load", hw_decoder_load)
    if not isinstance(recipe, TrainRecipe | EvalRecipe):
        raise TypeError(f"recipe={recipe!r}: must be a TrainRecipe or an EvalRecipe, such as TrainRecipe.classic()")
    num_workers = None if num_workers is None else whole("num_workers", num_workers, 0)
    fancy_upsampling = boolean("fancy_upsampling", fancy_upsampling)
    static_buffers = None if static_buffers is None else whole("static_buffers", static_buffers, 1)
    prefetch = whole("prefetch", prefetch, 1)
    cpu_share = None if cpu_share is None else real("cpu_share", cpu_share, 0, 1)
    chosen, why = choose_backend(backend, target)
    if cpu_share and backend not in ("auto", "dali"):
        raise wrong("cpu_share", cpu_share, f"0 or left out: backend={backend!r} decodes everything on the CPU")
    index = index_for(data, recipe, split=split, classes=classes)
    if multiprocessing_context == "fork" and not index.source.fork_safe:
        raise wrong("multiprocessing_context", "fork", f"'spawn' or 'forkserver' for {type(index.source).__name__}")
    _check_health(index, on_error, max_broken)
    out = checked_output(
        index, recipe, output=output, output_names=output_names, with_index=with_index, with_path=with_path,
        targets=targets, transform=transform,
    )  # fmt: skip
    given = {
        "multiprocessing_context": multiprocessing_context,
        "timeout": timeout,
        "roi_decode": roi_decode,
        "hw_decoder_load": hw_decoder_load,
        "jpeg_index": jpeg_index,
        "cpu_share": cpu_share,
    }
    given = {name: value for name, value in given.items() if value}
    _warn_of_unused(chosen, target, given if fancy_upsampling else given | {"fancy_upsampling": False})
    views = sequence(views) or views  # a tuple: a list may change before the plan is made
    make_plan = functools.partial(
        Plan, index, recipe, batch_size=batch_size, seed=seed, drop_last=drop_last, on_error=on_error, padding=padding,
        max_broken=max_broken, weights=weights, epoch_size=epoch_size, shuffle=shuffle,
        steps_per_epoch=steps_per_epoch, accumulate=accumulate, views=views, share_geometry=share_geometry,
    )  # fmt: skip
    make_plan(rank=rank or 0, world_size=world_size or (rank or 0) + 1)  # refuses what is wrong on any rank
    log.info("backend %s on %s: %s", chosen, target, why)
    options = EngineOptions(
        device=target,
        dtype=dtype,
        memory_format=memory_format,
        prefetch=prefetch,
        multiprocessing_context=multiprocessing_context,
        timeout=timeout,
        roi_decode=roi_decode,
        hw_decoder_load=hw_decoder_load,
        fancy_upsampling=fancy_upsampling,
        cpu_share=cpu_share or 0.0,
    )
    loader = Loader(
        make_plan, chosen, options, num_workers=num_workers, ranks=(rank, world_size),
        num_classes=_num_classes(index, recipe), max_broken=max_broken, output=out, jpeg_index=jpeg_index,
        auto=backend == "auto", static_buffers=static_buffers, share_asked=cpu_share is not None,
    )  # fmt: skip
    if jpeg_index:
        loader._seek_index  # noqa: B018  # or it is refused now
    return loader


# What DataLoader takes and create_loader does not, and what to do.
_DATALOADER = {
    "dataset": "give the data as the first argument",
    "sampler": "the loader shares the order out itself: rank and world_size, from torch.distributed by default; give "
    "weights and epoch_size for what WeightedRandomSampler does, or an index of some of the samples",
    "batch_sampler": "give batch_size; the order is the loader's own",
    "collate_fn": "Mixup, CutMix and label smoothing are fields of TrainRecipe; batches are tensors already",
    "pin_memory": "batches are handed over on `device`; what goes there from the CPU is pinned",
    "pin_memory_device": "batches are handed over on `device`",
    "worker_init_fn": "workers need none: every draw is a function of (seed, epoch, sample)",
    "generator": "give seed: every draw is a function of (seed, epoch, sample)",
    "prefetch_factor": "give prefetch",
    "persistent_workers": "workers stay until the loader is closed",
    "in_order": "batches come in order",
    "target_transform": "give classes, or an index with labels of your own: SampleIndex.from_arrays",
}


def _refuse(others: Mapping[str, object]) -> None:
    for name in others:
        known = _DATALOADER.get(name, "it takes " + ", ".join(inspect.signature(create_loader).parameters)[:-8])
        raise TypeError(f"create_loader has no argument {name!r}: {known}")


def _warn_of_unused(backend: str, device: torch.device, given: Mapping[str, object]) -> None:
    """Options that the chosen backend has no use for."""
    used = {
        "dali": {"roi_decode", "cpu_share"}
        | ({"hw_decoder_load", "fancy_upsampling"} if device.type == "cuda" else set())
        | ({"jpeg_index"} if given.get("cpu_share") else set()),
        "torchvision": {"multiprocessing_context", "timeout", "jpeg_index"},
    }
    for name, value in given.items():
        if name not in used.get(backend, set()):
            log.warning("%s=%r has no effect: the %s backend on %s does not use it", name, value, backend, device)


@functools.cache  # once
def _warn_of_a_hidden_gpu(why: str) -> None:
    log.warning("no device was given, and torch sees no CUDA GPU here (%s): batches are made on the CPU", why)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and (why := hidden_gpu()):
            _warn_of_a_hidden_gpu(why)
    target = torch.device(device)
    if target.type not in ("cpu", "cuda"):
        raise wrong("device", device, "'cpu', 'cuda' or 'cuda:N'")
    if target.type == "cuda":
        if not torch.cuda.is_available():
            why = hidden_gpu()
            raise RuntimeError(
                f"device={device!r}, but torch sees no CUDA GPU here{why and f' ({why})'}: use device='cpu'"
            )
        if target.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if target.index >= torch.cuda.device_count():
            raise RuntimeError(f"device={device!r}, but there are {torch.cuda.device_count()} GPUs")
    return target


def index_for(data: Any, recipe: Recipe, **options: Any) -> SampleIndex:
    """The index that `create_loader` makes of these arguments; `options` as `SampleIndex.open` takes them."""
    return SampleIndex.open(data, default_split="train" if isinstance(recipe, TrainRecipe) else "val", **options)


def _check_health(index: SampleIndex, on_error: OnError, max_broken: float) -> None:
    broken = index.broken.nonzero()[0]
    if not len(broken):
        return
    lines = [f"{escaped(index.path(int(i)))}: {printable(str(index.reason(int(i))))}" for i in broken[:10]]
    more = f"\n... and {len(broken) - 10} more (SampleIndex.broken has all)" if len(broken) > 10 else ""
    report = f"{len(broken)} of {len(index)} images are broken:\n" + "\n".join(lines) + more
    if on_error == "raise":
        raise BadImageError(f"{report}\nRemove or repair them, or use on_error='replace' (or 'skip' in evaluation)")
    if len(broken) > max_broken * len(index):
        raise BadImageError(f"{report}\nThat is more than max_broken={max_broken:.1%} allows")
    log.warning("%s", report)


def _num_classes(index: SampleIndex, recipe: Recipe) -> int:
    found = len(index.classes)
    asked = recipe.num_classes if isinstance(recipe, TrainRecipe) else None
    if asked is not None and asked < found:
        raise wrong("num_classes", asked, f"at least {found}, the classes of the data")
    return asked or found


def _uncompiled(method: _F) -> _F:
    """A method that torch.compile leaves to Python, a graph break; without importing the compiler for it."""
    disabled: Any = None

    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return method(*arguments)
        if disabled is None:
            disabled = torch.compiler.disable(method)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return disabled(*arguments)

    call.__dict__["_torchdynamo_disable"] = True  # what torch.compiler.disable marks functions with
    return cast(_F, call)


_SUPERSEDED = (
    "this iteration was ended by another iter() of the same loader, which runs one at a time: make a second loader to "
    "iterate twice at once"
)


class _Made(NamedTuple):
    """A batch that the user has not seen yet."""

    step: int
    batch: Any


class _Peeked(NamedTuple):
    """The first batch of a coming iteration, and where the others come from."""

    at: tuple[int, int]
    form: tuple[bool, Output]
    batches: Generator[_Ready, None, None]
    made: _Made | None
    ready: Any
    """An event behind it on the stream that was current, on a GPU."""


class _Ready(NamedTuple):
    """A batch on its device, all but for what the user's own code and tensors have a say in."""

    plan: BatchPlan
    """As it was executed."""
    shown: BatchPlan
    """Its rows that are handed out."""
    failures: dict[int, str]
    views: list[Tensor]
    targets: Tensor | None
    """None where the user gave tensors of his own."""
    beside: dict[str, Any]
    lam: npt.NDArray[np.float32] | None
    """What mixes the user's own targets."""

    def tensors(self) -> list[Tensor]:
        """All that there are."""
        return [part for part in (*self.views, self.targets, *self.beside.values()) if isinstance(part, Tensor)]

    def on(self, tensors: Sequence[Tensor]) -> _Ready:
        """The same with other tensors in their places."""
        rest = iter(tensors)
        views = [next(rest) for _ in self.views]
        targets = None if self.targets is None else next(rest)
        beside = {name: next(rest) if isinstance(part, Tensor) else part for name, part in self.beside.items()}
        return self._replace(views=views, targets=targets, beside=beside)


@dataclasses.dataclass(eq=False)
class _Finish:
    """Makes what is ready of what an engine made. Runs where the engine does, and knows nothing of the loader."""

    engine: Engine
    plan: Plan
    device: torch.device
    num_classes: int
    output: Output

    def tune(self, form: tuple[bool, Output]) -> None:
        """Say how what comes next is handed out."""
        self.engine.mixing, self.output = form

    def batches(self, epoch: int, step: int) -> Generator[_Ready, None, None]:
        """From that step to the end of the epoch."""
        made = self.engine.batches(epoch, step)
        with contextlib.closing(made):
            while (ready := self._next(made)) is not None:
                handed = [ready]
                del ready
                yield handed.pop()  # not held here while the user has it

    def _next(self, made: Generator[Batch, None, None]) -> _Ready | None:
        # Memory that is written from another thread, or again later, must not be an inference tensor; and pixels are
        # computed as they are, not in the precision of the user's model.
        off = (torch.autocast(kind, enabled=False) for kind in {"cpu", self.device.type})
        with torch.inference_mode(False), next(off), next(off, contextlib.nullcontext()):
            found = next(made, None)
            return None if found is None else self._ready(*found)

    def _ready(self, plan: BatchPlan, views: list[Tensor], failures: dict[int, str]) -> _Ready:
        lam = plan.mix.lam if self.engine.mixing and plan.mix is not None else None
        shown = plan
        if plan.is_padding.any():
            if self.plan.padding == "short":
                rows = (~plan.is_padding).nonzero()[0]
                shown, [at] = plan.select_rows(rows), to_device([rows], self.device)
                views = [images.index_select(0, at) for images in views]
            else:
                for images in views:
                    zero_padding_(images, plan)
        targets = None if self.output.targets is not None else self._targets(shown, lam)
        beside = self.output.beside(shown, self.plan.index, self.device)
        return _Ready(plan, shown, failures, views, targets, beside, lam)

    def _targets(self, plan: BatchPlan, lam: npt.NDArray[np.float32] | None) -> Tensor:
        recipe = self.plan.recipe
        if not isinstance(recipe, TrainRecipe) or not recipe.soft_targets:
            return to_device([plan.label], self.device)[0]
        return to_device([soft_targets(plan.label, lam, self.num_classes, recipe.label_smoothing)], self.device)[0]


class _Iteration(Iterator[Any]):
    """What `iter(loader)` gives: one that was ended from outside never looks as if the epoch were over."""

    def __init__(self, batches: Generator[Any, None, None]) -> None:
        self._batches, self._ended = batches, ""

    @_uncompiled
    def __next__(self) -> Any:
        if self._ended:
            raise RuntimeError(self._ended)
        return next(self._batches)

    def close(self) -> None:
        """As a generator's: frees what is in flight."""
        self._batches.close()

    def end(self, why: str) -> None:
        """Close; a later step raises RuntimeError, unless the epoch was over."""
        if inspect.getgeneratorstate(self._batches) != inspect.GEN_CLOSED:
            self._ended = why
        self._batches.close()


class Loader:
    """An iterable of (images, targets), or of what `create_loader` was asked for. Usable wherever a DataLoader is
    iterated.

    Each `iter()` goes on to the next epoch unless `set_epoch` said which. One iteration runs at a time: a new one
    ends the one before, whose next step raises RuntimeError. A yielded batch stays valid and writable as long as this
    process holds it (but with `static_buffers`); one that is forked meanwhile needs a copy (`images.clone()`), for its
    own references do not count. Cannot be copied or pickled.

    Attributes:
        dataset: the `SampleIndex`.
        recipe: what is done with each image.
        recipes: of each view, from `recipe` on.
        backend: the name of the engine.
        cpu_share: share of the samples that the CPU decodes beside DALI; 0.0 with another backend.
        device: where batches are handed over.
        num_classes: of the data, or of the recipe where that says more; whatever `targets` hold.
        output: "tuple" or "dict".
        output_names: keys of images and targets in a dictionary.
        mixup_enabled: False stops mixing from the next yielded batch on; targets stay float and smoothed.
        translation: how `from_dataloader` read each part: rows (yours, ours, exact, note); else empty.
    """

    def __init__(
        self,
        make_plan: functools.partial[Plan],
        backend: str,
        options: EngineOptions,
        *,
        num_workers: int | None,
        ranks: tuple[int | None, int | None],
        num_classes: int,
        max_broken: float,
        output: Output,
        jpeg_index: bool | None = None,
        auto: bool = False,
        static_buffers: int | None = None,
        share_asked: bool = False,
    ) -> None:
        self.dataset: SampleIndex = make_plan.args[0]
        self.recipe: Recipe = make_plan.args[1]
        keywords = make_plan.keywords
        self.recipes, _ = recipes_of(self.recipe, keywords["views"], keywords["share_geometry"])
        self.backend, self.device, self.num_classes = backend, options.device, num_classes
        self.mixup_enabled = self.recipe.mixing
        self._make_plan, self._options = make_plan, options
        self._num_workers, self._ranks = num_workers, ranks
        self._jpeg_index = jpeg_index
        self._auto = auto  # the backend was chosen here, not asked for
        self._share_asked = share_asked
        self._output, self.output, self.output_names = output, output.form, output.names
        self._grouped = False  # the ranks are those of a process group
        self._compared = False  # with the other ranks
        self._engine: Engine | None = None
        self._finish: _Finish | None = None
        self._static = None if static_buffers is None else StaticBuffers(static_buffers)
        self._ahead: Ahead[_Ready] | None = None
        self._closed = False
        self._owner = os.getpid()
        self._max_broken = max_broken
        self._failed: dict[int, str] = {}
        self._at = (0, 0)  # epoch, and steps of it that have been handed out
        self._next: tuple[int, int] | None = (0, 0)  # where the next iteration starts; None: the epoch after this one
        self._restored: tuple[int, int] | None = None  # a loaded position, until an iteration has begun
        self._fresh = False  # an iteration has been made, but has not begun
        self._active = False
        self._warned = self._warned_of_zeros = False
        self._peeked: _Peeked | None = None
        self._running: weakref.ref[_Iteration] | None = None
        self.translation: tuple[Any, ...] = ()
        self._followed: tuple[Any, int] | None = None  # a sampler, and its epoch when it was last looked at

    @functools.cached_property
    def plan(self) -> Plan:
        """The draws of this rank, whose number is looked up when they are first needed."""
        rank, world_size = resolve_ranks(*self._ranks)
        self._grouped = in_group()
        return self._make_plan(rank=rank, world_size=world_size)

    @property
    def batch_size(self) -> int:
        """Rows per rank."""
        return int(self._make_plan.keywords["batch_size"])

    @property
    def drop_last(self) -> bool:
        """Whether the last partial batch is left out."""
        asked = self._make_plan.keywords["drop_last"]
        return isinstance(self.recipe, TrainRecipe) if asked is None else bool(asked)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The order of this rank's samples."""
        return Sampler(self)

    @functools.cached_property
    def batch_sampler(self) -> BatchSampler:
        """The same, step by step."""
        return BatchSampler(self, self.sampler)

    @property
    def roi_decode(self) -> bool | None:
        """Whether DALI decodes the crop alone; None where it is not DALI that decodes."""
        return self._open_engine().roi_decode

    @property
    def cpu_share(self) -> float:
        """Share of the samples that the CPU decodes beside DALI; 0.0 with another backend."""
        return self._options.cpu_share if self.backend == "dali" else 0.0

    @functools.cached_property
    def _seek_index(self) -> SeekIndex | None:
        uses_it = self.backend == "torchvision" or self.cpu_share > 0
        return seek_index_for(self.dataset, self._jpeg_index) if uses_it else None

    @property
    def jpeg_index(self) -> dict[str, Any] | None:
        """The "file" that remembers where the rows of JPEGs begin, its "bytes", and how many JPEGs were decoded how.

        "from the top": nothing was known yet. "from a row": of the crop, or the last one before it that was known.
        "dropped": from the top, because what was remembered is not of the file as it is now. None where nothing is
        remembered.
        """
        seek = self._seek_index
        if seek is None:
            return None
        return {"file": seek.file, "bytes": seek.nbytes, **dict(zip(OUTCOMES, seek.counts, strict=True))}

    def __repr__(self) -> str:
        """Backend, data, batch, ranks and position."""
        kind = type(self.recipe).__name__
        ranks = (
            f"rank {self.plan.rank} of {self.plan.world_size}" if "plan" in self.__dict__ else "ranks not looked up yet"
        )
        steps = len(self) if "plan" in self.__dict__ else "?"
        epoch, step = self._position
        usual = {"shuffle": None, "epoch_size": None, "steps_per_epoch": None, "accumulate": 1}
        given = {name: self._make_plan.keywords[name] for name in usual}
        more = "".join(f"{name}={value}, " for name, value in given.items() if value != usual[name])
        return (
            f"Loader({kind} on {self.dataset!r}, {self.backend} on {self.device}, batch_size={self.batch_size}, "
            f"{more}{ranks}, epoch {epoch}, step {step} of {steps})"
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """A copy would share the engine, or have memory that no worker writes to."""
        raise TypeError("a Loader cannot be copied or pickled: make another with create_loader")

    def __len__(self) -> int:
        """Steps of a whole epoch, whatever has been resumed."""
        return len(self.plan)

    @property
    def _position(self) -> tuple[int, int]:
        """Epoch and step of the running iteration; between two, where the next one starts if that was said."""
        return self._at if self._active or self._next is None else self._next

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

    @property
    def coming(self) -> tuple[int, int]:
        """Epoch and step where the next `iter()` starts."""
        return self._next or (self.epoch, 0)

    @property
    def restored_epoch(self) -> int | None:
        """The epoch of a state that was loaded, until an iteration begins; else None."""
        return None if self._restored is None else self._restored[0]

    def seek(self, epoch: int, step: int) -> None:
        """Say where the next `iter()` starts; decodes nothing of what lies before."""
        self._next = whole("epoch", epoch, 0, EPOCHS - 1), whole("step", step, 0, len(self))

    def as_dataloader(self) -> TorchDataLoader:
        """This loader as a `torch.utils.data.DataLoader`, for what insists on one: Accelerate, Fabric, Keras, fastai.

        Its batches, order, shares and state are the loader's; `batch_size` is that of a rank, `len(dataset)` counts
        samples. What a framework rebuilds from it gives the same batches; another order or share is refused.
        docs/frameworks.md says what needs it.
        """
        from dali_imagenet.integrations.as_dataloader import Samples, TorchDataLoader

        return TorchDataLoader(Samples(self))

    def __getitems__(self, samples: object) -> NoReturn:
        """What a DataLoader asks of a dataset."""
        raise TypeError("a Loader is no dataset: iterate it, or give its as_dataloader() to what wants a DataLoader")

    def follow(self, sampler: Any) -> None:
        """Take a sampler's `epoch` as if said to `set_epoch`, where it has changed when an iteration starts."""
        self._followed = sampler, int(sampler.epoch)

    def _look_at_the_followed(self) -> None:
        if self._followed is not None:
            sampler, before = self._followed
            if sampler.epoch != before:
                self.set_epoch(sampler.epoch)
            self._followed = sampler, sampler.epoch

    @_uncompiled
    def peek(self) -> Any:
        """A copy of the batch that the next iteration yields first, the same bits, made once for both.

        Neither the position nor what `set_epoch` said changes.

        Raises:
            RuntimeError: while an iteration runs: it would have to end.
        """
        self._open_engine()
        if self._active:
            raise RuntimeError("peek() while an iteration runs: call it before or after, or look at the batch in hand")
        at = self.coming
        found = None if self._peeked is None or self._peeked.at != at else self._peeked
        if found is None or found.form != self._form:
            self._peeked = None  # first: what it holds is the engine's
            batches = self._batches(*at)
            made = self._make(batches)
            ready = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
            found = self._peeked = _Peeked(at, self._form, batches, made, ready)
        if found.made is None:
            raise RuntimeError("peek() at the end of an epoch that was resumed there: call set_epoch for the next one")
        return copy_of(found.made.batch)

    @_uncompiled
    def __iter__(self) -> Iterator[Any]:
        self._open_engine()
        self._look_at_the_followed()
        self._warn_of_a_start_left()
        self._stop(_SUPERSEDED)
        # Lightning asks for iterators more than once, and says set_epoch after that: what never began does not count.
        if self._next is not None:
            self._at = self._next
        elif not self._fresh:
            self._at = (self._at[0] + 1, 0)
        self._next, self._fresh = None, True
        iteration = _Iteration(self._run())
        self._running = weakref.ref(iteration)  # weak: leaving the loop frees it, and with it what it has in flight
        return iteration

    def endless(self) -> Generator[Any, None, None]:
        """The batches of one epoch after the other, without end, as `iter(loader)` again and again gives them.

        `for step, batch in zip(range(100_000), loader.endless())` takes as many as it says. Epoch and step count as
        always; what `set_epoch` says holds from the next epoch on. After `load_state_dict` a new one goes on there.

        Raises:
            RuntimeError: at its next step, where another `iter()` or `load_state_dict` ended it.
        """
        while True:
            yield from self

    def _run(self) -> Generator[Any, None, None]:
        self._at = self._at if self._next is None else self._next
        self._next, self._restored, self._fresh, self._active = None, None, False, True
        epoch, start = self._at
        self._compare_ranks()
        self._open_engine()
        peeked, self._peeked = self._peeked, None
        made: _Made | None = None
        if peeked is not None and (peeked.at, peeked.form) == (self._at, self._form):
            batches, made = peeked.batches, peeked.made
            if made is not None:  # another stream may be current by now
                hand_over(tensors_of(made.batch), peeked.ready, self.device)
        else:
            batches = self._batches(epoch, start)
        del peeked
        try:
            while True:
                made = made or self._make(batches)
                if made is None:
                    return
                self._at = (epoch, made.step + 1)
                batch, made = made.batch, None
                yield batch
                del batch  # else the user's batch would live on here while the next one is made
        finally:
            self._active = False
            batches.close()

    @property
    def _mixing(self) -> bool:
        return self.mixup_enabled and self.recipe.mixing

    @property
    def _form(self) -> tuple[bool, Output]:
        """What decides how a batch is handed out."""
        return self._mixing, self._output

    def _batches(self, epoch: int, start: int) -> Generator[_Ready, None, None]:
        """From that step to the end of the epoch."""
        if self._ahead is None:
            assert self._finish is not None
            return self._finish.batches(epoch, start)
        return self._taken(self._ahead, epoch, start)

    def _taken(self, ahead: Ahead[_Ready], epoch: int, start: int) -> Generator[_Ready, None, None]:
        for step in range(start, len(self)):
            following = next(itertools.islice(self.plan.schedule(epoch, step), 1, None), None)
            yield ahead.take((epoch, step), self._form, following)

    def _make(self, batches: Generator[_Ready, None, None]) -> _Made | None:
        """The next batch; None at the end of the epoch."""
        if self._owner != os.getpid():  # neither DALI's threads nor the workers have come along
            raise RuntimeError("a loader cannot be iterated in a forked child: create it there")
        if self._ahead is None and self._finish is not None:
            self._finish.tune(self._form)
        ready = next(batches, None)
        if ready is None:
            return None
        self._note(ready.plan, ready.failures)
        with torch.inference_mode(False), torch.autocast(self.device.type, enabled=False):
            if ready.targets is None:
                ready = ready._replace(targets=self._own_targets(ready))
            if self._static is not None:
                ready = ready.on(self._static(ready.tensors()))
        made = ready.views if len(ready.views) > 1 else ready.views[0]
        return _Made(
            ready.plan.step, self._output.packed(made, ready.targets, ready.beside)
        )  # in the user's loop's mode

    def _warn_of_a_start_left(self) -> None:
        """A look at the first batches before training makes the training start with the next epoch: say so, once."""
        (epoch, step), all_steps = self._at, len(self)
        left = self._next is None and not self._fresh and 0 < step < 0.01 * all_steps
        if left and not self._warned:
            self._warned = True
            log.warning(
                "epoch %d was left after %d of %d steps, and this iteration is epoch %d: to begin epoch %d again call "
                "set_epoch(%d) first; to look at a batch without beginning call peek()",
                *(epoch, step, all_steps, epoch + 1, epoch, epoch),
            )

    def _own_targets(self, ready: _Ready) -> Tensor:
        """Rows of the user's tensor, as it is now."""
        given, plan = self._output.targets, ready.shown
        assert given is not None
        if given.is_floating_point() and plan.is_padding.any() and not self._output.with_index:
            self._warn_of_zeros(plan)
        return own_targets(given, plan, ready.lam, self.device)

    def _warn_of_zeros(self, plan: BatchPlan) -> None:
        """Padding rows whose targets look like those of an image, once."""
        if not self._warned_of_zeros:
            self._warned_of_zeros = True
            log.warning(
                "step %d has %d padding rows, whose targets are 0: that weighs nothing in the cross-entropy of soft "
                "labels, but counts in other losses. with_index=True says which rows they are, padding='short' leaves "
                "them out",
                *(plan.step, plan.is_padding.sum()),
            )

    def _note(self, plan: BatchPlan, failures: dict[int, str]) -> None:
        if self._failed:  # what has been read this time is no failure any more
            for sample in {*plan.source_index.tolist()} - {*failures}:
                self._failed.pop(sample, None)
        for sample, reason in failures.items():
            if sample not in self._failed:
                self._failed[sample] = reason
                log.warning("unreadable image (on_error=%r): %s", self.plan.on_error, printable(reason))
        if self.plan.on_error == "skip" and self.plan.padding != "repeat":
            for row in (~plan.is_padding & (plan.source_index != plan.sampled_index)).nonzero()[0]:
                log.warning(
                    "step %d: none of the %d images of rank %d can be read (on_error='skip'): %s stands in, so that "
                    "the mean loss is a number, and counts twice in this evaluation",
                    *(plan.step, (plan.sampled_index >= 0).sum(), self.plan.rank),
                    escaped(self.dataset.path(int(plan.source_index[row]))),
                )
        broken = len(self._failed) + int(self.dataset.broken.sum())
        if failures and broken > self._max_broken * len(self.dataset):
            raise BadImageError(
                f"{broken} of {len(self.dataset)} images cannot be read, more than max_broken={self._max_broken:.1%} "
                f"allows. The last: {printable(next(reversed(failures.values())))}. Loader.failures lists them all"
            )

    @property
    def failures(self) -> dict[str, str]:
        """Path and reason of every image that could not be read: found by the index, or when it was last decoded.

        Paths are as on the disk, not escaped as in messages.
        """
        return {path: reason for _, path, reason in self._failures()}

    def _failures(self) -> list[tuple[int, str, str]]:
        known = {int(i): str(self.dataset.reason(int(i))) for i in self.dataset.broken.nonzero()[0]}
        return [(i, self.dataset.path(i), reason) for i, reason in sorted((known | self._failed).items())]

    def save_failures(self, file: str | os.PathLike[str]) -> None:
        """Write `failures` as a table of sample, path and reason: CSV where the name ends in .csv, JSON otherwise.

        Paths are escaped: control characters, bytes that are not text, and the backslash. `read_failures` gives them
        back as they are.
        """
        write_failures(file, self._failures())

    def explain(self, step: int, epoch: int | None = None) -> list[dict[str, Any]]:
        """What happens to each row of this rank's batch in that step, as plain data: see `dali_imagenet.explain`.

        Args:
            epoch: None for the one that is running, or, between epochs, the one that ran last.
        """
        from dali_imagenet.explain import explain

        return explain(self.plan, self._position[0] if epoch is None else epoch, step, self._failed)

    def render(self, row: dict[str, Any]) -> Tensor:
        """The image [3, H, W] of a row of `explain`, made again: that of the batch before mixing, bit for bit."""
        from dali_imagenet.explain import reproduce

        return reproduce(self.plan, self._open_engine(), row)

    def _open_engine(self) -> Engine:
        if self._closed:
            raise RuntimeError("the loader is closed")
        plan = self.plan
        if not self._grouped and self._ranks == (None, None):
            check_group(plan.rank, plan.world_size)
        if self._engine is None:
            workers = self._num_workers
            if workers is None:
                workers = worker_count(plan.world_size, torch.cuda.device_count())
            ahead = makes_ahead(self.device)
            options = dataclasses.replace(self._options, num_workers=workers, seek_index=self._seek_index, ahead=ahead)
            self._engine = make_engine(self.backend, plan, options)
            self._finish = _Finish(self._engine, plan, self.device, self.num_classes, self._output)
            if ahead:
                make, tune = self._finish.batches, self._finish.tune
                self._ahead = Ahead(self._engine, make, tune, _Ready.tensors, self.device)
            what = "%s decodes JPEGs, num_workers=%d, rank %d of %d"
            log.info(what, self._engine.decoder, workers, plan.rank, plan.world_size)
        return self._engine

    def _compare_ranks(self) -> None:
        """Once, before the first batch: the ranks must agree."""
        if not self._compared:
            self._compared = True
            plan, (epoch, step) = self.plan, self._at
            also: dict[str, Any] = {"on_error": plan.on_error, "padding": plan.padding, "epoch": epoch, "step": step}
            also["cpu_share"] = self._options.cpu_share
            if self._output.targets is not None and plan.world_size > 1:
                also["targets"] = digest_of(self._output.targets)
            fields = {**plan.fingerprint, **also}
            first = check_agreement(plan.rank, plan.world_size, fields, self.backend)
            if self._auto:
                self._go_on_with(first, f"rank 0 takes backend {first}")

    def _go_on_with(self, backend: str, why: str) -> None:
        """Another backend than "auto" has chosen here."""
        if backend == self.backend:
            return
        try:
            choose_backend(backend, self.device)
        except RuntimeError as error:
            raise RuntimeError(f"{why}, but {error}") from None
        log.info("backend %s in the place of %s: %s", backend, self.backend, why)
        self._begin_anew()
        self.backend = backend

    def _begin_anew(self) -> None:
        """With the next engine, which is another one."""
        self._end_engine()
        seek = self.__dict__.pop("_seek_index", None)
        if seek is not None:
            seek.close()

    def _go_on_sharing(self, share: float) -> None:
        """With the share of a state, where none was asked for."""
        here = self.cpu_share
        if self._share_asked:
            log.warning("a state that was saved with cpu_share=%g goes on with %g: pixels differ", share, here)
            return
        log.info("cpu_share=%g in the place of %g: the state was saved with it", share, here)
        self._begin_anew()
        self._options = dataclasses.replace(self._options, cpu_share=share)

    def _end_engine(self) -> None:
        """The thread first, as nobody else uses the engine while it does."""
        ahead, engine = self._ahead, self._engine
        self._ahead = self._engine = self._finish = self._peeked = None
        if ahead is not None:
            ahead.close()
        if engine is not None:
            engine.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, as plain JSON: what it depends on, the epoch, the steps handed out in it, the backend, and
        `cpu_share` where there is one."""
        share = {"cpu_share": self.cpu_share} if self.cpu_share else {}
        return {**state_of(self.plan, *self._position), "backend": self.backend, **share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; decodes nothing of what was seen. Another world size with the same global
        batch is fine. With backend="auto" it is that of the state from here on, and with cpu_share=None its share;
        where the backend is not on this machine, or another one or another share was asked for, a warning says so:
        draws are the same, and pixels differ a little.

        Raises:
            ValueError: for a state of other data, recipe, seed, global batch, drop_last, weights or epoch_size; prints
                both values. For one whose cpu_share is none.
        """
        epoch, step = position_in(self.plan, state)
        share = real("cpu_share", state.get("cpu_share", 0.0), 0, 1)
        self._stop("load_state_dict ended this iteration: call iter(loader) again")
        before = state.get("backend", self.backend)
        if self._auto:
            with contextlib.suppress(RuntimeError, ValueError):
                self._go_on_with(before, "the state was saved with it")
        if before != self.backend:
            log.warning("a state that was saved with backend %s goes on with %s: pixels differ", before, self.backend)
        elif before == "dali" and share != self.cpu_share:
            self._go_on_sharing(share)
        self._at = self._restored = (epoch, step)
        self._fresh = False
        self._next = None if step == len(self) else self._at  # a finished epoch: the next iteration is the next epoch

    def _stop(self, why: str) -> None:
        """End the running iteration; its next step says why."""
        iteration = None if self._running is None else self._running()
        if iteration is not None:
            iteration.end(why)
        self._running = None

    def close(self) -> None:
        """End the running iteration, the workers and the pipeline. Batches that are held stay valid."""
        self._stop("the loader is closed")
        self._closed = True
        opened = self._engine is not None
        self._end_engine()
        if opened:
            self.dataset.source.close()
        seek = self.__dict__.get("_seek_index")  # where it was asked for
        if seek is not None:
            seek.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
