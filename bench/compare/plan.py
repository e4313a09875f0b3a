"""Which contestants run which recipes for each part of the comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..contestants import BY_NAME, MODES
from ..core import PROGRAM, images
from ..core.job import Job
from .results import SECTIONS

RECIPES = ("classic", "strong", "advanced", "eval")
QUICK = ("tv-v1-pil", "dali-doc-cpu", "ours-torchvision", "ours-dali-cpu", "ours-dali-gpu")


def plan(options: argparse.Namespace, train: str, val: str) -> tuple[list[Job], list[dict[str, str]]]:
    """All cells of the run, and who is missing and why. Raises ValueError for unknown names."""
    cache = images.cache_dir() / "converted"
    cache.mkdir(parents=True, exist_ok=True)
    chosen = _names(options)
    missing = [
        {"contestant": n, "reason": BY_NAME[n].missing(), "install": "" if BY_NAME[n].gpu else BY_NAME[n].install}
        for n in chosen
        if BY_NAME[n].missing()
    ]
    absent = {m["contestant"] for m in missing}
    present = [n for n in chosen if n not in absent]
    asked = _asked(options.recipes, RECIPES, "--recipes") or list(RECIPES[:2] if options.quick else RECIPES)
    sections = _asked(options.sections, SECTIONS, "--sections") or (["loaders"] if options.quick else list(SECTIONS))
    jobs: list[Job] = []

    def add(section: str, name: str, recipe: str, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "root": val if recipe in ("eval", "none") else train,
            "batch_size": options.batch_size,
            "workers": options.workers,
            "device": options.device,
            "seed": options.seed,
            "seconds": options.seconds,
            "cold": options.cold,
            "cache": str(cache),
        }
        if name in present and recipe in BY_NAME[name].recipes:
            jobs.append(Job(name, recipe, section=section, **(settings | changes)))

    sweepers = [n for n in ("tv-v1-pil", "tv-v2-tensor", "dali-doc-cpu", "ours-torchvision", "ours-dali-cpu",
                            "ours-dali-gpu") if n in present]  # fmt: skip
    for section in sections:
        if section == "loaders":
            for recipe in asked:
                for name in present:
                    if BY_NAME[name].kind != "bound":
                        add(section, name, recipe)
        elif section == "bounds":
            for name in present:
                if BY_NAME[name].kind == "bound":
                    add(section, name, "classic")
        elif section == "modes":
            for recipe in MODES:
                for name in sweepers:
                    add(section, name, recipe, root=train)
        elif section == "workers":
            for workers in (0, 1, 2, 4, 8):
                for name in sweepers:
                    add(section, name, "strong", workers=workers)
        elif section == "batches":
            for size in (32, 64, 128, 256):
                for name in sweepers:
                    add(section, name, "strong", batch_size=size)
        elif section == "training":
            for name in ("synthetic", *sweepers):
                add(section, name, "strong", model=options.model)
    if not jobs:
        raise ValueError(f"no contestant can run: see {PROGRAM} --list")
    return jobs, missing


def _names(options: argparse.Namespace) -> list[str]:
    everyone = tuple(BY_NAME)
    return _asked(options.only, everyone, "--only") or list(QUICK if options.quick else everyone)


def _asked(text: str, allowed: Sequence[str], option: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in allowed:
            raise ValueError(f"{option} {name!r}: must be among {', '.join(allowed)}")
    return names
