"""The batch stage's device branch on fake CUDA tensors: what it would launch, copy and wait for, counted without a GPU.

Fake tensors have a shape and a device, but no memory: nothing is computed, and whatever would read a value back raises.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dali_imagenet.transforms import normalize_erase, pixel_ops_batched, postprocess
from dali_imagenet.transforms.fused import stage
from dali_imagenet.transforms.fused.program import encode

# Operations that start nothing on the device: views, and memory that is not written.
_FREE = {
    *("view", "_unsafe_view", "expand", "slice", "select", "unsqueeze", "squeeze", "permute", "transpose", "t"),
    *("detach", "alias", "as_strided", "unbind", "split", "split_with_sizes", "narrow", "unfold", "lift_fresh"),
    *("_reshape_alias", "device", "empty", "empty_strided", "empty_like", "new_empty"),
}
_WRITE_ONLY = {
    *("fill_", "zero_", "zeros", "ones", "full", "arange", "scalar_tensor"),
    *("full_like", "zeros_like", "ones_like", "new_zeros", "new_full"),
}
_READ_BACK = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"}


@dataclass
class Counts:
    """What the device was asked for."""

    kernels: list[int] = field(default_factory=list)
    """Bytes that each kernel reads and writes, in order."""
    fused: list[str] = field(default_factory=list)
    """Triton's kernels, in order."""
    copies: list[int] = field(default_factory=list)
    """Bytes that each copy within the device reads and writes: contiguous memory of one type, which is no kernel."""
    h2d: list[int] = field(default_factory=list)
    """Bytes of each copy from the host."""
    syncs: int = 0
    """How often the host would wait."""


@contextlib.contextmanager
def fake_cuda(counts: Counts | None = None, *, fused: bool = True) -> Iterator[None]:
    """Tensors on "cuda" that have no memory; whatever would copy from the host gives an empty tensor there.

    fused: whether Triton's kernels are launched, which are named in the counts, and whose bytes are not known here; or
    torch's operations in their place.
    """

    def to_device(arrays: Any, device: torch.device) -> list[Tensor]:
        if counts is not None:
            counts.h2d.append(sum(-(-np.asarray(a).nbytes // 16) * 16 for a in arrays))
        dtypes = [getattr(torch, str(np.asarray(a).dtype)) for a in arrays]
        return [torch.empty(a.shape, dtype=dtype, device=device) for a, dtype in zip(arrays, dtypes, strict=True)]

    def launch(name: str, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
        assert all(0 < n < (1 << 31, 1 << 16)[axis] for axis, n in enumerate(grid)), grid
        assert all(t.device.type == "cuda" for t in arguments if isinstance(t, Tensor)), name
        if counts is not None:
            counts.fused.append(name)

    def real(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with unset_fake_temporarily():
                return function(*arguments)

        return call

    with contextlib.ExitStack() as stack:
        for name, value in {
            "ORACLE": not fused, "_ready": lambda *_: True, "_launch": launch, "_wide": lambda: False,
            "_device": lambda _: contextlib.nullcontext(), "encode": real(encode),
        }.items():  # fmt: skip
            stack.enter_context(mock.patch.object(stage, name, value))
        for module in (pixel_ops_batched, normalize_erase, postprocess, stage):
            stack.enter_context(mock.patch.object(module, "to_device", to_device))
        stack.enter_context(mock.patch.object(pixel_ops_batched, "_depthwise", _depthwise))
        stack.enter_context(mock.patch.object(pixel_ops_batched, "_groups", real(pixel_ops_batched._groups)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def _depthwise(image: Tensor, weight: Tensor, size: list[int]) -> Tensor:
    """One kernel, as well; torch's own has no fake."""
    return torch.nn.functional.conv2d(image, weight, groups=len(weight))


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate
    """Counts the operations on CUDA tensors in a `with` block."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if any(t.device.type == "cuda" for t in (*inputs, *outputs)) and name not in _FREE:
            self._count(name, inputs, outputs, (kwargs or {}).get("out"))
        return out

    def _count(self, name: str, inputs: list[Tensor], outputs: list[Tensor], out: Tensor | None) -> None:
        counts = self.counts
        source = inputs[-1] if inputs else None
        if name in ("copy_", "_to_copy") and source is not None and source.device.type == "cpu" and source.dim():
            counts.h2d.append(_bytes(source))
            counts.syncs += 1
            return
        counts.syncs += name in _READ_BACK
        moved = _moved(name, [t for t in inputs if t is not out], outputs)
        if name in ("copy_", "clone", "_to_copy") and source is not None and _plain_copy(source, outputs[0]):
            counts.copies.append(moved)
        else:
            counts.kernels.append(moved)


def _plain_copy(source: Tensor, target: Tensor) -> bool:
    return source.dtype == target.dtype and source.is_contiguous() and target.is_contiguous()


def _bytes(tensor: Tensor) -> int:
    """Bytes that are touched: what is broadcast is read once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()


def _moved(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes that a kernel reads and writes."""
    if name == "index_copy_":  # self, index, source: self is written where it is indexed
        return 2 * _bytes(inputs[2]) + _bytes(inputs[1])
    if name == "index_fill_":
        return _bytes(inputs[0]) // max(1, len(inputs[0])) * len(inputs[1])
    written = sum(map(_bytes, outputs))
    if name == "index_select":
        return 2 * written + _bytes(inputs[1])
    if name == "copy_":
        return _bytes(inputs[-1]) + written
    return written + (0 if name in _WRITE_ONLY else sum(map(_bytes, inputs)))
