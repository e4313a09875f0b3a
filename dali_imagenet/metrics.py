"""Evaluation over ranks: what each of them counted, added up once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dali_imagenet.plan.batch_plan import PADDING
from dali_imagenet.validation import whole, wrong


class Accuracy:
    """Top-k accuracy in which every sample counts once, over any number of ranks.

    `update` with every batch, `compute` at the end, on every rank. Nothing waits for the device before that.

    Args:
        topk: the k's, each at least 1; beyond the number of classes counts as all classes.
    """

    def __init__(self, topk: Sequence[int] = (1,)) -> None:
        if not topk:
            raise wrong("topk", topk, "numbers of at least 1, such as (1, 5)")
        self.topk = tuple(whole("topk", k, 1) for k in topk)
        self._counts: Tensor | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: outputs [B, classes], targets int64 [B]; rows with target -100 (padding) are left out."""
        if targets.dim() != 1 or targets.is_floating_point():
            raise ValueError(f"targets {list(targets.shape)} of {targets.dtype}: must be class numbers, int64 [B]")
        best = outputs.detach().topk(min(max(self.topk), outputs.shape[1]), dim=1).indices
        hits = (best == targets[:, None]) & (targets != PADDING)[:, None]
        counts = torch.stack([*(hits[:, :k].sum() for k in self.topk), (targets != PADDING).sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> tuple[dict[int, float], int]:
        """({k: share of correct samples}, samples), over all ranks where torch.distributed is initialised.

        A collective call there: every rank makes it. The device is that of the batches.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._counts is None:
            nccl = distributed and torch.distributed.get_backend() == "nccl"
            self._counts = torch.zeros(len(self.topk) + 1, dtype=torch.int64, device="cuda" if nccl else "cpu")
        counts = self._counts.clone()
        if distributed:
            torch.distributed.all_reduce(counts)
        *correct, total = counts.tolist()
        return {k: hits / max(1, total) for k, hits in zip(self.topk, correct, strict=True)}, total
