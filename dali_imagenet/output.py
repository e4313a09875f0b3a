"""What a batch is handed out as: targets of the user's own, index and path of each row, a tuple or a dictionary."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.plan.batch_plan import PADDING, BatchPlan
from dali_imagenet.recipe import Recipe, TrainRecipe
from dali_imagenet.transforms.transfer import to_device
from dali_imagenet.validation import boolean, choice, sequence, wrong

Form = Literal["tuple", "dict"]
Transform = Callable[[Any, Any], tuple[Any, Any]]
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
NAMES = ("pixel_values", "labels")


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """The arguments of `create_loader` that say what comes out, checked."""

    form: Form = "tuple"
    names: tuple[str, str] = NAMES
    with_index: bool = False
    with_path: bool = False
    targets: Tensor | None = None
    transform: Transform | None = None

    def beside(self, plan: BatchPlan, index: SampleIndex, device: torch.device) -> dict[str, Any]:
        """What is handed out beside images and targets: index int64 [B] on `device` and path, of the samples shown."""
        found: dict[str, Any] = {}
        if self.with_index:
            [found["index"]] = to_device([plan.source_index], device)
        if self.with_path:
            found["path"] = [index.path(int(i)) if i >= 0 else "" for i in plan.source_index]
        return found

    def packed(self, images: Any, targets: Any, beside: dict[str, Any]) -> Any:
        """The batch, after `transform`, as a tuple or a dictionary."""
        if self.transform is not None:
            made = self.transform(images, targets)
            if not isinstance(made, tuple | list) or len(made) != 2:
                raise TypeError(f"transform returned {type(made).__name__}: must return (images, targets)")
            images, targets = made
        if self.form == "dict":
            return {self.names[0]: images, self.names[1]: targets, **beside}
        return (images, targets, *beside.values())


def checked_output(
    index: SampleIndex,
    recipe: Recipe,
    *,
    output: Form,
    output_names: Sequence[str],
    with_index: bool,
    with_path: bool,
    targets: Tensor | None,
    transform: Transform | None,
) -> Output:
    """See `create_loader`.

    Raises:
        TypeError: targets that are no tensor, a transform that cannot be called.
        ValueError: what cannot be.
    """
    choice("output", output, ("tuple", "dict"))
    with_index, with_path = boolean("with_index", with_index), boolean("with_path", with_path)
    names = sequence(output_names) or ()
    beside = [name for name, asked in (("index", with_index), ("path", with_path)) if asked]
    if not all(isinstance(name, str) for name in names) or len(names) != 2 or len({*names, *beside}) != 2 + len(beside):
        raise wrong("output_names", output_names, f"two different names, such as {NAMES}, and none of {beside}")
    if transform is not None and not callable(transform):
        raise TypeError(f"transform={transform!r}: must be a function of (images, targets) that returns both")
    if targets is not None:
        targets = _checked_targets(targets, len(index), recipe)
    return Output(output, (names[0], names[1]), with_index, with_path, targets, transform)


def _checked_targets(targets: Any, n: int, recipe: Recipe) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets={type(targets).__name__}: must be a tensor, such as torch.as_tensor(...) makes")
    given = f"{targets.dtype} {list(targets.shape)}"
    if targets.dtype not in _DTYPES or targets.dim() == 0:
        raise wrong("targets", given, "integers or floats [N, ...]; of booleans, targets.float()")
    if len(targets) != n:
        raise wrong("targets", given, f"[{n}, ...], one for each image of the index in its order")
    if recipe.mixing and not targets.is_floating_point():
        raise wrong("targets", given, "floats where the recipe mixes; of class numbers, one_hot(targets).float()")
    if isinstance(recipe, TrainRecipe) and recipe.label_smoothing > 0:
        raise wrong("label_smoothing", recipe.label_smoothing, "0 beside targets=: smooth these as you want them")
    return targets.detach()


def own_targets(given: Tensor, plan: BatchPlan, lam: npt.NDArray[np.float32] | None, device: torch.device) -> Tensor:
    """Rows of the user's targets, of the samples shown; nothing waits for a GPU.

    Args:
        given: [N, ...] on any device.
        lam: float32 [B], or None where nothing is mixed.

    Returns:
        [B, ...] on `device`: floats in the dtype of `given`, mixed with the flipped batch by `lam`, and 0 in padding
        rows; integers as int64, and -100 in padding rows.
    """
    padding = plan.is_padding
    weight = np.ones(len(plan), np.float32) if lam is None else lam
    sample, rows, share = to_device(
        [np.where(padding, 0, plan.source_index), padding.nonzero()[0], weight], given.device
    )
    found = given.index_select(0, sample)
    found = found if found.is_floating_point() else found.to(torch.int64)
    if lam is not None:
        own = found.to(torch.promote_types(found.dtype, torch.float32))
        share = share.view(-1, *(1 for _ in own.shape[1:]))
        found = (own * share + own.flip(0) * (1 - share)).to(found.dtype)
    found.index_fill_(0, rows, 0 if found.is_floating_point() else PADDING)
    if found.device.type == "cpu" and device.type == "cuda":
        found = found.pin_memory()
    return found.to(device, non_blocking=True)


def digest_of(targets: Tensor) -> str:
    """Shape, dtype, and 32 hex digits of at most 1024 rows spread over all, which tell two data sets' targets apart."""
    some = targets[:: max(1, -(-len(targets) // 1024))].cpu().contiguous()
    digest = hashlib.blake2b(some.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()
    return f"{targets.dtype} {list(targets.shape)} {digest}"


class StaticBuffers:
    """Sets of tensors that batches are copied to in turn, at addresses that stay.

    Args:
        count: after so many batches of the same shapes the first one's memory is written to again.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._sets: dict[tuple[Any, ...], deque[list[Tensor]]] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies, queued on the current stream."""
        shapes = tuple((part.shape, part.dtype, part.stride(), part.device) for part in tensors)
        sets = self._sets.setdefault(shapes, deque())
        if len(sets) < self._count:
            sets.append([part.clone(memory_format=torch.preserve_format) for part in tensors])
        else:
            sets.rotate(-1)
            for kept, part in zip(sets[-1], tensors, strict=True):
                kept.copy_(part)
        return [*sets[-1]]


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """All that there are in a batch as it is handed out."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors_of(part)


def copy_of(batch: Any) -> Any:
    """The same batch with tensors, lists and dictionaries of its own."""
    if isinstance(batch, Tensor):
        return batch.clone(memory_format=torch.preserve_format)
    if isinstance(batch, dict):
        return {name: copy_of(part) for name, part in batch.items()}
    return type(batch)(map(copy_of, batch)) if type(batch) in (list, tuple) else batch
