"""`python -m bench ops`: what augmenting a batch costs, policy by policy, ours against what people use.

Everybody starts from 8-bit images in the form that its pipelines have (a batch, a list of tensors, PIL images, HWC
arrays) and ends with tensors, PIL by `pil_to_tensor`. Drawing is counted. Rounds are interleaved, in one process.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from dali_imagenet import draws, pixel_ops
from dali_imagenet.batch_stage import run_batch, run_image
from dali_imagenet.ops import Op
from dali_imagenet.pixel_ops import Scratch
from dali_imagenet.policy import AugmentPolicy, OpPlan, resolve

from .core import images, machine, stats

SCHEMA = "dali-imagenet-ops/1"
SIZE = 224
DISTINCT = 16  # pictures; a batch repeats them
JITTER = (0.4, 0.4, 0.4, 0.1)
JITTER_NAME = "color_jitter"
POLICIES = ("randaugment", "trivialaugment", "autoaugment", "augmix", "rand-m9-mstd0.5-inc1", "augmix-m3-w3",
            "3-augment", JITTER_NAME)  # fmt: skip
QUICK = ("randaugment", "autoaugment", "rand-m9-mstd0.5-inc1")
# contestant: (column, what it is, whether every sample gets its own draw)
CONTESTANTS = {
    "ours": ("ours", "ours, image by image in reused memory", True),
    "ours-batch": ("ours b", "ours, batched: what runs on a GPU", True),
    "v2-loop": ("v2", "torchvision v2, a loop over uint8 tensors", True),
    "pil-loop": ("PIL", "a loop over PIL images: torchvision v1, or timm for its own names", True),
    "dali": ("DALI", "DALI's auto_aug", True),
    "v2-batch": ("v2 b*", "torchvision v2 on the whole batch: one draw for all", False),
    "kornia": ("kornia*", "kornia: operations drawn once a batch; color jitter is per sample", False),
    "torchaug": ("taug*", "TorchAug: operations drawn once a batch; color jitter is per sample", False),
}
Run = Callable[[], Any]
Results = dict[str, Any]


def pictures(count: int) -> Tensor:
    """uint8 [count, 3, SIZE, SIZE]: generated photographs."""
    found = []
    for i in range(min(count, DISTINCT)):
        image = Image.open(io.BytesIO(images.make_jpeg(0, i))).convert("RGB").resize((SIZE, SIZE))
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack([found[i % len(found)] for i in range(count)])


def ours(name: str, batch: Tensor, together: bool) -> Run:
    policy = None if name == JITTER_NAME else resolve(name, image_size=SIZE)
    scratch, out, step = Scratch(map_bytes=200 * 4 * SIZE**2), torch.empty_like(batch), iter(range(1 << 30))
    # black is torchvision's default, which asks for no fill
    fill = None if policy is None or policy.fill == (0, 0, 0) else policy.fill

    def run() -> Tensor:
        part = _draw(policy, len(batch), next(step))
        if together:
            return run_batch(batch, part, fill)
        for row, image in enumerate(batch):
            out[row].copy_(run_image(image, part, row, fill, scratch))
        return out

    return run


def _draw(policy: AugmentPolicy | None, rows: int, step: int) -> Any:
    """A new draw for a batch, as the plan makes it."""
    samples = np.arange(step * rows, (step + 1) * rows)
    if policy is not None:
        u = draws.uniforms(0, 0, draws.STREAM_POLICY, samples, policy.num_uniforms)
        return policy.draw(u, (SIZE, SIZE))
    u = draws.uniforms(0, 0, draws.STREAM_COLOR, samples, 8)
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


def median(results: Results, policy: str, who: str) -> float | None:
    for cell in results["cells"]:
        if cell["policy"] == policy and cell["contestant"] == who and "summary" in cell:
            return float(cell["summary"]["median"])
    return None


def best(results: Results, policy: str) -> float | None:
    """The faster of our two ways."""
    return min((m for m in (median(results, policy, who) for who in ("ours", "ours-batch")) if m), default=None)


def table(results: Results, ratios: bool) -> tuple[list[str], list[list[str]]]:
    """Milliseconds a batch, or times as long as ours (the faster of the two ways): heads and rows."""
    heads = ["policy", *(c[0] for c in CONTESTANTS.values())]
    rows = []
    for policy in results["settings"]["policies"]:
        mine, row = best(results, policy), [policy]
        for who in CONTESTANTS:
            value = median(results, policy, who)
            if value is None or (ratios and not mine):
                row.append("-")
            else:
                row.append(f"{value / (mine or 1):.1f}" if ratios else f"{value:.1f}" if value < 10 else f"{value:.0f}")
        rows.append(row)
    return heads, rows


def verdict(results: Results) -> list[str]:
    said = []
    for policy in results["settings"]["policies"]:
        mine = best(results, policy)
        correct = {who: median(results, policy, who) for who, c in CONTESTANTS.items()
                   if c[2] and not who.startswith("ours")}  # fmt: skip
        rivals = {who: value for who, value in correct.items() if value}
        if not mine or not rivals:
            continue
        first = min(rivals, key=lambda who: rivals[who])
        other = CONTESTANTS[first][1].split(":")[0]
        text = f"{policy}: {rivals[first] / mine:.1f} times as fast as {other}"
        text += ", the fastest other with a draw for each sample"
        if rivals.get("v2-loop") and first != "v2-loop":
            text += f"; {rivals['v2-loop'] / mine:.1f} times as fast as the loop over v2"
        said.append(text + ".")
    shaky = [c for c in results["cells"] if "summary" in c and c["summary"]["iqr_relative"] > 0.25]
    if shaky:
        said.append(f"{len(shaky)} of {len(results['cells'])} cells spread by more than 25%; where one operation is "
                    "drawn for the whole batch (*), that is the draw.")  # fmt: skip
    return said


def markdown(results: Results) -> str:
    def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        both = ["| " + " | ".join(r) + " |" for r in (heads, *rows)]
        return [both[0], "|---" + "|---:" * (len(heads) - 1) + "|", *both[1:], ""]

    s, m = results["settings"], results["machine"]
    spread = [
        [c["policy"], CONTESTANTS[c["contestant"]][1], f"{c['summary']['median']:.1f}",
         f"{c['summary']['q1']:.1f} .. {c['summary']['q3']:.1f}"]
        for c in results["cells"] if "summary" in c
    ]  # fmt: skip
    failed = [
        f"- {c['policy']}, {CONTESTANTS[c['contestant']][1]}: {c['error']}" for c in results["cells"] if c["error"]
    ]
    return "\n".join(
        [
            "# Augmentation compared",
            "",
            *(f"- {text}" for text in results["verdict"]),
            "",
            "![ops](ops.png)",
            "",
            f"## Milliseconds for a batch of {s['batch_size']} at {SIZE} px ({s['device']}, {s['threads']} thread)",
            "",
            *lines(*table(results, False)),
            "## Times as long as ours (the faster of the two ways)",
            "",
            *lines(*table(results, True)),
            "\\* one draw of the operation for the whole batch: not what the policies say, the floor that people know.",
            "",
            *(f"- {short}: {what}" for short, what, _ in CONTESTANTS.values()),
            "",
            "## Medians and quartiles, ms",
            "",
            *lines(["policy", "contestant", "median", "quartiles"], spread),
            *(["## Who failed", "", *failed, ""] if failed else []),
            "## How it was measured",
            "",
            f"- python -m bench ops {results['command']}".rstrip(),
            f"- {__doc__.split(chr(10) * 2)[1].replace(chr(10), ' ').strip()}" if __doc__ else "",
            f"- {s['rounds']} rounds of {s['batches']} batches after one dropped, {s['clock']}; a new draw for every "
            "batch, ours from the plan's own. timm's posterize to 0 bits, which Pillow refuses, leaves the image. "
            f"dali_imagenet._warp was {'' if s['compiled'] else 'not '}built.",
            f"- {m['processor']}, {m['cores']} cores, {', '.join(m['gpus']) or 'no GPU'}, {m['system']}; load "
            f"{results['load']['before']} before, {results['load']['after']} after",
            "- " + ", ".join(f"{k} {v}" for k, v in results["versions"].items()),
            "",
        ]
    )


def draw(results: Results, file: Path) -> None:
    from matplotlib import pyplot as plt

    from .core import figures

    policies = [p for p in results["settings"]["policies"] if best(results, p)]
    shades = (figures.OURS, "#7cc4a8", figures.BASE, figures.PEER, "#c8553d", "#c9d1d9", "#d9c27a", "#b9a7cf")
    colours = dict(zip(CONTESTANTS, shades, strict=True))
    with plt.rc_context(figures.STYLE):
        figure, ax = plt.subplots(figsize=(10, 0.8 + 0.75 * len(policies)), layout="constrained")
        height = 0.85 / len(CONTESTANTS)
        for number, (who, (_, what, right)) in enumerate(CONTESTANTS.items()):
            values = [(i, median(results, p, who)) for i, p in enumerate(policies)]
            known = [(i, v) for i, v in values if v]
            ax.barh([len(policies) - 1 - i + 0.42 - height * (number + 0.5) for i, _ in known], [v for _, v in known],
                    height * 0.92, color=colours[who], label=what, hatch=None if right else "///",
                    edgecolor="white", linewidth=0)  # fmt: skip
        ax.set_yticks(range(len(policies))[::-1], policies)
        ax.tick_params(axis="y", length=0)
        ax.set_xscale("log")
        s = results["settings"]
        ax.set_xlabel(
            f"ms for {s['batch_size']} images of {SIZE} px, {s['device']}, {s['threads']} thread; logarithmic"
        )
        ax.set_title("Augmenting a batch (hatched: one operation for all samples)")
        figure.legend(fontsize=8, ncols=2, loc="outside lower center")
        figures.save(figure, file)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench ops", description="What augmenting a batch costs, by policy.")
    p.add_argument("--quick", action="store_true", help="three policies, few rounds, within a minute")
    p.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    p.add_argument("--policies", default="", help=", ".join(POLICIES))
    p.add_argument("--batch-size", type=int, help="64; on a GPU 256")
    p.add_argument("--rounds", type=int, help="15; quick: 3")
    p.add_argument("--threads", type=int, default=1, help="of torch and DALI: 1 is what a loader's worker has")
    p.add_argument("--out", type=Path, help="folder of the report (runs/ops-<time>)")
    return p


def main(arguments: Sequence[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    options, console = parser().parse_args(arguments), Console()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    wanted = options.policies.split(",") if options.policies else list(QUICK if options.quick else POLICIES)
    unknown = [name for name in wanted if name not in POLICIES]
    if unknown or (device == "cuda" and not torch.cuda.is_available()):
        wrong = f"unknown policies {', '.join(unknown)}: give some of {', '.join(POLICIES)}"
        console.print(wrong if unknown else "--device cuda, but torch sees no GPU here", style="red")
        return 2
    torch.set_num_threads(options.threads)
    size = options.batch_size or (256 if device == "cuda" else 64)
    rounds, batches = options.rounds or (3 if options.quick else 15), 1 if device == "cpu" else 4
    folder = options.out or Path("runs") / f"ops-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    results: Results = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(w for w in arguments if w != "--out" and w != str(options.out)),
        "settings": {"batch_size": size, "size": SIZE, "device": device, "threads": options.threads, "rounds": rounds,
                     "batches": batches, "policies": wanted, "clock": clock_of(device)[1],
                     "compiled": pixel_ops._warp is not None},
        "machine": machine.describe(),
        "versions": machine.versions(),
        "load": {"before": machine.load()},
        "cells": [],
    }  # fmt: skip
    batch = pictures(size).to(device)
    with torch.no_grad():
        for name in wanted:
            with console.status(f"{name}, {rounds} rounds"):
                results["cells"] += measure(name, batch, rounds, batches)
    results["load"]["after"] = machine.load()
    results["verdict"] = verdict(results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ops.json").write_text(json.dumps(results, indent=1))
    (folder / "ops.md").write_text(markdown(results))
    draw(results, folder / "ops.png")
    for title, ratios in ((f"ms for {size} images of {SIZE} px, {device}", False), ("times as long as ours", True)):
        heads, rows = table(results, ratios)
        shown = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
        for number, head in enumerate(heads):
            shown.add_column(head, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    console.print("* one draw of the operation for the whole batch: not what the policies say", style="dim")
    for text in results["verdict"]:
        console.print(f"- {text}", highlight=False)
    for cell in results["cells"]:
        if cell["error"]:
            console.print(f"- {cell['policy']}, {cell['contestant']}: {cell['error']}", highlight=False)
    console.print(f"{folder / 'ops.json'}, ops.md, ops.png", highlight=False)
    return 0
