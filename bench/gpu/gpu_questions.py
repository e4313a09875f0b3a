"""The questions of `python -m bench gpu`; `python -m bench.gpu.gpu_questions TASK ANSWER` asks one.

A question is a function of the settings; it says points (name -> numbers) one by one, and each is on the disk at once,
so that a crash or a time limit keeps what was said before.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..contestants import BY_NAME
from ..core import machine, stats
from ..core.job import Job
from ..core.worker import cpu_seconds, endless, memory_mb

Backend = Literal["dali", "torchvision"]


@dataclass(frozen=True)
class Settings:
    """What all questions of a run share."""

    device: str  # "cuda" or "cpu"
    root: str  # ImageFolder tree
    batch_size: int
    workers: int  # threads or processes of every loader
    seconds: float  # measured time of a point
    size: int  # side of the output in pixels
    sweep: bool  # ask for every point of the sweeps, or for the first of each only

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def job(self, contestant: str, recipe: str, **changes: Any) -> Job:
        same: dict[str, Any] = {"batch_size": self.batch_size, "workers": self.workers, "size": self.size}
        return Job(contestant, recipe, self.root, device=self.device, **(same | changes))


Say = Callable[[str, dict[str, Any]], None]


def _sync(s: Settings) -> None:
    if s.cuda:
        torch.cuda.synchronize()


def _gpu_mb(s: Settings) -> float | None:
    """Memory in use on the GPU, this process's context and everything else on it included."""
    if not s.cuda:
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


class _Clock:
    """Time between batches: where the GPU reached them, or when the CPU had them."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.marks = cuda, list[Any]()

    def mark(self) -> None:
        if not self.cuda:
            self.marks.append(time.perf_counter())
            return
        # torch does not annotate events
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self.marks.append(event)
        if len(self.marks) > 4:
            self.marks[-4].synchronize()  # a loop that only takes must not run ahead without end

    def milliseconds(self) -> list[float]:
        pairs = itertools.pairwise(self.marks)
        return [a.elapsed_time(b) if self.cuda else (b - a) * 1e3 for a, b in pairs]


def _measure(s: Settings, batches: Iterator[Any], warmup: int, step: Callable[[Any], None] | None = None) -> Any:
    """Take batches until what the queues held is gone, then for the measured time."""

    def take() -> int:
        batch = next(batches)
        if step is not None:
            step(batch)
        return batch if isinstance(batch, int) else len(batch[0])

    started = time.perf_counter()
    take()
    _sync(s)
    first = time.perf_counter() - started
    until = time.perf_counter() + 1.5 * s.seconds
    for _ in range(warmup):
        take()
        if time.perf_counter() > until:
            break
    _sync(s)
    clock, images, before = _Clock(s.cuda), 0, _gpu_mb(s)
    cpu, start = cpu_seconds(), time.perf_counter()
    clock.mark()
    while time.perf_counter() - start < s.seconds or len(clock.marks) < 3:
        images += take()
        clock.mark()
    _sync(s)
    seconds = time.perf_counter() - start
    used = cpu_seconds()
    times = stats.batch_times(clock.milliseconds())
    return {
        "images_per_s": images / seconds,
        "batches": len(clock.marks) - 1,
        "first_s": first,
        "p50_ms": times["median"],
        "p99_ms": times["p99"],
        "max_ms": times["max"],
        "cpu_cores": None if cpu is None or used is None else (used - cpu) / seconds,
        "memory_mb": memory_mb()[0],
        "gpu_mb": _gpu_mb(s),
        "gpu_mb_before": before,
    }


def _ours(s: Settings, recipe: str, backend: Backend = "dali", size: int = 0, **options: Any) -> Any:
    from dali_imagenet import create_loader

    from ..contestants.ours import recipe as recipe_of

    made = recipe_of(s.job("", recipe, size=size or s.size), jitter=recipe == "strong" and options.pop("jitter", False))
    same: dict[str, Any] = {"batch_size": s.batch_size, "num_workers": s.workers, "device": s.device}
    return create_loader(s.root, made, backend=backend, **(same | options))


def _refused(loader: Any) -> dict[str, int]:
    """How many files were left to Pillow, which a rate or a difference of pixels does not tell."""
    return {"not_decoded_by_dali": loader._engine.refused}


# ---- does it run, and is it right?


def hardware(s: Settings, say: Say) -> None:
    """What it runs on; and how fast pinned memory reaches the GPU, which bounds every loader on the CPU."""
    found: dict[str, Any] = {"cores": machine.cores(), "versions": machine.versions(), "cuda": torch.version.cuda}
    try:
        found |= machine.describe()
    except ImportError:  # psutil
        found["processor"] = "not told: psutil is missing"
    if s.cuda:
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
        try:
            told = subprocess.run(
                ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=20, check=False
            )
            found["nvidia_smi"] = told.stdout.strip().splitlines()
        except (OSError, subprocess.SubprocessError) as error:
            found["nvidia_smi"] = [f"not told: {error}"]
        host = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
        there = host.to(s.device)
        _sync(s)
        start = time.perf_counter()
        for _ in range(8):
            there.copy_(host, non_blocking=True)
        _sync(s)
        found["host_to_gpu_gb_per_s"] = 8 * host.numel() / 1e9 / (time.perf_counter() - start)
        found["empty_context_mb"] = _gpu_mb(s)
    say("hardware", found)


def _all_in_graph(loader: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The loader's batches where DALI does on the CPU what it does on the GPU, resizing and all."""
    from dali_imagenet.engine import EngineOptions, make_engine
    from dali_imagenet.transforms.postprocess import soft_targets

    recipe = loader.plan.recipe
    options = EngineOptions(device=torch.device("cpu"), num_workers=2, roi_decode=False, in_graph=True)
    engine = make_engine("dali", loader.plan, options)
    engine.mixing = recipe.mixing
    with contextlib.closing(engine):
        for plan, [images], _ in engine.batches(0, 0):
            lam = plan.mix.lam if plan.mix is not None else None
            if recipe.soft_targets:
                soft = soft_targets(plan.label, lam, loader.num_classes, recipe.label_smoothing)
                yield images, torch.from_numpy(soft)
            else:
                yield images, torch.from_numpy(plan.label)


def agree(s: Settings, say: Say) -> None:
    """The same plan through DALI's graph on the device, DALI on the CPU with torch's resizing, and torchvision:
    differences in 0..255 units."""
    from dataclasses import replace

    small = replace(s, batch_size=min(64, s.batch_size), workers=min(4, s.workers))
    cpu = replace(small, device="cpu")
    unit = 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for recipe in ("classic", "eval", "strong"):
        loaders = [
            _ours(small, recipe, roi_decode=False),
            _ours(cpu, recipe, roi_decode=False),
            _ours(cpu, recipe, "torchvision"),
        ]
        graph = loaders[0] if s.cuda else _all_in_graph(loaders[0])
        batches = [[(x.cpu(), y.cpu()) for x, y in itertools.islice(each, 2)] for each in (graph, *loaders[1:])]
        refused = _refused(loaders[0]) if s.cuda else {}
        for name, other in (("DALI on the CPU", 1), ("torchvision", 2)):
            pairs = list(zip(batches[0], batches[other], strict=True))
            delta = torch.stack([((a - b) * unit).abs() for (a, _), (b, _) in pairs])
            same = all(torch.equal(a, b) for (_, a), (_, b) in pairs)
            numbers = {"mean": float(delta.mean()), "max": float(delta.max()), "targets_equal": same, **refused}
            say(f"agree|{recipe}|{name}", numbers)
        for loader in loaders:
            loader.close()


def probe(s: Settings, say: Say) -> None:
    """What the loader itself asks before it decodes regions, with the numbers that it decides by."""
    from dali_imagenet.dali.roi_probe import compare_regions

    said = dict[str, Any]()
    for found in compare_regions("cuda:0" if s.cuda else "cpu"):
        share = f"hw={found.hw_decoder_load:g}"
        say("probe", said := said | {f"{share} worst": found.worst, f"{share} time": found.time})


def roi(s: Settings, say: Say) -> None:
    """Regions of the real images, decoded as such and cut from the whole, of 0..255. nvImageCodec 0.9 may crash here;
    so no loader is asked, which would refuse."""
    from dali_imagenet import Plan, SampleIndex, TrainRecipe
    from dali_imagenet.dali.stage import DaliStage

    index = SampleIndex.from_folder(s.root)
    plan = Plan(index, TrainRecipe.classic(input_size=s.size), batch_size=s.batch_size, seed=0)
    same: dict[str, Any] = {"batch_size": s.batch_size, "train": True, "device": s.device, "num_threads": s.workers}
    stages = [DaliStage(**same, in_graph=True, roi_decode=roi_decode) for roi_decode in (True, False)]
    worst, images = 0.0, 0
    for step in range(min(len(plan), 40 if s.sweep else 2)):
        drawn = plan.batch(0, step)
        paths = [str(index.source.local_path(sample)) for sample in drawn.source_index.tolist()]
        found = []
        for stage in stages:
            stage.submit(drawn, paths)
            found.append(stage.collect()[0].float())
        worst = max(worst, float((found[0] - found[1]).abs().mean(dim=(1, 2, 3)).max()))
        images += len(drawn)
        say("roi", {"images": images, "worst_image_mean_difference": worst})


# ---- how fast?


def loader(s: Settings, say: Say, who: str, recipe: str, **options: Any) -> None:
    """One loader: "ours" (DALI), "fallback" (torchvision), or a contestant of the comparison."""
    name = "|".join((who, recipe, *(f"{k}={v}" for k, v in options.items())))
    batches: Any
    if who in ("ours", "fallback"):
        batches = _ours(s, recipe, "dali" if who == "ours" else "torchvision", **options)
    else:
        batches = BY_NAME[who].load()(s.job(who, recipe))
    queued = 8 if who in ("ours", "dali-doc-gpu", "dali-doc-cpu") else 2 * s.workers + 4
    numbers = _measure(s, endless(batches), queued)
    if who == "ours":
        numbers |= {"roi_decode": batches.roi_decode} | _refused(batches)
    say(name, numbers)
    if who == "ours":  # the next one of a sweep has the machine to itself
        batches.close()


def sweep(s: Settings, say: Say, recipe: str, option: str, values: Sequence[Any]) -> None:
    """Our loader, with one value of an option after the other, the most valuable first."""
    for value in values if s.sweep else values[:1]:
        loader(s, say, "ours", recipe, **{option: value})


def launches(s: Settings, say: Say) -> None:
    """Kernels and copies of a batch's operations as torch.profiler sees them, beside what is counted on paper."""
    from dali_imagenet import Plan, SampleIndex
    from dali_imagenet.transforms.fused.program import encode
    from dali_imagenet.transforms.postprocess import Postprocess

    from .paper import recipes

    index = SampleIndex.from_folder(s.root)
    for name, recipe in recipes().items():
        plan = Plan(index, recipe, batch_size=s.batch_size, seed=0).batch(0, 0)
        if not plan.ops:
            continue  # the graph has normalized it
        numbers = {"paper": len(encode(plan).launches) + 1}
        if s.cuda:
            stage, activities = Postprocess(), [torch.profiler.ProfilerActivity.CUDA]
            pixels = torch.randint(0, 256, (len(plan), 3, *plan.size), dtype=torch.uint8, device=s.device)
            stage.finish_batch(pixels, plan, mix=True)  # compiles, and allocates
            _sync(s)
            with torch.profiler.profile(activities=activities) as profile:
                stage.finish_batch(pixels, plan, mix=True)
                _sync(s)
            # without what the host called to launch them
            there = (event for event in profile.events() or () if event.device_type.name == "CUDA")
            names = [event.name for event in there if event.name != "Context Sync"]
            copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
            numbers |= {"launches": len(names) - copies, "copies": copies}
        say(f"launches|{name}", numbers)
        if not s.sweep:
            return


def auto(s: Settings, say: Say) -> None:
    """The trial by which backend="auto" chooses, as `dali-imagenet doctor` makes it; nothing is remembered."""
    from dali_imagenet import trial

    from ..core import images

    files = images.image_files(Path(s.root))
    samples = [(str(file), number % 2) for number, file in enumerate(files[: 16 * s.batch_size])]
    rates = {}
    for backend in ("dali", "torchvision"):
        told, _ = trial.trial(
            samples, backend=backend, device=s.device, workers=s.workers, seconds=s.seconds, limit=35.0
        )
        rates[backend] = told.get("images_per_second") or told["unknown"]
        say("auto", dict(rates))


def caller(s: Settings, say: Say) -> None:
    """CPU time of the thread that iterates, a batch: what is left to it where another thread makes batches ahead."""
    backends: tuple[Backend, ...] = ("dali", "torchvision")
    for backend in backends:
        made = _ours(s, "strong", backend)
        batches, spent = endless(made), list[float]()
        until = time.perf_counter() + s.seconds
        while time.perf_counter() < until or len(spent) < 6:
            start = time.thread_time()
            batch = next(batches)
            spent.append(1e3 * (time.thread_time() - start))
            del batch
            _sync(s)
        say(f"caller|{backend}", {"batches": len(spent), "thread_ms": stats.quantile(spent[4:], 0.5)})
        made.close()


def _decoding(s: Settings, threads: int, decode: bool = True, **options: Any) -> Iterator[int]:
    """DALI's reader, and its decoder behind it; pixels are thrown away."""
    from ..core import images

    dali: Any = importlib.import_module("nvidia.dali")
    fn = importlib.import_module("nvidia.dali.fn")
    files, _ = images.mixed(Path(s.root))
    pipe = dali.Pipeline(
        s.batch_size, threads, 0 if s.cuda else None, prefetch_queue_depth=2, exec_dynamic=True, seed=0
    )
    with pipe:
        data, _ = fn.readers.file(files=files, pad_last_batch=True, dont_use_mmap=True, name="files")
        if decode:
            if s.cuda:
                options = {"device": "mixed", "jpeg_fancy_upsampling": True} | options
            data = fn.decoders.image(data, adjust_orientation=False, **options)
        pipe.set_outputs(data)
    pipe.build()
    while True:
        pipe.run()
        yield s.batch_size


def decode(s: Settings, say: Say) -> None:
    """DALI decoding whole images, by the share that goes to the hardware engines. No share: DALI's default."""
    shares = (None, 1.0, 0.0, 0.5, 0.8, 0.35, 0.9)
    for share in shares if s.cuda and s.sweep else shares[:3] if s.cuda else shares[:1]:
        options: dict[str, Any] = {} if share is None else {"hw_decoder_load": share}
        name = "default" if share is None else f"hw={share}"
        say(f"decode|{name}", _measure(s, _decoding(s, s.workers, **options), 8))


def decode_options(s: Settings, say: Say) -> None:
    """DALI decoding: threads, chroma upsampling, memory allocated beforehand."""
    hints = {"preallocate_width_hint": 1024, "preallocate_height_hint": 1024}
    points: list[tuple[str, int, dict[str, Any]]] = [
        (f"threads={threads}", threads, {}) for threads in (2, 4, 8, 12, 24) if threads <= 1.5 * s.workers
    ]
    if s.cuda:
        points += [
            ("no fancy upsampling", s.workers, {"jpeg_fancy_upsampling": False}),
            ("preallocated", s.workers, hints),
            ("preallocated, all hardware", s.workers, hints | {"hw_decoder_load": 1.0}),
        ]
    for name, threads, options in points if s.sweep else points[:1]:
        say(f"decode|{name}", _measure(s, _decoding(s, threads, **options), 8))


def read(s: Settings, say: Say) -> None:
    """Reading alone: DALI's reader, and Python threads."""
    say("read|DALI reader", _measure(s, _decoding(s, s.workers, decode=False), 8))
    build = BY_NAME["read-only"].load()
    say("read|Python threads", _measure(s, endless(build(s.job("read-only", "classic"))), 8))


def nvjpeg(s: Settings, say: Say) -> None:
    """torchvision's decoder, on the GPU nvJPEG's: what the fallback could decode with."""
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg

    from ..core import images

    names = [f for f in images.image_files(Path(s.root))[: 4 * s.batch_size] if Image.open(f).mode in ("RGB", "L")]
    files = [torch.from_numpy(np.fromfile(f, np.uint8)) for f in names if f.read_bytes()[:2] == b"\xff\xd8"]

    def batches() -> Iterator[int]:
        for start in itertools.cycle(range(0, len(files), s.batch_size)):
            part = files[start : start + s.batch_size]
            decode_jpeg(part, mode=ImageReadMode.RGB, device=s.device)
            yield len(part)

    say("torchvision decode_jpeg", _measure(s, batches(), 2))


def _finished(batch_stage: Any, plans: Iterable[Any], pixels: torch.Tensor, host: deque[float]) -> Iterator[int]:
    """The batch stage again and again; `host` gets the seconds until the host may go on."""
    for plan in itertools.cycle(plans):
        begun = time.perf_counter()
        images = batch_stage.finish_batch(pixels, plan, mix=True)
        host.append(time.perf_counter() - begun)
        yield len(images)


def stage(s: Settings, say: Say) -> None:
    """Drawing a plan, and the batch stage alone on pixels that are already there: milliseconds a batch."""
    from dali_imagenet import Plan, SampleIndex
    from dali_imagenet.transforms.postprocess import Postprocess

    from ..contestants.ours import recipe as recipe_of

    index = SampleIndex.from_folder(s.root)
    shape = (s.batch_size, 3, s.size, s.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(s.device)
    for name, jitter in (("strong", False), ("strong", True), ("advanced", False)):
        recipe = recipe_of(s.job("", name), jitter)
        plan = Plan(index, recipe, batch_size=s.batch_size, seed=0)
        batch_stage = Postprocess()
        start = time.perf_counter()
        plans = [plan.batch(0, step) for step in range(min(8, len(plan)))]
        draw = (time.perf_counter() - start) / len(plans)
        host = deque[float](maxlen=1000)

        numbers = _measure(s, _finished(batch_stage, plans, pixels, host), 8)
        numbers |= {"draw_ms": draw * 1e3, "host_ms": stats.quantile(list(host), 0.5) * 1e3}
        say(f"stage|{name}{', color_jitter' if jitter else ''}", numbers)


def train(s: Settings, say: Say, model: str, who: str, recipe: str, size: int = 0) -> None:
    """A training step behind a loader: bf16 autocast and channels_last on the GPU."""
    from ..core.training import trainer

    size = size or s.size
    job = s.job(who, recipe, model=model, size=size)
    batches: Iterable[Any]
    if who == "ours":
        batches = _ours(s, recipe, size=size, memory_format=torch.channels_last)
    elif who == "synthetic":
        images = torch.randn(s.batch_size, 3, size, size, device=s.device).to(memory_format=torch.channels_last)
        batches = [(images, torch.randint(10, (s.batch_size,), device=s.device))]
    else:
        batches = BY_NAME[who].load()(job)
    torch.backends.cudnn.benchmark = True
    warmup = 12 if who in ("ours", "synthetic") else 2 * s.workers + 4
    say(f"train|{model} {size}|{who}|{recipe}", _measure(s, endless(batches), warmup, trainer(job)))


QUESTIONS: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        hardware,
        agree,
        probe,
        roi,
        loader,
        sweep,
        launches,
        auto,
        caller,
        decode,
        decode_options,
        read,
        nvjpeg,
        stage,
        train,
    )
}


def main() -> None:
    task, answer = json.loads(sys.argv[1]), Path(sys.argv[2])
    settings = Settings(**task["settings"])
    if not settings.cuda:
        torch.set_num_threads(settings.workers)
    points: dict[str, Any] = {}

    def say(name: str, numbers: dict[str, Any]) -> None:
        points[name] = numbers
        partial = answer.with_suffix(".partial")
        partial.write_text(json.dumps(points))
        partial.replace(answer)

    QUESTIONS[task["question"]](settings, say, **task["arguments"])
    sys.stdout.flush()
    os._exit(0)  # how a loader shuts down is not what is asked; the parent ends what is left


def task(settings: Settings, question: str, arguments: dict[str, Any]) -> str:
    """What `main` reads, as JSON."""
    return json.dumps({"settings": asdict(settings), "question": question, "arguments": arguments})


if __name__ == "__main__":
    main()
