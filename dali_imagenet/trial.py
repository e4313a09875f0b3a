"""A short trial: how many images a second a backend makes of real files here, and how many a model takes.

Each runs in a process of its own with a time limit, so that a crash or a hang is an answer, too. `remembered` gives
what the last trial of this device, these versions and so many cores measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dali_imagenet.cache import cache_folder
from dali_imagenet.cores import worker_count
from dali_imagenet.machine import processor, versions

_FILE = "trial.json"
_BATCH = 64
MODELS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_b_16": "ViT-B/16"}
_CPU_BATCH = 2  # of a training step on a CPU: what is measured there are seconds, not milliseconds
_PACKAGES = ("dali-imagenet", "torch", "torchvision", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12", "simplejpeg")

_BEGAN = time.perf_counter()


def trial(
    samples: Sequence[tuple[str, int]] | None = None,
    *,
    data: Any = None,
    options: dict[str, Any] | None = None,
    backend: str,
    device: str,
    workers: int,
    recipe: str = "strong",
    seconds: float = 5.0,
    limit: float = 25.0,
    more: dict[str, Any] | None = None,
    models: float = 0.0,
    models_limit: float = 40.0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Images a second of a backend, and of training steps on images that lie on the device already.

    Args:
        samples: (path, label) of the files to read, or
        data, options: what `SampleIndex.open` takes, of which 2,000 images are read.
        backend: "torchvision" or "dali".
        device: "cpu", "cuda" or "cuda:N".
        workers: processes, or DALI's threads.
        recipe: name of a preset.
        seconds: that are measured, after the first batches; less where the time is short.
        limit: seconds after which the backend is given up.
        more: further arguments of `create_loader`, such as {"hw_decoder_load": 0.0}.
        models: seconds for the models (forward, backward, SGD), after the backend and in its process; 0: none. On a GPU
            batch 128, channels_last, bfloat16; on a CPU batch 2, float32.
        models_limit: seconds after which these are given up.

    Returns:
        {backend, device, workers, recipe, more, images_per_second, start_seconds (until the first batch)}, or
        {"unknown": why}; and {"ResNet-18": images a second, ...}, with {"unknown": why} in the place of what was not
        finished.
    """
    job = {"samples": samples, "data": data, "options": _plain(options or {}), "backend": backend, "device": device}
    job |= {"workers": workers, "recipe": recipe, "seconds": seconds, "limit": limit, "models": models}
    job["more"] = more or {}
    said, why = _in_a_process(job, limit + (models_limit if models else 0))
    loader: dict[str, Any] = {"backend": backend, "unknown": why}
    speeds: dict[str, Any] = {}
    for one in said:
        if "backend" in one:
            loader = one
        else:
            speeds |= one
    names = MODELS.values() if models else ()
    return loader, {name: speeds.get(name, {"unknown": why or "not finished in time"}) for name in names}


def open_for_the_first_time(data: Any, options: dict[str, Any], limit: float) -> str:
    """Make the index of data, or read it where it is remembered, within a time.

    Returns:
        Why there is none now: it took too long, or its process died. "" where there is one, or where `SampleIndex.open`
        raises for a reason that it says again.
    """
    return _in_a_process({"open": data, "options": _plain(options)}, limit)[1]


def compile_for_the_first_time(device: str, recipe: str, limit: float) -> None:
    """Compile the kernels of a recipe's batch stage, which a cache on the disk keeps: else the backend that is tried
    first would pay for all."""
    _in_a_process({"compile": device, "recipe": recipe}, limit)


def _compile(job: dict[str, Any]) -> None:
    import torch

    from dali_imagenet import Plan, SampleIndex, TrainRecipe
    from dali_imagenet.transforms.postprocess import Postprocess

    index = SampleIndex.from_arrays([0, 1], 300, 300)
    plan = Plan(index, getattr(TrainRecipe, job["recipe"])(), batch_size=2).batch(0, 0)
    device = torch.device(job["compile"])
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    Postprocess().compile(plan, device, torch.uint8)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {name: os.fspath(value) if isinstance(value, Path) else value for name, value in options.items()}


def _open(data: Any, options: dict[str, Any]) -> Any:
    from dali_imagenet import SampleIndex

    classes = options.get("classes")
    given = options | ({"classes": Path(classes)} if classes not in (None, "sorted", "natural") else {})
    return SampleIndex.open(data, progress=False, default_split="train", **given)


def trial_of_gpu(limit: float = 20.0) -> dict[str, Any]:
    """The GPUs that torch sees.

    Returns:
        {"gpus": [{name, memory and free (bytes), capability, mig, copy_gb_per_second}]}, or {"unknown": why}.
    """
    said, why = _in_a_process({}, limit)
    return said[-1] if said else {"unknown": why or "torch did not answer"}


def key_of(device: str, workers: int) -> str:
    """What decides the outcome, but for the data."""
    name = f"{processor()} | {workers} cores"
    if device != "cpu":
        import torch

        name = f"{torch.cuda.get_device_name(torch.device(device))} | {name}"
    packages = " | ".join(f"{name} {version}" for name, version in versions(_PACKAGES).items())
    return f"{name} | python {platform.python_version()} | {packages}"


def remember(key: str, result: dict[str, Any]) -> None:
    """Keep what trials gave; without a cache folder, or where it cannot be written, nothing is."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        stored = _stored(folder / _FILE) | {key: result}
        handle, temporary = tempfile.mkstemp(prefix=f"{_FILE}.", dir=folder)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(stored, file, indent=1)
        os.replace(temporary, folder / _FILE)  # at once: others read the old file or the new one


def remembered(key: str) -> dict[str, Any] | None:
    """What was kept under that key."""
    folder = cache_folder()
    found = None if folder is None else _stored(folder / _FILE).get(key)
    return found if isinstance(found, dict) else None


def faster_backend(device: str) -> tuple[str, str] | None:
    """What the last trial of this device was faster with, and why it is taken; None where none is remembered."""
    kept = (remembered(key_of(device, worker_count())) or {}).get("loaders")
    rates: dict[str, float] = {}
    for one in kept if isinstance(kept, list) else ():
        rate = one.get("images_per_second") if isinstance(one, dict) else None
        if isinstance(rate, int | float) and one.get("backend") in ("dali", "torchvision"):
            rates[one["backend"]] = max(rate, rates.get(one["backend"], 0))
    if len(rates) < 2:  # one that failed is not the slower one: it may have been short of time
        return None
    best = max(rates, key=lambda name: rates[name])
    return (
        best,
        f"auto: a trial here made {' and '.join(f'{rate:,.0f} images/s with {n}' for n, rate in rates.items())}",
    )


def _stored(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_a_process(job: dict[str, Any], limit: float) -> tuple[list[dict[str, Any]], str]:
    """What it said, an object a line, and why it ended badly (empty for a good end)."""
    package_parent = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "dali_imagenet.trial"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_WAIT_POLICY": "passive"},
                start_new_session=True,
            )
        except OSError as error:
            return [], f"no process could be started: {error}"
        why = ""
        try:
            process.communicate(json.dumps(job).encode(), timeout=limit)
        except subprocess.TimeoutExpired:
            why = f"no answer within {limit:.0f} s"
        finally:
            end_group(process)
        errors.seek(0)
        last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1][:200]
        if not why and process.returncode:
            code = process.returncode
            why = f"crashed with {signal.Signals(-code).name}" if code < 0 else last or f"ended with code {code}"
        out.seek(0)
        said = [json.loads(line) for line in out.read().decode().splitlines() if line.startswith('{"')]
    return said, why


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that began a session of its own, and whatever workers it left, and wait for it."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _loader(job: dict[str, Any]) -> None:
    import torch

    from dali_imagenet import SampleIndex, TrainRecipe, create_loader

    if job["samples"] is not None:
        index = SampleIndex.from_samples([tuple(pair) for pair in job["samples"]], cache=False, progress=False)
    else:
        index = _open(job["data"], job["options"])
        index = index[:: -(-len(index) // 2000)]
    size = min(_BATCH, len(index) // 2 * 2)
    if size < 2:
        raise ValueError(f"{len(index)} images are too few for a trial")
    recipe = getattr(TrainRecipe, job["recipe"])()
    start = time.perf_counter()
    with create_loader(
        index,
        recipe,
        batch_size=size,
        backend=job["backend"],
        device=job["device"],
        num_workers=job["workers"],
        on_error="replace",
        max_broken=1.0,
        **job["more"],
    ) as loader:
        batches = loader.endless()
        next(batches)
        started = time.perf_counter() - start
        left = job["limit"] - (time.perf_counter() - _BEGAN) - 2
        warm = time.perf_counter() + left / 2
        for _ in range(2 * job["workers"]):  # what was made meanwhile, and what warms up
            if time.perf_counter() < warm:
                next(batches)
        count, begin = 0, time.perf_counter()
        while not count or time.perf_counter() - begin < min(job["seconds"], left / 2):
            images, _ = next(batches)
            count += len(images)
            if images.is_cuda:
                torch.cuda.synchronize()
        rate = count / (time.perf_counter() - begin)
        told = {name: job[name] for name in ("backend", "device", "workers", "recipe")} | {"more": job["more"]}
        told |= {"images_per_second": round(rate), "start_seconds": round(started, 1)}
        batches.close()
    print(json.dumps(told), flush=True)


def _gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        from dali_imagenet.machine import hidden_gpu

        why = "torch sees no CUDA GPU here" if torch.version.cuda else "this torch is built without CUDA"
        why += f" ({more})" if (more := hidden_gpu()) else ""
        print(json.dumps({"unknown": why}), flush=True)
        return
    gpus = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        about, (free, memory) = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device)
        host = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(host, device=device)
        times = []
        for _ in range(5):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            target.copy_(host, non_blocking=True)
            torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        told = {"name": about.name, "memory": memory, "free": free, "capability": f"{about.major}.{about.minor}"}
        mig = "MIG" in about.name or "MIG" in os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus.append(told | {"mig": mig, "copy_gb_per_second": round(host.numel() / 1e9 / min(times), 1)})
    print(json.dumps({"gpus": gpus}), flush=True)


def _models(on: str, seconds: float) -> None:
    import torch
    import torchvision
    from torch import nn

    device = torch.device(on)
    on_gpu = device.type == "cuda"
    count = 128 if on_gpu else _CPU_BATCH
    images = torch.randn(count, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(count, dtype=torch.long, device=device)
    for name, shown in MODELS.items():
        model = torchvision.models.get_model(name, weights=None).to(device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9)

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if on_gpu:
                torch.cuda.synchronize()

        share = seconds / len(MODELS)
        begin = time.perf_counter()
        for _ in range(3 if on_gpu else 1):
            step()
        steps, took = 1, time.perf_counter() - begin
        if on_gpu or took < share / 2:  # else the first step is all there is time for
            steps, begin = 0, time.perf_counter()
            while not steps or time.perf_counter() - begin < share:
                step()
                steps += 1
            took = time.perf_counter() - begin
        rate = count * steps / took
        print(json.dumps({shown: round(rate, 1)}), flush=True)
        del model, optimizer


def _main(job: dict[str, Any]) -> None:
    if not job:
        _gpu()
        return
    if "compile" in job:
        _compile(job)
        return
    if "open" in job:
        with contextlib.suppress(OSError, ValueError, TypeError, RuntimeError, ImportError):
            _open(job["open"], job["options"])
        return
    try:
        _loader(job)
    except Exception as error:  # is the answer, and no reason to leave out the models
        print(json.dumps({"backend": job["backend"], "unknown": f"{type(error).__name__}: {error}"[:200]}), flush=True)
    if job["models"]:
        _models(job["device"], job["models"])


if __name__ == "__main__":
    _main(json.load(sys.stdin))
