"""The order of a loader's samples, for code that expects a DataLoader's samplers."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import Protocol

from dali_imagenet.plan.plan import Plan


class _HasOrder(Protocol):
    """What is asked of a loader."""

    @property
    def plan(self) -> Plan: ...

    @property
    def epoch(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...


def _order(loader: _HasOrder | None, plan: Plan) -> Iterator[list[int]]:
    """The samples of this rank in the coming epoch, step by step, without padding.

    Which epoch that is, is asked now, not when the first is taken: the loader may have begun it by then.
    """
    epoch = 0 if loader is None else loader.epoch
    return ([int(i) for i in plan.samples(epoch, step) if i >= 0] for step in range(len(plan)))


class Sampler:
    """The order of this rank's samples, for code that expects `loader.sampler.set_epoch(epoch)`."""

    def __init__(self, loader: _HasOrder) -> None:
        self._loader = weakref.ref(loader)
        self._plan = loader.plan

    def set_epoch(self, epoch: int) -> None:
        """As `Loader.set_epoch`."""
        if (loader := self._loader()) is not None:
            loader.set_epoch(epoch)

    def __len__(self) -> int:
        loader = self._loader()
        return self._plan.rows(0 if loader is None else loader.epoch)

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(_order(self._loader(), self._plan))


class BatchSampler:
    """The samples of each step of the coming epoch, as lists of indices; padding is left out."""

    def __init__(self, loader: _HasOrder, sampler: Sampler) -> None:
        self._loader = weakref.ref(loader)
        self._plan = loader.plan
        self.batch_size, self.drop_last, self.sampler = loader.plan.batch_size, loader.plan.drop_last, sampler

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[list[int]]:
        return _order(self._loader(), self._plan)
