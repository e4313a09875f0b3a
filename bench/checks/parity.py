"""How far each backend's pixels are from torchvision on PIL, for the same draws."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..core import PROGRAM, images, machine

NAME = "parity"
HELP = "how far are the pixels from torchvision's?"


def markdown(results: dict[str, Any]) -> str:
    lines = [
        "# Parity with torchvision",
        "",
        f"`{PROGRAM} parity`, {results['images']} images of {results['data']}, 224 pixels, the same draws "
        'executed by torchvision (references) and by each backend on the CPU. In grey levels of 255. "differing" '
        "counts values more than half a level away.",
        "",
        "| recipe | backend | reference | mean | max | differing | labels agree |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    names = {"pil": "PIL images", "tensor": "uint8 tensors"}
    for c in results["pixels"]:
        lines.append(
            f"| {c['case']} | {c['backend']} | {names[c['reference']]} | {c['mean']:.3f} | {c['max']:.0f} | "
            f"{c['differing']:.1%} | {c['labels_agree']:.0%} |"
        )
    if results["top1"]:
        lines += [
            "",
            "Top-1 of one small network trained on CIFAR-10 JPEGs, evaluated (resize 40, centre crop 32) through:",
            "",
            "| interpolation | through | top-1 | other prediction than torchvision on PIL |",
            "|---|---|---:|---:|",
        ]
        for c in results["top1"]:
            text = f"{c['differing']} of {c['images']}"
            lines.append(f"| {c['interpolation']} | {c['through']} | {c['top1']:.2%} | {text} |")
    return "\n".join([*lines, "", _versions(results["machine"], results["versions"]), ""])


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    p.add_argument("--images", type=int, metavar="N", help="images a recipe (128)")
    p.add_argument("--cifar", type=Path, metavar="DIR", help="train/ and test/ of CIFAR-10 JPEGs, for the top-1")
    p.add_argument("--steps", type=int, metavar="N", help="training steps of its network (196, an epoch)")
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/parity"), help="for the report (runs/parity)")
    group = p.add_argument_group("does a network learn the same?")
    add = group.add_argument
    add("--train", action="store_true", help="train on --cifar through torchvision's own DataLoader and each backend")
    add("--recipes", default="classic,strong", metavar="NAMES", help="by commas (classic,strong)")
    add("--seeds", type=int, metavar="N", default=5, help="runs of each; more can be added to what is in --out (5)")
    add("--train-images", type=int, metavar="N", default=20_000, help="images of an epoch (20000)")
    add("--epochs", type=int, metavar="N", default=6, help="of each run (6)")
    add("--workers", type=int, metavar="N", default=1, help="of each loader (1)")


def run_training(options: argparse.Namespace) -> int:
    """0 where every backend agrees with torchvision's own loader and the wrong one does not; 1 otherwise."""
    from rich.console import Console

    from . import parity_train

    console, recipes = Console(soft_wrap=True), options.recipes.split(",")
    wrong = [name for name in recipes if name not in parity_train.RECIPES]
    for refused, reason in (
        (options.cifar is None, "--train needs --cifar DIR, with train/ and test/ of CIFAR-10's JPEGs"),
        (wrong, f"--recipes {options.recipes}: must be of {', '.join(parity_train.RECIPES)}"),
        (options.images or options.steps, "--train has --train-images and --epochs in place of --images and --steps"),
        (options.seeds < 2, f"--seeds {options.seeds}: must be at least 2"),
    ):
        if refused:
            console.print(reason, highlight=False)
            return 2
    sizes = options.seeds, options.train_images, options.epochs, options.workers
    made = parity_train.run_all(options.cifar, options.out, recipes, *sizes, console)
    rows = parity_train.verdicts(made)
    words = f"{PROGRAM} parity --train --cifar DIR --seeds {sizes[0]} --train-images {sizes[1]} --epochs {sizes[2]}"
    ran_on = {"processor": " and ".join(sorted({run["processor"] for run in made}))}
    lines = [*parity_train.markdown(rows, made, words), _versions(ran_on, machine.versions()), ""]
    found = {"verdicts": rows, "runs": made, "machine": machine.describe() | ran_on, "versions": machine.versions()}
    (options.out / "parity-train.json").write_text(json.dumps(found, indent=1))
    (options.out / "parity-train.md").write_text("\n".join(lines))
    console.print("\n".join(lines[4:-2]), highlight=False)
    return 0 if parity_train.passed(rows) else 1


def _versions(described: dict[str, Any], versions: dict[str, str]) -> str:
    return f"{described['processor']}; {', '.join(f'{name} {version}' for name, version in versions.items())}."


def run(options: argparse.Namespace) -> int:
    if options.train:
        return run_training(options)
    from rich.console import Console

    from .parity_cases import agreement, compare

    console = Console(soft_wrap=True)
    count, steps = options.images or 128, options.steps or 196
    data = options.data or images.default_data()
    results = {
        "data": "generated images" if options.data is None else options.data.resolve().name,
        "images": count,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "pixels": compare(images.split_roots(data)[0], count, console),
        "top1": agreement(options.cifar, steps, console) if options.cifar else [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "parity.json").write_text(json.dumps(results, indent=1))
    (options.out / "parity.md").write_text(markdown(results))
    console.print(f"{options.out / 'parity.md'}", highlight=False)
    return 0
