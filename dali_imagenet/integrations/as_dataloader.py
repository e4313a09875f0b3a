"""A loader as a `torch.utils.data.DataLoader`, for what insists on one: Accelerate, Fabric, Keras, fastai, and so on.

Its batch sampler gives `Ticket`s, the samples of one step, and its dataset makes the whole batch of a ticket. So a
DataLoader that a framework builds anew from these parts, such as Accelerate's `skip_first_batches`, gives the same
batches; and what would change the order or share it out once more is found, because its requests are no tickets, or
not one after the other.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any, Never

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.loader import Loader

log = logging.getLogger("dali_imagenet")

_FOREIGN = (
    "the loader orders the samples and shares them out over the ranks itself: give the DataLoader of as_dataloader() "
    "as it is, and turn off what puts another sampler into it or shares it out once more"
)


class Ticket(list[int]):
    """The samples of one step, padding left out.

    Attributes:
        run: the pass over the batch sampler that gave it.
        at: epoch and step.
    """

    def __init__(self, samples: list[int], run: Run, at: tuple[int, int]) -> None:
        super().__init__(samples)
        self.run, self.at = run, at


class Run:
    """One pass over the batch sampler; Accelerate asks it whether it has come to an end.

    Attributes:
        end_of_dataloader: whether the last ticket has been given.
        remainder: rows of the last batch over all ranks that are images, 0 where all are, -1 where they are not the
            first ones.
        batches: the loader's iteration, once the first batch was asked for.
        fetched: the last step that was asked for.
    """

    def __init__(self, remainder: int) -> None:
        self.end_of_dataloader, self.remainder = False, remainder
        self.batches: Iterator[Any] | None = None
        self.fetched = -1


class Samples(Dataset[Any]):
    """As long as the data; makes whole batches, of tickets.

    Args:
        loader: whose batches they are.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    @property
    def index(self) -> SampleIndex:
        """Paths and labels."""
        return self.loader.dataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""
        return self.loader.dataset.classes

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def __getitem__(self, sample: object) -> Never:
        raise TypeError(
            "one image alone has no place in a batch's draws: iterate the DataLoader; loader.dataset[i] is the path "
            "and the label of sample i, loader.render makes one image"
        )

    def __getitems__(self, ticket: list[int]) -> Any:
        """The batch of a ticket."""
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("the loader has workers of its own: leave num_workers at 0")
        if not isinstance(ticket, Ticket):
            raise TypeError(f"a request for samples {list(ticket)[:4]} ...: {_FOREIGN}")
        run, (epoch, step) = ticket.run, ticket.at
        if run.batches is None:
            self.loader.seek(epoch, step)
            run.batches = iter(self.loader)
        elif step != run.fetched + 1:
            raise RuntimeError(f"step {step} is asked for after step {run.fetched}: {_FOREIGN}")
        run.fetched = step
        return next(run.batches)


class Order(DistributedSampler[Any]):
    """The loader's sampler, in the shape of torch's: frameworks leave it where it is, and call its `set_epoch`."""

    def __init__(self, samples: Samples) -> None:
        self.dataset, self.loader = samples, samples.loader
        self.drop_last = True  # there is nothing to cut off: what fills up a batch is marked by its targets
        self.total_size = len(samples)  # as Composer sees that, too
        self._offset = 0

    @property
    def num_replicas(self) -> int:  # type: ignore[override]  # an attribute there
        """Ranks."""
        return self.loader.plan.world_size

    @property
    def rank(self) -> int:  # type: ignore[override]  # an attribute there
        """This one."""
        return self.loader.plan.rank

    @property
    def seed(self) -> int:  # type: ignore[override]  # an attribute there
        """Of order and augmentation."""
        return self.loader.plan.seed

    @property
    def shuffle(self) -> bool:  # type: ignore[override]  # an attribute there
        """Whether each epoch has an order of its own."""
        return self.loader.plan.shuffle

    @property
    def epoch(self) -> int:  # type: ignore[override]  # an attribute there
        """The epoch that the next iteration runs."""
        return self.loader.epoch

    def set_epoch(self, epoch: int) -> None:
        """`Loader.set_epoch`; but a framework that counts from 0 after each start, as Fabric, goes on from a restored
        epoch."""
        restored = self.loader.restored_epoch
        if restored is not None:
            self._offset = restored if epoch == 0 else 0
            if self._offset:
                log.info("set_epoch(0) after a state of epoch %d was loaded: epochs are counted from there", restored)
        self.loader.set_epoch(epoch + self._offset)

    def __len__(self) -> int:
        return len(self.loader.sampler)

    def __iter__(self) -> Iterator[int]:
        return iter(self.loader.sampler)


class Steps(BatchSampler):
    """The tickets of the coming epoch, from where the loader stands.

    Args:
        sampler: an `Order`, or torch's SequentialSampler over its dataset, as frameworks put it in to see the same
            batches in each epoch: then the first epoch comes again and again.
        batch_size: the loader's.
        drop_last: the loader's.

    Raises:
        ValueError: another sampler.
    """

    even_batches = True  # Accelerate's join_uneven_inputs reads and sets it

    def __init__(self, sampler: Any, batch_size: int = 0, drop_last: bool = False) -> None:
        samples = getattr(sampler, "dataset", None) or getattr(sampler, "data_source", None)
        if not isinstance(samples, Samples) or not isinstance(sampler, Order | SequentialSampler):
            raise ValueError(f"sampler={type(sampler).__name__}: {_FOREIGN}")
        self.sampler, self._loader = sampler, samples.loader
        self.batch_size, self.drop_last = self._loader.batch_size, self._loader.drop_last
        self._fixed = isinstance(sampler, SequentialSampler)
        if self._fixed:
            log.warning("a SequentialSampler in the place of the loader's: every epoch has the batches of epoch 0")

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Ticket]:
        plan = self._loader.plan
        epoch, start = (0, 0) if self._fixed else self._loader.coming
        run = Run(_remainder(self._loader))
        with _Known(run):
            for step in range(start, len(plan)):
                run.end_of_dataloader = step == len(plan) - 1
                samples = plan.samples(epoch, step)
                yield Ticket(samples[samples >= 0].tolist(), run, (epoch, step))
            if run.batches is not None and run.fetched != len(plan) - 1:
                raise RuntimeError(f"the epoch ended after step {run.fetched} of {len(plan)}: {_FOREIGN}")
            for _ in run.batches or ():
                raise AssertionError("a batch after the last step")


def _remainder(loader: Loader) -> int:
    """What Accelerate's gather_for_metrics keeps of the last batch of all ranks, one after the other."""
    plan = loader.plan
    if plan.train or plan.drop_last or plan.padding == "repeat":
        return 0
    total = plan.epoch_size % plan.global_batch
    share = -(-total // plan.world_size)
    in_order = plan.padding == "ignore" and total > share * (plan.world_size - 1)
    return total if in_order or total == 0 else -1


class _Known:
    """Tells Accelerate, where it is there, about a pass over the data for as long as it runs."""

    def __init__(self, run: Run) -> None:
        module = sys.modules.get("accelerate.state")
        shared = None if module is None else module.GradientState._shared_state
        self._state = module.GradientState() if module is not None and shared else None
        self._run = run

    def __enter__(self) -> None:
        if self._state is not None:
            if self._run.remainder < 0:
                log.warning(
                    "gather_for_metrics will not leave out the rows that fill up the last batches (targets of -100): "
                    "leave them out yourself, or take a batch size that leaves images for every rank in the last step"
                )
            self._state._add_dataloader(self._run)

    def __exit__(self, *exc: object) -> None:
        if self._state is not None:
            self._state._remove_dataloader(self._run)


def _as_it_is(batch: Any) -> Any:
    return batch


class TorchDataLoader(DataLoader[Any]):
    """The batches of a loader, as a DataLoader; made by `Loader.as_dataloader`.

    Its sampler, batch sampler and dataset are the loader's; `batch_size` is that of a rank, `len(dataset)` counts
    samples, `num_workers` is 0 because workers are the loader's own. `state_dict` and `load_state_dict` are the
    loader's. Accelerate takes it as prepared: it neither shares it out again nor moves batches.

    Args:
        dataset: a `Samples`.
        sampler: None, or what a framework makes of the one that is there.
        batch_sampler: as `sampler`.
        same: DataLoader's further arguments, which frameworks repeat; they have no effect.

    Raises:
        TypeError: another dataset.
        ValueError: another sampler.
    """

    _is_accelerate_prepared = True
    use_stateful_dataloader = True  # Accelerate's save_state and load_state then save and load the state

    def __init__(self, dataset: Any, *, sampler: Any = None, batch_sampler: Any = None, **same: Any) -> None:
        if not isinstance(dataset, Samples):
            raise TypeError(f"dataset={type(dataset).__name__}: make this DataLoader with Loader.as_dataloader()")
        self.loader = dataset.loader
        order = sampler if sampler is not None else getattr(batch_sampler, "sampler", None) or Order(dataset)
        steps = batch_sampler if batch_sampler is not None else Steps(order)
        super().__init__(
            dataset,
            batch_size=self.loader.batch_size,
            sampler=order,
            drop_last=self.loader.drop_last,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else each iteration draws from torch's own
        )
        self.__dict__["batch_sampler"] = steps  # DataLoader would not have batch_size and a batch sampler

    @property
    def device(self) -> torch.device:
        """Where batches are handed over."""
        return self.loader.device

    def set_epoch(self, epoch: int) -> None:
        """See `Loader.set_epoch`."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `Loader.state_dict`."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Loader.load_state_dict`."""
        self.loader.load_state_dict(state)

    def new(self, **changes: Any) -> TorchDataLoader:
        """This one, as fastai asks for before it predicts.

        Raises:
            ValueError: a change that the loader does not have, such as no shuffling of a training.
        """
        has = {"shuffle": self.loader.plan.shuffle, "shuffled": self.loader.plan.shuffle, "drop_last": self.drop_last}
        for name, value in changes.items():
            if name not in has or has[name] != value:
                raise ValueError(
                    f"new({name}={value!r}): make another loader with create_loader and give its as_dataloader(); this "
                    f"one has {', '.join(f'{key}={has[key]!r}' for key in ('shuffle', 'drop_last'))}"
                )
        return self
