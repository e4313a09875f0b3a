"""What the numbers say, in sentences."""

from __future__ import annotations

import math
from typing import Any

from ..contestants import BY_NAME
from ..core import stats
from ..core.measure import TABLES
from .results import BASE, measured, rate, title

IMAGENET = 1_281_167  # training images of ILSVRC 2012


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _best(cells: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((c for c in cells if c["contestant"] in BY_NAME and BY_NAME[c["contestant"]].kind == kind), None)


def ranking(results: dict[str, Any]) -> list[str]:
    said = []
    for recipe in ("classic", "strong", "advanced", "eval"):
        cells = measured(results, "loaders", recipe)
        if len(cells) < 2:
            continue
        first, ours, peer = cells[0], _best(cells, "ours"), _best(cells, "peer")
        text = f"{recipe}: fastest is {title(first['contestant'])} with {rate(first):,.0f} images a second"
        if ours and peer:
            text += f"; ours / fastest peer ({title(peer['contestant'])}) = {rate(ours) / rate(peer):.2f}"
        base = next((c for c in cells if c["contestant"] == BASE), None)
        if ours and base:
            text += f", ours / torchvision on PIL = {rate(ours) / rate(base):.2f}"
        said.append(text + ".")
    return said


def bottleneck(results: dict[str, Any]) -> list[str]:
    """Shares of an image's time: reading and decoding from the upper bounds, the rest from the fastest loader."""
    bounds = {c["contestant"]: rate(c) for c in measured(results, "bounds")}
    read = bounds.get("read-only")
    said = []
    for recipe in ("classic", "strong"):
        cells = measured(results, "loaders", recipe)
        crops = bool(cells) and BY_NAME[cells[0]["contestant"]].kind == "ours"  # decode no more than they need
        decode = bounds.get("decode-crops" if crops else "decode-only")
        if not (read and decode and cells):
            continue
        fastest = rate(cells[0])
        times = {
            "reading": 1 / read,
            "decoding": max(0.0, 1 / decode - 1 / read),
            "resizing, augmenting and batching": max(0.0, 1 / fastest - 1 / decode),
        }
        total = sum(times.values())
        worst = max(times, key=lambda k: times[k])
        parts = ", ".join(f"{name} {100 * t / total:.0f}%" for name, t in times.items())
        said.append(f"{recipe}: the bottleneck is {worst} ({parts} of an image's time in the fastest loader, "
                    f"against reading and decoding {'the crops' if crops else 'whole images'} alone).")  # fmt: skip
    return said


def share_of_limit(results: dict[str, Any]) -> list[str]:
    """Of our fastest loader."""
    found = results.get("limit")
    if not found or not found["shares"]:
        return []
    first = found["shares"][0]
    parts = ", ".join(f"{name} {us:.0f}" for name, us in found["parts_us"].items())
    text = f"classic: {title(first['contestant'])} reaches {100 * first['of_limit']:.0f}% of the limit of "
    text += f"{found['cores']} cores, {found['images_per_s']:,.0f} images a second ({parts} us of CPU time an image"
    if first["cpu_us"] is not None:
        text += f", {found['total_us']:.0f} in all; the loader takes {first['cpu_us']:.0f}"
    return [text + ")."]


def dali_pays(results: dict[str, Any]) -> list[str]:
    said = []
    for recipe in ("classic", "strong"):
        cells = measured(results, "loaders", recipe)
        dali = [c for c in cells if "dali" in c["contestant"]]
        other = [c for c in cells if "dali" not in c["contestant"] and c["contestant"] != "ours-jitter"]
        if not dali or not other:
            continue
        ratio = rate(dali[0]) / rate(other[0])
        pays = "pays" if ratio > 1.05 else "does not pay" if ratio < 0.95 else "makes no difference"
        said.append(f"{recipe}: DALI {pays} on this machine: {title(dali[0]['contestant'])} reaches {ratio:.2f} times "
                    f"{title(other[0]['contestant'])}.")  # fmt: skip
    return said


def recommend(results: dict[str, Any]) -> list[str]:
    said = []
    for recipe in ("strong", "classic"):
        ours = [c for c in measured(results, "loaders", recipe) if c["contestant"].startswith("ours")]
        # no choices: what an installation lacks, and what a recipe asks for
        ours = [c for c in ours if c["contestant"] not in ("ours-pure", "ours-jitter")]
        if not ours:
            continue
        best = ours[0]
        text = f"Recommended for {recipe}: {title(best['contestant'])}"
        sweep = [c for c in measured(results, "workers", recipe) if c["contestant"] == best["contestant"]]
        if sweep:
            enough = min(c["workers"] for c in sweep if rate(c) >= 0.95 * rate(sweep[0]))
            text += f", {enough} workers or threads (within 5% of the best measured)"
        times = best["summary"]["batch_ms"]
        if times:
            slow = times["p99"] / times["mean"]  # not the median: workers often hand over two at once
            depth = min(8, max(2, math.ceil(slow)))
            text += f", prefetch {depth} batches (the slowest of a hundred takes {slow:.1f} times the mean)"
        said.append(text + ".")
    return said


def estimates(results: dict[str, Any], images: int, epochs: int) -> list[str]:
    said = []
    for recipe in ("classic", "strong"):
        cells = measured(results, "loaders", recipe)
        ours = _best(cells, "ours") or (cells[0] if cells else None)
        if ours:
            one = images / rate(ours)
            said.append(f"{recipe}: an epoch of {images:,} images takes the loader {_duration(one)}, {epochs} epochs "
                        f"{_duration(epochs * one)}, with {title(ours['contestant'])}.")  # fmt: skip
    return said


def training(results: dict[str, Any]) -> list[str]:
    """On the CPU a model that hardly waits proves nothing: it may be slow because the loader has the cores."""
    cells = {c["contestant"]: c for c in measured(results, "training")}
    limit = cells.pop("synthetic", None)
    said = []
    for name, cell in cells.items():
        text = f"Training {cell['model']} on {title(name)} ({cell['recipe']}): {rate(cell):,.0f} images a second"
        if limit:
            text += f", {100 * rate(cell) / rate(limit):.0f}% of what synthetic tensors allow"
        if results["settings"]["device"] == "cpu":
            text += "; loader and model share the cores, so neither alone is the bottleneck"
            if limit:
                whole, alone = 1000 / rate(cell), 1000 / rate(limit)
                text += f": of {whole:.2f} ms an image, the loader costs {max(0.0, whole - alone):.2f}"
        else:
            share = cell["summary"]["wait_share"] or 0.0
            text += f"; the model waits {100 * share:.0f}% of the time: the "
            text += f"{'model' if share < 0.1 else 'loader'} is the bottleneck"
        said.append(text + ".")
    return said


def sentences(results: dict[str, Any], images: int = IMAGENET, epochs: int = 90) -> list[str]:
    said = [*ranking(results), *bottleneck(results), *share_of_limit(results), *dali_pays(results), *training(results),
            *recommend(results), *estimates(results, images, epochs)]  # fmt: skip
    return trust(results) + said


def trust(results: dict[str, Any]) -> list[str]:
    """Why the numbers deserve no or less trust; empty where nothing speaks against them."""
    cells = [c for c in results["cells"] if "summary" in c]
    said = []
    if results["too_noisy"]:
        shaky = sum(bool(c["summary"]["noisy"]) for c in cells)
        reasons = [f"{shaky} of {len(cells)} cells spread by more than 10%"] if shaky else []
        other = stats.others(cells)
        if other is not None and other > 0.1:
            reasons.append(f"other programs kept {other:.1f} cores busy")
        said.append(f"Too noisy to be quoted: {', and '.join(reasons)}.")
    if not results["complete"]:
        said.append("Not complete: the time was up, or it was interrupted; some cells have fewer rounds, or none.")
    elif min((c["summary"]["rounds"] for c in cells if c["section"] in TABLES), default=0) < stats.FEWEST:
        said.append("Few rounds: differences below 10% mean nothing.")
    return said
