"""The soak's verdict: what grows is said to grow, and a busy machine is not taken for a slow loader."""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.__main__ import main
from bench.checks import soak
from tests.helpers import make_folder


def rows(count: int = 40, **changes: Any) -> list[dict[str, float]]:
    """Flat ones; `changes` are functions of the share of the run that has passed."""
    flat = {"pss_mb": 600.0, "descriptors": 50.0, "threads": 8.0, "processes": 3.0, "images_per_second": 900.0}
    flat["others"] = 0.0
    return [flat | {name: change(i / count) for name, change in changes.items()} for i in range(count)]


def flat(**changes: Any) -> dict[str, bool | None]:
    return {name: value["flat"] for name, value in soak.verdict(rows(**changes), cores=2).items()}


def test_what_stays_is_flat_whatever_the_warm_up() -> None:
    found = flat(pss_mb=lambda x: 600 + 300 * min(x, 0.2), threads=lambda x: 4 if x < 0.1 else 8)
    assert found.pop("others") is None
    assert all(found.values())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pss_mb", lambda x: 600 + 100 * x),
        ("descriptors", lambda x: 50 + (x > 0.5)),
        ("threads", lambda x: 8 + (x > 0.5)),
        ("processes", lambda x: 3 + (x > 0.5)),
        ("images_per_second", lambda x: 900 - 300 * x),
    ],
)
def test_what_grows_or_slows_down_is_not(name: str, change: Any) -> None:
    assert [key for key, value in flat(**{name: change}).items() if value is False] == [name]


def test_the_speed_on_a_busy_machine_is_not_judged() -> None:
    found = flat(images_per_second=lambda x: 900 - 300 * x, others=lambda x: 0.1 + 0.5 * x)
    assert found["images_per_second"] is None
    assert found["pss_mb"] is True


def test_rates() -> None:
    before = {"seconds": 10.0, "images": 100.0, "busy": 50.0, "cpu_seconds": 20.0}
    now = {"seconds": 12.0, "images": 300.0, "busy": 54.0, "cpu_seconds": 23.0}
    assert soak.rates(before, now) == {"images_per_second": 100.0, "cores": 1.5, "others": 0.5}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is Linux's")
def test_memory_is_counted_without_the_pages_of_files(tmp_path: Path) -> None:
    """Libraries are divided among the programs that have them open: others that end make them look like growth."""
    size = 32 << 20
    (tmp_path / "library").write_bytes(bytes(size))
    process = psutil.Process()
    with (tmp_path / "library").open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        before = soak.proportional(process)
        assert not any(mapped[::4096])
        here = [m.pss for m in process.memory_maps() if m.path == file.name]
        assert sum(here) > 0.9 * size
        assert soak.proportional(process) < before + 0.1 * size
    with mmap.mmap(-1, size) as held:  # memory that nobody has had before
        held.write(b"1" * size)
        assert soak.proportional(process) > before + 0.9 * size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is Linux's")
def test_a_short_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_folder(tmp_path / "data", 24)
    words = ["--minutes", "0.2", "--data", str(data), "--backend", "torchvision", "--workers", "1"]
    main(["soak", *words, "--batch-size", "8", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "soak.json").read_text())
    seen = results["rows"]["torchvision"]
    assert all(row["processes"] >= 1 and row["others"] >= 0 for row in seen)
    assert max(row["images_per_second"] for row in seen) > 0
    assert (tmp_path / "out" / "soak.png").stat().st_size > 1000
    said = capsys.readouterr()
    assert "torchvision  pss_mb" in said.out
    assert "soaking" not in said.err  # this is no terminal: no progress bar
