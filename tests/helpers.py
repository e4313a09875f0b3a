"""What test files share: backends, loaders and their batches, pictures, processes, and cases of pixel operations."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dali_imagenet
from dali_imagenet import Loader, create_loader
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.data.tfrecord import masked_crc
from dali_imagenet.ops import Op
from dali_imagenet.transforms.pixel_ops import Workspace, apply_ops_image

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = Path(dali_imagenet.__file__).parents[1]  # ROOT, or where the wheel is installed
Batches = list[tuple[Tensor, Tensor]]


# ---- backends

needs_dali = pytest.mark.skipif(not dali_available()[0], reason=dali_available()[1])
HERE = ["torchvision", "dali"] if dali_available()[0] else ["torchvision"]
"""The backends that can run here, for tests that compare them; BACKENDS is for tests of each."""
BACKENDS = ["torchvision", pytest.param("dali", marks=needs_dali)]
ENGINES = [("torchvision", 0), ("torchvision", 2), pytest.param("dali", 1, marks=needs_dali)]
"""Backends with a number of workers: in-process, processes, DALI's threads."""


# ---- loaders and what they yield

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]


def load(data: Any, recipe: Any, **options: Any) -> Loader:
    """A small loader on the CPU that starts no process; a file with other defaults makes a partial of it."""
    defaults: dict[str, Any] = {"batch_size": 8, "backend": "torchvision", "device": "cpu", "num_workers": 0}
    return create_loader(data, recipe, **(defaults | options))


def copied(batches: Iterable[tuple[Tensor, Tensor]]) -> Batches:
    """All of them, in memory of their own."""
    return [(images.clone(), targets.clone()) for images, targets in batches]


def same(a: Batches, b: Batches) -> bool:
    """As many batches, with equal images and equal targets."""
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def saved(loader: Loader) -> dict[str, Any]:
    """The state after a round trip through JSON, as a checkpoint file would hold it."""
    state: dict[str, Any] = json.loads(json.dumps(loader.state_dict()))
    return state


# ---- pictures


def photo(rng: np.random.Generator, height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Something with smooth areas and edges, as photographs have."""
    coarse = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int16)
    pixels[height // 3 : height // 2, width // 4 :] //= 2
    pixels += rng.integers(-8, 9, pixels.shape, np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a file; odd and broken ones are made by bench.checks.inputs."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def encode_small(width: int = 40, height: int = 30, mode: str = "RGB", format: str = "JPEG", **options: Any) -> bytes:
    """Of a quality that makes more than a header of the smallest ones."""
    options = ({"quality": 100} if format == "JPEG" else {}) | options
    return encode(photo(np.random.default_rng(0), height, width, mode), format, **options)


def write(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def make_folder(root: Path, count: int, classes: int = 4, seed: int = 0, low: int = 40, high: int = 200) -> Path:
    """An ImageFolder tree of JPEGs of mixed sizes and subsamplings."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        folder = root / f"class_{i % classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = (int(v) for v in rng.integers(low, high, 2))
        quality, subsampling = int(rng.integers(80, 97)), int(rng.integers(0, 3))
        file = encode(photo(rng, height, width), quality=quality, subsampling=subsampling)
        (folder / f"{i:05d}.JPEG").write_bytes(file)
    return root


# ---- processes


def start(*words: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Python, which imports from this checkout, with these words; what it says is there to be read."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=_environment(env), **(pipes | options))


def python(*words: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    return subprocess.run([sys.executable, *words], env=_environment(env), **(settings | options))


def script(code: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `python`, of code in a string, which may be indented."""
    return python("-c", textwrap.dedent(code), *words, **options)


def launch(processes: int, *words: str) -> subprocess.Popen[str]:
    """A script under torchrun, or alone where one process is asked for; on the CPU."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    return start(*launcher, *words, env={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; it has to end well, in time."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    assert process.returncode == 0, err
    return out


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # what is installed may lie on it
    return {**os.environ, "PYTHONPATH": path, **(more or {})}


def is_worker(process: psutil.Process) -> bool:
    """Whether it lives, and is not the one that multiprocessing keeps for itself."""
    try:
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return False


def workers_of(process: psutil.Process | None = None) -> list[psutil.Process]:
    """What this process, or another, has started and what that has started."""
    return [p for p in (process or psutil.Process()).children(recursive=True) if is_worker(p)]


# ---- devices


class NoHostReads(TorchDispatchMode):
    """Fails on operators that make the host wait for a device: reading a value, or a shape that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        forbidden = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "bincount", "equal"}
        if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} with a mask counts its elements"
        assert name not in forbidden, f"{name} makes the host wait"
        return func(*args, **(kwargs or {}))


# ---- pixel operations

FILL = (124, 116, 104)
FACTORS = (0.0, 0.1, 0.73, 1.0, 1.27, 1.9, 9.0)
SHEARS = (0.0, 0.09, -0.3, 0.99, 3.0)
SHIFTS = (0.0, 1.0, -7.0, 30.4, 5000.0, -5000.0)
ANGLES = (0.0, 9.0, -30.0, 45.5, 90.0, 180.0, -90.0, 135.0, 360.0, 0.01)
ARGUMENTS: dict[Op, Sequence[float]] = {
    Op.IDENTITY: (0.0,),
    Op.SHEAR_X: SHEARS,
    Op.SHEAR_Y: SHEARS,
    Op.TRANSLATE_X: SHIFTS,
    Op.TRANSLATE_Y: SHIFTS,
    Op.ROTATE: ANGLES,
    Op.BRIGHTNESS: FACTORS,
    Op.COLOR: FACTORS,
    Op.CONTRAST: FACTORS,
    Op.SHARPNESS: FACTORS,
    Op.POSTERIZE: range(9),
    Op.SOLARIZE: (0.0, 0.5, 127.5, 178.5, 255.0),
    Op.AUTO_CONTRAST: (0.0,),
    Op.EQUALIZE: (0.0,),
    Op.INVERT: (0.0,),
    Op.HUE: (-0.5, -0.1, -1e-9, 0.0, 0.03, 0.5),
    Op.GRAYSCALE: (0.0,),
    Op.GAUSSIAN_BLUR: (0.1, 0.7, 2.0),
    Op.SOLARIZE_ADD: (0.0, 40.0, 110.0, 128.0),
    **dict.fromkeys((Op.AFFINE_X, Op.AFFINE_Y, Op.AFFINE_SHEAR_X, Op.AFFINE_SHEAR_Y), (0.0, 7.5)),
    Op.AFFINE_SCALE: (0.05, 1.0),
    Op.AFFINE: ANGLES,
    Op.PIL_AFFINE: ANGLES,
    Op.PIL_SHEAR_X: (0.0, 0.27, -0.3),
    Op.PIL_SHEAR_Y: (0.0, 0.27, -0.3),
    Op.PIL_TRANSLATE_X: (0.0, 60.5, -20.25, 1e4),
    Op.PIL_TRANSLATE_Y: (0.0, 60.5, -20.25, 1e4),
    Op.PIL_ROTATE: ANGLES,
    Op.PIL_BRIGHTNESS: FACTORS,
    Op.PIL_COLOR: FACTORS,
    Op.PIL_CONTRAST: FACTORS,
    Op.PIL_SHARPNESS: FACTORS,
    Op.PIL_POSTERIZE: range(9),
    Op.PIL_SOLARIZE: (0.0, 26.0, 128.0, 256.0),
    Op.PIL_AUTO_CONTRAST: (0.0,),
    Op.PIL_EQUALIZE: (0.0,),
    Op.PIL_INVERT: (0.0,),
    Op.PIL_GRAYSCALE: (0.0,),
    Op.PIL_GAUSSIAN_BLUR: (0.0, 0.1, 0.7, 2.0, 5.0),
    Op.PIL_SOLARIZE_ADD: (0.0, 40.0, 110.0, 128.0),
}
"""Of each operation: those that change nothing, usual ones and extreme ones."""
PIL_WARPS = (Op.PIL_SHEAR_X, Op.PIL_SHEAR_Y, Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y, Op.PIL_ROTATE, Op.PIL_AFFINE)
SCRATCH = Workspace()


def patterns(height: int, width: int) -> list[Tensor]:
    """Noise, a bell of grays that leaves the ends of the range free, one flat channel, and one flat color."""
    rng = np.random.default_rng(height * 1000 + width)
    bell = np.clip(rng.normal(120, 40, (3, height, width)), 5, 240)
    half_flat = bell.copy()
    half_flat[1] = 77
    kinds = [rng.integers(0, 256, bell.shape), bell, half_flat, np.full(bell.shape, 77)]
    return [torch.from_numpy(np.asarray(k).astype(np.uint8)) for k in kinds]


def auxes(op: Op, height: int, width: int) -> Sequence[int]:
    """The sizes of kernels, or the filters, that an operation has on an image of this size."""
    if op == Op.GAUSSIAN_BLUR:  # reflection needs more pixels than half a kernel
        return [k for k in (1, 3, 7, 23) if k // 2 < min(height, width)]
    return (0, 2, 3) if op in PIL_WARPS else (0,)


def f32(value: float) -> float:
    """As plans hold it."""
    return float(np.float32(value))


def every_case(op: Op, size: tuple[int, int]) -> tuple[Tensor, NDArray[Any], NDArray[Any], NDArray[Any]]:
    """A batch of images with one operation each: all arguments on all patterns."""
    rows = [(p, f32(a), x) for x in auxes(op, *size) for a in ARGUMENTS[op] for p in patterns(*size)]
    images = torch.stack([r[0] for r in rows])
    arg, aux = np.array([[r[1]] for r in rows], np.float32), np.array([[r[2]] for r in rows], np.int16)
    return images, np.full((len(rows), 1), op, np.int16), arg, aux


def per_image(images: Tensor, op: NDArray[Any], arg: NDArray[Any], aux: NDArray[Any]) -> Tensor:
    """A program of each image, executed one by one."""
    rows = zip(images, op, arg, aux, strict=True)
    return torch.stack([apply_ops_image(i, o, a, x, FILL, SCRATCH).clone() for i, o, a, x in rows])


# ---- containers


def _varint(value: int) -> bytes:
    out = bytearray()
    value %= 1 << 64
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _nested(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def tf_example(**features: bytes | int) -> bytes:
    """A tf.train.Example; "__" in a name is a slash. Integers are packed, as protobuf 3 writes them."""
    entries = []
    for name, value in features.items():
        data = _nested(1, _nested(1, value)) if isinstance(value, bytes) else _nested(3, _nested(1, _varint(value)))
        entries.append(_nested(1, _nested(1, name.replace("__", "/").encode()), _nested(2, data)))
    return _nested(1, *entries)


def tf_record(data: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = len(data).to_bytes(8, "little")
    return length + masked_crc(length).to_bytes(4, "little") + data + masked_crc(b"").to_bytes(4, "little")


def hf_dataset(root: Path) -> Any:
    """A `datasets.Dataset` of a folder, in its order, with batches of a few rows. In memory."""
    import datasets

    datasets.disable_progress_bars()
    paths = sorted(root.rglob("*.JPEG"))
    names = sorted({path.parent.name for path in paths})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "label": [names.index(path.parent.name) for path in paths],
    }
    return datasets.Dataset.from_dict(rows, features)
