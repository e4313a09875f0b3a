"""The results of a comparison: the schema of `results.json`, and how to ask for its cells.

Schema "dali-imagenet-bench/2" (`read` translates 1):

    schema        str
    created       str       UTC time of the start, ISO 8601
    command       str       what was typed after `python -m bench`; the data folder by its name only
    seed          int
    settings      {batch_size, workers, device, seconds, rounds, warmup_rounds, size, quick, page_cache, epoch_images}
    data          {name, generated, train: {files, distinct, mean_kb}, val: {...}}
    machine       {system, processor, cores, memory_gb, gpus}
    versions      {package: version}
    load          {before, after}    one-minute load averages
    cells         one for each (section, contestant, recipe, workers, batch size):
        key, section, contestant, recipe, workers, batch_size, model
        error     str       empty, or why there is no number
        runs      one for each round (round < 0: warm-up, dropped from the summary):
            round, images, seconds, images_per_s, batch_ms [ms between batches], first_batch_s (from building the
            loader to its first batch), import_s, memory_mb and memory_kind (process tree; PSS or RSS), cpu_cores
            (CPU seconds a second), other_cores (the same of all other programs), wait_share (training only: share of
            time spent waiting for a batch), run_s
        summary   absent without a measured round:
            images_per_s {median, q1, q3, iqr_relative}, rounds, noisy, batch_ms {min, median, mean, p95, p99, max},
            and the medians of first_batch_s, import_s, memory_mb, cpu_cores, other_cores, wait_share; of "the steps
            alone" also parts_us {step: CPU us an image}
    limit         absent where "the steps alone" were not measured: see `compare.limit`
    missing       [{contestant, reason, install}]   contestants that could not take part
    verdict       [str]     sentences drawn from the numbers
    too_noisy     bool      a third of the cells or more have an interquartile range above 10% of the median, or other
                            programs used more than 15% of the cores
    complete      bool      false after an interruption or when the time was up
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..contestants import BY_NAME

SCHEMA = "dali-imagenet-bench/2"
SCHEMA_1 = {'"dali-imagenet-bench/1"': f'"{SCHEMA}"', "ceilings": "bounds", '"question': '"section',
            '"visits"': '"runs"', '"visit_s"': '"run_s"'}  # fmt: skip
"""Its words, and today's."""
SECTIONS = ("loaders", "bounds", "modes", "workers", "batches", "training")
BASE = "tv-v1-pil"  # ratios are against this one

Cell = dict[str, Any]


def measured(results: dict[str, Any], section: str, recipe: str | None = None) -> list[Cell]:
    """Cells of a section that have numbers, fastest first."""
    found = [
        c
        for c in results["cells"]
        if c["section"] == section and "summary" in c and (recipe is None or c["recipe"] == recipe)
    ]
    return sorted(found, key=rate, reverse=True)


def rate(cell: Cell) -> float:
    """Median images a second."""
    return float(cell["summary"]["images_per_s"]["median"])


def recipes(results: dict[str, Any], section: str) -> list[str]:
    """Recipes of a section in the order they were asked."""
    return list(dict.fromkeys(c["recipe"] for c in results["cells"] if c["section"] == section))


def title(name: str) -> str:
    return BY_NAME[name].title if name in BY_NAME else name


def read(file: Path) -> dict[str, Any]:
    """Raises ValueError for what is no result of this schema."""
    try:
        text = file.read_text()
        if next(iter(SCHEMA_1)) in text:
            for old, new in SCHEMA_1.items():
                text = text.replace(old, new)
        results: dict[str, Any] = json.loads(text)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as results: {error}") from error
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{file} has schema {results.get('schema')!r}; expected {SCHEMA!r}")
    return results
