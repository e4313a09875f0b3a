"""A module of this package in a process of its own, with a time limit: a crash or a hang is an answer, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from dali_imagenet.trial import end_group

from . import PACKAGE

_DALIS_LAST = "Current pipeline object is no longer valid."  # behind whatever went wrong


def call(module: str, word: str, limit: float, scratch: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """Run `python -m <this package>.<module> WORD ANSWER`, and end it with all its children after `limit` seconds.

    Args:
        module: below this package, as in `core.worker`.
        word: its first argument; the second names the JSON file that it has to write.
        limit: in seconds.
        scratch: folder of the answer and of what the process prints.
        environment: variables on top of this process's.

    Returns:
        What it wrote (empty where it wrote nothing), and why it ended badly (empty for a good end).
    """
    answer, log = scratch / "answer.json", scratch / "log.txt"
    answer.unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.{module}", word, str(answer)],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"} | environment,
        )  # fmt: skip
        try:
            error = why(process.wait(limit), log)
        except subprocess.TimeoutExpired:
            error = f"no answer within {limit:.0f} s"
        finally:
            end_group(process)
    said: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    return said, error


def why(code: int, log: Path) -> str:
    """In words, how a process ended; empty for a good end."""
    if code == 0:
        return ""
    lines = log.read_text(errors="replace").strip().removesuffix(_DALIS_LAST).strip().splitlines()
    last = f": {lines[-1][:300]}" if lines else ""
    return f"crashed with {signal.Signals(-code).name}{last}" if code < 0 else f"ended with code {code}{last}"
