"""Draws the mermaid blocks of the pages for the site, which loads no script: `python docs/make_diagrams.py MERMAID.JS`.

Needs chromium, and dist/mermaid.min.js of the npm package mermaid. A picture is named by its block: where a block has
changed, the site shows its text until this was run again.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from site_hook import DIAGRAM, picture_of

FOLDER = Path(__file__).resolve().parent


def drawn(code: str, script: Path) -> str:
    """What mermaid makes of a block: SVG."""
    page = f"""<meta charset="utf-8"><pre class="mermaid">{html.escape(code)}</pre>
    <script src="{script.as_uri()}"></script>
    <script>mermaid.initialize({{startOnLoad: true, theme: "neutral", deterministicIds: true}})</script>"""
    with tempfile.TemporaryDirectory() as work:
        place = Path(work, "page.html")
        place.write_text(page, encoding="utf-8")
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        done = subprocess.run([*command, place.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    [picture] = re.findall(r"<svg.*</svg>", done.stdout, re.DOTALL)
    return picture.replace("<br>", "<br/>") + "\n"


if __name__ == "__main__":
    wanted = {
        picture_of(code): code for page in FOLDER.glob("*.md") for code in DIAGRAM.findall(page.read_text("utf-8"))
    }
    for old in (FOLDER / "images").glob("diagram-*.svg"):
        if f"images/{old.name}" not in wanted:
            old.unlink()
    for name, code in wanted.items():
        (FOLDER / name).write_text(drawn(code, Path(sys.argv[1]).resolve()), encoding="utf-8")
