"""A contestant's own process: `python -m bench.core.worker JOB ANSWER` performs one run and says its numbers."""

from __future__ import annotations

import os
import sys
import time

_STARTED = time.perf_counter()
MOST_BATCHES = 1000  # of one run; only upper bounds reach it

# E402 is silenced down to the last import: the clock starts before any import that costs.
import json  # noqa: E402
from collections.abc import Iterable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ..contestants import BY_NAME  # noqa: E402
from .job import Job  # noqa: E402
from .machine import cores  # noqa: E402


def _tree() -> list[Any]:
    import psutil

    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def memory_mb() -> tuple[float | None, str]:
    """Memory of the process tree in MB: proportional (shared pages counted once in all) on Linux, else resident."""
    try:
        import psutil
    except ImportError:
        return None, "not measured: psutil is missing"
    total, kind = 0, "PSS" if sys.platform == "linux" else "RSS"
    for process in _tree():
        try:
            total += process.memory_full_info().pss if kind == "PSS" else process.memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20, kind


def cpu_seconds() -> float | None:
    """CPU time of the process tree, living members only."""
    try:
        import psutil
    except ImportError:
        return None
    total = 0.0
    for process in _tree():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def busy_seconds() -> float | None:
    """CPU time of the whole system, whoever used it; None where it cannot be told or reaches beyond our cores."""
    try:
        import psutil
    except ImportError:
        return None
    if psutil.cpu_count() != cores():
        return None
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    shared = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user as well
    return float(sum(times) - idle - shared)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch. A loader that yields nothing is an error, not a hang."""
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise RuntimeError("an epoch held no batch: fewer images than the batch size?")


def check(job: Job, batch: Any) -> None:
    """That the contestant really does the job: float32 NCHW of the right size, normalized, with targets."""
    if isinstance(batch, int):
        return
    import torch

    images, targets = batch[0], batch[1]
    side = (3, job.size, job.size)
    if tuple(images.shape[1:]) != side or images.dtype != torch.float32 or images.device.type != job.device:
        raise RuntimeError(f"batch of {tuple(images.shape)} {images.dtype} on {images.device}: expected (B, {side})")
    if len(targets) != len(images):
        raise RuntimeError(f"{len(targets)} targets for {len(images)} images")
    mean, deviation = float(images.mean()), float(images.std())
    if not (abs(mean) < 1.5 and 0.3 < deviation < 2.5):
        raise RuntimeError(f"images do not look normalized: mean {mean:.2f}, deviation {deviation:.2f}")


def size_of(batch: Any) -> int:
    return batch if isinstance(batch, int) else len(batch[0])


def synchronize(job: Job) -> None:
    if job.device == "cuda":
        import torch

        torch.cuda.synchronize()


def run(job: Job) -> dict[str, Any]:
    """Build, warm up, measure; the numbers of one round."""
    import torch

    torch.set_num_threads(max(1, job.workers))
    contestant = BY_NAME[job.contestant]
    os.environ.update(contestant.environment)
    build = contestant.load()
    imported = time.perf_counter() - _STARTED
    contestant.convert(job)
    built = time.perf_counter()
    answer: dict[str, Any] = {"import_s": imported}
    loader = build(job)
    batches = endless(loader)
    first = next(batches)
    synchronize(job)
    answer["first_batch_s"] = time.perf_counter() - built
    check(job, first)
    step = _trainer(job) if job.model else None
    del first
    warmup = job.warmup_batches + 2 * job.workers  # beyond what the queues held when the clock starts
    end = time.perf_counter() + 2 * job.seconds  # a slow contestant shall not spend its time on warming up
    batch: Any = None
    for _ in range(warmup):
        batch = next(batches)
        if step:
            step(batch)
        if time.perf_counter() > end:
            break
    del batch  # no contestant shall lack the memory of one that nobody looks at
    synchronize(job)
    answer.update(measure(job, batches, step))
    parts = getattr(loader, "parts_us", None)
    if parts is not None:
        answer["parts_us"] = parts
    answer["memory_mb"], answer["memory_kind"] = memory_mb()
    if job.device == "cuda":
        answer["gpu_memory_mb"] = _gpu_memory_mb()
    return answer


def measure(job: Job, batches: Iterator[Any], step: Any) -> dict[str, Any]:
    times: list[float] = []
    images, waited = 0, 0.0
    cpu, busy = cpu_seconds(), busy_seconds()
    start = last = time.perf_counter()
    while (last - start < job.seconds and len(times) < MOST_BATCHES) or len(times) < 2:
        batch = next(batches)
        arrived = time.perf_counter()
        waited += arrived - last
        images += size_of(batch)
        if step:
            step(batch)
        now = time.perf_counter()
        times.append((now - last) * 1e3)
        last = now
    synchronize(job)
    seconds = time.perf_counter() - start
    cpu_end, busy_end = cpu_seconds(), busy_seconds()
    used = (cpu_end - cpu) / seconds if cpu is not None and cpu_end is not None else None
    other = None
    if busy is not None and busy_end is not None and used is not None:
        other = max(0.0, (busy_end - busy) / seconds - used)
    return {
        "images": images,
        "seconds": seconds,
        "images_per_s": images / seconds,
        "batch_ms": [round(t, 3) for t in times],
        "cpu_cores": used,
        "other_cores": other,
        "wait_share": waited / seconds if step else None,
    }


def _gpu_memory_mb() -> float:
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def _trainer(job: Job) -> Any:
    from .training import trainer

    return trainer(job)


def main() -> None:
    job, answer = Job.from_json(sys.argv[1]), Path(sys.argv[2])
    try:
        result = run(job)
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]  # of a worker's traceback, the last line says it
        result = {"error": f"{type(error).__name__}: {lines[-1]}"[:500]}
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.replace(answer)
    sys.stdout.flush()
    os._exit(0)  # the parent ends whatever is left; a contestant's shutdown is not what is measured


if __name__ == "__main__":
    main()
