"""What a comparison leaves: its page on the terminal and, where asked for, its figures and the page in two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def say(results: dict[str, Any], text: str, file: Path | None) -> None:
    """Prints a page of Markdown.

    Args:
        file: where the figures go as JSON, and the page beside them, with the suffix .md.
    """
    print(text)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        file.with_suffix(".md").write_text(text)
