"""Counter-based random numbers, vectorised: Philox4x32-10 and a keyed permutation. numpy only, no state anywhere.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011) for Philox and its constants; Black and
Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002) for the generalised Feistel network on Z_a x Z_b.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_PERMUTATION_ROUNDS = 12


def philox(key: int, c0: npt.ArrayLike, c1: npt.ArrayLike, c2: npt.ArrayLike, c3: npt.ArrayLike) -> U64:
    """Philox4x32-10 of a 64-bit key and counters of four 32-bit words (broadcast together).

    Returns:
        uint64 [4, ...], each value a 32-bit word.
    """
    shape = np.broadcast_shapes(*(np.shape(c) for c in (c0, c1, c2, c3)))
    x0, x1, x2, x3 = (np.array(np.broadcast_to(np.asarray(c, np.uint64), shape)) for c in (c0, c1, c2, c3))
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0 = (p1 >> _SHIFT) ^ x1 ^ np.uint64(k0)
        x2 = (p0 >> _SHIFT) ^ x3 ^ np.uint64(k1)
        x1, x3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3])


def uniforms(
    seed: int, epoch: int, stream: int, index: npt.ArrayLike, count: int, repeat: npt.ArrayLike = 0, view: int = 0
) -> F64:
    """`count` uniforms in [0, 1) for each index, on 2**-32 steps: a pure function of the arguments.

    Args:
        seed: 0..2**64-1.
        epoch: 0..2**32-1.
        stream: 0..255.
        index: int [B], 0..2**56-1.
        count: 1..1024.
        repeat: int [B] or one for all, 0..255.
        view: 0..255.

    Returns:
        float64 [B, count].
    """
    return streams(seed, epoch, {stream: count}, index, repeat, view)[stream]


def streams(
    seed: int, epoch: int, counts: Mapping[int, int], index: npt.ArrayLike, repeat: npt.ArrayLike = 0, view: int = 0
) -> dict[int, F64]:
    """`uniforms` of several streams ({stream: count}) at once, which costs little more than of one."""
    index = np.atleast_1d(np.asarray(index, np.uint64))
    repeat = np.asarray(repeat, np.uint64)
    blocks = {stream: -(-count // 4) for stream, count in counts.items()}
    tags = np.concatenate([np.arange(n, dtype=np.uint64) + np.uint64(s << 16) for s, n in blocks.items()])[:, None]
    high = index >> _SHIFT | np.uint64(view << 24)  # the view has the top eight bits of the index's upper word
    words = philox(seed, index & _MASK, high, repeat << np.uint64(24) | tags, np.uint64(epoch))
    flat: F64 = words.transpose(2, 1, 0).reshape(len(index), -1).astype(np.float64) * 2.0**-32
    ends = np.cumsum(list(blocks.values())) * 4
    starts = ends - np.array(list(blocks.values())) * 4
    return {s: flat[:, a : a + counts[s]] for s, a in zip(counts, starts.tolist(), strict=True)}


def normals(u: F64, v: F64) -> F64:
    """Standard normals from two arrays of uniforms in [0, 1) (Box and Muller 1958)."""
    return normal_pairs(u, v)[0]


def normal_pairs(u: F64, v: F64) -> tuple[F64, F64]:
    """Two independent standard normals for each pair of uniforms in [0, 1)."""
    radius = np.sqrt(-2 * np.log1p(-u))
    return np.asarray(radius * np.cos(2 * np.pi * v)), np.asarray(radius * np.sin(2 * np.pi * v))


def betas(u: F64, alpha: float) -> F64:
    """Beta(alpha, alpha) variates from uniforms [B, 32]: rejection within the row, so that its length is fixed.

    For alpha <= 1 Jöhnk's method (1964), which accepts at least every second try: 16 tries all fail for fewer than one
    row in 65,000; for alpha > 1 the ratio of gamma variates by Marsaglia and Tsang (2000), 5 tries each, each accepting
    over 95%. A row that fails gives 0.5.

    Returns:
        float64 [B] in [0, 1].
    """
    result = np.full(len(u), 0.5)
    if alpha <= 1:
        with np.errstate(divide="ignore"):
            log_x, log_y = np.log(u[:, 0:32:2]) / alpha, np.log(u[:, 1:32:2]) / alpha
        accepted = np.logaddexp(log_x, log_y) <= 0
        first = accepted.argmax(1)
        rows = np.flatnonzero(accepted.any(1))
        # in logarithms: for a small alpha both x and y underflow
        result[rows] = 1 / (1 + np.exp(np.clip(log_y[rows, first[rows]] - log_x[rows, first[rows]], -745, 709)))
        return result
    d = alpha - 1 / 3
    c = 1 / math.sqrt(9 * d)
    gammas = []
    for offset in (0, 16):
        tries = u[:, offset : offset + 15].reshape(len(u), 5, 3)
        x = normals(tries[..., 0], tries[..., 1])
        v = (1 + c * x) ** 3
        with np.errstate(divide="ignore", invalid="ignore"):
            accepted = (v > 0) & (
                np.log(1 - tries[..., 2]) < 0.5 * x * x + d - d * v + d * np.log(np.where(v > 0, v, 1))
            )
        first = accepted.argmax(1)
        value = (d * v)[np.arange(len(u)), first]
        gammas.append(np.where(accepted.any(1), value, d))
    return np.asarray(gammas[0] / (gammas[0] + gammas[1]), np.float64)


_GAMMA_LOW = -40.0  # of log x: below it the gamma distribution function is x^alpha / gamma(alpha + 1) to 17 digits


@functools.lru_cache(maxsize=16)
def _gamma_table(alpha: float) -> tuple[F64, F64]:
    """(logit of the distribution function, log of the quantile) of the gamma distribution with shape alpha."""
    t = np.linspace(_GAMMA_LOW, math.log(alpha + 45.0 + 9.0 * math.sqrt(alpha)), 1 << 16)
    density = np.exp(alpha * t - np.exp(t) - math.lgamma(alpha))  # of log x
    steps = 0.5 * (density[1:] + density[:-1]) * (t[1] - t[0])
    below = math.exp(alpha * t[0] - math.lgamma(alpha + 1.0))
    lower = np.cumsum(np.concatenate([[below], steps]))
    upper = np.cumsum(np.concatenate([[0.0], steps[::-1]]))[::-1]
    keep = (lower > 0) & (upper > 0)
    return np.log(lower[keep]) - np.log(upper[keep]), t[keep]


def log_gammas(u: F64, alpha: float) -> F64:
    """Logarithms of gamma variates of shape alpha, one for each uniform: the quantiles, to 5 digits or better.

    AugMix draws by quantiles and mixing by rejection (`betas`): both are part of what a seed means.
    """
    u = np.maximum(u, 2.0**-54)
    if alpha == 1.0:
        return np.asarray(np.log(-np.log1p(-u)))
    logit, t = _gamma_table(alpha)
    low = (np.log(u) + math.lgamma(alpha + 1.0)) / alpha
    return np.where(low < _GAMMA_LOW, low, np.interp(np.log(u) - np.log1p(-u), logit, t))


def dirichlet(u: F64, alpha: float) -> F64:
    """Symmetric Dirichlet variates along the last axis, of which the first of two is a Beta(alpha, alpha)."""
    g = log_gammas(u, alpha)
    g = np.exp(g - g.max(axis=-1, keepdims=True))
    return np.asarray(g / g.sum(axis=-1, keepdims=True))


def _mix(x: U64) -> U64:
    """The finaliser of SplitMix64 (Steele et al. 2014): a good hash of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unit_hash(numbers: npt.ArrayLike) -> F64:
    """Evenly spread numbers in [0, 1), each a pure function of one whole number below 2**64 - 1.

    Of i it is the i-th output of SplitMix64 (Steele et al. 2014) that was seeded with 0, its upper 53 bits.
    """
    counter = (np.asarray(numbers, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((_mix(counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


class Permutation:
    """A pseudo-random permutation of range(n), keyed by (seed, epoch below 2**64), evaluated where it is asked for.

    A Feistel network with modular addition on Z_a x Z_b, a * b just above n, walked until it lands below n. Holds a
    dozen integers, whatever n is.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n = n
        self.a = max(1, math.isqrt(max(0, n - 1)) + 1)
        self.b = -(-n // self.a)
        low, high = epoch & 0xFFFFFFFF, epoch >> 32
        words = philox(seed, np.arange(_PERMUTATION_ROUNDS), high, STREAM_ORDER << 16, low)
        self.keys: Any = words[0] << _SHIFT | words[1]

    def __call__(self, positions: npt.ArrayLike) -> I64:
        """What stands at those positions, int64 of the same shape. Positions are in [0, n)."""
        x = np.asarray(positions, np.uint64)
        flat = self._once(x.ravel())
        while (outside := np.flatnonzero(flat >= self.n)).size:
            flat[outside] = self._once(flat[outside])
        return flat.astype(np.int64).reshape(x.shape)

    def _once(self, x: U64) -> U64:
        a, b = np.uint64(self.a), np.uint64(self.b)
        left, right = x // b, x % b
        for i in range(0, _PERMUTATION_ROUNDS, 2):
            left = (left + _mix(right ^ self.keys[i]) % a) % a
            right = (right + _mix(left ^ self.keys[i + 1]) % b) % b
        return left * b + right


# One stream a stage. A number here is never reused or changed: it is part of what a seed means.
STREAM_ORDER = 0
STREAM_CROP = 1
STREAM_FLIP = 2
STREAM_COLOR = 3
STREAM_POLICY = 4
STREAM_FILTER = 5  # grayscale and blur
STREAM_ERASE = 6
STREAM_NOISE = 7
STREAM_MIX = 8  # index: the step, or the position in the epoch for modes pair and elem
STREAM_PICK = 9  # which samples of an index a part of it has; epoch 0
STREAM_DRAW = 10  # weighted draws of samples; index: the place in the epoch
STREAM_INTERPOLATION = 11
STREAM_WINDOW = 12  # of the crops that are not "rrc"
STREAM_PROGRAM = 13
