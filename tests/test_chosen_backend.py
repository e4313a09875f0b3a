"""backend="auto": what a remembered trial decides, that rank 0 decides for all, and that a resume keeps it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import Loader, TrainRecipe, create_loader, trial
from dali_imagenet.engine import choose_backend
from tests.helpers import finish, launch, load, needs_dali

RECIPE = TrainRecipe.classic(input_size=32)
CUDA = torch.device("cuda", 0)


def said(backend: str, rate: float | None, **more: Any) -> dict[str, Any]:
    return {"backend": backend, **({"unknown": "crashed"} if rate is None else {"images_per_second": rate}), **more}


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that has DALI, and what a trial of it gave."""
    monkeypatch.setattr("dali_imagenet.dali.stage.dali_available", lambda: (True, "DALI is here"))
    monkeypatch.setattr(trial, "key_of", lambda device, workers: f"{device} {workers}")
    kept: dict[str, Any] = {}
    monkeypatch.setattr(trial, "remembered", lambda key: kept if key.startswith("cuda:0") else None)
    return kept


@pytest.mark.parametrize(
    ("loaders", "backend", "why"),
    [
        ([said("torchvision", 9000), said("dali", 6000)], "torchvision", "9,000 images/s with torchvision and 6,000"),
        ([said("torchvision", 5000), said("dali", 4000), said("dali", 6000)], "dali", "and 6,000 images/s with dali"),
        ([said("torchvision", 9000), said("dali", None)], "dali", "no trial here is remembered"),
        ([], "dali", "`dali-imagenet doctor DATA` makes one"),
        ("nonsense", "dali", "no trial"),
        (["nonsense", {"backend": "dali", "images_per_second": "x"}], "dali", "no trial"),
    ],
)
def test_a_trial_decides_on_a_gpu(remembered: dict[str, Any], loaders: Any, backend: str, why: str) -> None:
    remembered["loaders"] = loaders
    chosen, reason = choose_backend("auto", CUDA)
    assert chosen == backend
    assert why in reason
    assert choose_backend("dali", CUDA) == ("dali", "asked for")


def test_the_cpu_needs_no_trial(remembered: dict[str, Any]) -> None:
    remembered["loaders"] = [said("torchvision", 1), said("dali", 2)]
    assert choose_backend("auto", torch.device("cpu"))[0] == "torchvision"


def auto(folder: Path) -> Loader:
    return load(folder, RECIPE, backend="auto")


def test_the_backend_is_in_the_state(folder: Path) -> None:
    with auto(folder) as loader:
        assert loader.state_dict()["backend"] == "torchvision"


@needs_dali
def test_a_resume_keeps_the_backend(folder: Path) -> None:
    with load(folder, RECIPE, backend="dali", num_workers=1) as loader:
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        expected = next(batches)[0].clone()
    with auto(folder) as loader:
        next(iter(loader))  # with an engine of the other kind
        loader.load_state_dict(state)
        assert loader.backend == "dali"
        assert torch.equal(next(iter(loader))[0], expected)
        assert loader.state_dict()["backend"] == "dali"


@needs_dali
def test_another_backend_than_the_saved_one_is_not_silent(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with auto(folder) as loader:
        state = loader.state_dict()
    with load(folder, RECIPE, backend="dali", num_workers=1) as loader, caplog.at_level(logging.WARNING):
        loader.load_state_dict(state)
        assert loader.backend == "dali"
        assert "saved with backend torchvision goes on with dali" in caplog.text


def test_a_backend_that_is_not_here_is_not_silent(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dali_imagenet.dali.stage.dali_available", lambda: (False, "there is no DALI"))
    with auto(folder) as loader:
        state = loader.state_dict()
        with caplog.at_level(logging.WARNING):
            loader.load_state_dict(state)  # the same
            loader.load_state_dict({k: v for k, v in state.items() if k != "backend"})  # of an older version
        assert not caplog.text
        with caplog.at_level(logging.WARNING):
            loader.load_state_dict(state | {"backend": "dali"})
        assert loader.backend == "torchvision"
        assert "saved with backend dali goes on with torchvision" in caplog.text


RANKS = """
import sys
import torch.distributed as dist
from dali_imagenet import TrainRecipe, create_loader, engine, loader as module

dist.init_process_group("gloo")
chosen = "reference" if dist.get_rank() == 0 else "torchvision"
real = engine.choose_backend
module.choose_backend = lambda backend, device: (chosen, "a trial") if backend == "auto" else real(backend, device)
recipe = TrainRecipe.classic(input_size=32)
with create_loader(sys.argv[1], recipe, batch_size=4, device="cpu", num_workers=0) as loader:
    assert loader.backend == chosen
    next(iter(loader))
    # in one piece, or that of the other rank may come between
    sys.stdout.write(f"{dist.get_rank()} {loader.backend} {loader.state_dict()['backend']}\\n")
dist.destroy_process_group()
"""


def test_rank_0_decides_for_all(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    out = finish(launch(2, str(script), str(folder)))
    assert sorted(out.split("\n")[:2]) == ["0 reference reference", "1 reference reference"]


def test_rank_0_cannot_decide_what_is_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dali_imagenet.loader.check_agreement", lambda *_: "dali")
    monkeypatch.setattr("dali_imagenet.dali.stage.dali_available", lambda: (False, "there is no DALI"))
    with (
        auto(folder) as loader,
        pytest.raises(RuntimeError, match="rank 0 takes backend dali, but backend='dali', but"),
    ):
        next(iter(loader))


def test_what_is_asked_for_is_each_ranks_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dali_imagenet.loader.check_agreement", lambda *_: "reference")
    with create_loader(folder, RECIPE, batch_size=4, device="cpu", backend="torchvision", num_workers=0) as loader:
        next(iter(loader))
        assert loader.backend == "torchvision"
