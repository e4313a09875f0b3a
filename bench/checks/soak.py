"""Does anything grow while a loader runs and runs? Memory, descriptors, threads, and its speed, are watched.

A process of its own for each backend iterates over training epochs, leaves every third one half-way, and is watched
from outside, children included. What else ran on the machine is watched, too: where it took more than a tenth of the
cores, the speed says little about the loader, and is not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dali_imagenet.data.progress import progress_bar

from ..core.machine import cores, describe, versions

if TYPE_CHECKING:
    import psutil

NAME = "soak"
HELP = "does anything grow while a loader runs?"
SCHEMA = "dali_imagenet soak 2"
COUNTS = ("pss_mb", "rss_mb", "descriptors", "threads", "processes", "cpu_seconds")
END = "end"
WARM_UP = 0.25
"""Share of the run after which nothing may grow any more."""
LIMITS = {"pss_mb": 0.05, "descriptors": 0.0, "threads": 0.0, "processes": 0.0}
"""How much the last quarter's median may exceed that of the quarter after the warm-up, as a share of it."""
SLOWER = 0.1
"""How much the speed may fall between these quarters, as a share of it."""
BUSY = 0.1
"""Share of the cores that others may take in these quarters; above it the speed is not judged."""


def iterate(backend: str, data: str, batch_size: int, workers: int, seconds: float) -> None:
    """The watched process: prints how many images it has handed over."""
    import torch

    from dali_imagenet import TrainRecipe, create_loader

    torch.set_num_threads(1)
    end = time.monotonic() + seconds
    images, said = 0, 0.0
    with create_loader(
        data,
        TrainRecipe.strong(num_classes=1000),
        batch_size=batch_size,
        backend=backend,  # type: ignore[arg-type]  # a str; create_loader checks it
        device="cpu",
        num_workers=workers,
        on_error="replace",
    ) as loader:
        while time.monotonic() < end:
            for step, (batch, _) in enumerate(loader):
                images += len(batch)
                if time.monotonic() - said > 0.1:
                    said = time.monotonic()
                    print(images, flush=True)
                if time.monotonic() > end or (loader.epoch % 3 == 0 and step > len(loader) // 2):
                    break
        print(END, flush=True)


def proportional(process: psutil.Process) -> float:
    """Bytes of a process, with its part of the memory that it shares.

    Without files, where the system tells: the pages of a library are divided among all programs that have it open, so
    that ours seem to grow whenever another one ends.
    """
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        if found := re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", text, re.MULTILINE):
            return 1024.0 * sum(map(int, found))
    return float(process.memory_full_info().pss)


def usage(process: psutil.Process) -> dict[str, float]:
    """Of a process and its descendants. PSS counts memory that they share once."""
    import psutil

    total = dict.fromkeys(COUNTS, 0.0)
    for part in (process, *process.children(recursive=True)):
        try:
            total["pss_mb"] += proportional(part) / 2**20
            total["cpu_seconds"] += sum(part.cpu_times()[:4])  # with those of children that have ended
            total["rss_mb"] += part.memory_info().rss / 2**20
            total["descriptors"] += part.num_fds()
            total["threads"] += part.num_threads()
            total["processes"] += 1
        except psutil.Error:  # it has just ended
            continue
    return total


def busy() -> float:
    """Seconds that the cores which this process may use have worked so far, for whomever; not for this process."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    worked = (sum(times[i]) - times[i].idle - getattr(times[i], "iowait", 0.0) for i in mine if i < len(times))
    return float(sum(worked) - sum(psutil.Process().cpu_times()[:2]))


def watch(backend: str, options: argparse.Namespace) -> list[dict[str, float]]:
    """A row every 0.5 s, or 300 in all; `others` are the cores that other programs took meanwhile."""
    import psutil

    seconds = options.minutes * 60
    words = [backend, str(options.data), str(options.batch_size), str(options.workers), str(seconds)]
    command = [sys.executable, "-m", f"{__package__}.soak", *words]
    interval = max(0.5, seconds / 300)
    rows: list[dict[str, float]] = []
    bar = progress_bar(None, round(seconds), f"soaking {backend}", "s", True)
    with bar, subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        process = psutil.Process(child.pid)
        start = time.monotonic()
        before, text = dict[str, float](), ""
        while child.poll() is None:
            time.sleep(interval)
            bar.update(min(round(time.monotonic() - start), round(seconds)) - bar.n)
            if time.monotonic() - start > seconds + 120:
                child.kill()
                raise RuntimeError(f"{backend}: still running 120 s after its end")
            text = (text + (child.stdout.read() or b"").decode())[-200:]
            whole = text.rpartition("\n")[0].rpartition("\n")[2]
            if whole in ("", END) or child.poll() is not None:
                continue
            try:
                now = {"seconds": time.monotonic() - start, "images": float(whole), "busy": busy()} | usage(process)
            except psutil.Error:
                break
            if before:
                rows.append(now | rates(before, now))
            before = now
        if child.wait():
            raise RuntimeError(f"{backend}: ended with status {child.returncode}")
    if len(rows) < 5:
        raise RuntimeError(f"{backend}: only {len(rows)} rows; --minutes must be more")
    return rows


def rates(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Images a second, and the cores that the process had and that others had, between two looks."""
    seconds, images, total, own = (now[name] - before[name] for name in ("seconds", "images", "busy", "cpu_seconds"))
    return {"images_per_second": images / seconds, "cores": own / seconds, "others": max(0.0, total - own) / seconds}


def verdict(rows: list[dict[str, float]], cores: int) -> dict[str, dict[str, Any]]:
    """What changed after the warm-up: {column: early, late, flat}. `flat` is None where it cannot be told."""
    rest = rows[int(len(rows) * WARM_UP) :]
    third = max(1, len(rest) // 3)

    def quarters(name: str) -> tuple[float, float]:
        early, late = (statistics.median(row[name] for row in part) for part in (rest[:third], rest[-third:]))
        return early, late

    found: dict[str, dict[str, Any]] = {}
    for name, share in LIMITS.items():
        early, late = quarters(name)
        found[name] = {"early": round(early, 1), "late": round(late, 1), "flat": late <= early * (1 + share)}
    early, late = quarters("images_per_second")
    quiet = max(quarters("others")) <= BUSY * cores
    flat = late >= early * (1 - SLOWER) if quiet else None
    found["images_per_second"] = {"early": round(early, 1), "late": round(late, 1), "flat": flat}
    early, late = quarters("others")
    found["others"] = {"early": round(early, 2), "late": round(late, 2), "flat": None}
    return found


def plot(results: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("pss_mb", "descriptors", "threads", "images_per_second", "others")
    labels = ("PSS of the tree, MB", "file descriptors", "threads", "images/s", "cores that others took")
    figure, axes = pyplot.subplots(len(names), 1, sharex=True, figsize=(8, 10), layout="constrained")
    for axis, name, label in zip(axes, names, labels, strict=True):
        for backend, rows in results["rows"].items():
            axis.plot([row["seconds"] / 60 for row in rows], [row[name] for row in rows], label=backend, linewidth=1)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[-1].set_xlabel("minutes")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def run(options: argparse.Namespace) -> int:
    """0 where everything stayed flat, as far as could be told; 1 where something did not."""
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "minutes": options.minutes,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "recipe": "strong",
        "machine": describe(),
        "versions": versions(),
        "verdict": {},
        "rows": {},
    }
    for backend in options.backend.split(","):
        rows = watch(backend, options)
        results["rows"][backend] = [{name: round(value, 2) for name, value in row.items()} for row in rows]
        results["verdict"][backend] = found = verdict(rows, cores())
        words = {True: "flat", False: "NOT FLAT", None: ""}
        if found["images_per_second"]["flat"] is None:
            words[None] = f"not judged: others took more than {BUSY:.0%} of the {cores()} cores"
        for name, value in found.items():
            word = words[value["flat"]] if name != "others" else ""
            print(f"{backend:12} {name:18} {value['early']:8.1f} -> {value['late']:8.1f}  {word}", flush=True)
    (options.out / "soak.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, options.out / "soak.png")
    print(f"wrote {options.out / 'soak.json'} and soak.png")
    return int(any(value["flat"] is False for found in results["verdict"].values() for value in found.values()))


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--minutes", type=float, metavar="N", default=5, help="for each backend (5)")
    p.add_argument("--backend", default="torchvision,dali", metavar="NAMES", help="backends, by commas (both)")
    p.add_argument("--data", metavar="DATA", required=True, help="ImageFolder tree or any other data")
    p.add_argument("--batch-size", type=int, metavar="N", default=64, help="images a batch (64)")
    p.add_argument("--workers", type=int, metavar="N", default=2, help="workers or threads (2)")
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/soak"), help="for the report (runs/soak)")


if __name__ == "__main__":
    iterate(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
