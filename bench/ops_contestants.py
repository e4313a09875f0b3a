"""Who augments a batch in the comparison of policies, and how long it takes them."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from dali_imagenet import rng
from dali_imagenet.ops import Op
from dali_imagenet.policy import AugmentPolicy, OpPlan, resolve
from dali_imagenet.transforms.pixel_ops import Workspace
from dali_imagenet.transforms.postprocess import run_batch, run_image

from .core import images, stats

SIZE = 224
DISTINCT = 16  # pictures; a batch repeats them
JITTER = (0.4, 0.4, 0.4, 0.1)
JITTER_NAME = "color_jitter"
Run = Callable[[], Any]


def pictures(count: int) -> Tensor:
    """uint8 [count, 3, SIZE, SIZE]: generated photographs."""
    found = []
    for i in range(min(count, DISTINCT)):
        image = Image.open(io.BytesIO(images.make_jpeg(0, i))).convert("RGB").resize((SIZE, SIZE))
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack([found[i % len(found)] for i in range(count)])


def ours(name: str, batch: Tensor, together: bool) -> Run:
    policy = None if name == JITTER_NAME else resolve(name, image_size=SIZE)
    workspace, out, step = Workspace(map_bytes=200 * 4 * SIZE**2), torch.empty_like(batch), iter(range(1 << 30))
    # black is torchvision's default, which asks for no fill
    fill = None if policy is None or policy.fill == (0, 0, 0) else policy.fill

    def run() -> Tensor:
        part = _draw(policy, len(batch), next(step))
        if together:
            return run_batch(batch, part, fill)
        for row, image in enumerate(batch):
            out[row].copy_(run_image(image, part, row, fill, workspace))
        return out

    return run


def _draw(policy: AugmentPolicy | None, rows: int, step: int) -> Any:
    """A new draw for a batch, as the plan makes it."""
    samples = np.arange(step * rows, (step + 1) * rows)
    if policy is not None:
        u = rng.uniforms(0, 0, rng.STREAM_POLICY, samples, policy.num_uniforms)
        return policy.draw(u, (SIZE, SIZE))
    u = rng.uniforms(0, 0, rng.STREAM_COLOR, samples, 8)
    strengths = np.array(JITTER)
    low = np.append(1 - strengths[:3], -strengths[3])
    arg = low + u[:, :4] * (np.append(1 + strengths[:3], strengths[3]) - low)
    turn = u[:, 4:].argsort(1)
    op = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE], np.int16)[turn]
    return OpPlan(op, np.take_along_axis(arg, turn, 1).astype(np.float32), np.zeros_like(op))


def _torchvision(module: Any, name: str) -> Any:
    makers = {
        "randaugment": lambda: module.RandAugment(2, 9),
        "trivialaugment": lambda: module.TrivialAugmentWide(),
        "autoaugment": lambda: module.AutoAugment(),
        "augmix": lambda: module.AugMix(),
        JITTER_NAME: lambda: module.ColorJitter(*JITTER),
    }
    return makers[name]() if name in makers else None


def v2_loop(name: str, batch: Tensor) -> Run | None:
    transform = _torchvision(v2, name)
    return None if transform is None else lambda: [transform(image) for image in batch]


def v2_batch(name: str, batch: Tensor) -> Run | None:
    transform = _torchvision(v2, name)
    return None if transform is None else lambda: transform(batch)


def pil_loop(name: str, batch: Tensor) -> Run | None:
    from torchvision import transforms as v1

    if batch.device.type != "cpu":
        return None
    transform = _torchvision(v1, name) or _timm(name)
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch]
    return lambda: [pil_to_tensor(transform(image)) for image in pil]


def _timm(name: str) -> Callable[[Image.Image], Image.Image]:
    from timm.data import auto_augment as timm_ops

    hparams = {"translate_const": int(SIZE * 0.45), "img_mean": (124, 116, 104)}  # as timm's create_transform
    if name.startswith("rand"):
        transform = timm_ops.rand_augment_transform(name, hparams)
    elif name.startswith("augmix"):
        transform = timm_ops.augment_and_mix_transform(name, {**hparams, "translate_pct": 0.3})
    else:
        transform = timm_ops.auto_augment_transform("3a", hparams)

    def apply(image: Image.Image) -> Image.Image:
        try:
            return cast(Image.Image, transform(image))
        except ValueError:  # timm asks a current Pillow to posterize to 0 bits
            return image

    return apply


def dali(name: str, batch: Tensor) -> Run | None:
    import nvidia.dali as nvidia_dali
    from nvidia.dali import fn
    from nvidia.dali.auto_aug import auto_augment, rand_augment, trivial_augment

    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of DALI about its own auto_aug
    pipeline_def: Any = nvidia_dali.pipeline_def  # type: ignore[attr-defined]  # DALI is hardly annotated

    augment: dict[str, Callable[[Any], Any]] = {
        "randaugment": lambda data: rand_augment.rand_augment(data, n=2, m=9),
        "trivialaugment": lambda data: trivial_augment.trivial_augment_wide(data),
        "autoaugment": lambda data: auto_augment.auto_augment(data, "image_net"),
    }
    if name not in augment:
        return None
    gpu = batch.device.type == "cuda"
    arrays: list[Any] = [image.permute(1, 2, 0).contiguous() for image in batch]
    if not gpu:
        arrays = [image.numpy() for image in arrays]

    # DALI is hardly annotated, and missing on some machines
    @pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator, unused-ignore]
    def graph() -> Any:
        data = fn.external_source(source=lambda: arrays, batch=True, layout="HWC", no_copy=True,
                                  device="gpu" if gpu else "cpu")  # fmt: skip
        return augment[name](data)

    device_id = torch.cuda.current_device() if gpu else None
    pipe: Any = graph(batch_size=len(batch), num_threads=torch.get_num_threads(), device_id=device_id,
                      prefetch_queue_depth=1, exec_async=False, exec_pipelined=False, exec_dynamic=False,
                      seed=0)  # fmt: skip
    pipe.build()
    return partial(pipe.run)


def kornia(name: str, batch: Tensor) -> Run | None:
    import kornia.augmentation as K
    from kornia.augmentation import auto

    makers: dict[str, Callable[[], Any]] = {
        "randaugment": lambda: auto.RandAugment(2, 9),
        "trivialaugment": lambda: auto.TrivialAugment(),
        "autoaugment": lambda: auto.AutoAugment("imagenet"),
        JITTER_NAME: lambda: K.ColorJitter(*JITTER, p=1.0),
    }
    if name not in makers:
        return None
    transform = K.AugmentationSequential(makers[name](), data_keys=["input"])
    floats = batch.float() / 255  # kornia takes floats
    return lambda: transform(floats)


def torchaug(name: str, batch: Tensor) -> Run | None:
    from torchaug import transforms as ta

    if name == JITTER_NAME:
        transform: Any = ta.RandomColorJitter(*JITTER, p=1.0, batch_transform=True)
    else:
        transform = _torchvision(ta, name)
    return None if transform is None else lambda: transform(batch)


MAKERS: dict[str, Callable[[str, Tensor], Run | None]] = {
    "ours": lambda name, batch: ours(name, batch, False) if batch.device.type == "cpu" else None,
    "ours-batch": lambda name, batch: ours(name, batch, True),
    "v2-loop": v2_loop,
    "pil-loop": pil_loop,
    "dali": dali,
    "v2-batch": v2_batch,
    "kornia": kornia,
    "torchaug": torchaug,
}


def clock_of(device: str) -> tuple[Callable[[], float], str]:
    """With one thread on the CPU, the process's own CPU time, which other programs disturb least."""
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "CPU time of the process, all its threads"
    return time.perf_counter, "time on the clock"


def timed(run: Run, device: str, batches: int) -> float:
    """Milliseconds a batch."""
    clock, _ = clock_of(device)
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(batches):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) * 1e3 / batches


def measure(name: str, batch: Tensor, rounds: int, batches: int) -> list[dict[str, Any]]:
    """One policy: every contestant in interleaved rounds, after one that is dropped."""
    runs: dict[str, Run] = {}
    cells: dict[str, dict[str, Any]] = {}
    for who, make in MAKERS.items():
        cell: dict[str, Any] = {"policy": name, "contestant": who, "ms": [], "error": ""}
        try:
            run = make(name, batch)
        except Exception as error:
            cell["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        else:
            if run is None:
                continue
            runs[who] = run
        cells[who] = cell
    for number in range(-1, rounds):
        turned = [*runs][(number + 1) % len(runs) :] + [*runs][: (number + 1) % len(runs)]
        for who in turned if number % 2 else turned[::-1]:
            if cells[who]["error"]:
                continue
            try:
                milliseconds = timed(runs[who], batch.device.type, batches)
            except Exception as error:
                cells[who]["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                continue
            if number >= 0:
                cells[who]["ms"].append(round(milliseconds, 3))
    for cell in cells.values():
        if cell["ms"] and not cell["error"]:
            cell["summary"] = stats.spread(cell["ms"])
    return [*cells.values()]
