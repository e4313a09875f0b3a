"""The draws that torchvision's and timm's AugMix share (Hendrycks et al. 2019, arXiv 1912.02781)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dali_imagenet.policy.base import AugMixPlan, Float, Table
from dali_imagenet.rng import dirichlet


def draw_augmix(
    table: Table, u: Float, width: int, depth: int, alpha: float, mode: Literal["torchvision", "timm", "blend"]
) -> AugMixPlan:
    """`width` chains from `table`, each of `depth` operations, or of 1 to 3 if depth is not positive."""
    b, chain = len(u), table.num_uniforms
    parts = np.cumsum([width * chain, width if depth <= 0 else 0, width])
    chains, depths, weights, m = np.split(u, parts, axis=1)
    drawn, shape = table.draw(chains.reshape(b * width, chain)), (b, width, table.num_slots)
    op, arg, aux = drawn.op.reshape(shape), drawn.arg.reshape(shape), drawn.aux.reshape(shape)
    if depth <= 0:
        used = np.arange(3) <= (depths * 3).astype(np.int64)[:, :, None]
        op, arg, aux = op * used, arg * used, aux * used
    share = dirichlet(m, alpha)[:, 1].astype(np.float32)
    mixing = dirichlet(weights, alpha).astype(np.float32)
    if mode == "blend":
        mixing, share = _blend_weights(mixing * share[:, None]), np.ones_like(share)
    return AugMixPlan(op, arg, aux, mixing, share, mode)


def _blend_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """timm's `_calc_blended_weights`: from the last chain to the first, its share of what is left."""
    left, out = np.ones_like(weights[:, 0]), np.empty_like(weights)
    for i in reversed(range(weights.shape[1])):
        # nothing is left for those before a chain that takes all of it, and a rounding is no more than all
        out[:, i] = np.minimum(np.divide(weights[:, i], left, out=np.zeros_like(left), where=left > 0), 1)
        left = left * (1 - out[:, i])
    return out


def augmix_uniforms(table: Table, width: int, depth: int) -> int:
    return width * (table.num_uniforms + (depth <= 0) + 1) + 2
