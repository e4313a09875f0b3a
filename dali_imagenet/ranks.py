"""Which rank this process is, and whether the ranks agree on what they are about to do."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dali_imagenet.errors import RankMismatchError

log = logging.getLogger("dali_imagenet")

_SAY_WHO_IS_MISSING = 30.0  # seconds
_loaders = itertools.count()  # the ranks make their loaders in one order


def in_group() -> bool:
    """Whether torch.distributed has a process group here."""
    return dist.is_available() and dist.is_initialized()


def resolve_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: as given, else those of the process group, else 0 and 1.

    Raises:
        RuntimeError: a launcher says that there are more ranks, and there is no group to tell which one this is.
    """
    if in_group():
        return (
            dist.get_rank() if rank is None else rank,
            dist.get_world_size() if world_size is None else world_size,
        )
    launched = os.environ.get("WORLD_SIZE", "")
    if rank is None and world_size is None and launched.isdecimal() and int(launched) > 1:
        raise RuntimeError(
            f"WORLD_SIZE={launched} in the environment, but there is no process group yet, so every rank would load "
            "the same data: call torch.distributed.init_process_group before the loader is first used, or give "
            "create_loader rank= and world_size= (0 and 1 where each process shall load everything)"
        )
    return rank or 0, 1 if world_size is None else world_size


def check_group(rank: int, world_size: int) -> None:
    """For ranks that were resolved without a process group.

    Raises:
        RuntimeError: there is a group now, with other numbers.
    """
    if in_group() and (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
        raise RuntimeError(
            f"the loader was first used as rank {rank} of {world_size}, before there was a process group, in which "
            f"this is rank {dist.get_rank()} of {dist.get_world_size()}: first use it after init_process_group, or "
            "give create_loader rank= and world_size="
        )


def check_agreement(rank: int, world_size: int, fields: dict[str, Any], of_the_first: Any = None) -> Any:
    """Compare what each rank is about to load. Every rank of the group calls it, in the same order for each loader.

    Nothing is done where there is no group, or the loader is not shared out over it (one rank evaluates alone).

    Args:
        fields: JSON values by name; equal on all ranks, or the run is wrong.
        of_the_first: a JSON value in which they may differ, and that of rank 0 holds.

    Returns:
        `of_the_first` as rank 0 gave it; this rank's own where nothing is done.

    Raises:
        RankMismatchError: on every rank, naming each field that differs and who has which value.
        RuntimeError: ranks that did not come within the group's timeout, by number.
    """
    if not in_group() or world_size == 1 or dist.get_world_size() != world_size:
        return of_the_first
    store = dist.distributed_c10d._get_default_store()
    prefix = f"dali_imagenet/loader/{next(_loaders)}"
    store.set(f"{prefix}/{rank}", json.dumps([fields, of_the_first], sort_keys=True))
    told = [json.loads(_wait(store, prefix, each, world_size)) for each in range(world_size)]
    found = [fields for fields, _ in told]
    wrong = []
    for name in dict.fromkeys(name for other in found for name in other):
        values = [json.dumps(other.get(name), sort_keys=True) for other in found]
        if len(set(values)) > 1:
            said = {value: [r for r, v in enumerate(values) if v == value] for value in dict.fromkeys(values)}
            who = "; ".join(f"rank {', '.join(map(str, ranks))}: {value}" for value, ranks in said.items())
            wrong.append(f"{name} ({who})")
    if wrong:
        raise RankMismatchError(
            f"the ranks disagree about {', '.join(wrong)}: give create_loader the same on every rank, and set_epoch too"
        )
    return told[0][1]


def _wait(store: Any, prefix: str, rank: int, world_size: int) -> bytes:
    key, start, said = f"{prefix}/{rank}", time.monotonic(), False
    limit = store.timeout.total_seconds()
    while not store.check([key]):
        waited = time.monotonic() - start
        if waited > min(limit, _SAY_WHO_IS_MISSING) and not said:
            said = True
            missing = [r for r in range(world_size) if not store.check([f"{prefix}/{r}"])]
            log.warning("waiting for rank %s to begin this loader", ", ".join(map(str, missing)))
        if waited > limit:
            raise RuntimeError(
                f"rank {rank} did not begin this loader within {timedelta(seconds=limit)}: every rank has to iterate it"
            )
        time.sleep(min(0.5, 0.01 + waited / 10))
    found: bytes = store.get(key)
    return found
