"""Which runs there are, in which order, each in its own process, and what is kept of them."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from . import stats
from .job import Job
from .process import call

Results = dict[str, Any]
TABLES = ("loaders", "bounds")  # whose numbers are quoted


def rounds_of(section: str, rounds: int, warmup_rounds: int) -> range:
    """The rounds of a section: the sweeps, whose many cells show a course, take half of them and no warm-up round."""
    return range(-warmup_rounds, rounds) if section in TABLES else range(max(1, rounds // 2))


def order(jobs: Sequence[Job], round_number: int) -> list[Job]:
    """All jobs once, starting one further each round and backwards in every second: no cell always follows the same
    neighbour or always comes first."""
    shift = round_number % len(jobs) if jobs else 0
    turned = [*jobs[shift:], *jobs[:shift]]
    return turned if round_number % 2 == 0 else turned[::-1]


def run_once(job: Job, timeout: float, scratch: Path) -> dict[str, Any]:
    """One run in a process of its own; its answer, or {"error": why}. The whole process group is ended after."""
    threads = str(max(1, job.workers))
    started = time.perf_counter()
    said, error = call("core.worker", job.to_json(), timeout, scratch, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    return (said or {"error": error or "no answer"}) | {"run_s": time.perf_counter() - started}


def warm_page_cache(files: Iterable[Path]) -> int:
    """Reads every file once; returns the bytes."""
    total = 0
    for file in files:
        total += len(file.read_bytes())
    return total


def drop_page_cache(files: Iterable[Path]) -> bool:
    """Asks the system to forget the files; whether it can be asked here."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            advise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


class Runner:
    """Runs jobs in interleaved rounds. `results` (see `compare.results`) is saved after every run, so that an
    interrupted run keeps what it has and a later one goes on from there."""

    def __init__(self, results: Results, file: Path, rounds: int, warmup_rounds: int, deadline: float | None) -> None:
        self.results, self.file = results, file
        self.rounds, self.warmup_rounds = rounds, warmup_rounds
        self.deadline = deadline  # in time.monotonic() seconds
        self.cold_files: list[Path] = []
        self.report: Callable[[Job, int, dict[str, Any] | None, float], None] = lambda *_: None

    def cell(self, job: Job) -> dict[str, Any]:
        """The entry of the results that the job's rounds go to."""
        for cell in self.results["cells"]:
            if cell["key"] == job.key:
                found: dict[str, Any] = cell
                return found
        cell = {
            "key": job.key,
            "section": job.section,
            "contestant": job.contestant,
            "recipe": job.recipe,
            "workers": job.workers,
            "batch_size": job.batch_size,
            "model": job.model,
            "runs": [],
            "error": "",
        }
        self.results["cells"].append(cell)
        return cell

    def left(self, jobs: Sequence[Job]) -> list[tuple[int, Job]]:
        """(round, job) still to be run, in order; failed cells are not tried again."""
        todo = []
        for number in range(-self.warmup_rounds, self.rounds):
            for job in order(jobs, number + self.warmup_rounds):
                if number not in rounds_of(job.section, self.rounds, self.warmup_rounds):
                    continue
                cell = self.cell(job)
                done = any(r["round"] == number for r in cell["runs"])
                if not done and not cell["error"]:
                    todo.append((number, job))
        return todo

    def run(self, jobs: Sequence[Job]) -> bool:
        """Runs what is left; whether all of it was done (else the time was up). KeyboardInterrupt passes through,
        after saving."""
        durations: dict[str, float] = {}
        todo = self.left(jobs)
        with tempfile.TemporaryDirectory() as scratch:
            for position, (number, job) in enumerate(todo):
                cell = self.cell(job)
                if cell["error"]:
                    continue
                expected = durations.get(job.key, job.seconds + 6)
                if self.deadline is not None and time.monotonic() + expected > self.deadline:
                    return False
                mean = sum(durations.values()) / len(durations) if durations else job.seconds + 6
                self.report(job, number, None, mean * (len(todo) - position))
                if job.cold:
                    drop_page_cache(self.cold_files)
                timeout = max(120.0, 12 * job.seconds)
                answer = run_once(job, timeout, Path(scratch))
                durations[job.key] = answer["run_s"]
                if "error" in answer:
                    cell["error"] = answer["error"]
                else:
                    cell["runs"].append(answer | {"round": number})
                self.finish(cell)
                self.save()
                self.report(job, number, answer, mean * (len(todo) - position - 1))
        return True

    def finish(self, cell: dict[str, Any]) -> None:
        """Summary of a cell; warm-up rounds (numbers below 0) are dropped."""
        runs = [r for r in cell["runs"] if r["round"] >= 0]
        if runs:
            cell["summary"] = stats.summarize(runs)

    def save(self) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1))
        partial.replace(self.file)
