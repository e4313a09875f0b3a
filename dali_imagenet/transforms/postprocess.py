"""uint8 pixels -> the batch that the model sees: pixel operations, normalize, erase, mix. Draws nothing.

One contract, two places: image by image in the workers on the CPU, where a whole batch would leave the cache, and on a
GPU as the few kernels of `fused`, where nothing here waits for the device. The batched operations of torch are what
`fused` is held to, and what runs where Triton does not.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dali_imagenet._compiled import ORACLE
from dali_imagenet.plan.batch_plan import PADDING, BatchPlan, MixPlan
from dali_imagenet.policy import AugMixPlan, OpPlan
from dali_imagenet.transforms import normalize_erase, pixel_ops
from dali_imagenet.transforms.fused import stage as fused
from dali_imagenet.transforms.normalize_erase import erase_, erase_image_, normalize, normalize_constants
from dali_imagenet.transforms.pixel_ops import Workspace, apply_ops_image
from dali_imagenet.transforms.pixel_ops_batched import apply_ops_batch
from dali_imagenet.transforms.recycled import Recycled
from dali_imagenet.transforms.transfer import to_device


class Postprocess:
    """What follows the image stage: operations, normalize and erase of each image, and mixing.

    Args:
        dtype: float32, float16 or bfloat16.
        memory_format: torch.contiguous_format or torch.channels_last.
    """

    def __init__(
        self, *, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
    ) -> None:
        self.dtype, self.memory_format = dtype, memory_format
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._own = threading.local()  # the workspace of each thread
        self._recycled = defaultdict[int, Recycled](Recycled)  # of each view

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "memory_format": self.memory_format}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the state is its arguments

    def finish_image(self, image: Tensor, plan: BatchPlan, row: int, out: Tensor) -> None:
        """Operations, normalize and erase of one row on the CPU: uint8 [3, H, W] -> `out` [3, H, W] of `dtype`."""
        workspace: Workspace | None = getattr(self._own, "workspace", None)
        # room for the index maps of every magnitude of a policy: TrivialAugment has 186
        map_bytes = 200 * 4 * plan.size[0] * plan.size[1]
        if workspace is None or workspace.map_bytes < map_bytes:
            workspace = self._own.workspace = Workspace(map_bytes)
        for i, part in enumerate(plan.ops):
            if i:
                image = image.clone()  # out of the workspace, which the next part writes to
            image = run_image(image, part, row, plan.fill, workspace)
        normalize(image, self.constants(plan, image.device), out)
        self.erase_image(plan, row, out)

    def erase_image(self, plan: BatchPlan, row: int, out: Tensor) -> None:
        """Erase one normalized row on the CPU, in place."""
        if plan.erase is not None and plan.noise_key is not None:
            erase_image_(out, plan.erase[row], int(plan.noise_key[row]), plan.erase_mode, plan.erase_value)

    def normalize(self, images: Tensor, plan: BatchPlan) -> Tensor:
        """uint8 [B, 3, H, W] or [3, H, W] -> (x / 255 - mean) / std in `dtype`, on the images' device."""
        batch = images if images.dim() == 4 else images[None]
        out = torch.empty(batch.shape, dtype=self.dtype, device=batch.device, memory_format=self.memory_format)
        normalize(batch, self.constants(plan, batch.device), out)
        return out if images.dim() == 4 else out[0]

    def constants(self, plan: BatchPlan, device: torch.device) -> Tensor:
        """Those of `normalize`, made once."""
        key = (plan.mean, plan.std, device)
        if key not in self._constants:
            self._constants[key] = normalize_constants(*key)
        return self._constants[key]

    def finish_batch(
        self, images: Tensor, plan: BatchPlan, pool: Executor | None = None, *, mix: bool = False
    ) -> Tensor:
        """The same for a batch on its device: uint8 [B, 3, H, W], or what the image stage has normalized.

        Padding rows hold anything.

        Args:
            pool: threads that share the rows where they are worked on one by one.
            mix: whether Mixup and CutMix follow, where the plan has them.
        """
        if self.compile(plan, images.device, images.dtype):
            constants = self.constants(plan, images.device)
            return fused.finish(images, plan, constants, dtype=self.dtype, memory_format=self.memory_format, mix=mix)
        images = self._finished(images, plan, pool)
        if mix and plan.mix is not None:
            mix_(images, plan.mix, pool)
        return images

    def compile(self, plan: BatchPlan, device: torch.device, dtype: torch.dtype) -> bool:
        """Compile, at the first call, what `finish_batch` launches for images of `dtype`: whether they are fused."""
        return dtype == torch.uint8 and fused.takes(plan, device, self.dtype, self.memory_format)

    def _finished(self, images: Tensor, plan: BatchPlan, pool: Executor | None) -> Tensor:
        if images.dtype == torch.uint8 and normalize_erase.per_image(images):
            out = self._recycled[plan.view].empty(images.shape, self.dtype, self.memory_format)

            def finish(row: int) -> None:
                self.finish_image(images[row], plan, row, out[row])

            list((pool.map if pool else map)(finish, (~plan.is_padding).nonzero()[0].tolist()))
            return out
        if images.dtype == torch.uint8:
            for part in plan.ops:
                images = run_batch(images, part, plan.fill)
            images = self.normalize(images, plan)
        if plan.erase is not None and plan.noise_key is not None:
            erase_(images, plan.erase, plan.noise_key, plan.erase_mode, plan.erase_value)
        return images


def zero_padding_(images: Tensor, plan: BatchPlan) -> None:
    """Make the padding rows of a batch [B, 3, H, W] zeros, in place; nothing waits for a GPU."""
    [rows] = to_device([plan.is_padding.nonzero()[0]], images.device)
    images.index_fill_(0, rows, 0)


def run_image(
    image: Tensor, part: OpPlan | AugMixPlan, row: int, fill: Sequence[float] | None, workspace: Workspace
) -> Tensor:
    """Some operations of a plan on one uint8 image [3, H, W]; the result may be the image or lie in the workspace."""
    if isinstance(part, OpPlan):
        return apply_ops_image(image, part.op[row], part.arg[row], part.aux[row], fill, workspace)
    chains = (
        apply_ops_image(image, part.op[row, i], part.arg[row, i], part.aux[row, i], fill, workspace)
        for i in range(part.op.shape[1])
    )
    if pixel_ops._pixel_ops is not None:
        return _augmix_in_c(image.contiguous(), chains, part.weights[row], part.m[row], part.mode, workspace)
    weights, m = torch.from_numpy(part.weights[row]), torch.from_numpy(part.m[row : row + 1])
    return _augmix(image, chains, weights, m, part.mode)


def run_batch(images: Tensor, part: OpPlan | AugMixPlan, fill: Sequence[float] | None) -> Tensor:
    """Some operations of a plan on a uint8 batch [B, 3, H, W], on its device; the result may be the batch itself."""
    if isinstance(part, OpPlan):
        return apply_ops_batch(images, part.op, part.arg, part.aux, fill)
    chains = (
        apply_ops_batch(images, part.op[:, i], part.arg[:, i], part.aux[:, i], fill) for i in range(part.op.shape[1])
    )
    [numbers] = to_device(
        [np.concatenate([part.weights, part.m[:, None]], axis=1)[:, :, None, None, None]], images.device
    )
    return _augmix(images, chains, numbers[:, :-1].unbind(1), numbers[:, -1], part.mode)


def _augmix(image: Tensor, chains: Iterable[Tensor], weights: Iterable[Tensor], m: Tensor, mode: str) -> Tensor:
    """Mix AugMix's chains into the image, as `AugMixPlan` says. uint8 in and out."""
    original = image.to(torch.float32)
    if mode == "blend":
        result = original
        for chain, weight in zip(chains, weights, strict=True):
            result = _blend(result, chain, weight)
        return _bytes(result)
    if mode == "timm":
        mixed = torch.zeros_like(original)
        for chain, weight in zip(chains, weights, strict=True):
            mixed.add_(chain.to(torch.float32) * weight)
        return _bytes(_blend(original, mixed.clamp_(0, 255).floor_(), m))
    result = original * (1 - m)
    for chain, weight in zip(chains, weights, strict=True):
        result.add_(chain.to(torch.float32) * (weight * m))
    return _bytes(result)


def _augmix_in_c(
    image: Tensor,
    chains: Iterable[Tensor],
    weights: npt.NDArray[np.float32],
    m: np.float32,
    mode: str,
    workspace: Workspace,
) -> Tensor:
    """`_augmix` of one image on the CPU, in the workspace, with the same bytes."""
    assert pixel_ops._pixel_ops is not None
    mix = pixel_ops._pixel_ops.mix
    kept = workspace.get("chains", (len(weights), *image.shape), torch.uint8)
    for place, chain in zip(kept, chains, strict=True):
        place.copy_(chain)
    out = workspace.get("mixed", image.shape, torch.uint8).numpy()
    if mode == "timm":
        mix(image.numpy(), kept.numpy(), weights, 0.0, m, out)
    elif mode == "torchvision":
        mix(image.numpy(), kept.numpy(), weights * m, 1 - m, 1.0, out)
    else:  # one after the other
        one, before = np.ones(1, np.float32), image.numpy()
        for chain, weight in zip(kept.numpy(), weights, strict=True):
            mix(before, chain, one, 0.0, weight, out)
            before = out
    return torch.from_numpy(out)


def _bytes(values: Tensor) -> Tensor:
    """uint8 of 0..255, cut; by way of int16, which is faster on a CPU."""
    return values.to(torch.int16).to(torch.uint8)


def _blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """PIL's Image.blend on whole values: truncated, float32."""
    return (first + weight * (second.to(torch.float32) - first)).floor_()


def mix_(images: Tensor, mix: MixPlan, pool: Executor | None = None) -> None:
    """timm's Mixup and CutMix in place: row i with row B-1-i of float images [B, 3, H, W]; of an odd batch the middle
    row stays as it is.

    Args:
        pool: threads that share the pairs on the CPU.
    """
    if normalize_erase.per_image(images):
        list((pool.map if pool else map)(lambda i: mix_pair_(images, mix, i), range(len(images) // 2)))
        return
    lam, cut, box = mix.lam, mix.use_cutmix, mix.box.astype(np.float32)
    share = np.where(cut, np.float32(1), lam)
    blend, paste = bool((share != 1).any()), bool(cut.any())
    if not blend and not paste:
        return
    other = images.flip(0)
    host = np.concatenate([share[:, None], 1 - share[:, None], box], axis=1)[:, :, None, None, None]
    [params] = to_device([host], images.device)
    if paste:
        rows = torch.arange(images.shape[2], device=images.device, dtype=torch.float32)[:, None]
        columns = torch.arange(images.shape[3], device=images.device, dtype=torch.float32)
        inside = (rows >= params[:, 2]) & (rows < params[:, 3]) & (columns >= params[:, 4]) & (columns < params[:, 5])
        torch.where(inside, other, images, out=images)
    if blend:  # float32 weights also for half precision, as timm's scalars are
        images.mul_(params[:, 0]).add_(other.mul_(params[:, 1]))


def mix_pair_(images: Tensor, mix: MixPlan, i: int) -> None:
    """`mix_` for rows i and B-1-i alone, on the CPU: while they are in the cache."""
    j = len(images) - 1 - i
    if pixel_ops._pixel_ops is not None and not ORACLE and images.dtype == torch.float32:
        planar = images.is_contiguous()
        memory = images if planar else images.permute(0, 2, 3, 1)
        if memory.is_contiguous():
            height, width = images.shape[2:]
            shape = (3, height, width, 1) if planar else (1, height, width, 3)
            pair = memory[i].numpy(), memory[j].numpy()
            pixel_ops._pixel_ops.mix_pair(*pair, shape, _mixing(mix, i), _mixing(mix, j))
            return
    a, b = images[i], images[j]
    old_a, old_b = a, b
    if not (mix.use_cutmix[i] and mix.use_cutmix[j]) or (mix.box[i] != mix.box[j]).any():
        old_a, old_b = a.clone(), b.clone()
    for row, image, other in ((i, a, old_b), (j, b, old_a)):
        lam = float(mix.lam[row])
        if mix.use_cutmix[row]:
            top, bottom, left, right = mix.box[row].tolist()
            if old_a is a:  # both rows swap the same box
                patch = a[:, top:bottom, left:right].clone()
                a[:, top:bottom, left:right] = b[:, top:bottom, left:right]
                b[:, top:bottom, left:right] = patch
                break
            image[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        elif lam != 1:
            image.mul_(lam).add_(other, alpha=1 - lam)


def _mixing(mix: MixPlan, row: int) -> tuple[float, bool, list[int]]:
    """What `_pixel_ops.mix_pair` has to know of a row."""
    return float(mix.lam[row]), bool(mix.use_cutmix[row]), mix.box[row].tolist()


def soft_targets(
    labels: npt.NDArray[np.int64], lam: npt.NDArray[np.float32] | None, num_classes: int, smoothing: float
) -> npt.NDArray[np.float32]:
    """timm's mixup_target: smoothed one-hot rows, mixed with the flipped batch.

    Args:
        labels: int64 [B], in [0, num_classes), or -100 for padding.
        lam: float32 [B], or None where nothing is mixed.
        num_classes: columns of the result.
        smoothing: share that is spread over all classes, 0..1.

    Returns:
        float32 [B, num_classes]; rows sum to 1, also where both labels of a pair are the same. Padding is zeros, which
        weighs nothing in a loss.

    Raises:
        ValueError: for labels that are not one class an image.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"labels of shape {labels.shape}: Mixup, CutMix and label smoothing take one class an image, [B]; for "
            "several labels an image give create_loader targets=, floats [N, C]"
        )
    rows = np.arange(len(labels))
    off = smoothing / num_classes
    result = np.full((len(labels), num_classes), off, np.float32)
    own = np.float32(1 - smoothing) if lam is None else np.float32(1 - smoothing) * lam
    real = labels != PADDING
    np.add.at(result, (rows[real], labels[real]), np.broadcast_to(own, len(labels))[real])
    if lam is not None:
        other, rest = labels[::-1], np.float32(1 - smoothing) * (1 - lam)
        pair = other != PADDING
        np.add.at(result, (rows[pair], other[pair]), rest[pair])
    result[~real] = 0
    return result
