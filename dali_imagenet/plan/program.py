"""Which colours and operations a sample gets, from uniforms."""

from __future__ import annotations

import functools

import numpy as np

from dali_imagenet.ops import Op
from dali_imagenet.plan.batch_plan import F32, F64
from dali_imagenet.policy import AugmentPolicy, AugMixPlan, OpPlan
from dali_imagenet.policy.compose import draw_parts
from dali_imagenet.recipe import Size, TrainRecipe
from dali_imagenet.rng import STREAM_COLOR, STREAM_FILTER, STREAM_POLICY, STREAM_PROGRAM

# DALI's color_twist: RGB -> YIQ, the hue as a rotation there. dali/operators/image/color/color_twist.h
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_RGB = np.linalg.inv(_YIQ)

Uniforms = dict[int, F64]
"""Uniforms [B, count] by stream."""


def color_matrix(factors: F32) -> F32:
    """DALI's color_twist as a matrix: [B, 4] factors (brightness, contrast, saturation, degrees) -> [B, 3, 4]."""
    brightness, contrast, saturation, degrees = factors.T.astype(np.float64)
    radians = np.deg2rad(degrees)
    rotate = np.zeros((len(factors), 3, 3))
    rotate[:, 0, 0] = 1
    rotate[:, 1, 1] = rotate[:, 2, 2] = np.cos(radians) * saturation
    rotate[:, 1, 2] = np.sin(radians) * saturation
    rotate[:, 2, 1] = -rotate[:, 1, 2]
    matrix = (brightness * contrast)[:, None, None] * (_RGB @ rotate @ _YIQ)
    offset = np.broadcast_to((brightness * 128 * (1 - contrast))[:, None, None], (len(factors), 3, 1))
    return np.concatenate([matrix, offset], axis=2).astype(np.float32)


@functools.lru_cache(maxsize=32)
def policy_of(recipe: TrainRecipe) -> AugmentPolicy | None:
    """The recipe's policy, parsed once."""
    return recipe.policy


def _factors(strengths: tuple[float, float, float, float], u: F64) -> F64:
    """Brightness, contrast and saturation factors around 1, not below 0, and the hue in turns around 0."""
    s = np.array(strengths)
    low = np.append(np.maximum(0, 1 - s[:3]), -s[3])
    high = np.append(1 + s[:3], s[3])
    return np.asarray(low + u * (high - low), np.float64)


def color_factors(recipe: TrainRecipe, u: Uniforms) -> F32 | None:
    if recipe.color_twist is None:
        return None
    factors = _factors(recipe.color_twist, u[STREAM_COLOR][:, :4])
    return (factors * (1, 1, 1, 360)).astype(np.float32)


def _color_jitter(recipe: TrainRecipe, u: F64) -> OpPlan:
    """torchvision's ColorJitter as four operations in a drawn order; a strength of 0 leaves its operation out."""
    assert recipe.color_jitter is not None
    ops = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE], np.int16)
    ops[np.array(recipe.color_jitter) == 0] = Op.IDENTITY
    order = u[:, 4:8].argsort(1)
    op = ops[order]
    op[u[:, 8] >= recipe.color_jitter_prob] = Op.IDENTITY
    arg = np.take_along_axis(_factors(recipe.color_jitter, u[:, :4]), order, axis=1)
    return OpPlan(op, arg.astype(np.float32), np.zeros_like(op))


def _filters(recipe: TrainRecipe, u: F64) -> OpPlan:
    """Grayscale, then blur."""
    low, high = recipe.gaussian_blur_sigma
    gray, blur = u[:, 0] < recipe.grayscale_prob, u[:, 1] < recipe.gaussian_blur_prob
    op = np.stack([gray * np.int16(Op.GRAYSCALE), blur * np.int16(Op.GAUSSIAN_BLUR)], axis=1).astype(np.int16)
    arg = np.stack([np.zeros(len(u)), low + u[:, 2] * (high - low)], axis=1).astype(np.float32)
    aux = np.stack([np.zeros(len(u)), np.full(len(u), recipe.gaussian_blur_kernel)], axis=1).astype(np.int16)
    return OpPlan(op, arg, aux)


def ops_of(recipe: TrainRecipe, size: Size, u: Uniforms) -> tuple[OpPlan | AugMixPlan, ...]:
    parts: list[OpPlan | AugMixPlan] = []
    if recipe.program:
        parts += draw_parts(recipe.program, u[STREAM_PROGRAM], size)
    policy = policy_of(recipe)
    if policy is not None:
        parts.append(policy.draw(u[STREAM_POLICY], size))
    if recipe.color_jitter is not None:
        parts.insert(0 if recipe.color_order == "before_policy" else 1, _color_jitter(recipe, u[STREAM_COLOR]))
    if recipe.grayscale_prob > 0 or recipe.gaussian_blur_prob > 0:
        parts.append(_filters(recipe, u[STREAM_FILTER]))
    if len(parts) > 1 and all(isinstance(part, OpPlan) for part in parts):
        return (OpPlan(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))),)
    return tuple(parts)
