"""The plots of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from ..contestants import BY_NAME
from ..core import stats
from ..core.figures import BASE, BOUND, OURS, PEER, STYLE, save
from .results import measured, rate, recipes, title

LINES = {
    "ours-dali-gpu": "#0a5c40",
    "ours-dali-cpu": "#0b8f62",
    "ours-torchvision": "#6cc49f",
    "tv-v1-pil": "#4a6480",
    "tv-v2-tensor": "#93a8be",
    "dali-doc-cpu": "#c8553d",
}


def _colour(name: str) -> str:
    if name == "tv-v1-pil":
        return BASE
    kind = BY_NAME[name].kind if name in BY_NAME else "peer"
    return {"ours": OURS, "bound": BOUND}.get(kind, PEER)


def _bars(axes: Any, cells: list[dict[str, Any]], values: list[float], unit: str, errors: Any = None) -> None:
    names = [title(c["contestant"]) for c in cells]
    places = range(len(cells))[::-1]
    axes.barh(places, values, color=[_colour(c["contestant"]) for c in cells], height=0.72, xerr=errors,
              error_kw={"ecolor": "#333", "elinewidth": 1, "capsize": 2})  # fmt: skip
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    top = max(values)
    axes.set_xlim(0, top * 1.16)
    for place, value, number in zip(places, values, range(len(values)), strict=True):
        reach = value + (errors[1][number] if errors else 0)
        axes.text(reach + top * 0.012, place, f"{value:,.0f}", va="center", fontsize=9, color="#333")


def _panels(count: int, rows: int) -> tuple[Any, list[Any]]:
    """Two in a row, so that they can be read on a page."""
    across = min(count, 2)
    down = -(-count // across)
    size = (6.2 * across, (1.3 + 0.33 * rows) * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    return figure, list(axes.flat[:count])


def throughput(results: dict[str, Any], folder: Path) -> Path | None:
    asked = [r for r in recipes(results, "loaders") if measured(results, "loaders", r)]
    if not asked:
        return None
    groups = {r: measured(results, "loaders", r) for r in asked}
    figure, axes = _panels(len(asked), max(map(len, groups.values())))
    for ax, (recipe, cells) in zip(axes, groups.items(), strict=True):
        rates = [c["summary"]["images_per_s"] for c in cells]
        values = [r["median"] for r in rates]
        errors = [[r["median"] - r["q1"] for r in rates], [r["q3"] - r["median"] for r in rates]]
        _bars(ax, cells, values, "images a second (bars: median, lines: quartiles)", errors)
        ax.set_ylim(len(cells) - 0.4 - max(map(len, groups.values())), len(cells) - 0.4)  # as thick in every panel
        ax.set_title(recipe)
    s, m = results["settings"], results["machine"]
    figure.suptitle(
        f"{s['workers']} workers or threads, batches of {s['batch_size']}, {s['device'].upper()}, "
        f"{m['gpus'][0] if m['gpus'] and s['device'] == 'cuda' else str(m['cores']) + ' cores'}",
        x=0.01, ha="left", fontsize=10, color="#555",
    )  # fmt: skip
    return save(figure, folder / "throughput.png")


def memory(results: dict[str, Any], folder: Path) -> Path | None:
    asked = recipes(results, "loaders")
    recipe = "strong" if "strong" in asked else next(iter(asked), None)
    cells = [c for c in measured(results, "loaders", recipe) if c["summary"]["memory_mb"]]
    if not cells:
        return None
    cells.sort(key=lambda c: float(c["summary"]["memory_mb"]))
    kind = cells[0]["runs"][0]["memory_kind"]
    figure, axes = _panels(1, len(cells))
    _bars(
        axes[0], cells, [c["summary"]["memory_mb"] for c in cells], f"MB of the process tree ({kind}), lower is better"
    )
    axes[0].set_title(f"memory, {recipe}")
    return save(figure, folder / "memory.png")


def batch_times(results: dict[str, Any], folder: Path) -> Path | None:
    asked = recipes(results, "loaders")
    recipe = "strong" if "strong" in asked else next(iter(asked), None)
    cells = [c for c in measured(results, "loaders", recipe) if c["summary"]["batch_ms"]]
    if not cells:
        return None
    figure, axes = _panels(1, len(cells))
    ax = axes[0]
    limit = 0.0
    for place, cell in zip(range(len(cells))[::-1], cells, strict=True):
        times = [t for r in cell["runs"] if r["round"] >= 0 for t in r["batch_ms"]]
        q = [stats.quantile(times, p) for p in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)]
        colour = _colour(cell["contestant"])
        ax.plot([q[0], q[4]], [place, place], color=colour, lw=1.5)
        ax.plot([q[1], q[3]], [place, place], color=colour, lw=8, solid_capstyle="butt", alpha=0.75)
        ax.plot(q[2], place, "|", color="white", ms=8, mew=2)
        ax.plot(q[5], place, "o", color=colour, ms=4, mfc="white")
        limit = max(limit, q[5])
    ax.set_yticks(range(len(cells))[::-1], [title(c["contestant"]) for c in cells])
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, limit * 1.05)
    ax.set_xlabel("ms between batches: box quartiles, line 5 to 95%, circle 99%")
    ax.set_title(f"batch times, {recipe}")
    return save(figure, folder / "batch_times.png")


def workers(results: dict[str, Any], folder: Path) -> Path | None:
    cells = measured(results, "workers")
    if not cells:
        return None
    asked = recipes(results, "workers")
    figure, axes = plt.subplots(1, len(asked), figsize=(5.6 * len(asked), 3.8), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(c["contestant"] for c in cells))
    for ax, recipe in zip(axes[0], asked, strict=True):
        for name in names:
            points = sorted((c["workers"], c["summary"]["images_per_s"]) for c in cells
                            if c["contestant"] == name and c["recipe"] == recipe)  # fmt: skip
            if not points:
                continue
            x = range(len(points))
            colour = LINES.get(name, BOUND)
            ax.plot(x, [p[1]["median"] for p in points], "o-", color=colour, label=title(name), ms=4)
            ax.fill_between(x, [p[1]["q1"] for p in points], [p[1]["q3"] for p in points], color=colour, alpha=0.15)
            ax.set_xticks(x, [str(p[0]) for p in points])
        ax.set_ylim(bottom=0)
        ax.set_xlabel("workers or threads")
        ax.set_ylabel("images a second")
        ax.set_title(recipe)
    axes[0][0].legend(fontsize=8)
    return save(figure, folder / "workers.png")


def modes(results: dict[str, Any], folder: Path) -> Path | None:
    cells = measured(results, "modes")
    if not cells:
        return None
    asked = recipes(results, "modes")
    names = list(dict.fromkeys(c["contestant"] for c in cells))
    figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        mine = {c["recipe"]: rate(c) for c in cells if c["contestant"] == name}
        places = [i - 0.4 + width * (number + 0.5) for i in range(len(asked))]
        ax.bar(places, [mine.get(m, 0) for m in asked], width * 0.92, label=title(name), color=LINES.get(name, BOUND))
    ax.set_xticks(range(len(asked)), asked)
    ax.set_ylabel("images a second")
    ax.set_title("augmentation modes")
    ax.legend(fontsize=8)
    return save(figure, folder / "modes.png")


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Every plot that the results have numbers for; the files, the throughput first."""
    with plt.rc_context(STYLE):
        made = [plot(results, folder) for plot in (throughput, modes, workers, batch_times, memory)]
    return [file for file in made if file is not None]
