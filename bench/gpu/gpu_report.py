"""What the answers of `python -m bench gpu` say: targets, tables and bars."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core import PROGRAM

Points = dict[str, list[dict[str, Any]]]


def median(points: Points, key: str, number: str = "images_per_s") -> float | None:
    """The median over the runs to a point; None where it was not measured."""
    values = sorted(v[number] for v in points.get(key, []) if v.get(number) is not None)
    if not values:
        return None
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return float(low + high) / 2


def _best(points: Points, prefix: str) -> float | None:
    rates = [median(points, key) for key in points if key.startswith(prefix)]
    return max((r for r in rates if r is not None), default=None)


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def targets(points: Points, cuda: bool) -> list[dict[str, Any]]:
    """Each target with its value, or None, and "met", "missed" or "open". On a CPU all are open: they are a GPU's."""
    documented, model = ("dali-doc-gpu", "resnet50 224") if cuda else ("dali-doc-cpu", "small 224")
    hardware, kernels = median(points, "decode|hw=1.0"), median(points, "decode|hw=0.0")
    both = None if hardware is None or kernels is None else hardware + kernels
    decoded, synthetic = median(points, "decode|default"), median(points, f"train|{model}|synthetic|classic")
    found: list[tuple[str, float | None, str, float]] = [
        ("strong recipe / decode alone", _ratio(median(points, "ours|strong"), decoded), ">=", 0.95),
        ("tuned mixed decode / (hardware alone + CUDA alone)", _ratio(_best(points, "decode|"), both), ">=", 0.75),
    ]
    for recipe, least in (("classic", 0.98), ("strong", 0.95)):
        value = _ratio(median(points, f"train|{model}|ours|{recipe}"), synthetic)
        found.append((f"training on ours / on synthetic tensors, {recipe}", value, ">=", least))
    for recipe, least in (("classic", 2.0), ("strong", 4.0)):
        peers = [median(points, f"{name}|{recipe}") for name in ("tv-v1-pil", "tv-v2-tensor")]
        best = max((p for p in peers if p is not None), default=None)
        found.append((f"ours / torchvision, {recipe}", _ratio(median(points, f"ours|{recipe}"), best), ">=", least))
    for recipe in ("classic", "strong"):
        value = _ratio(median(points, f"ours|{recipe}"), median(points, f"{documented}|{recipe}"))
        found.append((f"ours / DALI as documented, {recipe}", value, ">=", 1.0))
    for recipe in ("classic", "strong"):
        key = f"ours|{recipe}"
        value = _ratio(median(points, key, "p99_ms"), median(points, key, "p50_ms"))
        found.append((f"p99 / p50 of the time between batches, {recipe}", value, "<=", 1.6))
    used, before = median(points, "ours|strong", "gpu_mb"), median(points, "ours|strong", "gpu_mb_before")
    found.append(("GPU memory in use, strong, GB", None if used is None else used / 1024, "<=", 4.0))
    grown = None if used is None or before is None else used - before
    found.append(("growth of it while measuring, MB", grown, "<=", 32.0))
    rows = []
    for name, value, sign, bound in found:
        word = "open"
        if value is not None and cuda:
            word = "met" if (value >= bound if sign == ">=" else value <= bound) else "missed"
        rows.append({"target": name, "value": value, "bound": f"{sign} {bound:g}", "verdict": word})
    return rows


# ---- the report

Rows = list[list[str]]
RATES = ("", "img/s", "runs", "p50 ms", "p99 ms", "cores", "MB", "GPU MB", "first s")


def text_of(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def rate_rows(points: Points, chosen: Callable[[str], bool]) -> Rows:
    rows = []
    for key, runs in points.items():
        if chosen(key) and median(points, key) is not None:
            cells = [("images_per_s", 0), None, ("p50_ms", 1), ("p99_ms", 1), ("cpu_cores", 1), ("memory_mb", 0),
                     ("gpu_mb", 0), ("first_s", 1)]  # fmt: skip
            texts = [str(len(runs)) if c is None else text_of(median(points, key, c[0]), c[1]) for c in cells]
            rows.append([key.replace("|", ", "), *texts])
    return rows


def _table(heads: Sequence[str], rows: Rows) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def markdown(results: dict[str, Any], picture: str = "") -> str:
    points: Points = results["points"]
    hardware = points.get("hardware", [{}])[-1]
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    lines = [f"# Answers from {gpus if results['settings']['device'] == 'cuda' else 'DALI on the CPU'}", ""]
    lines += [f"- Part of {part['created']}: `{PROGRAM} gpu {part['command']}`" for part in results["parts"]]
    if hardware:
        lines.append(
            f"- Machine: {gpus}; {hardware.get('processor')}, {hardware.get('cores')} cores, "
            f"{hardware.get('memory_gb', '?')} GB; {hardware.get('system', '')}; CUDA of torch {hardware.get('cuda')}"
        )
        lines += [f"- nvidia-smi: {line}" for line in hardware.get("nvidia_smi", [])]
        if "host_to_gpu_gb_per_s" in hardware:
            lines.append(f"- Pinned memory to the GPU: {hardware['host_to_gpu_gb_per_s']:.1f} GB/s")
        lines.append("- Versions: " + ", ".join(f"{k} {v}" for k, v in hardware.get("versions", {}).items()))
    s = results["settings"]
    lines.append(
        f"- Settings: batches of {s['batch_size']}, {s['workers']} threads or workers, {s['size']} px, "
        f"{s['seconds']:g} s a point; {results['images']}"
    )
    lines += [f"- Missing: {name}: {why}" for name, why in results["missing"].items()]
    left = f"; not answered yet: {', '.join(results['left'])}" if results["left"] else ""
    lines.append(f"- {len(results['asked'])} questions asked in {results['seconds']:.0f} s{left}")
    rows = [[t["target"], text_of(t["value"], 2), t["bound"], t["verdict"]] for t in results["targets"]]
    lines += ["", "## Targets", "", *_table(("", "value", "target", ""), rows)]
    if picture:
        lines += [f"![rates]({picture})", ""]
    found = [[k.replace("|", ", ").removeprefix("agree, "), text_of(v[-1]["mean"], 3), text_of(v[-1]["max"], 0),
              str(v[-1]["targets_equal"])] for k, v in points.items() if k.startswith("agree|")]  # fmt: skip
    if found:
        lines += ["## Pixels against the same plan elsewhere, of 0..255", ""]
        lines += _table(("recipe, against", "mean", "max", "targets equal"), found)
    for key in points:
        if key.partition("|")[0] in ("probe", "roi", "auto", "caller"):
            lines.append(f"- {key.replace('|', ', ')}: {json.dumps(points[key][-1])}")
    for key, runs in points.items():
        if refused := max(run.get("not_decoded_by_dali", 0) for run in runs):
            lines.append(f"- **{key.replace('|', ', ')}: DALI did not decode {refused} files, Pillow did**")
    lines.append("")
    groups: list[tuple[str, Callable[[str], bool]]] = [
        ("Training", lambda k: k.startswith("train|")),
        ("Decoding and reading alone", lambda k: k.startswith(("decode|", "read|", "torchvision decode"))),
        ("Loaders", lambda k: not k.startswith(("train|", "decode|", "read|", "torchvision decode", "stage|"))),
    ]
    for title, chosen in groups[::-1]:
        rows = rate_rows(points, chosen)
        if rows:
            lines += [f"## {title}", "", *_table(RATES, rows)]
    rows = [[k.removeprefix("stage|"), *(text_of(median(points, k, n), d) for n, d in
             (("images_per_s", 0), ("p50_ms", 2), ("p99_ms", 2), ("host_ms", 2), ("draw_ms", 2)))]
            for k in points if k.startswith("stage|")]  # fmt: skip
    if rows:
        heads = ("recipe", "img/s", "p50 ms", "p99 ms", "host ms", "drawing the plan ms")
        lines += ["## The batch stage alone", "", *_table(heads, rows)]
    rows = [
        [key.removeprefix("launches|"), *(text_of(median(points, key, n)) for n in ("paper", "launches", "copies"))]
        for key in points
        if key.startswith("launches|")
    ]
    if rows:
        lines += ["## Launches of a batch's operations", ""]
        lines += _table(("recipe", "counted on paper", "launched", "copies and memsets"), rows)
    failed = [q for q in results["asked"] if q["error"]]
    if failed:
        lines += ["## What failed", "", "What each printed is in `logs`.", ""]
        lines += [*(f"- {q['question']}: {q['error']}" for q in failed), ""]
    return "\n".join(lines)


def draw(points: Points, target: Path) -> bool:
    """Bars of every rate; whether there was anything to draw and something to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rates = {k: median(points, k) for k in points if not k.startswith("stage|")}
    groups = [
        ("loaders", [k for k in rates if not k.startswith(("train|", "decode|", "read|", "torchvision decode"))]),
        ("decoding and reading alone", [k for k in rates if k.startswith(("decode|", "torchvision decode", "read|"))]),
        ("training", [k for k in rates if k.startswith("train|")]),
    ]
    groups = [(title, [k for k in keys if rates[k] is not None]) for title, keys in groups]
    groups = [(title, keys) for title, keys in groups if keys]
    if not groups:
        return False
    most = max(len(keys) for _, keys in groups)
    figure, axes = plt.subplots(1, len(groups), figsize=(6.5 * len(groups), 1.2 + 0.3 * most), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, (title, keys) in zip(axes[0], groups, strict=True):
        values = [rates[k] or 0.0 for k in keys]
        places = range(len(keys))[::-1]
        colours = ["#0b8f62" if "ours" in k or "fallback" in k else "#8aa0b6" for k in keys]
        axis.barh(places, values, color=colours, height=0.7)
        axis.set_yticks(places, [k.removeprefix("train|").replace("|", ", ") for k in keys], fontsize=8)
        axis.set_xlim(0, 1.15 * max(values))
        for place, value in zip(places, values, strict=True):
            axis.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
        axis.set_title(title, loc="left", fontweight="bold")
        axis.set_xlabel("images per second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return True


def write(results: dict[str, Any], folder: Path, picture: bool) -> None:
    """results.json and report.md; the plot only where asked, since it takes a second."""
    results["targets"] = targets(results["points"], results["settings"]["device"] == "cuda")
    for name, text in (("results.json", json.dumps(results, indent=1)), ("report.md", "")):
        if name == "report.md":
            if picture:
                try:
                    draw(results["points"], folder / "rates.png")
                except Exception as error:  # the numbers count, not the picture
                    print(f"no plot: {error}", file=sys.stderr)
            text = markdown(results, "rates.png" if (folder / "rates.png").exists() else "")
        partial = folder / f"{name}.partial"
        partial.write_text(text)
        partial.replace(folder / name)
