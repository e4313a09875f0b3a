"""The training script: exact resume, soft labels, several processes, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import train
from tests.helpers import PACKAGES, ROOT, finish, launch, make_folder

SHORT = (
    "--model",
    "small",
    "--size",
    "32",
    "--batch-size",
    "4",
    "--warmup",
    "0.5",
    "--workers",
    "0",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images to train on and 6 to validate, in 4 classes."""
    root = tmp_path_factory.mktemp("split")
    make_folder(root / "train", 16)
    make_folder(root / "val", 6, seed=1)
    return root


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "last.pt", weights_only=True)
    return state


def test_the_example_is_the_module() -> None:
    assert (ROOT / "examples" / "train.py").read_bytes() == (PACKAGES / "dali_imagenet" / "train.py").read_bytes()


def test_small_is_small() -> None:
    assert sum(p.numel() for p in train.small(10).parameters()) == 91_930


@pytest.mark.parametrize("stop", [1, 2, 6], ids=["after a step", "in the first epoch", "in the second"])
def test_a_run_that_was_stopped_goes_on_exactly(data: Path, tmp_path: Path, stop: int) -> None:
    """With dropout, averaged weights, one cycle, mixing, and a size that grows."""
    words = (str(data), *SHORT, "--size", "0:32,1:40", "--model", "squeezenet1_1", "--recipe", "strong",
             *("--epochs", "2", "--ema", "0.9", "--schedule", "onecycle", "--log-every", "1"),
             *("--accumulate", "1" if stop == 1 else "2"))  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*words, "--output", str(whole)]) == 0
    assert train.main([*words, "--output", str(parts), "--stop-after", str(stop)]) == 0
    assert len(lines(parts)) < len(lines(whole))
    assert train.main([*words, "--output", str(parts)]) == 0
    one, other = weights(whole), weights(parts)
    for name in ("net", "ema"):
        for key, value in one[name].items():
            assert torch.equal(value, other[name][key]), (name, key)
    assert one["train"] == other["train"]
    timeless = ("epoch", "step", "loss", "train_top1", "lr", "val_loss", "top1", "top5", "val_images")
    first, second = ([{k: v for k, v in line.items() if k in timeless} for line in lines(o)] for o in (whole, parts))
    assert first == second
    assert lines(whole)[-1]["val_images"] == 6


def test_a_finished_run_does_nothing(data: Path, tmp_path: Path) -> None:
    words = [str(data), *SHORT, "--recipe", "classic", "--epochs", "1", "--output", str(tmp_path)]
    assert train.main(words) == 0
    before = (tmp_path / "log.jsonl").read_text()
    assert train.main(words) == 0
    assert (tmp_path / "log.jsonl").read_text() == before


@pytest.mark.parametrize("recipe", ["classic", "strong"])
def test_it_learns_and_knows_its_accuracy(data: Path, tmp_path: Path, recipe: str) -> None:
    """Four images by heart: with soft labels, too, training accuracy is that of their class."""
    plain = ["--set", "scale=(1.0, 1.0)", "--set", "hflip=0.0", "--set", "re_prob=0.0", "--set", "mixup_alpha=0.0",
             "--set", "cutmix_alpha=0.0", "--set", "color_twist=None", "--set", "auto_augment=None"]  # fmt: skip
    words = [str(data), *SHORT, "--recipe", recipe, "--epochs", "30", "--lr", "0.05", "--output", str(tmp_path), *plain]
    assert train.main([*words, "--log-every", "4"]) == 0
    reports = [line for line in lines(tmp_path) if "train_top1" in line]
    assert reports[-1]["train_top1"] > 0.9
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert 0 <= reports[-1]["waiting"] <= 1
    assert reports[-1]["images_per_second"] > 0
    assert reports[-1]["lr"] < 0.01


def test_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    """Each image is validated once, and all end with the same weights as their share of one batch gives."""
    words = ("-m", "dali_imagenet.train", str(data), *SHORT, "--recipe", "classic", "--epochs", "2",
             "--accumulate", "2", "--log-every", "1", "--output", str(tmp_path))  # fmt: skip
    finish(launch(2, *words))
    last = lines(tmp_path)[-1]
    assert last["val_images"] == 6
    assert weights(tmp_path)["train"]["epoch"] == 1
    assert len(weights(tmp_path)["random"]) == 2


ENDING = """
import os, sys, time
import torch
import torch.distributed as dist
from dali_imagenet.train import main

def threads():
    return set(os.listdir("/proc/self/task"))

def init(*words, **options):
    before = threads()
    real(*words, **options)
    dist.all_reduce(torch.ones(1))  # both its threads are there
    started.update(threads() - before)

real, dist.init_process_group, started = dist.init_process_group, init, set()
main(sys.argv[1:])
end = time.monotonic() + 20  # a thread that was joined may be listed for a moment
while started & threads() and time.monotonic() < end:
    time.sleep(0.01)
assert started and not started & threads(), f"{started} were started, {threads()} are there"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_the_threads_of_its_group_end_before_python(data: Path, tmp_path: Path) -> None:
    """One that lets go of a tensor while the interpreter is finalized aborts a training that has ended well."""
    (tmp_path / "ending.py").write_text(ENDING)
    words = str(data), *SHORT, "--recipe", "classic", "--epochs", "1", "--stop-after", "1"
    finish(launch(2, str(tmp_path / "ending.py"), *words))


def test_a_model_of_timm(data: Path) -> None:
    words = [str(data), "--model", "test_resnet.r160_in1k", "--size", "32", "--batch-size", "8", "--epochs", "1",
             "--warmup", "0", "--workers", "0", "--device", "cpu", "--optimizer", "adamw", "--lr", "1e-3",
             "--clip-grad", "1", "--stop-after", "1"]  # fmt: skip
    assert train.main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--ema", "1"], r"--ema 1.0: must be in \[0, 1\)"),
        (["--accumulate", "2", "--save-every", "3"], "--save-every 3: must be a multiple of --accumulate 2"),
        (["--warmup", "91"], r"--warmup 91: must be in \[0, 90\]"),
        (["--size", "big"], "must be a side in pixels, or 0:128"),
        (["--set", "re_prob"], "must be FIELD=VALUE"),
        (["--recipe", "none"], "invalid choice"),
        (["--model", "none"], "--model none: must be small, or a name"),
        (["--set", "re_probe=1"], "TrainRecipe has no field 're_probe'"),
    ],
)
def test_what_is_refused(words: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main([str(data), "--batch-size", "4", *words])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_images_of_training_validate_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without parts is all read by both; it may be given the other one."""
    words = [str(data / "train"), *SHORT, "--recipe", "classic", "--epochs", "1", "--stop-after", "1"]
    for more in ([], ["--val-data", str(data / "train")]):
        with pytest.raises(SystemExit) as stopped:
            train.main([*words, *more])
        assert stopped.value.code == 2
        assert "gives the images of training to validate: give --val-data, or train/" in capsys.readouterr().err
    assert train.main([*words, "--val-data", str(data / "val")]) == 0


@pytest.mark.parametrize("every", ["0", "1"])
def test_a_loss_that_is_no_number_ends_the_run(data: Path, every: str) -> None:
    with pytest.raises(FloatingPointError, match="take a smaller --lr"):
        train.main([str(data), *SHORT, "--recipe", "classic", "--epochs", "2", "--lr", "1e30", "--log-every", every])


@pytest.mark.parametrize(("every", "steps"), [("0", [4, 4]), ("2", [2, 4, 2, 4]), ("3", [3, 4, 3, 4])])
def test_what_is_left_of_an_epoch_is_reported(data: Path, tmp_path: Path, every: str, steps: list[int]) -> None:
    words = [str(data), *SHORT, "--recipe", "classic", "--epochs", "2", "--output", str(tmp_path)]
    assert train.main([*words, "--log-every", every]) == 0
    assert [line["step"] for line in lines(tmp_path) if "train_top1" in line] == steps
