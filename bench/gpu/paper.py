"""The GPU path on paper: no GPU is run, and none is needed.

What the batch stage would launch, move and wait for is counted: launches on fake CUDA tensors, the bytes of Triton's
kernels by their loads and stores in Triton's interpreter. Its time on three cards is an estimate from their memory
bandwidth; what feeding DALI costs the caller's thread is measured on this CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import PROGRAM, images, machine

if TYPE_CHECKING:
    from dali_imagenet import SampleIndex, TrainRecipe
    from dali_imagenet.plan.batch_plan import BatchPlan

NAME = "gpu-paper"
HELP = "launches, bytes and host time of a batch, on paper"

# Bytes a second: what the data sheets say (H100 SXM 3.35 TB/s, A100 80 GB PCIe 1.935 TB/s; NVIDIA's Ada GPU
# Architecture whitepaper, RTX 4090: 1.008 TB/s) times the share that streaming kernels are assumed to reach.
BANDWIDTH = {"h100": 0.75 * 3.35e12, "a100": 0.75 * 1.935e12, "rtx4090": 0.8 * 1.008e12}
LAUNCH_SECONDS = 3e-6  # assumed: no kernel is shorter
HOST_LAUNCH_SECONDS = 5e-6  # assumed: what PyTorch takes to start a kernel or a copy from its caller's thread
DECODE = (6_000, 13_000, 19_000)  # images a second that the stage is compared with: nvJPEG's span on one GPU
DTYPES = ("float32", "bfloat16")
STAGES = ("fused", "torch")
"""Triton's kernels, and torch's operations, which take over where Triton cannot compile."""
INTERPRETED = 4  # images whose bytes are counted: the interpreter is slow


def recipes() -> dict[str, TrainRecipe]:
    """Every preset, and three recipes with what no preset has."""
    from dali_imagenet import TrainRecipe
    from dali_imagenet.presets import PRESETS

    return {
        **{name: getattr(TrainRecipe, name)() for name in PRESETS},
        "strong, color_jitter": TrainRecipe.strong(color_twist=None, color_jitter=(0.4, 0.4, 0.4, 0.1)),
        "trivialaugment": TrainRecipe.classic(auto_augment="trivialaugment", re_prob=0.1),
        "augmix": TrainRecipe.classic(auto_augment="augmix", label_smoothing=0.1),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    add("--batch-size", type=int, metavar="N", default=256, help="images a batch (256)")
    add("--steps", type=int, metavar="N", default=4, help="batches a recipe, of which the mean is taken (4)")
    add("--recipes", metavar="NAME", nargs="+", help="some only, such as strong rsb_a1; default: all")
    add("--json", type=Path, metavar="FILE", help="write rows and machine there")


def run(options: argparse.Namespace) -> int:
    from dali_imagenet import SampleIndex
    from dali_imagenet.dali.stage import dali_available

    known = recipes()
    chosen = options.recipes or list(known)
    if unknown := [name for name in chosen if name not in known]:
        print(f"--recipes {' '.join(unknown)}: must be of {', '.join(map(repr, known))}")
        return 2
    available, reason = dali_available()
    if not available:
        print(f"What feeds DALI is measured with DALI on the CPU: {reason}")
        return 2
    logging.getLogger("dali_imagenet").setLevel(logging.WARNING)
    root = options.data or images.default_data() / "train"
    index = SampleIndex.from_folder(root)
    index = index.repeat(-(-options.batch_size * (options.steps + 1) // len(index)))
    reader = reader_us(index)
    rows = []
    moved = interpreted(chosen, min(INTERPRETED, options.batch_size), options.batch_size)
    for name in chosen:
        for stage in STAGES:
            host = feeder_us(index, known[name], options.batch_size, options.steps, fused=stage == "fused")
            for dtype in DTYPES:
                kernels = [*moved[name]["operations"], moved[name]["tail"][dtype]] if stage == "fused" else None
                counted = count(index, known[name], dtype, options.batch_size, options.steps, kernels)
                rows.append(row(name, dtype, stage, options.batch_size, counted, host, reader))
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        about = {
            "command": f"{PROGRAM} {NAME}",
            "gpu": "none was run: counts, and times estimated from them",
            "batch_size": options.batch_size,
            "steps": options.steps,
            "images_interpreted": min(INTERPRETED, options.batch_size),
            "assumed": {
                "bytes_per_second": BANDWIDTH,
                "seconds_a_kernel_at_least": LAUNCH_SECONDS,
                "host_seconds_a_launch": HOST_LAUNCH_SECONDS,
            },
            "machine": machine.describe(),
            "versions": machine.versions(),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


def interpreted(names: Sequence[str], rows: int, batch_size: int) -> dict[str, Any]:
    """What `.interpreted` says of the recipes that have pixel operations; it chooses Triton's interpreter on import."""
    asked = [name for name in names if recipes()[name].pixel_ops]
    found: dict[str, Any] = {name: {"operations": [], "tail": dict.fromkeys(DTYPES, 0)} for name in names}
    if asked:
        words = [sys.executable, "-m", f"{__package__}.interpreted", *asked]
        words += ["--rows", str(rows), "--batch-size", str(batch_size)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        said = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found |= {name: json.loads(line) for name, line in zip(asked, said.stdout.splitlines(), strict=True)}
    return found


def row(
    name: str, dtype: str, stage: str, batch_size: int, counted: dict[str, float], host: float, reader: float
) -> dict[str, Any]:
    """One line of the table."""
    launching = 1e6 * HOST_LAUNCH_SECONDS * (counted["launches"] + counted["memsets_and_copies"]) / batch_size
    shares = {
        f"share_of_decode_{rate // 1000}k": round(counted["h100_ms"] / (1000 * batch_size / rate), 4) for rate in DECODE
    }
    return {
        "recipe": name,
        "dtype": dtype,
        "stage": stage,
        **{key: round(value, 3) for key, value in counted.items()},
        **shares,
        "feeder_measured_us": round(host, 1),
        "feeder_us": round(host + launching, 1),
        "reader_us": round(reader, 1),
        "images_per_second_fed": round(1e6 / (host + launching)),
    }


def count(
    index: SampleIndex,
    recipe: TrainRecipe,
    dtype: str,
    batch_size: int,
    steps: int,
    kernels: Sequence[int] | None = None,
) -> dict[str, float]:
    """Launches, bytes and estimated milliseconds of a batch behind DALI's graph: the mean of some.

    Args:
        kernels: the bytes of each of Triton's kernels, as `interpreted` has them; None for torch's operations.
    """
    import torch

    from dali_imagenet import Plan
    from dali_imagenet.transforms.postprocess import Postprocess

    plan = Plan(index, recipe, batch_size=batch_size, seed=0)
    stage = Postprocess(dtype=getattr(torch, dtype))
    found = [_counted(stage, plan.batch(0, step), recipe.pixel_ops, kernels) for step in range(steps)]
    return {key: statistics.fmean(each[key] for each in found) for key in found[0]}


def _counted(stage: Any, drawn: BatchPlan, pixel_ops: bool, kernels: Sequence[int] | None) -> dict[str, float]:
    import torch

    from .fake_cuda import Counting, Counts, fake_cuda

    counts = Counts()
    with warnings.catch_warnings(), fake_cuda(counts, fused=kernels is not None):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        stage._constants.clear()
        stage.constants(drawn, torch.device("cuda", 0))  # which is copied once, not with each batch
        dtype = torch.uint8 if pixel_ops else stage.dtype  # DALI's graph normalizes where nothing is between
        batch = torch.empty((len(drawn), 3, *drawn.size), dtype=dtype, device="cuda:0")
        with Counting(counts):
            stage.finish_batch(batch, drawn, mix=True)
        stage._constants.clear()
    # a batch of few images may need a launch less: it counts as the shortest there is
    triton = [*(kernels or ()), *[0] * len(counts.fused)][: len(counts.fused)]
    device = [*triton, *counts.kernels, *counts.copies]
    return {
        "launches": len(counts.kernels) + len(counts.fused),
        "memsets_and_copies": len(counts.copies) + len(counts.h2d),
        "bytes": sum(device),
        "h2d_copies": len(counts.h2d),
        "syncs": counts.syncs,
        **{
            f"{card}_ms": 1e3 * sum(max(LAUNCH_SECONDS, moved / speed) for moved in device)
            for card, speed in BANDWIDTH.items()
        },
    }


def feeder_us(index: SampleIndex, recipe: TrainRecipe, batch_size: int, steps: int, *, fused: bool = True) -> float:
    """CPU microseconds an image of the thread that draws, feeds DALI, checks new files' markers and prepares the batch
    stage's parameters; launching is not in it. The graph that is fed is the GPU's, run on the CPU."""
    import torch

    from dali_imagenet import Plan
    from dali_imagenet.dali.engine import DaliEngine
    from dali_imagenet.engine import EngineOptions

    plan = Plan(index, recipe, batch_size=batch_size, seed=0)
    options = EngineOptions(device=torch.device("cpu"), num_workers=1, prefetch=1, roi_decode=False, in_graph=True)
    spent = []
    with contextlib.closing(DaliEngine(plan, options)) as engine:
        for step in range(steps + 1):
            start = time.thread_time()
            drawn = plan.batch(0, step)
            others = engine._submit(drawn)
            seconds = time.thread_time() - start
            engine._stage.collect()  # on a GPU it waits and starts one copy
            for job in others.jobs:
                job.result()
            start = time.thread_time()
            engine._rows_to_recheck(drawn, others)
            seconds += time.thread_time() - start
            spent.append(seconds + (_programs(drawn) if fused else _parameters(drawn)))
    return 1e6 * min(spent[1:]) / batch_size  # the first warms up; what others do on the machine only adds


def _programs(drawn: BatchPlan) -> float:
    """CPU seconds to prepare what Triton's kernels are sent."""
    import torch

    from dali_imagenet.transforms.fused.program import encode
    from dali_imagenet.transforms.transfer import to_device

    start = time.thread_time()
    if drawn.ops:
        to_device(list(encode(drawn).arrays.values()), torch.device("cpu"))
    return time.thread_time() - start


def _parameters(drawn: BatchPlan) -> float:
    """CPU seconds to prepare what the kernels of torch's operations are sent."""
    import torch

    from dali_imagenet.policy import OpPlan
    from dali_imagenet.transforms import pixel_ops_batched
    from dali_imagenet.transforms.transfer import to_device

    start = time.thread_time()
    for part in drawn.ops:
        shape = (len(drawn), 1 if isinstance(part, OpPlan) else part.op.shape[1], -1)
        op, arg, aux = (values.reshape(shape) for values in (part.op, part.arg, part.aux))
        for chain in range(shape[1]):
            given: list[dict[int, float]] = [{} for _ in drawn.label]
            groups = [
                group
                for slot in range(op.shape[2])
                for group in pixel_ops_batched._groups(
                    op[:, chain, slot], arg[:, chain, slot], aux[:, chain, slot], given, *drawn.size
                )
            ]
            to_device([array for rows, _, values in groups for array in (rows, *values)], torch.device("cpu"))
    return time.thread_time() - start


def reader_us(index: SampleIndex) -> float:
    """CPU microseconds a file of one thread that looks at, opens, reads and closes files in memory."""
    paths = [Path(str(index.source.local_path(i))) for i in range(min(len(index), 1024))]
    spent = []
    for _ in range(4):
        start = time.thread_time()
        for path in paths:
            path.stat()  # as before DALI is given it
            path.read_bytes()
        spent.append(time.thread_time() - start)
    return 1e6 * statistics.median(spent[1:]) / len(paths)
