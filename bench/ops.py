"""What augmenting a batch costs, policy by policy, ours against what people use.

Everybody starts from 8-bit images in the form that its pipelines have (a batch, a list of tensors, PIL images, HWC
arrays) and ends with tensors, PIL by `pil_to_tensor`. Drawing is counted. Rounds are interleaved, in one process.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core import PROGRAM, machine

NAME = "ops"
HELP = "what augmenting a batch costs, policy by policy"
SCHEMA = "dali-imagenet-ops/1"
POLICIES = ("randaugment", "trivialaugment", "autoaugment", "augmix", "rand-m9-mstd0.5-inc1", "augmix-m3-w3",
            "3-augment", "color_jitter")  # fmt: skip
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
Results = dict[str, Any]


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
            f"## Milliseconds for {s['batch_size']} images of {s['size']} px ({s['device']}, {s['threads']} thread)",
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
            f"- {PROGRAM} ops {results['command']}".rstrip(),
            f"- {__doc__.split(chr(10) * 2)[1].replace(chr(10), ' ').strip()}" if __doc__ else "",
            f"- {s['rounds']} rounds of {s['batches']} batches after one dropped, {s['clock']}; a new draw for every "
            "batch, ours from the plan's own. timm's posterize to 0 bits, which Pillow refuses, leaves the image.",
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
            f"ms for {s['batch_size']} images of {s['size']} px, {s['device']}, {s['threads']} thread; logarithmic"
        )
        ax.set_title("Augmenting a batch (hatched: one operation for all samples)")
        figure.legend(fontsize=8, ncols=2, loc="outside lower center")
        figures.save(figure, file)


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--quick", action="store_true", help="three policies, few rounds, within a minute")
    p.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    p.add_argument("--policies", default="", metavar="NAMES", help=", ".join(POLICIES))
    p.add_argument("--batch-size", type=int, metavar="N", help="64; on a GPU 256")
    p.add_argument("--rounds", type=int, metavar="N", help="15; quick: 3")
    p.add_argument("--threads", type=int, metavar="N", default=1, help="of torch and DALI (1, as loaders' workers)")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (runs/ops-<time>)")


def run(options: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from rich.table import Table

    from .ops_contestants import SIZE, clock_of, measure, pictures

    console = Console()
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
        "command": " ".join(w for w in options.words if w != "--out" and w != str(options.out)),
        "settings": {"batch_size": size, "size": SIZE, "device": device, "threads": options.threads, "rounds": rounds,
                     "batches": batches, "policies": wanted, "clock": clock_of(device)[1]},
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
