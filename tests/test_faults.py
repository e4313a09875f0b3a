"""What goes wrong around a loader: it says so, hangs nowhere and leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dali_imagenet import BadImageError, EvalRecipe, Plan, SampleIndex, TrainRecipe, image
from dali_imagenet.data import folder as folder_module
from dali_imagenet.data import index_cache
from tests import helpers
from tests.helpers import ENGINES, PACKAGES, is_worker, make_folder, needs_dali, python, script, start, workers_of
from torchvision_fallback import workers as workers_module

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc and sends signals"),
]
TRAIN = TrainRecipe.classic(input_size=32)
EVAL = EvalRecipe(input_size=32)
load = functools.partial(helpers.load, batch_size=4, num_workers=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return SampleIndex.from_folder(make_folder(tmp_path_factory.mktemp("images") / "data", 48), cache=False)


@pytest.fixture(autouse=True)
def nothing_left(index: SampleIndex) -> Iterator[None]:
    """Every test ends with the processes that it began with."""
    before = set(psutil.Process().children(recursive=True))
    yield
    gc.collect()
    for process in multiprocessing.active_children():  # it would never learn of the end of what psutil waits for
        process.join(60)
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    _, left = psutil.wait_procs(left, timeout=60)
    assert not [p for p in left if is_worker(p)]


def kill_a_worker() -> int:
    """Its number, once it is dead, and not yet waited for."""
    victim = multiprocessing.active_children()[0].pid
    assert victim is not None
    with contextlib.suppress(RuntimeError):  # torch's handler of signals says it here, not at some later line
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    return victim


def test_a_killed_worker_is_an_error_and_the_next_iteration_works(index: SampleIndex) -> None:
    with load(index, TRAIN) as ours:
        expected = [images.clone() for images, _ in ours]
        ours.set_epoch(0)
        iteration = iter(ours)
        next(iteration)
        victim = kill_a_worker()
        with pytest.raises(RuntimeError, match=rf"worker.*{victim}.*(killed|exited)"):  # noqa: PT012 - what it had
            for _ in range(50):  # finished comes first, which may be the rest of the epoch
                for _ in iteration:
                    pass
                iteration = iter(ours)
        ours.set_epoch(0)
        again = [images for images, _ in ours]
        assert all(map(torch.equal, expected, again))
        assert len(again) == len(expected)


def test_a_worker_killed_between_epochs_is_an_error_and_the_next_iteration_works(index: SampleIndex) -> None:
    with load(index, TRAIN) as ours:
        expected = [images.clone() for images, _ in ours]
        victim = kill_a_worker()
        with pytest.raises(RuntimeError, match=rf"worker.*{victim}.*(killed|exited)"):
            list(ours)  # what it had finished comes first
        ours.set_epoch(0)
        assert all(map(torch.equal, expected, [images for images, _ in ours]))


@pytest.mark.usefixtures("step_by_step")
def test_an_error_that_is_held_holds_no_worker(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback would: then workers of the failed iteration would write to the slots of the next one."""
    real = image.read_pixels

    def broken(samples: SampleIndex, sample: int, *rest: Any) -> Any:
        if sample == 17:
            raise BadImageError("17")
        return real(samples, sample, *rest)

    monkeypatch.setattr(image, "read_pixels", broken)
    before = set(workers_of())
    with load(index, TRAIN, multiprocessing_context="fork") as ours:
        with pytest.raises(BadImageError) as held:
            list(ours)
        assert set(workers_of()) == before
        assert held.value.__traceback__ is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_closes_nothing_of_its_parent(index: SampleIndex) -> None:
    with load(index, TRAIN) as ours:
        iteration = iter(ours)
        first = next(iteration)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ours.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert len([first, *iteration]) == len(ours)


@pytest.mark.usefixtures("step_by_step")
def test_a_read_that_blocks_runs_into_the_timeout(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image.read_pixels

    def slow(samples: SampleIndex, sample: int, *rest: Any) -> Any:
        if sample == 17:
            time.sleep(1000)
        return real(samples, sample, *rest)

    monkeypatch.setattr(image, "read_pixels", slow)
    start = time.monotonic()
    with load(index, TRAIN, timeout=2, multiprocessing_context="fork") as ours:
        with pytest.raises(RuntimeError, match="timed out after 2 seconds"):
            for _ in ours:
                pass
        assert time.monotonic() - start < 60


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_pipe_in_a_files_place_blocks_nothing(new_folder: Callable[..., Path], backend: str, workers: int) -> None:
    index = SampleIndex.from_folder(new_folder(8), cache=False)
    os.unlink(index.path(3))
    os.mkfifo(index.path(3))
    with load(index, EVAL, backend=backend, num_workers=workers, on_error="skip", max_broken=0.5) as ours:
        targets = torch.cat([t for _, t in ours])
        assert targets.eq(-100).nonzero().flatten().tolist() == [3]
        assert list(ours.failures) == [index.path(3)]


@pytest.mark.usefixtures("step_by_step")
def test_a_read_that_fails_costs_that_sample(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    real = folder_module._open

    def failing(path: str, flags: int) -> int:
        if path == index.path(5):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags)

    with load(index, EVAL, num_workers=0, on_error="skip", max_broken=0.5) as ours:
        expected = torch.cat([images.clone() for images, _ in ours])
        monkeypatch.setattr(folder_module, "_open", failing)
        got = torch.cat([images.clone() for images, _ in ours])
        assert "Permission denied" in ours.failures[index.path(5)]
        assert [i for i in range(48) if not torch.equal(got[i], expected[i])] == [5]
        monkeypatch.undo()
        assert torch.equal(torch.cat([images.clone() for images, _ in ours]), expected)  # it can be read again
        assert ours.failures == {}
    monkeypatch.setattr(folder_module, "_open", failing)
    with load(index, EVAL, num_workers=0) as ours, pytest.raises(BadImageError, match="Permission denied"):
        list(ours)


FULL_DISK = """
import resource, signal, sys
import logging
logging.basicConfig(format="%(message)s")
from dali_imagenet import EvalRecipe, SampleIndex, create_loader
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that goes too far is an OSError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
index = SampleIndex.from_folder(sys.argv[1], cache_dir=sys.argv[2], progress=False)
options = {"batch_size": 4, "backend": "torchvision", "device": "cpu", "num_workers": 0}
with create_loader(index, EvalRecipe(input_size=32), **options) as loader:
    print(index.fingerprint, index.scan.read, sum(len(targets) for _, targets in loader))
"""


@pytest.mark.parametrize("room", [0, 200])
def test_a_full_disk_costs_the_cache_only(new_folder: Callable[..., Path], tmp_path: Path, room: int) -> None:
    """The kernel refuses to write more than `room` bytes of any file."""
    root, cache = new_folder(8), tmp_path / "cache"
    expected = SampleIndex.from_folder(root, cache=False).fingerprint
    # -B: Python would leave cut .pyc files
    done = python("-B", "-c", FULL_DISK, str(root), str(cache), str(room))
    assert done.stdout.split() == [expected, "8", "8"], done.stderr[-2000:]
    assert "File too large" in done.stderr
    assert "cannot be written, the next start reads every header again" in done.stderr
    assert {file.suffix for file in cache.iterdir()} <= {".lock"}


def test_a_full_disk_leaves_the_older_cache(
    new_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, cache = new_folder(8), tmp_path / "cache"
    SampleIndex.from_folder(root, cache_dir=cache)
    (old,) = cache.glob("index-*.bin")
    before = old.read_bytes()
    (root / "class_000" / "new.JPEG").write_bytes(next(root.rglob("*.JPEG")).read_bytes())
    real = open

    def full(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        """What is written goes to /dev/full, where there is never room."""
        if "w" in mode:
            os.close(file)
            file = "/dev/full"
        return real(file, mode, *args, **options)

    monkeypatch.setattr(index_cache, "open", full, raising=False)
    assert len(SampleIndex.from_folder(root, cache_dir=cache)) == 9
    assert "No space left on device" in caplog.text
    assert [path.read_bytes() for path in cache.glob("index-*")] == [before]


INDEXING = """
import sys
from dali_imagenet import SampleIndex
print(SampleIndex.from_folder(sys.argv[1], cache_dir=sys.argv[2], progress=False).fingerprint)
"""


def test_ranks_that_index_at_once_agree(index: SampleIndex, tmp_path: Path) -> None:
    ranks = [start("-c", INDEXING, index.root, str(tmp_path)) for _ in range(3)]
    found = {rank.communicate(timeout=300)[0].strip() for rank in ranks}
    assert found == {index.fingerprint}
    kinds = sorted(file.suffix for file in tmp_path.iterdir())
    assert kinds == [".bin", ".json", ".lock", ".rows"]  # one of each, nothing temporary


ENDLESS = """
import sys
print("starting", flush=True)
from dali_imagenet import TrainRecipe, create_loader
root, backend, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("imported", flush=True)
while True:
    loader = create_loader(root, TrainRecipe.strong(input_size=32, num_classes=4), batch_size=4, backend=backend,
                           device="cpu", num_workers=workers)
    print("made", flush=True)
    for epoch in range(3):
        for images, targets in loader:
            print("batch", flush=True)
"""


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("moment", ["starting", "imported", "made", "batch", "many batches"])
def test_ctrl_c_ends_it(index: SampleIndex, backend: str, workers: int, moment: str) -> None:
    """The signal goes to the whole process group, as a terminal sends it."""
    child = start(
        *("-c", ENDLESS, index.root, backend, str(workers)),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    try:
        assert child.stdout is not None
        seen = 0
        for line in child.stdout:
            seen += line.strip() == moment.removeprefix("many ").replace("batches", "batch")
            if seen == (20 if moment == "many batches" else 1):
                break
        family = psutil.Process(child.pid).children(recursive=True)
        os.killpg(child.pid, signal.SIGINT)
        for last in (False, False, False, True):
            try:
                _, errors = child.communicate(timeout=60 if last else 20)
                break
            except subprocess.TimeoutExpired:  # Python drops an interrupt that arrives in a destructor: press it again
                if last:
                    raise
                os.killpg(child.pid, signal.SIGINT)
        assert child.returncode != 0
        if moment not in ("starting", "imported"):  # extensions may turn it into an ImportError of their own
            assert child.returncode in (1, -signal.SIGINT, 130)
            assert "KeyboardInterrupt" in errors
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def test_ctrl_c_while_the_workers_are_stopped_is_not_lost(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load(index, TRAIN)
    next(iter(ours))
    real = BaseProcess.join
    waiting: list[BaseProcess] = []

    def join(process: BaseProcess, timeout: float | None = None) -> None:
        if not waiting:
            waiting.append(process)
            signal.raise_signal(signal.SIGINT)
        real(process, timeout)

    monkeypatch.setattr(BaseProcess, "join", join)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            ours.close()
    finally:
        signal.signal(signal.SIGINT, before)
    ours.close()


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_an_exception_in_the_training_loop(index: SampleIndex, backend: str, workers: int) -> None:
    ours = load(index, TRAIN, backend=backend, num_workers=workers)

    def train() -> None:
        for _ in ours:
            1 / 0  # noqa: B018 - for its error

    with pytest.raises(ZeroDivisionError):
        train()
    assert ours.state_dict()["step"] == 1
    assert sum(1 for _ in ours) == len(ours)  # the loader is as good as before
    ours.close()


VISITED = (  # the files whose lines are interrupted
    "dali_imagenet/loader.py",
    "dali_imagenet/dali/engine.py",
    "dali_imagenet/dali/stage.py",
    "torchvision_fallback/engine.py",
    "torchvision_fallback/workers.py",
)


def interrupted(call: Callable[[], Any], line: int) -> int:
    """Presses Ctrl-C at that line which the loader runs in this thread; without, how many lines there are."""
    count, process, files = 0, os.getpid(), {str(PACKAGES / name) for name in VISITED}
    assert all(map(os.path.isfile, files)), files

    def at_call(frame: Any, event: str, argument: Any) -> Any:
        return at_line if frame.f_code.co_filename in files else None

    def at_line(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line" and os.getpid() == process:  # forked workers inherit it
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return at_line

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("moment", ["start", "in an epoch", "another epoch"])
def test_an_interrupt_anywhere_puts_no_image_in_anothers_place(
    index: SampleIndex, backend: str, workers: int, moment: str
) -> None:
    with load(index, TRAIN, backend=backend, num_workers=workers) as ours:
        expected = [(images.clone(), targets) for images, targets in ours]

    def run(line: int) -> int:
        ours = load(index, TRAIN, backend=backend, num_workers=workers)
        ours.set_epoch(1)
        steps = iter(ours)
        if moment != "start":
            next(steps)
        if moment == "another epoch":
            ours.set_epoch(5)
            steps = iter(ours)
        count = interrupted(functools.partial(lambda steps: [next(steps), next(steps)], steps), line)
        del steps
        ours.set_epoch(0)
        with ours:
            found = [(images.clone(), targets) for images, targets in ours]
        for (a, b), (c, d) in zip(found, expected, strict=True):
            assert torch.equal(a, c), line
            assert torch.equal(b, d), line
        return count

    lines = run(0)
    assert lines > 50
    for line in np.linspace(1, lines, 12).astype(int).tolist():
        run(line)


@needs_dali
@pytest.mark.parametrize("where", ["source", "expected", "start", "shape", "schedule_run", "share_outputs"])
def test_an_interrupt_within_dali_puts_no_image_in_anothers_place(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before and after each of its calls, which a trace does not see; also while a batch in flight is thrown away."""
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", "0")  # no interrupt reaches a thread
    with load(index, TRAIN, backend="dali", num_workers=1) as ours:
        expected = [images.clone() for images, _ in ours]
        for after in (False, True):
            for leave in (False, True):
                ours.set_epoch(1)
                steps = iter(ours)
                next(steps)
                engine: Any = ours._engine
                pipe = engine._stage._pipe
                name = where if hasattr(pipe, where) else "feed_input"
                real = getattr(pipe, name)

                def call(*arguments: Any, real: Any = real, name: str = name, after: bool = after, **more: Any) -> Any:
                    chosen = name == where or arguments[0] == where
                    if chosen and not after:
                        raise KeyboardInterrupt
                    result = real(*arguments, **more)
                    if chosen:
                        raise KeyboardInterrupt
                    return result

                with monkeypatch.context() as patched:
                    patched.setattr(pipe, name, call)
                    if leave:
                        ours.set_epoch(7)
                        steps = iter(ours)
                    with pytest.raises(KeyboardInterrupt):
                        next(steps)
                del steps, engine, pipe, real, call
                ours.set_epoch(0)
                assert all(map(torch.equal, [images for images, _ in ours], expected))


def test_no_slot_is_free_twice_after_an_interrupt(index: SampleIndex) -> None:
    for line in range(1, 40):
        tasks = workers_module._Tasks(Plan(index, TRAIN, batch_size=4), 5)
        first = iter(tasks)
        for _ in range(4):
            next(first)
        again = iter(tasks)
        interrupted(functools.partial(next, again), line)
        found = next(iter(tasks))
        assert found.slot not in tasks.free
        assert len({*tasks.free}) == len(tasks.free)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loader_is_not_copied(index: SampleIndex, copied: Callable[[Any], Any]) -> None:
    """The workers would write to the original's memory, and the copy show what lies in its own."""
    with load(index, TRAIN) as ours, pytest.raises(TypeError, match="make another with create_loader"):
        copied(ours)


IN_CHILD = """
import os, sys
import torch
from dali_imagenet import TrainRecipe, create_loader
loader = create_loader(sys.argv[1], TrainRecipe.classic(input_size=32), batch_size=4, backend=sys.argv[2], device="cpu",
                       num_workers=int(sys.argv[3]))
if sys.argv[4] in ("used", "in an epoch"):
    iteration = iter(loader)
    first = next(iteration)
if sys.argv[4] == "used":
    del iteration
if sys.argv[4] == "between epochs":
    assert sum(1 for _ in loader) == len(loader)
pid = os.fork()
if not pid:
    try:
        next(iteration if sys.argv[4] == "in an epoch" else iter(loader))
    except RuntimeError as error:
        os._exit(7 if "forked" in str(error) else 1)
    os._exit(2)
print("child:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
if sys.argv[4] == "in an epoch":
    assert 1 + sum(1 for _ in iteration) == len(loader)
print("parent:", sum(1 for _ in loader) == len(loader))
"""


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("state", ["new", "used", "in an epoch", "between epochs"])
def test_a_forked_child_is_told_to_make_its_own(index: SampleIndex, backend: str, workers: int, state: str) -> None:
    done = python("-W", "ignore", "-c", IN_CHILD, index.root, backend, str(workers), state)
    assert done.stdout.split("\n")[:2] == ["child: 7", "parent: True"], done.stderr[-2000:]


ENDS = """
import sys
from dali_imagenet import TrainRecipe, create_loader
loader = create_loader(sys.argv[1], TrainRecipe.classic(input_size=32), batch_size=4, backend=sys.argv[2], device="cpu",
                       num_workers=int(sys.argv[3]))
print(sum(1 for _ in loader) == len(loader))
"""


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_script_that_ends_after_an_epoch_ends_quietly(index: SampleIndex, backend: str, workers: int) -> None:
    """Although the next epoch has been begun."""
    done = python("-W", "ignore", "-c", ENDS, index.root, backend, str(workers))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_train_and_val_at_the_same_time(index: SampleIndex, backend: str, workers: int) -> None:
    def batches(recipe: Any) -> list[torch.Tensor]:
        with load(index, recipe, backend=backend, num_workers=workers) as ours:
            return [images.clone() for images, _ in ours]

    alone = batches(TRAIN), batches(EVAL)
    own = {"backend": backend, "num_workers": workers}
    with load(index, TRAIN, **own) as train, load(index, EVAL, **own) as val:
        for step, ((a, _), (b, _)) in enumerate(zip(train, val, strict=True)):
            assert torch.equal(a, alone[0][step])
            assert torch.equal(b, alone[1][step])


def test_held_batches_outlive_the_loader(index: SampleIndex) -> None:
    ours = load(index, TRAIN)
    held = [images for images, _ in ours]
    copies = [images.clone() for images in held]
    ours.close()
    del ours
    gc.collect()
    assert all(map(torch.equal, held, copies))
    again = load(index, TRAIN, num_workers=0)
    again.close()
    with pytest.raises(RuntimeError, match="closed"):
        iter(again)


ROUNDS = """
import gc, json, os, sys, threading
import psutil, torch
torch.set_num_threads(1)
from dali_imagenet import SampleIndex, TrainRecipe, create_loader
from tests.helpers import workers_of
index = SampleIndex.from_folder(sys.argv[1])
backend, workers, rounds = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
me = psutil.Process()

def usage():
    gc.collect()
    for thread in threading.enumerate():  # the DataLoader's queues tell theirs to end, and do not wait for it
        if thread.name == "QueueFeederThread":
            thread.join(10)
    children = workers_of(me)
    mine = {os.fstat(int(f)).st_ino for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{f}")}
    segments = [name for name in os.listdir("/dev/shm") if f"_{os.getpid()}_" in name]
    return {"descriptors": me.num_fds(), "threads": me.num_threads(), "children": len(children),
            "segments": len(segments), "rss": me.memory_info().rss / 2**20}

seen = []
for n in range(rounds):
    loader = create_loader(index, TrainRecipe.classic(input_size=64), batch_size=8, backend=backend, device="cpu",
                           num_workers=workers)
    if n % 3 == 0:
        for batch in loader:
            pass
    elif n % 3 == 1:
        for batch in loader:
            break
    if n % 2:
        loader.close()
    del loader
    batch = None
    seen.append(usage())
print(json.dumps(seen))
"""


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_fifty_loaders_leave_nothing_behind(index: SampleIndex, backend: str, workers: int) -> None:
    done = script(ROUNDS, index.root, backend, str(workers), "50")
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    settled, last = seen[9], seen[-1]
    for what in ("descriptors", "threads"):  # a thread may take its time to end
        assert min(row[what] for row in seen[-3:]) <= settled[what], (what, [row[what] for row in seen])
    assert last["children"] == last["segments"] == 0
    assert last["rss"] < settled["rss"] + 40, [round(row["rss"]) for row in seen]


def test_threads_of_the_parent_come_back(index: SampleIndex) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with load(index, TRAIN) as ours:
            next(iter(ours))
    gc.collect()
    new = [thread for thread in threading.enumerate() if thread not in before]
    for thread in new:  # the DataLoader's queues tell theirs to end, and do not wait for it
        thread.join(10)
    assert not [thread for thread in new if thread.is_alive()]


@needs_dali
def test_mutated_images_and_caches_are_accounted_for(tmp_path: Path) -> None:
    """A short run of the fuzzer: 200 mutated images through both backends, 500 mutated caches."""
    from bench.__main__ import main

    out = tmp_path / "fuzz.json"
    assert main(["fuzz", "--seed", "7", "--count", "200", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["findings"] == []
    assert results["mutated images"] == 200
    for backend in ("torchvision", "dali"):
        totals = results["totals"][backend]
        assert totals["samples"] == 100
        assert 0 < totals["delivered changed"] < totals["delivered as indexed"] <= 100 - totals["broken at first"]
    agreement = {"images compared": 392, "samples lost by one backend alone": 0, "images that look different": 0}
    assert results["totals"]["agreement"] == agreement


def test_the_fuzzer_reports_a_crash_and_a_wrong_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.checks import fuzz

    (tmp_path / "data" / "c").mkdir(parents=True)  # no image: the subprocess ends with an error
    assert "status 1" in fuzz._ask("images", tmp_path, "torchvision")["wrong"][0]
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    assert "no end after" in fuzz._ask("images", tmp_path, "torchvision")["wrong"][0]


def test_the_fuzzer_reports_what_one_backend_alone_loses_or_shows() -> None:
    from bench.checks import fuzz

    images = np.zeros((4, 3, 8, 8), np.float32)
    ours = {"evaluation": images, "evaluation: lost": np.zeros(4, np.bool_)}
    assert fuzz.disagreement(ours, ours)["wrong"] == []
    theirs = {"evaluation": images.copy(), "evaluation: lost": np.array([False, False, True, True])}
    theirs["evaluation"][1] = 0.1
    assert fuzz.disagreement(ours, theirs) == {
        "wrong": [
            "evaluation: different images at places [1] of the epoch",
            "evaluation: lost by one backend alone: samples [2, 3]",
        ],
        "images compared": 4,
        "samples lost by one backend alone": 2,
        "images that look different": 1,
    }
