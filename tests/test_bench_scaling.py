"""`python -m bench scaling`: the arithmetic of its estimate, and a run on eight images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from bench import scaling
from bench.__main__ import main
from bench.core import images
from tests.helpers import make_folder


def row(recipe: str, workers: int, worker_us: float, main_us: float) -> dict[str, Any]:
    return {"recipe": recipe, "workers": workers, "worker_us": {"median": worker_us}, "main_us": {"median": main_us}}


def test_the_estimate_is_arithmetic() -> None:
    """Workers of 1,000 us an image; a main process of 3,200 us a batch of 64, which is 20,000 images a second."""
    made = scaling.estimated(
        {
            "measured": [row("classic", 1, 900, 100), row("classic", 2, 1000, 3200)],
            "batch_size": 64,
            "file_bytes": 100_000.0,
        }
    )
    assert [one["workers"] for one in made] == [8, 16, 32, 64]
    assert [one["images_per_s"] for one in made] == pytest.approx([8000, 16_000, 20_000, 20_000])
    assert made[-1]["workers_make"] == pytest.approx(64_000)
    moved = 100_000 + 3 * 224 * 224 * 3 * 4  # the batch is fetched, written back and read
    assert scaling.traffic(100_000, 4) == moved
    assert made[0]["gb_per_s"]["float32"] == pytest.approx(8000 * moved / 1e9)
    milan = scaling.SERVERS[0]
    assert milan.gb_per_s == pytest.approx(204.8)
    assert made[0]["of_memory"][milan.name] == pytest.approx(8000 * moved / 204.8e9)


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--recipes", "nothing"], "among classic"), (["--workers", "1", "0"], "1 or more")):
        assert main(["scaling", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(images, "cache_dir", lambda: tmp_path / "cache")
    root, out = make_folder(tmp_path / "data", 8), tmp_path / "scaling.json"
    words = ["scaling", "--data", str(root), "--workers", "1", "--recipes", "classic", "--batch-size", "4"]
    assert main([*words, "--rounds", "1", "--seconds", "0", "--out", str(out)]) == 0
    (measured,) = json.loads(out.read_text())["measured"]
    assert measured["worker_us"]["median"] > 0
    assert measured["images_per_s"]["median"] > 0
    assert "| classic | 64 | " in capsys.readouterr().out
    assert "Estimated, not measured" in out.with_suffix(".md").read_text()
    assert str(tmp_path) not in out.read_text()
