"""Questions that are asked one by one, in parts of some minutes; a later part goes on where the last one ended.

What is known of a question is kept before it is asked and after: one that took the machine down with it is found as
cut off by the next part, which asks it once more, and then never again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

FEWEST_SECONDS = 12.0  # left of a part below which no further question is asked
TRIES = 2  # of a question that had no chance to answer
REPEATS = 9  # of the main questions, while there is time


@dataclass(frozen=True)
class Question:
    """One call of a function of `gpu_questions`."""

    ask: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0  # seconds, after which it is ended
    core: bool = False  # asked again while there is time
    quick: bool = True  # part of --quick

    @property
    def name(self) -> str:
        return " ".join((self.ask, *(str(v) for v in self.arguments.values())))


Ask = Callable[[Question, float], tuple[dict[str, Any], str]]
"""Asks a question within so many seconds: what it said, and why it ended badly (empty for a good end)."""


def left_over(questions: Sequence[Question], asked: Sequence[dict[str, Any]]) -> list[Question]:
    """Those that have no answer yet, in their order: not asked, or cut off and not too often."""
    entries = {entry["question"]: entry for entry in asked}
    found = []
    for question in questions:
        entry = entries.get(question.name)
        if entry is None or (entry["cut_off"] and entry["tries"] < TRIES):
            found.append(question)
    return found


def ask_in_a_part(
    results: dict[str, Any],
    questions: Sequence[Question],
    ask: Ask,
    keep: Callable[[], None],
    *,
    minutes: float,
    total: float,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Ask what has no answer yet, and then the main questions again while there is time.

    Args:
        results: what is known: "asked", an entry a question; "points", what was said, by name; "seconds" of all parts.
        questions: the most valuable first.
        keep: called whenever `results` have changed.
        minutes: of this part.
        total: of all parts.
        repeats: how often the main questions are asked again, where there is time.

    Yields:
        The entry of each question that was asked, with what was "said".
    """
    begun, before = clock(), results["seconds"]
    end = begun + min(60 * minutes, 60 * total - before)

    def answer(question: Question, limit: float) -> tuple[str, dict[str, Any], float]:
        started = clock()
        said, error = ask(question, limit)
        for name, numbers in said.items():
            results["points"].setdefault(name, []).append(numbers)
        results["seconds"] = round(before + clock() - begun, 1)
        return error, said, round(clock() - started, 1)

    entries = {entry["question"]: entry for entry in results["asked"]}
    for question in left_over(questions, results["asked"]):
        left = end - clock()
        if left < FEWEST_SECONDS:
            return
        entry = entries.setdefault(question.name, {"question": question.name, "tries": 0, "seconds": 0.0})
        if not entry["tries"]:
            results["asked"].append(entry)
        entry |= {"tries": entry["tries"] + 1, "cut_off": True, "error": "cut off: the run ended while it was asked"}
        keep()
        limit = min(question.limit, left - 2)
        error, said, seconds = answer(question, limit)
        cut_off = error.startswith("no answer within") and limit < question.limit
        entry |= {"error": error, "seconds": seconds, "cut_off": cut_off}
        keep()
        yield entry | {"said": said}
    for question in [q for _ in range(repeats) for q in questions if q.core]:
        entry, left = entries[question.name], end - clock()
        if not entry["error"] and left >= max(FEWEST_SECONDS, entry["seconds"] + 2):
            error, said, seconds = answer(question, min(question.limit, left - 2))
            keep()
            yield {"question": question.name, "error": error, "seconds": seconds, "said": said}
