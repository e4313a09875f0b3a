"""`python -m bench soak`: memory, descriptors, threads and speed of a loader that runs and runs.

A process of its own for each backend iterates over training epochs, leaves every third one half-way, and is watched
from outside, children included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

SCHEMA = "dali_imagenet soak 1"
COLUMNS = ("seconds", "pss_mb", "rss_mb", "descriptors", "threads", "processes", "images_per_second")
WARM_UP = 0.25
"""Share of the run after which nothing may grow any more."""
LIMITS = {"pss_mb": 0.05, "descriptors": 0.0, "threads": 0.0, "processes": 0.0}
"""How much the last quarter's median may exceed that of the quarter after the warm-up, as a share of it."""


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
                if time.monotonic() - said > 0.5:
                    said = time.monotonic()
                    print(images, flush=True)
                if time.monotonic() > end or (loader.epoch % 3 == 0 and step > len(loader) // 2):
                    break


def usage(process: psutil.Process) -> dict[str, float]:
    """Of a process and its descendants. PSS counts memory that they share once."""
    total = dict.fromkeys(COLUMNS[1:6], 0.0)
    for part in (process, *process.children(recursive=True)):
        try:
            memory = part.memory_full_info()
            total["pss_mb"] += memory.pss / 2**20
            total["rss_mb"] += memory.rss / 2**20
            total["descriptors"] += part.num_fds()
            total["threads"] += part.num_threads()
            total["processes"] += 1
        except psutil.Error:  # it has just ended
            continue
    return total


def watch(backend: str, options: argparse.Namespace) -> list[dict[str, float]]:
    seconds = options.minutes * 60
    words = [backend, str(options.data), str(options.batch_size), str(options.workers), str(seconds)]
    command = [sys.executable, "-m", "bench.soak", *words]
    interval = max(0.5, seconds / 300)
    rows: list[dict[str, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        process = psutil.Process(child.pid)
        start = before = time.monotonic()
        last, text = 0, ""
        while child.poll() is None:
            time.sleep(interval)
            if time.monotonic() - start > seconds + 120:
                child.kill()
                raise RuntimeError(f"{backend}: still running 120 s after its end")
            text = (text + (child.stdout.read() or b"").decode())[-200:]
            whole = text.rpartition("\n")[0].rpartition("\n")[2]
            if not whole or child.poll() is not None:
                continue
            images, now = int(whole), time.monotonic()
            try:
                row = usage(process)
            except psutil.Error:
                break
            rows.append({"seconds": now - start} | row | {"images_per_second": (images - last) / (now - before)})
            last, before = images, now
        if child.wait():
            raise RuntimeError(f"{backend}: ended with status {child.returncode}")
    return rows[1:-1]  # the first counts what came before it was watched; the last sees it end


def verdict(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """What grew after the warm-up: {column: from, to, flat}."""
    rest = rows[int(len(rows) * WARM_UP) :]
    third = max(1, len(rest) // 3)
    found: dict[str, dict[str, Any]] = {}
    for name, share in LIMITS.items():
        early = statistics.median(row[name] for row in rest[:third])
        late = statistics.median(row[name] for row in rest[-third:])
        found[name] = {"early": round(early, 1), "late": round(late, 1), "flat": late <= early * (1 + share)}
    return found


def plot(results: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("pss_mb", "descriptors", "threads", "images_per_second")
    labels = ("PSS of the tree, MB", "file descriptors", "threads", "images/s")
    figure, axes = pyplot.subplots(len(names), 1, sharex=True, figsize=(8, 9), layout="constrained")
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
    """0 where everything stayed flat, 1 where something grew."""
    if options.data is None:
        print("soak needs --data: an ImageFolder tree", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "minutes": options.minutes,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "recipe": "strong",
        "verdict": {},
        "rows": {},
    }
    for backend in options.backend.split(","):
        rows = watch(backend, options)
        results["rows"][backend] = [{name: round(value, 2) for name, value in row.items()} for row in rows]
        results["verdict"][backend] = found = verdict(rows)
        for name, value in found.items():
            word = "flat" if value["flat"] else "GROWS"
            print(f"{backend:12} {name:12} {value['early']:8.1f} -> {value['late']:8.1f}  {word}", flush=True)
    (options.out / "soak.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, options.out / "soak.png")
    print(f"wrote {options.out / 'soak.json'} and soak.png")
    return int(not all(value["flat"] for found in results["verdict"].values() for value in found.values()))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench soak", description="Does anything grow while a loader runs?")
    p.add_argument("--minutes", type=float, default=5, help="for each backend (5)")
    p.add_argument("--backend", default="torchvision,dali", help="torchvision,dali")
    p.add_argument("--data", type=Path, help="ImageFolder tree")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder of soak.json and soak.png")
    return p


if __name__ == "__main__":
    iterate(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
