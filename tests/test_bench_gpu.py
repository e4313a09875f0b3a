"""`python -m bench gpu` without a GPU: what is asked when, parts that go on, and what a report says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main as bench_main
from bench.gpu import gpu, gpu_questions, gpu_report
from bench.gpu.parts import FEWEST_SECONDS, REPEATS, Question, ask_in_a_part, left_over

# ---- parts

FOUR = [Question("first", core=True), Question("second", limit=100), Question("third", core=True), Question("fourth")]


class Machine:
    """A clock that only questions move, and what they say."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.seconds, self.kept = 100.0, seconds, list[str]()
        self.limits = list[tuple[str, float]]()
        self.results: dict[str, Any] = {"asked": [], "points": {}, "seconds": 0.0}

    def ask(self, question: Question, limit: float) -> tuple[dict[str, Any], str]:
        took = self.seconds.get(question.ask, 20.0)
        self.limits.append((question.ask, limit))
        self.now += min(took, limit)
        if took < 0:
            raise KeyboardInterrupt
        said = {question.ask: {"images_per_s": took}}
        return (said, "") if took <= limit else ({}, f"no answer within {limit:.0f} s")

    def part(self, minutes: float = 8, total: float = 25) -> list[str]:
        """What was asked in it. The file that keeps the results is all that the next one knows."""
        begun = len(self.limits)
        self.results = json.loads(json.dumps(self.results))

        def keep() -> None:
            self.kept.append(json.dumps(self.results))

        asked = ask_in_a_part(self.results, FOUR, self.ask, keep, minutes=minutes, total=total, clock=lambda: self.now)
        names = [entry["question"] for entry in asked]
        assert names == [name for name, _ in self.limits[begun:]]
        return names

    def entry(self, name: str) -> dict[str, Any]:
        [found] = [entry for entry in self.results["asked"] if entry["question"] == name]
        return dict(found)


def test_a_part_goes_on_where_the_last_one_ended() -> None:
    machine = Machine()
    assert machine.part(minutes=1.1) == ["first", "second", "third"]
    assert [q.name for q in left_over(FOUR, machine.results["asked"])] == ["fourth"]
    assert machine.results["seconds"] == 60
    assert machine.part(minutes=0.5) == ["fourth"]
    assert left_over(FOUR, machine.results["asked"]) == []
    assert [len(runs) for runs in machine.results["points"].values()] == [1, 1, 1, 1]


def test_time_that_is_left_repeats_the_main_questions() -> None:
    machine = Machine()
    assert machine.part(minutes=2.1) == ["first", "second", "third", "fourth", "first", "third"]
    assert [len(machine.results["points"][q.ask]) for q in FOUR] == [2, 1, 2, 1]
    assert len(machine.part(minutes=60, total=60)) == 2 * REPEATS


def test_all_parts_have_a_time_together() -> None:
    machine = Machine()
    parts = [machine.part(minutes=1.1, total=2.2) for _ in range(4)]
    assert parts == [["first", "second", "third"], ["fourth", "first", "third"], [], []]
    assert machine.results["seconds"] == 120


def test_the_limit_is_the_questions_or_what_is_left() -> None:
    machine = Machine()
    machine.part(minutes=1)
    assert machine.limits == [("first", 58), ("second", 38), ("third", 18)]
    assert FEWEST_SECONDS > 2


def test_one_that_hangs_is_an_answer() -> None:
    machine = Machine(second=1000)
    assert machine.part()[:4] == ["first", "second", "third", "fourth"]
    entry = machine.entry("second")
    assert (entry["error"], entry["cut_off"], entry["seconds"]) == ("no answer within 100 s", False, 100)
    assert left_over(FOUR, machine.results["asked"]) == []


def test_one_that_the_part_cut_short_is_asked_once_more() -> None:
    """With all of a part before it; and then it stays as it is."""
    machine = Machine(second=1000)
    assert machine.part(minutes=1) == ["first", "second"]
    assert machine.entry("second")["cut_off"]
    assert machine.part(minutes=1) == ["second"]
    assert machine.limits[-1] == ("second", 58)
    assert machine.part(minutes=1) == ["third", "fourth"]
    assert machine.entry("second")["tries"] == 2
    assert machine.part(minutes=0.2) == []


def test_one_that_takes_the_run_with_it_is_not_asked_for_ever() -> None:
    machine = Machine(second=-1)
    for tries in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            machine.part()
        machine.results = json.loads(machine.kept[-1])  # what was on the disk then
        assert machine.entry("second")["tries"] == tries
        assert machine.entry("second")["error"] == "cut off: the run ended while it was asked"
    assert machine.part(minutes=1) == ["third", "fourth"]


# ---- the questions


@pytest.mark.parametrize("cuda", [True, False])
def test_questions(cuda: bool) -> None:
    asked = gpu.questions(cuda)
    names = [question.name for question in asked]
    assert len(set(names)) == len(names)
    assert all(question.ask in gpu_questions.QUESTIONS for question in asked)
    order = [
        "hardware", "agree", "loader ours strong", "decode", "probe", "roi", "train", "roi_decode", "fancy",
        "cpu_share", "num_workers", "prefetch", "hw_decoder_load", "launches", "auto",
    ]  # fmt: skip
    places = [next((n for n, name in enumerate(names) if part in name), -1) for part in order]
    found = [place for place in places if place >= 0]
    assert found == sorted(found)
    assert len(order) - len(found) == (0 if cuda else 2)
    assert max(question.limit for question in asked) < 8 * 60 / 2


POINTS: gpu_report.Points = {
    "ours|strong": [{"images_per_s": 960.0, "p50_ms": 10.0, "p99_ms": 17.0, "gpu_mb": 2048.0, "gpu_mb_before": 2047.0}],
    "decode|default": [{"images_per_s": 900.0}, {"images_per_s": 1000.0}, {"images_per_s": 1100.0}],
    "decode|hw=1.0": [{"images_per_s": 600.0}],
    "decode|hw=0.0": [{"images_per_s": 900.0}],
    "ours|strong|cpu_share=0.25": [{"images_per_s": 1200.0}],
    "launches|strong": [{"paper": 5, "launches": 6, "copies": 1}],
    "auto": [{"dali": 960, "torchvision": "crashed with SIGSEGV"}],
}


def test_targets() -> None:
    rows = {row["target"]: row for row in gpu_report.targets(POINTS, cuda=True)}
    assert rows["strong recipe / decode alone"] == {
        "target": "strong recipe / decode alone", "value": 0.96, "bound": ">= 0.95", "verdict": "met"
    }  # fmt: skip
    tuned = rows["tuned mixed decode / (hardware alone + CUDA alone)"]
    assert (tuned["value"], tuned["verdict"]) == (pytest.approx(1000 / 1500), "missed")
    assert rows["p99 / p50 of the time between batches, strong"]["verdict"] == "missed"
    assert rows["GPU memory in use, strong, GB"]["verdict"] == "met"
    assert rows["ours / torchvision, classic"] == {
        "target": "ours / torchvision, classic", "value": None, "bound": ">= 2", "verdict": "open"
    }  # fmt: skip
    assert {row["verdict"] for row in gpu_report.targets(POINTS, cuda=False)} == {"open"}


def test_the_report_says_what_was_asked_and_what_is_left(tmp_path: Path) -> None:
    settings = {"device": "cuda", "batch_size": 256, "workers": 16, "seconds": 3.0, "size": 224, "sweep": True}
    entry = {"question": "roi", "error": "crashed with SIGSEGV", "seconds": 9.0, "tries": 1, "cut_off": False}
    results: dict[str, Any] = {
        "schema": gpu.SCHEMA, "settings": settings, "images": "800 distinct", "missing": {},
        "points": copy.deepcopy(POINTS), "asked": [entry], "left": ["read", "nvjpeg"], "seconds": 500.0,
        "parts": [{"created": "1999-01-01", "command": "--out a"}, {"created": "1999-01-02", "command": "--out a"}],
    }  # fmt: skip
    results["points"] |= {"caller|dali": [{"thread_ms": 0.2}]}
    results["points"]["ours|strong"][0]["not_decoded_by_dali"] = 7
    gpu_report.write(results, tmp_path, picture=False)
    report = (tmp_path / "report.md").read_text()
    for line in (
        "- Part of 1999-01-02: `python -m bench gpu --out a`",
        "- 1 questions asked in 500 s; not answered yet: read, nvjpeg",
        "| ours, strong, cpu_share=0.25 | 1,200 | 1 |",
        "| strong | 5 | 6 | 1 |",
        '- auto: {"dali": 960, "torchvision": "crashed with SIGSEGV"}',
        "- roi: crashed with SIGSEGV",
        "- caller, dali: ",
        "- **ours, strong: DALI did not decode 7 files, Pillow did**",
    ):
        assert line in report
    assert json.loads((tmp_path / "results.json").read_text())["targets"]


# ---- the command


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that take no process and no time."""
    names: list[str] = []

    def call(module: str, word: str, limit: float, scratch: Path) -> tuple[dict[str, Any], str]:
        task = json.loads(word)
        names.append(task["question"])
        return {task["question"]: {"batch_size": task["settings"]["batch_size"]}}, ""

    monkeypatch.setattr(gpu, "call", call)
    monkeypatch.setattr(gpu, "NEEDED", ())
    return names


def test_the_command_goes_on(
    folder: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpu", "--device", "cpu", "--data", str(folder), "--out", str(tmp_path / "out")]
    assert bench_main([*words, "--batch-size", "8", "--only", "hardware,read"]) == 0
    assert asked == ["hardware", "read"]
    assert bench_main([*words, "--only", "hardware,read,stage"]) == 0
    assert asked == ["hardware", "read", "stage"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["parts"]) == 2
    assert results["points"]["stage"] == [{"batch_size": 8}]  # as the first part was told
    capsys.readouterr()
    assert bench_main([*words, "--only", "hardware,probe", "--total", "0"]) == 0
    assert "1 questions are left; --total 0 is used up" in capsys.readouterr().out
    assert bench_main([*words, "--minutes", "0"]) == 0
    assert "questions are left; ask them with: python -m bench gpu --out" in capsys.readouterr().out
    assert str(folder) not in (tmp_path / "out" / "results.json").read_text()


def test_what_does_not_fit_an_earlier_part_is_refused(
    folder: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpu", "--device", "cpu", "--data", str(folder), "--out", str(tmp_path / "out"), "--only", "hardware"]
    assert bench_main([*words, "--quick"]) == 0
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    (other / "a" / "1.jpg").write_bytes(next(folder.rglob("*.JPEG")).read_bytes())
    for more, why in (
        (["--batch-size", "9"], "its parts before had batch_size 32, not 9"),
        (["--data", str(other)], "give the same --data"),
        (["--only", "nothing"], "--only nothing: no such question"),
    ):
        assert bench_main([*words, *more]) == 2
        assert why in capsys.readouterr().err
    (tmp_path / "out" / "results.json").write_text('{"schema": "other"}')
    assert bench_main(words) == 2
    assert "is not of this command's version: choose another folder" in capsys.readouterr().err
    assert asked == ["hardware"]
