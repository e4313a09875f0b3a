"""`python -m bench ops` on two tiny batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from bench import ops, ops_contestants
from bench.__main__ import main


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ops_contestants, "SIZE", 40)
    monkeypatch.setattr(ops_contestants, "DISTINCT", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ops.POLICIES)
def test_both_our_ways_do_the_same_work(name: str) -> None:
    batch = ops_contestants.pictures(8)
    one, together = ops_contestants.ours(name, batch, False), ops_contestants.ours(name, batch, True)
    for _ in range(2):
        difference = (one().int() - together().int()).abs().float()
        assert difference.mean() < 0.5


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(name: str, batch: Tensor) -> ops_contestants.Run:
        def run() -> None:
            raise RuntimeError("does not work here")

        return run

    keep = {who: ops_contestants.MAKERS[who] for who in ("ours", "ours-batch", "v2-loop", "pil-loop")}
    monkeypatch.setattr(ops_contestants, "MAKERS", {**keep, "torchaug": broken})
    monkeypatch.setenv("COLUMNS", "80")
    words = ["--policies", "randaugment,3-augment", "--batch-size", "4", "--rounds", "2", "--device", "cpu"]
    assert main(["ops", *words, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "ops.json").read_text())
    assert results["schema"] == ops.SCHEMA
    assert str(tmp_path) not in (tmp_path / "ops.json").read_text() + (tmp_path / "ops.md").read_text()
    for who in keep:
        assert ops.median(results, "randaugment", who)
    assert ops.median(results, "3-augment", "v2-loop") is None
    assert "does not work here" in (tmp_path / "ops.md").read_text()
    assert (tmp_path / "ops.png").stat().st_size > 1000
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown[:10])) <= 80
    assert any(line.startswith("randaugment") for line in shown)


def test_verdict_and_ratios() -> None:
    def cell(who: str, ms: float) -> dict[str, Any]:
        return {"policy": "p", "contestant": who, "error": "", "summary": {"median": ms, "iqr_relative": 0.0}}

    results = {"settings": {"policies": ["p"]},
               "cells": [cell("ours", 10.0), cell("ours-batch", 30.0), cell("v2-loop", 40.0), cell("pil-loop", 25.0),
                         cell("v2-batch", 5.0)]}  # fmt: skip
    _, (row,) = ops.table(results, True)
    assert row == ["p", "1.0", "3.0", "4.0", "2.5", "-", "0.5", "-", "-"]
    (said,) = ops.verdict(results)
    assert "2.5 times" in said  # what draws once a batch is no rival
    assert "4.0 times" in said


def test_unknown_policies_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--policies", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().out
