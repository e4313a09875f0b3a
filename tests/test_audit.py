"""The audit sees what is wrong with an epoch, and the cases of parity agree with the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")
from bench.__main__ import main
from bench.checks import audit
from bench.checks import parity_cases as parity
from dali_imagenet import SampleIndex

CLASSES = [f"c{i // 20:02d}" for i in range(200)]
RNG = np.random.default_rng(0)
ORDER, SECOND = RNG.permutation(200), RNG.permutation(200)


def test_a_true_permutation_passes() -> None:
    found = audit.audit(ORDER, SECOND, CLASSES, 50)
    assert (found["missing"], found["doubled"], found["exact"]) == (0, 0, True)
    assert abs(found["correlation"]) < 4 * found["noise"]
    assert abs(found["between_epochs"]) < 4 * found["noise"]
    assert abs(found["displacement"] - 1 / 3) < 0.05
    assert abs(found["same_class"] - found["same_class_expected"]) < 0.08
    assert found["same_class_expected"] == pytest.approx(19 / 199)
    assert audit.audit(ORDER[:192], SECOND[:192], CLASSES, 64)["exact"]  # the last partial batch is dropped


def test_what_is_wrong_is_seen() -> None:
    doubled = ORDER.copy()
    doubled[3] = doubled[100]
    found = audit.audit(doubled, SECOND, CLASSES, 50)
    assert (found["missing"], found["doubled"], found["exact"]) == (1, 1, False)
    assert not audit.audit(ORDER[:150], SECOND, CLASSES, 64)["exact"]
    window = np.arange(200).reshape(-1, 10)[:, ::-1].ravel()  # shuffled within a window only
    found = audit.audit(window, window, CLASSES, 50)
    assert found["correlation"] > 0.95
    assert found["displacement"] < 0.05
    assert found["same_class"] > 0.8
    assert found["same_order_next_epoch"]


def test_the_command_audits_our_loader(folder: Path, tmp_path: Path) -> None:
    words = ["--data", str(folder), "--only", "ours-torchvision", "--batch-size", "5", "--workers", "0"]
    assert main(["audit", *words, "--out", str(tmp_path)]) == 0
    report = (tmp_path / "audit.md").read_text()
    assert "| ours-torchvision | 20 of 24 | 4 | 0 |" in report
    assert str(folder.parent) not in report
    assert main(["audit", *words, "--recipe", "eval", "--out", str(tmp_path)]) == 0
    assert "| ours-torchvision | 24 of 24 | 0 | 0 | +1.000 |" in (tmp_path / "audit.md").read_text()


@pytest.mark.parametrize("case", parity.CASES)
def test_the_cases_of_parity_agree_with_the_reference(case: str, folder: Path) -> None:
    recipe: Any = parity.CASES[case].replace(input_size=64)
    index = SampleIndex.from_folder(folder)
    ours, theirs = (parity.made_by(index, recipe, backend, 8) for backend in ("torchvision", "reference-tensor"))
    assert len(ours) == len(theirs) == 8
    for a, b in zip(ours, theirs, strict=True):
        assert (a.path, a.label) == (b.path, b.label)
        assert float((a.pixels - b.pixels).abs().mean()) < 0.1
