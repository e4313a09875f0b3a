"""What changed between two runs of the comparison: cells, settings, machine and versions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..core import stats
from .results import rate, read

NAME = "compare"
HELP = "what changed between two runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A.json", help="results.json of one run")
    parser.add_argument("b", type=Path, metavar="B.json", help="results.json of another")


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    """(cell, rate in a, rate in b, "faster" | "slower" | "same") of the cells that both runs measured."""
    old = {c["key"]: c for c in a["cells"] if "summary" in c}
    rows = []
    for cell in b["cells"]:
        before = old.get(cell["key"])
        if before is None or "summary" not in cell:
            continue
        name = f"{cell['contestant']} {cell['recipe']}"
        if cell["section"] not in ("loaders", "bounds"):
            name += f" ({cell['section']}: {cell['workers']} workers, batch {cell['batch_size']})"
        rows.append((name, rate(before), rate(cell), stats.changed(before["summary"], cell["summary"])))
    return rows


def run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    try:
        a, b = read(options.a), read(options.b)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    rows = differences(a, b)
    if not rows:
        print("the two runs have no measured cell in common", file=sys.stderr)
        return 2
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, head in enumerate(("cell", "A img/s", "B img/s", "B / A", "")):
        table.add_column(head, justify="left" if number in (0, 4) else "right")
    for name, x, y, word in rows:
        style = {"faster": "green", "slower": "red"}.get(word, "")
        table.add_row(name, f"{x:,.0f}", f"{y:,.0f}", f"{y / x:.2f}", "" if word == "same" else word, style=style)
    console.print(table)
    for part in ("settings", "machine", "versions"):
        for key in sorted({*a[part], *b[part]}):
            if a[part].get(key) != b[part].get(key):
                console.print(f"[yellow]{part}: {key} was {a[part].get(key)}, is {b[part].get(key)}[/yellow]")
    changed = sum(word != "same" for *_, word in rows)
    console.print(f"{changed} of {len(rows)} cells changed beyond the noise.")
    return 0
