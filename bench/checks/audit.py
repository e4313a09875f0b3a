"""Does a loader give every image once an epoch, and how well does it shuffle them?

Works with any loader that reads an ImageFolder: each image is put into a class of its own, so that the label that comes
out names the image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contestants import BY_NAME
from ..core import PROGRAM, images, machine
from ..core.job import Job

NAME = "audit"
HELP = "is every image once in an epoch, and in what order?"
LOADERS = "tv-v2-pil,dali-doc-cpu,ours-torchvision,ours-dali-cpu"
Array = npt.NDArray[np.int64]


def one_class_each(root: Path, count: int, folder: Path) -> list[str]:
    """Link `count` images of `root`, evenly chosen, as classes 000000, 000001, ...; returns their own classes."""
    files = images.image_files(root)
    chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round()]
    for number, file in enumerate(chosen):
        place = folder / f"{number:06d}"
        place.mkdir(parents=True)
        os.symlink(file.resolve(), place / f"image{file.suffix}")
    return [file.relative_to(root).parts[0] for file in chosen]


def epochs(name: str, root: Path, options: argparse.Namespace, cache: Path) -> list[Array]:
    """The labels of two epochs in the order in which they come out."""
    job = Job(
        name,
        options.recipe,
        root=str(root),
        batch_size=options.batch_size,
        workers=options.workers,
        device="cpu",
        seed=options.seed,
        cache=str(cache),
    )
    loader = BY_NAME[name].load()(job)
    found = []
    for _ in range(2):
        targets = [batch[1] for batch in loader]
        found.append(np.concatenate([np.asarray(t).reshape(-1) for t in targets]).astype(np.int64))
    if hasattr(loader, "close"):
        loader.close()
    return found


def audit(order: Array, second: Array, classes: Sequence[str], batch_size: int) -> dict[str, Any]:
    """What an epoch held, and how far its order is from chance.

    Under a uniform permutation of n: `correlation`s are 0 +- `noise`, the mean `displacement` is n / 3, and
    `same_class` (neighbours of one class) is `same_class_expected`.
    """
    n = len(classes)
    counts = np.bincount(order[(order >= 0) & (order < n)], minlength=n)
    dropped = n % batch_size
    place = np.full(n, -1)
    place[order[::-1]] = np.arange(len(order))[::-1]
    later = np.full(n, -1)
    later[second[::-1]] = np.arange(len(second))[::-1]
    both = (place >= 0) & (later >= 0)
    names = np.unique(np.asarray(classes), return_inverse=True)[1]
    sizes = np.bincount(names)
    return {
        "images": n,
        "handed_out": len(order),
        "missing": int((counts == 0).sum()),
        "doubled": int((counts > 1).sum()),
        "exact": bool((counts <= 1).all() and len(order) in (n, n - dropped)),
        "correlation": correlation(np.arange(len(order)), order),
        "between_epochs": correlation(place[both], later[both]),
        "noise": 1 / np.sqrt(n),
        "displacement": float(np.abs(order - np.arange(len(order))).mean() / n),
        "displacement_expected": 1 / 3,
        "next_in_file_order": float((np.diff(order) == 1).mean()),
        "same_class": float((names[order[1:]] == names[order[:-1]]).mean()),
        "same_class_expected": float((sizes * (sizes - 1)).sum() / (n * (n - 1))),
        "same_order_next_epoch": bool(np.array_equal(order, second)),
    }


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 else 0.0


HEADS = ("loader", "handed out", "missing", "doubled", "order ~ file order", "epoch 1 ~ epoch 2",
         "mean displacement", "same-class neighbours")  # fmt: skip


def cells(name: str, r: dict[str, Any]) -> list[str]:
    if "error" in r:
        return [name, r["error"], *[""] * 6]
    return [
        name,
        f"{r['handed_out']} of {r['images']}",
        str(r["missing"]),
        str(r["doubled"]),
        f"{r['correlation']:+.3f}",
        f"{r['between_epochs']:+.3f}" + (" (same order)" if r["same_order_next_epoch"] else ""),
        f"{r['displacement']:.3f} n",
        f"{r['same_class']:.2%}",
    ]


def markdown(results: dict[str, Any]) -> str:
    first = next((r for r in results["loaders"].values() if "error" not in r), None)
    lines = ["# Audit of an epoch", ""]
    if first:
        lines += [
            f"`{PROGRAM} audit`: {first['images']} images of {results['data']}, recipe {results['recipe']}, "
            f"batches of {results['batch_size']}, {results['workers']} workers. By chance alone the correlations would "
            f"be 0 +- {first['noise']:.3f}, the displacement 0.333 n and the share of same-class neighbours "
            f"{first['same_class_expected']:.2%}. Missing images are those of a dropped last batch where nothing is "
            "doubled.",
            "",
        ]
    lines += ["| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
    lines += ["| " + " | ".join(cells(name, r)) + " |" for name, r in results["loaders"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join([*lines, "", f"{versions}.", ""])


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    p.add_argument("--only", default=LOADERS, metavar="NAMES", help=f"loaders, by commas ({LOADERS})")
    p.add_argument("--recipe", choices=("classic", "eval"), default="classic")
    p.add_argument("--images", type=int, metavar="N", default=800, help="images to audit (800)")
    p.add_argument("--batch-size", type=int, metavar="N", default=64, help="images a batch (64)")
    p.add_argument("--workers", type=int, metavar="N", default=2, help="workers or threads (2)")
    p.add_argument("--seed", type=int, metavar="N", default=0, help="of images and loaders (0)")
    p.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/audit"), help="for the report (runs/audit)")


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    names = [name.strip() for name in options.only.split(",") if name.strip()]
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        print(f"--only {unknown[0]!r}: must be among {', '.join(BY_NAME)}", file=sys.stderr)
        return 2
    console = Console(soft_wrap=True)
    data = options.data or images.default_data(options.seed)
    results: dict[str, Any] = {
        "data": "generated images" if options.data is None else options.data.resolve().name,
        "recipe": options.recipe,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "versions": machine.versions(),
        "loaders": {},
    }
    train, val = images.split_roots(data)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "data"
        classes = one_class_each(val if options.recipe == "eval" else train, options.images, root)
        for name in names:
            cache = Path(scratch) / hashlib.sha256(name.encode()).hexdigest()[:8]
            cache.mkdir()
            missing = BY_NAME[name].missing()
            try:
                if missing:
                    raise RuntimeError(missing)
                first, second = epochs(name, root, options, cache)
                results["loaders"][name] = audit(first, second, classes, options.batch_size)
            except Exception as error:  # a peer may fail in any way; the others are still to be audited
                results["loaders"][name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            row = zip(HEADS[1:], cells(name, results["loaders"][name])[1:], strict=True)
            console.print(f"{name}: " + ", ".join(f"{h} {v}" for h, v in row if v), highlight=False)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "audit.json").write_text(json.dumps(results, indent=1))
    (options.out / "audit.md").write_text(markdown(results))
    console.print(f"{options.out / 'audit.md'}", highlight=False)
    ours = [r for name, r in results["loaders"].items() if name.startswith("ours")]
    return 0 if all(r.get("exact") for r in ours) else 1
