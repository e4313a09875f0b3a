"""May DALI decode regions on this GPU? Asked in a subprocess, because the wrong answer ends the process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from dali_imagenet.cache import cache_folder
from dali_imagenet.dali.stage import DaliStage, dali_available
from dali_imagenet.machine import nvidia_driver
from dali_imagenet.ops import FILTERS

_PROBE_SECONDS = 120.0
_BATCHES = 8
_PROBE_STARTED = "decoding"
_PROBE_PASSED = "passed"


def probe_roi_decode(device_index: int = 0, *, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether decoding regions (`roi_decode=True`) works on this GPU and pays. Never raises, never crashes the caller.

    nvImageCodec 0.9 is known to crash the whole process on some GPUs there (its issue 55), which nothing can catch. So
    a subprocess decodes some generated JPEGs with a time limit of 120 s, and the answer is remembered by GPU, driver
    and the versions of DALI, nvImageCodec and nvJPEG in `roi_decode.json` in `cache_dir` (see `cache.cache_folder`).
    Delete the file to ask again. A probe that could not start (no memory left on the GPU, say) is not remembered.
    """
    try:
        if not torch.cuda.is_available() or not dali_available()[0]:
            return False
        key = f"{torch.cuda.get_device_name(device_index)} | driver {nvidia_driver() or 'unknown'} | {_versions()}"
    except Exception:  # an index that does not exist, a broken driver
        return False
    folder = cache_folder(cache_dir)
    cache = None if folder is None else folder / "roi_decode.json"
    answers = {} if cache is None else _read_answers(cache)
    if key not in answers:
        passed = _probe_in_subprocess(device_index, _PROBE_SECONDS)
        if passed is None:
            return False
        answers[key] = passed
        with contextlib.suppress(OSError):  # a read-only home: ask again next time
            if cache is not None:
                _write_answers(cache, answers)
    return answers[key]


_WHEELS = (
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"),
    *("nvidia-nvjpeg-cu12", "nvidia-nvjpeg"),
)


def _versions() -> str:
    """Versions of the wheels that decode: "nvidia-dali-cuda120 2.4.0 | nvidia-nvimgcodec-cu12 0.9.0.20 | ..."."""
    found = []
    for name in _WHEELS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return " | ".join(found)


def _read_answers(path: Path) -> dict[str, bool]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in stored.items() if isinstance(v, bool)} if isinstance(stored, dict) else {}


def _write_answers(path: Path, answers: dict[str, bool]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(answers, file, indent=1)
    os.replace(file.name, path)  # at once, so that another process reads the old file or the new one


def _probe_in_subprocess(device_index: int, seconds: float) -> bool | None:
    """True: decoded well. False: crashed or decoded wrongly. None: it did not get that far, or no answer in time."""
    code = f"from dali_imagenet.dali.roi_probe import _probe; _probe('cuda:{device_index}')"
    package_parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    said = done.stdout.decode(errors="replace").split()
    if done.returncode == 0 and _PROBE_PASSED in said:
        return True
    return False if _PROBE_STARTED in said else None


class Regions(NamedTuple):
    """What decoding regions on a device was found to be like."""

    hw_decoder_load: float
    worst: float
    """The largest mean difference of an image from the CPU's, of 0..255."""
    time: float
    """In times of decoding whole images."""


def compare_regions(device: str) -> Iterator[Regions]:
    """Regions of generated JPEGs, decoded there, beside those of the CPU and beside whole images: once with the engines
    of the hardware, where there are some, and once without. A decoder may take the process with it."""
    rng = np.random.default_rng(0)
    batches = [_batch(rng) for _ in range(_BATCHES)]
    cpu = list(_run(_stage("cpu"), batches))
    pairs = {s: [_stage(device, roi_decode=roi, hw_decoder_load=s) for roi in (True, False)] for s in (1.0, 0.0)}
    print(_PROBE_STARTED, flush=True)
    for share, (region, whole) in pairs.items():
        differences = [(a - b).abs().mean(dim=(1, 2, 3)) for a, b in zip(_run(region, batches), cpu, strict=True)]
        took: dict[DaliStage, float] = {}
        for stage in (region, whole) * 3:  # in turns; the first ones start engines and warm up
            start = perf_counter()
            list(_run(stage, batches))
            took[stage] = perf_counter() - start
        yield Regions(share, float(torch.cat(differences).max()), took[region] / took[whole])


def _probe(device: str) -> None:
    """Runs in the subprocess: regions must look as those of the CPU, and be no slower than whole images."""
    for found in compare_regions(device):
        if found.worst > 8:  # chroma is upsampled otherwise by up to 3, a wrong region differs by tens
            raise SystemExit(f"a region decoded on {device} is not that of the CPU: {found.worst:.1f} of 255")
        if found.time > 1.05:
            raise SystemExit(f"regions take {found.time:.2f} of the time of whole images on {device}")
    print(_PROBE_PASSED, flush=True)


def _stage(device: str, **options: Any) -> DaliStage:
    return DaliStage(batch_size=64, train=True, device=device, num_threads=4, encoded=True, in_graph=True, **options)


def _run(stage: DaliStage, batches: Sequence[tuple[Any, list[bytes]]]) -> Iterator[torch.Tensor]:
    for plan, files in batches:
        stage.submit(plan, files)
    for _ in batches:
        yield stage.collect()[0].cpu().float()


def _batch(rng: np.random.Generator) -> tuple[Any, list[bytes]]:
    """A plan, and its files."""
    sizes = rng.integers(40, 900, (64, 2))
    low = rng.integers(1, sizes + 1)
    plan: Any = SimpleNamespace(
        epoch=0,
        step=0,
        size=(64, 64),
        is_padding=np.zeros(64, bool),
        source_size=sizes,
        crop_box=np.concatenate([rng.integers(0, sizes - low + 1), low], axis=1),
        resize=np.full((64, 2), 64),
        interpolation=np.full(64, FILTERS["bilinear"]),
        window=np.zeros((64, 2), int),
        window_fill=(0, 0, 0),
        window_mode="constant",
        color=None,
        hflip=np.zeros(64, bool),
        vflip=np.zeros(64, bool),
    )
    plan.views = (plan,)
    return plan, [
        _jpeg(rng, height, width, _KINDS[i % len(_KINDS)]) for i, (height, width) in enumerate(sizes.tolist())
    ]


class _Kind(NamedTuple):
    gray: bool = False
    subsampling: int = 0  # Pillow's: 4:4:4, 4:2:2, 4:2:0
    progressive: bool = False
    quality: int = 90


# Of 1,000 ImageNet files 761 are 4:4:4 and 23 gray: with fancy upsampling nvImageCodec 0.9 decodes regions of these on
# the GPU, and of all others on the CPU.
_KINDS = (
    *(_Kind(), _Kind(quality=71), _Kind(progressive=True), _Kind(gray=True), _Kind(gray=True, progressive=True)),
    *(_Kind(subsampling=1), _Kind(subsampling=2), _Kind(subsampling=2, quality=71)),
    _Kind(subsampling=2, progressive=True),
)


def _jpeg(rng: np.random.Generator, height: int, width: int, kind: _Kind) -> bytes:
    """A smooth picture with some noise."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-6, 7, (height, width, 1))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("L" if kind.gray else "RGB")
    out = io.BytesIO()
    image.save(out, "JPEG", quality=kind.quality, subsampling=kind.subsampling, progressive=kind.progressive)
    return out.getvalue()
