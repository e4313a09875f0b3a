"""Where the bottleneck will be, from what was measured here and from others' figures, which are called estimates."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """Figures that others published for a GPU; None: nobody has, as far as is known here."""

    name: str
    decodes: tuple[int, int] | None
    """Images a second that DALI decodes on it: from, to."""
    trains: int | None
    """Images a second of a ResNet-50's training with synthetic data, one GPU."""
    source: str


GPUS = (
    Gpu("A100", (5_000, 7_000), None, "DALI's issue 5362: hardware, CUDA, and hybrid decoding"),
    Gpu("H100", (19_000, 19_000), None, "DALI's CI (qa/TL1_decoder_perf): floor of decode, crop, resize; 70 threads"),
    Gpu("B200", None, 5_600, "mghpcc/aicr-benchmarks: ResNet-50 on 8 GPUs, synthetic data, 44.8k images/s"),
)
# Floating point operations (GFLOP) of an image's forward pass at 224 x 224: torchvision's `weights.meta["_ops"]`.
OPERATIONS = {"ResNet-18": 1.814, "ResNet-50": 4.089, "ViT-B/16": 17.564}


def with_options(more: dict[str, Any]) -> str:
    """ ", with hw_decoder_load=0.0", or nothing."""
    return f", with {', '.join(f'{name}={value!r}' for name, value in more.items())}" if more else ""


def best_of(loaders: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest of those that ran."""
    ran = [one for one in loaders if one.get("images_per_second")]
    return max(ran, key=lambda one: int(one["images_per_second"])) if ran else None


def estimated(gpu: Gpu, model: str) -> int | None:
    """Images a second of that model's training there, by the operations that it needs."""
    return None if gpu.trains is None else int(round(_scaled(gpu.trains, "ResNet-50", model), -2))


def _scaled(speed: float, of: str, to: str) -> float:
    return speed * OPERATIONS[of] / OPERATIONS[to]


def here(best: dict[str, Any], models: dict[str, Any], cores: float) -> list[str]:
    """Of this machine's own device: a sentence a model. One that was not finished is estimated from the first."""
    rate, said = float(best["images_per_second"]), []
    for model, measured in models.items():
        speed, takes = measured, "takes"
        if isinstance(measured, dict):
            first = models.get("ResNet-18")
            if not isinstance(first, float | int):
                said.append(f"{model}: unknown ({measured['unknown']})")
                continue
            speed, takes = _scaled(first, "ResNet-18", model), "takes by its operations, from ResNet-18, about"
        need = math.ceil(10 * cores * speed / rate) / 10
        by_cores = best["device"] == "cpu" or best["backend"] != "dali"  # DALI on a GPU takes hardly any
        free = f"; {need:g} of {cores:g} cores keep it fed, the others are free" if by_cores and cores > need else ""
        end = "loading and model are about even"
        if speed < rate * 0.8:
            end = f"the model is the bottleneck{free}"
        elif speed > rate * 1.25:
            end = f"loading is the bottleneck, it waits {1 - rate / speed:.0%}"
        said.append(f"{model} {takes} {_number(speed)} images/s: {end}")
    return said


def elsewhere(best: dict[str, Any], cores: float) -> list[str]:
    """Of GPUs that are not here, fed by these cores, or decoding themselves."""
    rate, said = float(best["images_per_second"]), []
    for gpu in GPUS:
        if gpu.decodes:
            low, high = gpu.decodes
            span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            said.append(
                f"{gpu.name}: DALI on it decodes {span} images/s [{gpu.source}]; these {cores:g} cores make "
                f"{rate:,.0f}, so {'loading on the GPU pays' if low > rate else 'these cores are as fast'}. What it "
                "trains a second is unknown here: a faster model waits for loading, a slower one does not"
            )
        for model in OPERATIONS if gpu.trains else ():
            speed = estimated(gpu, model) or 0
            by = f"[{gpu.source}]" if model == "ResNet-50" else "by operations, from ResNet-50"
            end = "the model is the bottleneck"
            if speed > rate:
                cure = f"{math.ceil(cores * speed / rate)} such cores a GPU feed it"
                end = f"loading is the bottleneck, it waits {1 - rate / speed:.0%}; {cure}"
            said.append(f"{gpu.name}, {model}: {speed:,} images/s ({by}): {end}")
    return said


def call(data: str, options: dict[str, Any], best: dict[str, Any], recipe: str) -> str:
    """The call to copy."""
    said = {name: f"Path({os.fspath(v)!r})" if isinstance(v, Path) else repr(v) for name, v in options.items()}
    names, first, more = ["TrainRecipe", "create_loader"], repr(data), said
    if said.keys() - {"split", "classes"}:  # what an index takes, and create_loader does not
        names.insert(0, "SampleIndex")
        first = f"SampleIndex.open({data!r}, {', '.join(f'{name}={value}' for name, value in said.items())})"
        more = {}
    arguments = [first, f"TrainRecipe.{recipe}()", "batch_size=256", *(f"{name}={more[name]}" for name in more)]
    arguments += [f"{name}={best[name]!r}" for name in ("backend", "device")]
    arguments += [f"{name}={value!r}" for name, value in best.get("more", {}).items()]
    arguments += [f"num_workers={best['workers']}", "prefetch=2"]
    path = "from pathlib import Path\n\n" if any(value.startswith("Path(") for value in said.values()) else ""
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"{path}from dali_imagenet import {', '.join(names)}\n\nloader = create_loader(\n{lines})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
