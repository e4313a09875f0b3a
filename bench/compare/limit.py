"""How much of the limit a loader reaches.

The limit of classic is what is left of a loader when nothing but its necessary steps are done: reading a file, decoding
the crop that was drawn, resizing and normalizing it (the bound "the steps alone"), in CPU time on one core, times the
cores that the workers can have. What a loader does beyond them (drawing, processes, queues, waiting) is its own.
"""

from __future__ import annotations

from typing import Any

from ..contestants import BY_NAME
from .results import measured, rate

STEPS = "steps"


def limit(results: dict[str, Any]) -> dict[str, Any] | None:
    """Of classic on the CPU; None where the steps alone were not measured.

    Returns:
        parts_us {step: CPU us an image}, total_us, cores, images_per_s, and shares: of each of our loaders its
        contestant, images_per_s, of_limit (its speed / the limit's), cpu_us (an image) and of_cpu (total_us / cpu_us).
    """
    cell = next((c for c in measured(results, "bounds") if c["contestant"] == STEPS), None)
    if cell is None or results["settings"]["device"] != "cpu":
        return None
    parts = cell["summary"]["parts_us"]
    total, cores = sum(parts.values()), max(1, min(results["settings"]["workers"], results["machine"]["cores"]))
    most = 1e6 * cores / total
    shares = []
    for one in measured(results, "loaders", "classic"):
        if one["contestant"] in BY_NAME and BY_NAME[one["contestant"]].kind == "ours":
            used = one["summary"]["cpu_cores"]
            cpu = None if used is None else 1e6 * used / rate(one)
            shares.append({"contestant": one["contestant"], "images_per_s": rate(one), "of_limit": rate(one) / most,
                           "cpu_us": cpu, "of_cpu": total / cpu if cpu else None})  # fmt: skip
    return {"parts_us": parts, "total_us": total, "cores": cores, "images_per_s": most, "shares": shares}
