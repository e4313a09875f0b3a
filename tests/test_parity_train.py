"""Equal accuracy through each loader: the runs, which go on where they stopped, and the verdict."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.checks import parity_train
from tests.helpers import HERE, make_folder

CLASSES = 10


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like CIFAR-10's JPEGs: 140 to train on and 20 to test."""
    root = tmp_path_factory.mktemp("cifar")
    make_folder(root / "train", 140, CLASSES, low=32, high=33)
    make_folder(root / "test", 20, CLASSES, seed=1, low=32, high=33)
    return root


def test_runs_are_kept_and_compared(cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", "--train", "--cifar", str(cifar), "--out", str(tmp_path), "--recipes", "strong", "--seeds", "2",
             "--train-images", "140", "--epochs", "1", "--workers", "0"]  # fmt: skip
    assert main(words) in (0, 1)  # two runs say little
    files = sorted((tmp_path / "runs").iterdir())
    assert len(files) == 2 * (1 + len(HERE))
    run = json.loads(files[0].read_text())
    assert run["tested"] == 20
    assert len(run["losses"]) == 1
    for file in files:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"top1": 50.0 + int(file.stem[-1]) / 100}))
    times = [file.stat().st_mtime_ns for file in files]
    assert main(words) == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    table = (tmp_path / "parity-train.md").read_text()
    assert table.count("| yes |") == len(HERE)
    assert len(json.loads((tmp_path / "parity-train.json").read_text())["verdicts"]) == 1 + len(HERE)
    capsys.readouterr()
    with pytest.raises(ValueError, match="is of 140 images and 1 epochs, and this run of 140 and 2"):
        main([*words, "--epochs", "2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "classic"], "--train needs --cifar DIR"),
        (["--cifar", ".", "--recipes", "eval"], "--recipes eval: must be of classic, strong"),
        (["--cifar", ".", "--seeds", "1"], "--seeds 1: must be at least 2"),
        (["--cifar", ".", "--images", "64"], "--train has --train-images and --epochs in place of --images"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--train", *words]) == 2
    assert message in capsys.readouterr().out


def test_a_part_of_the_images_has_all_classes() -> None:
    labels = [i // 50 for i in range(500)]
    for images in (200, 250, 500, 1000):
        counts = Counter(labels[i] for i in parity_train.chosen(500, images))
        assert set(counts.values()) == {min(images, 500) // 10}
        assert len(counts) == 10


def made(way: str, *tops: float) -> list[dict[str, Any]]:
    return [{"recipe": "classic", "through": way, "seed": seed, "top1": top} for seed, top in enumerate(tops)]


def test_the_interval_is_welchs() -> None:
    """Worked out by hand: variances 0.625 and 0.32, 7.245 degrees of freedom, whose 95% quantile is 1.88497."""
    found = parity_train.compare([50.0, 51.0, 52.0, 50.5, 51.5], [50.2, 51.4, 51.6, 50.9, 51.4], 1.0)
    assert found["difference"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == pytest.approx((0.1 - 1.88497 * 0.43474, 0.1 + 1.88497 * 0.43474), abs=1e-4)
    assert found["agrees"]


@pytest.mark.parametrize(
    ("ours", "wrong", "passes", "said"),
    [
        ((50.0, 50.1, 49.9), (45.0, 45.2, 45.1), True, "yes"),
        ((50.0, 50.1, 49.9), (50.1, 50.0, 50.0), False, "yes"),  # the fault is not seen
        ((48.5, 48.6, 48.7), (45.0, 45.2, 45.1), False, "no"),  # another mean
        ((47.0, 53.0, 50.0), (45.0, 45.2, 45.1), False, "undecided: more seeds"),  # not known well enough
    ],
)
def test_a_pass_needs_agreement_and_a_fault_that_is_seen(
    ours: tuple[float, ...], wrong: tuple[float, ...], passes: bool, said: str
) -> None:
    runs = [
        *made(parity_train.OWN, 50.0, 50.1, 49.8),
        *made("torchvision", *ours),
        *made(parity_train.WRONG, *wrong),
    ]
    rows = parity_train.verdicts(runs)
    assert parity_train.passed(rows) == passes
    run = {**runs[0], "images": 140, "epochs": 1, "tested": 500}
    [line] = [line for line in parity_train.markdown(rows, [run], "") if line.startswith("| classic | torchvision |")]
    assert line.endswith(f"| {said} |")
