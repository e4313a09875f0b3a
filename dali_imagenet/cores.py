"""How many CPU cores this process may use, and its share where several ranks run on one machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_LOCAL_RANKS = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Set by torchrun, Slurm and Open MPI."""


def usable_cores() -> float:
    """Cores of the affinity mask, or of the cgroup's quota where that is less."""
    return min(len(_mask()), cgroup_quota())


def worker_count(world_size: int = 1, gpus: int = 0, most: int = 16) -> int:
    """Workers for one rank: its share of the cores, at least 1, at most `most`.

    A mask that is no larger than one rank's share has been divided already.

    Args:
        world_size: ranks in all, used where the environment does not say how many run on this machine.
        gpus: that are visible, used with `world_size`: so many ranks run here at most.
        most: the upper limit.
    """
    local = local_ranks(os.environ) or max(1, min(world_size, gpus))
    whole = min(os.cpu_count() or 1, cgroup_quota())
    return max(1, min(most, math.floor(min(usable_cores(), whole / local))))


def local_ranks(environment: Mapping[str, str]) -> int | None:
    """Ranks on this machine as the launcher says it; None where it says nothing."""
    for name in _LOCAL_RANKS:
        digits = environment.get(name, "").partition("(")[0]  # Slurm writes "4(x2)" for two nodes
        if digits.isdecimal() and int(digits) > 0:
            return int(digits)
    return None


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores that the control group of this process may use at a time, of version 2 or 1; infinity without a limit."""
    return min(map(_quota_of, control_groups("cpu", root, own)), default=math.inf)


def control_groups(
    controller: str, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[Path]:
    """The folders of the control groups of this process, its own first, each within the next."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            base = root if controllers == "" else root / controller
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                yield folder
                if folder == base:
                    break


def _quota_of(folder: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota != "max" and float(quota) > 0:
                return float(quota) / float(period)
        except (OSError, ValueError):
            continue
    return math.inf


def _mask() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
