"""Which sample stands at which place of an epoch, computed for the places that are asked for.

An order gives two numbers for each place: the sample, and the key of its draws. The key is the sample where an epoch
has it once; copies within an epoch have different ones, however many there are.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dali_imagenet import rng
from dali_imagenet.plan.batch_plan import F64, I64
from dali_imagenet.validation import wrong


class Order(Protocol):
    def __call__(self, epoch: int, place: I64) -> tuple[I64, I64]:
        """The samples at these places of the epoch, and the keys of their draws."""
        ...

    def has(self, sample: int) -> bool:
        """Whether the sample may stand anywhere."""
        ...


class Whole:
    """Every epoch all n samples: a permutation by the seed, or without one in their own order."""

    def __init__(self, n: int, seed: int | None) -> None:
        self._n, self._seed = n, seed

    def __call__(self, epoch: int, place: I64) -> tuple[I64, I64]:
        sample = _permutation(self._n, self._seed, epoch)(place)
        return sample, sample

    def has(self, sample: int) -> bool:
        return True


class Continued:
    """What `Whole` has, one after the other, of which an epoch takes the next `length` places.

    A sample comes again when all others have come, whatever the length. Where it equals n, an epoch is as `Whole`
    has it. The second copy within an epoch has the key sample + n, and so on.
    """

    def __init__(self, n: int, seed: int | None, length: int) -> None:
        self._n, self._seed, self._length = n, seed, length

    def __call__(self, epoch: int, place: I64) -> tuple[I64, I64]:
        first, skipped = divmod(epoch * self._length, self._n)  # Python's integers have no end
        turn, rest = np.divmod(place + skipped, self._n)
        sample = np.empty_like(place)
        for number in np.unique(turn).tolist():
            here = turn == number
            sample[here] = _permutation(self._n, self._seed, first + number)(rest[here])
        return sample, sample + turn * self._n

    def has(self, sample: int) -> bool:
        return True


class Weighted:
    """Draws with replacement: at each place a sample by its weight, from a uniform of (seed, epoch, place).

    The key is the place, for a sample may come any number of times.

    Args:
        weights: float64 [N] of at least 0, not all 0; only their ratios count.
    """

    def __init__(self, weights: F64, seed: int) -> None:
        self._sums, self._seed = np.cumsum(weights), seed

    def __call__(self, epoch: int, place: I64) -> tuple[I64, I64]:
        at = place.astype(np.uint64)
        words = rng.philox(self._seed, at & np.uint64(0xFFFFFFFF), at >> np.uint64(32), rng.STREAM_DRAW << 16, epoch)
        uniform = ((words[0] << np.uint64(32) | words[1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        total = self._sums[-1]
        # below the total, to which the product may be rounded; to the right: a weight of 0 has no room
        below = np.minimum(uniform * total, np.nextafter(total, 0))
        return np.searchsorted(self._sums, below, side="right").astype(np.int64), place

    def has(self, sample: int) -> bool:
        """Whether its weight is above 0."""
        return bool(self._sums[sample] > (self._sums[sample - 1] if sample else 0))


def checked_weights(weights: npt.NDArray[Any]) -> F64:
    """Weights of samples as float64 [N].

    Raises:
        ValueError: not finite, below 0, or all 0.
    """
    if weights.dtype.kind not in "iufb":
        raise wrong("weights", weights, "numbers of at least 0")
    found = weights.astype(np.float64)
    if not np.isfinite(found).all() or (found < 0).any():
        raise wrong("weights", found[~np.isfinite(found) | (found < 0)][0].item(), "finite numbers of at least 0")
    if not 0 < found.sum() < np.inf:
        raise wrong("weights", weights, "at least one of them above 0, with a finite sum")
    return found


def digest_of(weights: F64) -> str:
    """32 hex digits that tell weights apart."""
    return hashlib.blake2b(weights.astype("<f8").tobytes(), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int | None, turn: int) -> Callable[[I64], I64]:
    return np.positive if seed is None else rng.Permutation(n, seed, turn)
