"""Medians, spread and what counts as a difference. No pixels, no processes: plain numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

BUSY = 0.15  # share of the machine's cores that other programs may use before a run is called too noisy
NOISY = 0.10  # interquartile range / median above which a cell is called noisy
FEWEST = 3  # rounds below which a spread is not trusted


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile `q` (0..1) with linear interpolation, as numpy's default.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("a quantile needs at least one value")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float]:
    """{median, q1, q3, iqr_relative}: the relative one is (q3 - q1) / median."""
    q1, median, q3 = (quantile(values, q) for q in (0.25, 0.5, 0.75))
    return {"median": median, "q1": q1, "q3": q3, "iqr_relative": (q3 - q1) / median if median else 0.0}


def batch_times(milliseconds: Sequence[float]) -> dict[str, float]:
    """Distribution of the time between two batches, in milliseconds."""
    return {
        "min": min(milliseconds),
        "median": quantile(milliseconds, 0.5),
        "mean": statistics.fmean(milliseconds),
        "p95": quantile(milliseconds, 0.95),
        "p99": quantile(milliseconds, 0.99),
        "max": max(milliseconds),
    }


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One cell of the table from its rounds (the worker's answers). See docs of the schema in `compare.results`."""
    rates = spread([r["images_per_s"] for r in runs])
    times = [t for r in runs for t in r["batch_ms"]]
    summary: dict[str, Any] = {
        "images_per_s": rates,
        "rounds": len(runs),
        "noisy": rates["iqr_relative"] > NOISY,
        "batch_ms": batch_times(times) if times else None,
    }
    for name in ("first_batch_s", "import_s", "memory_mb", "cpu_cores", "other_cores", "wait_share"):
        values = [r[name] for r in runs if r.get(name) is not None]
        summary[name] = quantile(values, 0.5) if values else None
    parts = [r["parts_us"] for r in runs if "parts_us" in r]
    if parts:
        summary["parts_us"] = {name: quantile([p[name] for p in parts], 0.5) for name in parts[0]}
    return summary


def others(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Cores that other programs kept busy, median over the cells; None where it was not measured."""
    values = [c["summary"]["other_cores"] for c in cells if c["summary"]["other_cores"] is not None]
    return quantile(values, 0.5) if values else None


def too_noisy(cells: Sequence[Mapping[str, Any]], cores: int) -> bool:
    """Whether the run as a whole is too noisy to be trusted: a third of its cells are, or other programs used more
    than 15% of the machine."""
    flags = [bool(c["summary"]["noisy"]) for c in cells]
    other = others(cells)
    return bool(flags) and (sum(flags) * 3 >= len(flags) or (other is not None and other > BUSY * cores))


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """ "faster", "slower" or "same" for summary b against a: beyond the noise means that the medians differ by more
    than 3% and that the interquartile ranges do not overlap. With fewer than three rounds, 10% is asked for."""
    x, y = a["images_per_s"], b["images_per_s"]
    ratio = y["median"] / x["median"]
    least = 0.03 if min(a["rounds"], b["rounds"]) >= FEWEST else 0.10
    apart = y["q1"] > x["q3"] or y["q3"] < x["q1"]
    if abs(ratio - 1) <= least or not apart:
        return "same"
    return "faster" if ratio > 1 else "slower"
