"""What this machine is: processor, memory, limits, file systems. No path, and no user or host name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dali_imagenet.cores import cgroup_quota, control_groups, usable_cores

T = TypeVar("T")


class Unknown(Exception):
    """What cannot be found out here, and why."""


def known(find: Callable[[], T]) -> T | dict[str, str]:
    """What `find` gives, or {"unknown": why}. Never raises."""
    try:
        return find()
    except Unknown as reason:
        return {"unknown": str(reason)}
    except Exception as error:  # whatever a machine, a driver or a damaged installation comes up with
        first = (str(error).strip().splitlines() or [""])[0]
        return {"unknown": f"{type(error).__name__}: {first}"[:200]}


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instruction_set() -> str:
    """The widest vectors of the processor, by the names that the compiled modules choose by."""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if flags is None:
        raise Unknown("/proc/cpuinfo lists no features")
    there = set(flags[1].split())
    found = [name for name in ("avx2", "fma", "avx512f", "asimd") if name in there]
    return ", ".join(found) or "none of AVX2, FMA and AVX-512"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> dict[str, Any]:
    quota = cgroup_quota()
    return {
        "usable": usable_cores(),
        "in_the_machine": os.cpu_count() or 1,
        "quota": None if quota == float("inf") else quota,
    }


def memory() -> dict[str, int]:
    """Bytes: of the machine, available, and the limit of the control group where there is one."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    if "MemTotal" not in found:
        raise Unknown("/proc/meminfo does not say")
    told = {"total": int(found["MemTotal"]) * 1024, "available": int(found.get("MemAvailable", 0)) * 1024}
    limit = _memory_limit()
    return told | ({"limit": limit} if limit is not None and limit < told["total"] else {})


def _memory_limit() -> int | None:
    """The least of the control groups' limits, of version 2 or 1."""
    found = []
    for folder in control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # "max" is none
                found.append(int((folder / name).read_text()))
    return min(found, default=None)


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver, such as "550.54.15"; None where there is none, or it does not tell."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read())
    except OSError:
        return None
    return found and found[0]


def hidden_gpu() -> str:
    """What may keep torch from the GPU of a machine that has NVIDIA's driver; "" where it has none, or where
    CUDA_VISIBLE_DEVICES hides it."""
    driver = nvidia_driver()
    if driver is None or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return ""
    import torch

    built = f"for CUDA {torch.version.cuda}, which may need a newer one" if torch.version.cuda else "without CUDA"
    return f"NVIDIA's driver is {driver}, torch {torch.__version__} is built {built}"


def shared_memory() -> dict[str, int]:
    """/dev/shm, in which worker processes hand over batches."""
    if not hasattr(os, "statvfs") or not os.path.isdir("/dev/shm"):
        raise Unknown("there is no /dev/shm")
    status = os.statvfs("/dev/shm")
    return {"total": status.f_blocks * status.f_frsize, "free": status.f_bavail * status.f_frsize}


def open_files() -> dict[str, int]:
    """How many this process may have open, and could allow itself; -1: any number."""
    try:
        import resource
    except ImportError:
        raise Unknown(f"{sys.platform} has no such limit to ask for") from None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": soft, "hard": hard}


def numa_nodes() -> int:
    found = [name for name in os.listdir("/sys/devices/system/node") if re.fullmatch(r"node\d+", name)]
    if not found:
        raise Unknown("the kernel lists none")
    return len(found)


def load() -> float:
    """Mean number of running processes over the last minute."""
    if not hasattr(os, "getloadavg"):
        raise Unknown(f"{sys.platform} does not say")
    return round(os.getloadavg()[0], 2)


def file_system(path: str) -> str:
    """The kind of the one on which a file or folder, or its folder, lies: "ext4" or "nfs4"."""
    if not os.path.exists(path):
        path = os.path.dirname(path)  # of shards by a pattern
    if not os.path.exists(path or "."):
        raise Unknown("it is no local path")
    best, kind = "", ""
    real = os.path.realpath(path)
    for line in _read("/proc/mounts").splitlines():
        where, what = line.split()[1:3]
        where = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where)
        if (real + "/").startswith(where.rstrip("/") + "/") and len(where) >= len(best):
            best, kind = where, what
    if not kind:
        raise Unknown("/proc/mounts does not say")
    return kind


def read_speed(files: Sequence[str], seconds: float) -> dict[str, Any]:
    """Reads whole files one after the other, cold (after the page cache was asked to forget them), then warm.

    Returns:
        files; for each of cold and warm: median and 95th percentile of the milliseconds of a file, and MB/s. cold is
        {"unknown": why} where the cache cannot be asked.
    """
    if not files:
        raise Unknown("the data are no local files")
    cold = known(lambda: _reads(files, seconds, forget=True))
    return {"files": len(files), "cold": cold, "warm": known(lambda: _reads(files, seconds, forget=False))}


def _reads(files: Sequence[str], seconds: float, forget: bool) -> dict[str, float]:
    if forget and not hasattr(os, "posix_fadvise"):
        raise Unknown(f"{sys.platform} has no posix_fadvise")
    took, count, began = [], 0, time.perf_counter()
    for name in files:
        if forget:
            _forget(name)
        start = time.perf_counter()
        with open(name, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                count += len(data)
        took.append(time.perf_counter() - start)
        if time.perf_counter() - began > seconds:
            break
    ordered = sorted(took)
    return {
        "median_ms": round(ordered[len(ordered) // 2] * 1e3, 2),
        "p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1e3, 2),
        "mb_per_second": round(count / 1e6 / max(sum(took), 1e-9), 1),
    }


def _forget(name: str) -> None:
    handle = os.open(name, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        raise Unknown(f"{sys.platform} has no {path}") from None
