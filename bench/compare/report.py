"""Write the report of a results.json again: Markdown, one HTML page and plots beside it, tables in the terminal."""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contestants import BY_NAME
from ..core import PROGRAM, stats
from ..core.job import RECIPES_IN_WORDS
from ..core.measure import rounds_of
from . import limit, verdict
from .results import BASE, measured, rate, read, recipes, title

NAME = "report"
HELP = "write the report of a results.json again"
Row = list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="results.json")


def _number(value: float | None, digits: int = 0) -> str:
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if value < 1e6 else "> 1 million"


def loader_rows(results: dict[str, Any], recipe: str, section: str = "loaders") -> list[Row]:
    """name, images a second, interquartile range, ratio to torchvision, first batch, memory, cores, batch p99."""
    cells = measured(results, section, recipe)
    base = next((rate(c) for c in cells if c["contestant"] == BASE), None)
    rows = []
    for cell in cells:
        s = cell["summary"]
        rates = s["images_per_s"]
        rows.append(
            [
                title(cell["contestant"]),
                _number(rates["median"]),
                spread(s),
                f"{rates['median'] / base:.2f}" if base else "-",
                _number(s["first_batch_s"], 1),
                _number(s["memory_mb"]),
                _number(s["cpu_cores"], 1),
                _number(s["batch_ms"]["p99"] if s["batch_ms"] else None),
            ]
        )
    return rows


def spread(summary: dict[str, Any]) -> str:
    """Half the interquartile range; one round has none."""
    if summary["rounds"] < 2:
        return "one run"
    return f"±{50 * summary['images_per_s']['iqr_relative']:.0f}%" + (" !" if summary["noisy"] else "")


def limit_rows(results: dict[str, Any]) -> list[Row]:
    """Ours against the steps that nobody can do without."""
    found = results.get("limit")
    if not found:
        return []
    rows = [
        [title(one["contestant"]), _number(one["images_per_s"]), _percent(one["of_limit"]), _number(one["cpu_us"]),
         _percent(one["of_cpu"])]
        for one in found["shares"]
    ]  # fmt: skip
    name = f"the steps alone on {found['cores']} core{'s' * (found['cores'] > 1)}"
    return [*rows, [name, _number(found["images_per_s"]), "100%", _number(found["total_us"]), "100%"]]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


LIMIT_HEADS = ("loader", "img/s", "of limit", "CPU us", "steps")
LOADER_HEADS = ("loader", "img/s", "IQR/2", "x tv", "first s", "MB", "cores", "p99 ms")


def mode_rows(results: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Rates by augmentation mode, with the time that each adds over none."""
    modes = recipes(results, "modes")
    cells = measured(results, "modes")
    rows = []
    for name in dict.fromkeys(c["contestant"] for c in cells):
        mine = {c["recipe"]: rate(c) for c in cells if c["contestant"] == name}
        row = [title(name)]
        for mode in modes:
            text = _number(mine.get(mode))
            if mode != "none" and mode in mine and "none" in mine:
                text += f" ({100 * (mine['none'] / mine[mode] - 1):+.0f}%)"
            row.append(text)
        rows.append(row)
    return ["loader", *modes], rows


def sweep_rows(results: dict[str, Any], section: str, field: str) -> tuple[Row, list[Row]]:
    """Rates by `workers` or `batch_size`; for workers with the speed-up over none."""
    cells = measured(results, section)
    points = sorted({c[field] for c in cells})
    rows = []
    for name, recipe in dict.fromkeys((c["contestant"], c["recipe"]) for c in cells):
        mine = {c[field]: rate(c) for c in cells if (c["contestant"], c["recipe"]) == (name, recipe)}
        row = [f"{title(name)}, {recipe}"]
        for point in points:
            text = _number(mine.get(point))
            if field == "workers" and point and point in mine and 0 in mine:
                text += f" (x{mine[point] / mine[0]:.1f})"
            row.append(text)
        rows.append(row)
    return [field.replace("_", " "), *(str(p) for p in points)], rows


def training_rows(results: dict[str, Any]) -> list[Row]:
    rows = []
    for cell in measured(results, "training"):
        share = cell["summary"]["wait_share"]
        rows.append([title(cell["contestant"]), cell["recipe"], cell["model"], _number(rate(cell)),
                     "-" if share is None else f"{100 * share:.0f}%"])  # fmt: skip
    return rows


def batch_rows(results: dict[str, Any], recipe: str) -> list[Row]:
    return [
        [title(c["contestant"]), *(_number(c["summary"]["batch_ms"][k], 0) for k in BATCH_HEADS[1:])]
        for c in measured(results, "loaders", recipe)
        if c["summary"]["batch_ms"]
    ]


BATCH_HEADS = ("loader", "min", "median", "mean", "p95", "p99", "max")


def tables(results: dict[str, Any]) -> list[tuple[str, Sequence[str], list[Row]]]:
    """(caption, heads, rows) of everything that was measured."""
    made: list[tuple[str, Sequence[str], list[Row]]] = []
    for recipe in recipes(results, "loaders"):
        made.append((f"{recipe}: {RECIPES_IN_WORDS[recipe]}", LOADER_HEADS, loader_rows(results, recipe)))
    made.append(("Share of the limit, classic (CPU us an image, and how much of it are steps)", LIMIT_HEADS,
                 limit_rows(results)))  # fmt: skip
    made.append(("Upper bounds", LOADER_HEADS, loader_rows(results, "classic", "bounds")))
    made.append(("Augmentation modes, img/s (time added over none)", *mode_rows(results)))
    made.append(("Workers, img/s (speed-up over 0)", *sweep_rows(results, "workers", "workers")))
    made.append(("Batch sizes, img/s", *sweep_rows(results, "batches", "batch_size")))
    made.append(("Training", ("loader", "recipe", "model", "img/s", "waiting"), training_rows(results)))
    for recipe in recipes(results, "loaders"):
        made.append((f"Time between batches, {recipe}, ms", BATCH_HEADS, batch_rows(results, recipe)))
    return [t for t in made if t[2]]


def print_tables(results: dict[str, Any], console: Any) -> None:
    """To the terminal, 80 columns wide or more; the distribution of batch times stays in the files."""
    from rich.table import Table

    for caption, heads, rows in tables(results):
        if caption.startswith("Time between"):
            continue
        shown = len(heads) if heads is not LOADER_HEADS or console.width >= 90 else 7
        table = Table(title=caption, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
        for number, head in enumerate(heads[:shown]):
            table.add_column(head, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            style = "green" if row[0].startswith("ours") else ""
            table.add_row(*row[:shown], style=style)
        console.print(table)
        console.print()
    for name, error in failures(results):
        console.print(f"[yellow]failed[/yellow]  {name}: {error}", highlight=False)
    for entry in results["missing"]:
        how = f"; to add it: {entry['install']}" if entry["install"] else ""
        console.print(f"[dim]missing {entry['contestant']}: {entry['reason']}{how}[/dim]", highlight=False)
    console.print()
    for sentence in results["verdict"]:
        console.print(f"• {sentence}", highlight=False)


def failures(results: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f"{c['contestant']} ({c['recipe']})", c["error"]) for c in results["cells"] if c["error"]]


def facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """How it was measured, as (name, text)."""
    s, d, m = results["settings"], results["data"], results["machine"]
    origin = "generated" if d["generated"] else "given"
    parts = "; ".join(
        f"{part}: {d[part]['distinct']} images of {d[part]['mean_kb']:.0f} KB on average" for part in ("train", "val")
    )
    drop = f" after {s['warmup_rounds']} dropped" if s["warmup_rounds"] else ""
    return [
        ("Command", f"{PROGRAM} {results['command']}".strip()),
        ("Started", results["created"]),
        ("Images", f"{d['name']} ({origin}); {parts}. Every contestant reads the same files; links repeat them to "
                   f"epochs of {s['epoch_images']} names"),
        ("Page cache", s["page_cache"]),
        ("Settings", f"batches of {s['batch_size']}, {s['workers']} workers or threads each, float32 {s['size']} px "
                     f"on {s['device']}, seed {results['seed']}"),
        ("Method", f"each run in its own process, {s['seconds']:g} s measured after warming up; {s['rounds']} "
                   f"interleaved rounds{drop} (after the upper bounds {len(rounds_of('', s['rounds'], 0))}), order "
                   "rotating; medians, half the interquartile range (IQR/2; ! above 10%); memory is "
                   "the process tree's at the end of a run"),
        ("Machine", f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB, "
                    f"{', '.join(m['gpus']) or 'no GPU'}, {m['system']}; load {results['load']['before']} before, "
                    f"{results['load']['after']} after"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())),
    ]  # fmt: skip


def notes(results: dict[str, Any]) -> list[tuple[str, str]]:
    names = dict.fromkeys(c["contestant"] for c in results["cells"] if "summary" in c)
    return [(title(n), BY_NAME[n].note) for n in names if n in BY_NAME and BY_NAME[n].note]


def _markdown_table(heads: Sequence[str], rows: list[Row]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(f"**{v}**" if r[0].startswith("ours") and i < 2 else v for i, v in enumerate(r)) + " |"
              for r in rows]  # fmt: skip
    return "\n".join(lines)


def markdown(results: dict[str, Any], plots: Sequence[Path]) -> str:
    parts = ["# Image loaders compared", ""]
    parts += ["## Verdict", "", *(f"- {s}" for s in results["verdict"]), ""]
    parts += [f"![{p.stem}]({p.name})" for p in plots[:1]] + [""]
    for caption, heads, rows in tables(results):
        parts += [f"## {caption}", "", _markdown_table(heads, rows), ""]
    parts += [f"![{p.stem}]({p.name})\n" for p in plots[1:]]
    if notes(results):
        parts += ["## What stands beside a number", "", *(f"- {n}: {t}" for n, t in notes(results)), ""]
    absent = [f"- {n}: {e}" for n, e in failures(results)]
    absent += [f"- {m['contestant']}: {m['reason']}" + (f" (`{m['install']}`)" if m["install"] else "")
               for m in results["missing"]]  # fmt: skip
    if absent:
        parts += ["## Who did not take part", "", *absent, ""]
    parts += ["## How it was measured", "", *(f"- {n}: {t}" for n, t in facts(results)), ""]
    return "\n".join(parts)


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2733}
h1{font-size:1.7rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e3e7ec}
th:first-child,td:first-child{text-align:left}
tr.ours td{color:#0b6e4f;font-weight:600}img{max-width:100%}.warn{background:#fff3cd;padding:.6rem 1rem}
.scroll{overflow-x:auto}dt{font-weight:600}dd{margin:0 0 .5rem 1rem}
"""


def html_page(results: dict[str, Any], plots: Sequence[Path]) -> str:
    """One page that needs no other file."""
    e = html.escape
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Image loaders compared</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><h1>Image loaders compared</h1>'
    ]
    parts.append(
        "<h2>Verdict</h2><ul>"
        + "".join(
            f"<li{' class=warn' if s.startswith(('Too noisy', 'Not complete')) else ''}>{e(s)}</li>"
            for s in results["verdict"]
        )
        + "</ul>"
    )
    pictures = [
        f'<p><img alt="{e(p.stem)}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}"></p>'
        for p in plots
    ]
    parts += pictures[:1]
    for caption, heads, rows in tables(results):
        head = "".join(f"<th>{e(h)}</th>" for h in heads)
        body = "".join(
            f"<tr{' class=ours' if r[0].startswith('ours') else ''}>" + "".join(f"<td>{e(v)}</td>" for v in r) + "</tr>"
            for r in rows
        )
        parts.append(f'<h2>{e(caption)}</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>')
    parts += pictures[1:]

    def listing(name: str, pairs: Sequence[tuple[str, str]]) -> None:
        if pairs:
            parts.append(
                f"<h2>{name}</h2><dl>" + "".join(f"<dt>{e(n)}</dt><dd>{e(t)}</dd>" for n, t in pairs) + "</dl>"
            )

    listing("What stands beside a number", notes(results))
    listing("Who did not take part", [*failures(results),
                                      *((m["contestant"], m["reason"]) for m in results["missing"])])  # fmt: skip
    listing("How it was measured", facts(results))
    return "\n".join(parts) + "</html>\n"


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """results.md, results.html and the plots beside results.json; the files written."""
    from . import plots

    pictures = plots.draw(results, folder)
    (folder / "results.md").write_text(markdown(results, pictures))
    (folder / "results.html").write_text(html_page(results, pictures))
    return [folder / "results.md", folder / "results.html", *pictures]


def settle(results: dict[str, Any]) -> None:
    """The conclusions: noise and verdict."""
    cells = [c for c in results["cells"] if "summary" in c]
    results["too_noisy"] = stats.too_noisy(cells, results["machine"]["cores"])
    results.pop("limit", None)
    found = limit.limit(results)
    if found:
        results["limit"] = found
    s = results["settings"]
    results["verdict"] = verdict.sentences(results, s["estimate_images"], s["estimate_epochs"])


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    try:
        results = read(options.results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    settle(results)
    options.results.write_text(json.dumps(results, indent=1))
    for file in write(results, options.results.parent):
        print(file)
    print_tables(results, Console())
    return 0
