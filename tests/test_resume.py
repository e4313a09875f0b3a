"""A saved position: plain JSON, the same remaining batches bit for bit, refused where it does not fit."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import Loader, SampleIndex, TrainRecipe
from tests import helpers
from tests.helpers import BACKENDS, HERE, Batches, make_folder, same, saved, start

pytestmark = pytest.mark.usefixtures("one_thread")
STRONG = TrainRecipe.strong(input_size=32, re_prob=0.5, re_mode="pixel")
STEPS = 5
load = functools.partial(helpers.load, seed=3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """42 images: five global batches of 8, and a rest."""
    return SampleIndex.from_folder(make_folder(tmp_path_factory.mktemp("resume") / "data", 42, seed=2))


@pytest.fixture(scope="module")
def epochs(index: SampleIndex) -> dict[str, list[Batches]]:
    """Three uninterrupted epochs by each backend."""
    found = {}
    for backend in HERE:
        with load(index, STRONG, backend=backend) as loader:
            found[backend] = [list(loader) for _ in range(3)]
    return found


# ---- positions


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_position_goes_on_exactly(
    index: SampleIndex, epochs: dict[str, list[Batches]], backend: str, workers: int
) -> None:
    """Whatever was prefetched when the state was taken is neither lost nor repeated."""
    whole = epochs[backend]
    states = []
    with load(index, STRONG, backend=backend, num_workers=workers, prefetch=3) as loader:
        states.append((saved(loader), whole[0], 0))  # before the first step
        for step, _ in enumerate(loader):
            states.append((saved(loader), whole[0][step + 1 :], 0))  # after the last step, too: nothing is left
        states.append((saved(loader), [], 0))  # between epochs, before any set_epoch
        loader.set_epoch(1)
        states.append((saved(loader), whole[1], 1))
        iteration = iter(loader)
        states.append((saved(loader), whole[1], 1))  # an iteration that has handed out nothing yet
        next(iteration)
        states.append((saved(loader), whole[1][1:], 1))
        del iteration
        states.append((saved(loader), whole[1][1:], 1))  # after a break
    assert len(states) == STEPS + 6
    with load(index, STRONG, backend=backend, num_workers=workers) as loader:
        for state, expected, epoch in states:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            loader.set_epoch(epoch)  # as training loops do; it keeps the position
            assert same(list(loader), expected)
            assert same(list(loader), whole[epoch + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_set_epoch(index: SampleIndex, epochs: dict[str, list[Batches]], backend: str) -> None:
    """A finished epoch goes on with the next one; another epoch than the saved one starts at its first step."""
    whole = epochs[backend]
    with load(index, STRONG, backend=backend) as loader:
        iteration = iter(loader)
        next(iteration)
        half = saved(loader)
        for _ in iteration:
            pass
        finished = saved(loader)
        loader.load_state_dict(half)
        assert same(list(loader), whole[0][1:])
        assert same(list(loader), whole[1])
        loader.load_state_dict(finished)
        assert same(list(loader), whole[1])
        loader.load_state_dict(half)
        loader.set_epoch(2)
        assert same(list(loader), whole[2])
        assert len(loader) == STEPS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world", [2, 4])
def test_another_world_size(
    index: SampleIndex, epochs: dict[str, list[Batches]], backend: str, world: int, tmp_path: Path
) -> None:
    with load(index, STRONG, backend=backend) as loader:
        iteration = iter(loader)
        next(iteration), next(iteration)
        state = saved(loader)
    for rank in range(world):
        with load(index, STRONG, backend=backend, batch_size=8 // world, rank=rank, world_size=world) as loader:
            loader.load_state_dict(state)
            rest = list(loader)
            assert len(rest) == STEPS - 2
            for step, (images, targets) in enumerate(rest, 2):
                rows = torch.from_numpy(loader.plan.positions(step) - 8 * step)
                assert torch.equal(images, epochs[backend][0][step][0][rows])
                assert torch.equal(targets, epochs[backend][0][step][1][rows])


def test_the_backend_may_change(index: SampleIndex, epochs: dict[str, list[Batches]]) -> None:
    """The state is the plan's: a run may go on on the other backend, with its pixels."""
    if "dali" not in epochs:
        pytest.skip("DALI is not installed")
    with load(index, STRONG, backend="dali") as dali, load(index, STRONG) as torchvision:
        iteration = iter(dali)
        next(iteration)
        torchvision.load_state_dict(saved(dali))
        assert same(list(torchvision), epochs["torchvision"][0][1:])


@pytest.mark.usefixtures("step_by_step")
def test_skipped_steps_read_no_image(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen is neither read nor planned again: the cost of resuming does not depend on the position."""
    with load(index, STRONG) as loader:
        state = loader.state_dict() | {"epoch": 7, "step": STEPS - 1}
        read: list[str] = []
        planned: list[int] = []
        opened, batch = builtins.open, loader.plan.batch

        def counting_open(file: Any, *args: Any, **options: Any) -> Any:
            if str(file).endswith(".JPEG"):
                read.append(str(file))
            return opened(file, *args, **options)

        def counting_batch(epoch: int, step: int, *args: Any) -> Any:
            planned.append(step)
            return batch(epoch, step, *args)

        monkeypatch.setattr(builtins, "open", counting_open)
        monkeypatch.setattr(loader.plan, "batch", counting_batch)
        loader.load_state_dict(state)
        assert not read
        assert len(list(loader)) == 1
        assert len(read) == 8
        assert planned == [STEPS - 1]


# ---- what does not fit


def _replaced(index: SampleIndex) -> SampleIndex:
    return dataclasses.replace(index, rows=index.rows.replace(label=index.labels[::-1]), _fingerprint=None)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", lambda index: load(index, STRONG, seed=4)),
        ("recipe", lambda index: load(index, STRONG.replace(hflip=0.25))),
        ("data", lambda index: load(_replaced(index), STRONG)),
        ("global_batch_size", lambda index: load(index, STRONG, batch_size=4)),
        ("global_batch_size", lambda index: load(index, STRONG, world_size=2, rank=0)),
        ("drop_last", lambda index: load(index, STRONG, drop_last=False)),
    ],
)
def test_another_run_is_refused_with_both_values(
    index: SampleIndex, field: str, change: Callable[[SampleIndex], Loader]
) -> None:
    with load(index, STRONG) as first, change(index) as second:
        state = saved(first)
        with pytest.raises(ValueError, match="belongs to another run") as caught:
            second.load_state_dict(state)
        message = str(caught.value)
        changed = "recipe: hflip: saved 0.5, here 0.25"
        here = second.state_dict()[field]
        assert (changed if field == "recipe" else f"{field}: saved {state[field]!r}, here {here!r}") in message
        second_state = second.state_dict()
        assert (second_state["epoch"], second_state["step"]) == (0, 0)  # a refused state changes nothing


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": STEPS + 1},
        {"step": 1.5},
        {"epoch": "1"},
        {"epoch": -1},
        {"epoch": 2**32},
        {"version": 99},
        {},
    ],
)
def test_damaged_states_are_refused(index: SampleIndex, change: dict[str, Any]) -> None:
    with load(index, STRONG) as loader:
        state = loader.state_dict() | change if change else {}
        with pytest.raises(ValueError, match="belongs to another run"):
            loader.load_state_dict(state)


# ---- the protocol


def test_the_protocol_of_torchdata(index: SampleIndex, epochs: dict[str, list[Batches]]) -> None:
    """What torchdata's Stateful and Lightning's loops call: state_dict and load_state_dict on the loader itself,
    set_epoch on its sampler and on its batch sampler's sampler at the start of every epoch."""
    with load(index, STRONG) as loader:
        iteration = iter(loader)
        next(iteration)
        state = loader.state_dict()
    with load(index, STRONG) as loader:
        loader.load_state_dict(state)
        for sampler in (loader.sampler, loader.batch_sampler.sampler):
            sampler.set_epoch(0)
        assert same(list(loader), epochs["torchvision"][0][1:])
        for sampler in (loader.sampler, loader.batch_sampler.sampler):
            sampler.set_epoch(1)
        assert same(list(loader), epochs["torchvision"][1])


def test_iterators_that_never_began_do_not_count(index: SampleIndex, epochs: dict[str, list[Batches]]) -> None:
    """Lightning makes an iterator twice before it calls set_epoch, at the start of a run and of a resumed one."""
    whole = epochs["torchvision"]
    with load(index, STRONG) as loader:
        iter(loader)
        iteration = iter(loader)
        loader.sampler.set_epoch(0)
        found = [next(iteration)]
        state = saved(loader)
        assert same(found + list(iteration), whole[0])
        finished = saved(loader)
        assert (finished["epoch"], finished["step"]) == (0, STEPS)
        assert loader.epoch == 1
        iteration = iter(loader)
        loader.set_epoch(2)  # before it begins: this is the epoch it runs
        assert same(list(iteration), whole[2])
    for position, epoch, expected in ((state, 0, whole[0][1:]), (finished, 1, whole[1])):
        with load(index, STRONG) as loader:
            loader.load_state_dict(position)
            iter(loader)
            iteration = iter(loader)
            loader.sampler.set_epoch(epoch)
            assert same(list(iteration), expected)


# ---- a run that is killed


_RUN = """
import json, os, sys
from pathlib import Path
import torch
from dali_imagenet import TrainRecipe, create_loader
if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, out, backend, slow = sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    torch.manual_seed(0)
    model = torch.nn.Linear(3 * 32 * 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    checkpoint = out / "checkpoint.pt"
    loader = create_loader(folder, TrainRecipe.strong(input_size=32), batch_size=8, backend=backend, device="cpu",
                           num_workers=2, seed=3)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        start = loader.epoch
    for epoch in range(start, 3):
        loader.set_epoch(epoch)
        for images, targets in loader:
            loss = torch.nn.functional.cross_entropy(model(images.flatten(1)), targets)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
            torch.save(parts, out / "new.pt")
            os.replace(out / "new.pt", checkpoint)
            print(json.dumps([loader.state_dict()["epoch"], loader.state_dict()["step"]]), flush=True)
            if slow:
                import time; time.sleep(slow)
    loader.close()
"""


def _start(script: Path, folder: str, out: Path, backend: str, slow: float) -> subprocess.Popen[str]:
    out.mkdir(exist_ok=True)
    return start(str(script), folder, str(out), backend, str(slow))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("backend", BACKENDS)
def test_after_kill_minus_9_training_continues_as_if_nothing_had_been(
    index: SampleIndex, tmp_path: Path, backend: str
) -> None:
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    whole = _start(script, index.root, tmp_path / "whole", backend, 0)
    killed = _start(script, index.root, tmp_path / "killed", backend, 0.5)
    assert killed.stdout is not None
    for _ in range(7):  # into the second epoch
        assert killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    before = torch.load(tmp_path / "killed" / "checkpoint.pt")["loader"]
    assert (before["epoch"], before["step"]) < (2, 0)
    time.sleep(0.1)
    continued = _start(script, index.root, tmp_path / "killed", backend, 0)
    for process in (whole, continued):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    expected, found = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert found["loader"] == expected["loader"]
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
