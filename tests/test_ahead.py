"""A thread makes one batch ahead of its taker: the same batches, errors at their place, and an end that comes."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import EvalRecipe, Loader, SampleIndex, TrainRecipe
from dali_imagenet.ahead import AHEAD, Ahead
from tests.helpers import ENGINES, copied, load, needs_dali, same, saved, script

STRONG = TrainRecipe.strong(input_size=32)
At = tuple[int, int]


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", "1")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dali-imagenet-ahead"]


# ---- whole loaders


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch, backend: Any, workers: int) -> None:
    """Two epochs, one that is left, mixing switched, an evaluation beside; and a state of the middle."""

    def run() -> list[Any]:
        found: list[Any] = []
        with (
            load(folder, STRONG, backend=backend, num_workers=workers) as loader,
            load(folder, EvalRecipe(input_size=32), backend=backend, batch_size=7, num_workers=workers) as other,
        ):
            found += [copied(loader), copied([loader.peek()]), copied(other), copied(loader)]
            found += [copied([next(iter(loader))]), copied(other)]
            loader.mixup_enabled = False
            steps = iter(loader)
            found.append(copied([next(steps)]))
            loader.mixup_enabled = True
            found.append(copied([next(steps)]))
            state = saved(loader)
            assert state["step"] == 2
            found.append(copied(steps))
            loader.load_state_dict(state)
            found.append(copied(loader))
        return found

    expected = run()
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", "1")
    assert all(map(same, run(), expected))
    assert threads() == []


def test_what_else_is_handed_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = SampleIndex.from_folder(folder)
    given = torch.rand(len(index), 3)

    def run() -> list[Any]:
        options: dict[str, Any] = {"with_index": True, "with_path": True, "targets": given, "batch_size": 7}
        with load(index, EvalRecipe(input_size=32), padding="short", **options) as loader:
            return [(x.clone(), y, z, path) for x, y, z, path in loader]

    expected = run()
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", "1")
    for found, wanted in zip(run(), expected, strict=True):
        assert all(map(torch.equal, found[:3], wanted[:3]))
        assert found[3] == wanted[3]


def test_own_targets_are_read_when_they_are_handed_out(folder: Path, ahead: None) -> None:
    index = SampleIndex.from_folder(folder)
    given = torch.zeros(len(index))
    with load(index, TrainRecipe.classic(input_size=32), targets=given) as loader:
        steps = iter(loader)
        assert next(steps)[1].sum() == 0
        given.fill_(1)
        assert next(steps)[1].sum() == 8


def test_closing_and_dropping_end_the_thread(folder: Path, ahead: None) -> None:
    loader = load(folder, STRONG)
    images, _ = next(iter(loader))
    kept = images.clone()
    assert len(threads()) == 1
    loader.close()
    assert threads() == []
    assert torch.equal(images, kept)
    loader = load(folder, STRONG)
    steps = iter(loader)
    next(steps)
    assert len(threads()) == 1
    del loader, steps
    gc.collect()
    assert threads() == []


def test_a_broken_image_fails_its_own_batch(new_folder: Callable[..., Path], ahead: None) -> None:
    index = SampleIndex.from_folder(new_folder(12))
    path = Path(index.path(9))
    path.write_bytes(b"no JPEG at all".ljust(path.stat().st_size, b"\0"))
    with load(index, TrainRecipe.classic(input_size=32, num_aug_repeats=1), shuffle=False, batch_size=4) as loader:
        steps = iter(loader)
        next(steps)
        next(steps)
        assert saved(loader)["step"] == 2
        with pytest.raises(Exception, match=path.name):
            next(steps)


END = """
    import os, signal, sys, time
    from dali_imagenet import TrainRecipe, create_loader
    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests were started
        share = 0.5 if sys.argv[2] == "dali" else None
        loader = create_loader(sys.argv[1], TrainRecipe.strong(input_size=32), batch_size=4, backend=sys.argv[2],
                               device="cpu", num_workers=int(sys.argv[3]), cpu_share=share)
        for images, targets in loader.endless():
            print(time.time(), flush=True)
            if sys.argv[4] == "ctrl-c":
                os.kill(os.getpid(), signal.SIGINT)
            elif sys.argv[4] == "error":
                raise ValueError("of the user's own")
            else:
                break
"""


@pytest.mark.parametrize(
    ("backend", "workers", "how", "code"),
    [
        ("torchvision", 0, "ctrl-c", -signal.SIGINT),
        ("torchvision", 2, "ctrl-c", -signal.SIGINT),
        pytest.param("dali", 1, "ctrl-c", -signal.SIGINT, marks=needs_dali),
        ("torchvision", 2, "error", 1),
        pytest.param("dali", 1, "end", 0, marks=needs_dali),
    ],
)
def test_a_script_that_stops_in_mid_epoch_ends(
    folder: Path, ahead: None, backend: str, workers: int, how: str, code: int
) -> None:
    done = script(END, str(folder), backend, str(workers), how)
    seconds = time.time() - float(done.stdout)
    assert seconds < 60  # on any machine; on a quiet one the thread is waited for 4 s at most
    assert done.returncode == code, done.stderr
    said = {"ctrl-c": "KeyboardInterrupt", "error": "of the user's own", "end": ""}[how]
    assert said in done.stderr
    assert "Fatal" not in done.stderr


# ---- the thread alone


class Source:
    """Makes numbers; `tune` and `prepare` are written down."""

    def __init__(self, fails_at: int = -1) -> None:
        self.made, self.said, self.fails_at = list[At](), list[Any](), fails_at
        self.here = threading.get_ident()
        self.may_go, self.begun = threading.Event(), threading.Semaphore(0)
        self.may_go.set()

    def prepare(self, epoch: int, step: int) -> None:
        assert threading.get_ident() == self.here
        self.said.append(("prepare", epoch, step))

    def batches(self, epoch: int, step: int) -> Generator[At, None, None]:
        assert threading.get_ident() != self.here
        for at in range(step, 5):
            self.begun.release()
            self.may_go.wait()
            if at == self.fails_at:
                raise OSError(f"step {at}")
            self.made.append((epoch, at))
            yield epoch, at


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Ahead[At], Source]]]:
    made: list[Ahead[At]] = []

    def new(**options: Any) -> tuple[Ahead[At], Source]:
        source: Any = Source(**options)
        made.append(Ahead(source, source.batches, source.said.append, lambda at: [], torch.device("cpu")))
        return made[-1], source

    yield new
    for each in made:
        each.close()


def test_one_is_made_while_another_is_in_use_and_no_more(make: Callable[..., tuple[Ahead[At], Source]]) -> None:
    ahead, source = make()
    assert ahead.take((0, 0), "form", (0, 1)) == (0, 0)
    for step in range(1, 5):
        following = (0, step + 1) if step < 4 else (1, 0)
        for _ in range(2):
            assert source.begun.acquire(timeout=60)  # the one in use, and the next
        source.begun.release()
        assert ahead.take((0, step), "form", following) == (0, step)
        assert source.made[: step + 1] == [(0, i) for i in range(step + 1)]
        assert len(source.made) <= step + 2
    assert ahead.take((1, 0), "form", None) == (1, 0)
    assert source.said.count(("prepare", 0, 0)) == 1
    assert [said for said in source.said if said != "form"] == [("prepare", 0, 0)]  # it went on by itself
    assert source.made == [*((0, i) for i in range(5)), (1, 0)]


def test_another_position_and_another_form_begin_anew(make: Callable[..., tuple[Ahead[At], Source]]) -> None:
    ahead, source = make()
    assert ahead.take((0, 0), "a", (0, 1)) == (0, 0)
    assert ahead.take((3, 2), "a", (3, 3)) == (3, 2)
    assert ahead.take((3, 3), "b", (3, 4)) == (3, 3)
    assert ahead.take((3, 4), "b", None) == (3, 4)
    assert source.made == [(0, 0), (0, 1), (3, 2), (3, 3), (3, 3), (3, 4)]
    assert [said for said in source.said if said[0] == "prepare"] == [
        ("prepare", *at) for at in ((0, 0), (3, 2), (3, 3))
    ]


def test_an_error_arrives_at_its_own_batch(make: Callable[..., tuple[Ahead[At], Source]]) -> None:
    ahead, source = make(fails_at=2)
    assert ahead.take((0, 0), "", (0, 1)) == (0, 0)
    assert ahead.take((0, 1), "", (0, 2)) == (0, 1)
    with pytest.raises(OSError, match="step 2"):
        ahead.take((0, 2), "", (0, 3))
    source.fails_at = -1
    assert ahead.take((0, 2), "", None) == (0, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_waiting_can_be_interrupted(make: Callable[..., tuple[Ahead[At], Source]]) -> None:
    ahead, source = make()
    source.may_go.clear()

    def interrupt_it() -> None:
        source.begun.acquire(timeout=60)
        os.kill(os.getpid(), signal.SIGINT)

    interrupt = threading.Thread(target=interrupt_it)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            ahead.take((0, 0), "", (0, 1))
        interrupt.join()
    finally:
        signal.signal(signal.SIGINT, before)
    source.may_go.set()
    assert ahead.take((0, 0), "", (0, 1)) == (0, 0)
    assert ahead.take((0, 1), "", None) == (0, 1)


def test_what_was_taken_is_not_kept(make: Callable[..., tuple[Ahead[At], Source]]) -> None:
    class Batch:
        alive = 0

        def __init__(self) -> None:
            Batch.alive += 1

        def __del__(self) -> None:
            Batch.alive -= 1

    def batches(epoch: int, step: int) -> Generator[Batch, None, None]:
        while True:
            yield Batch()

    source: Any = Source()
    ahead = Ahead(source, batches, source.said.append, lambda batch: [], torch.device("cpu"))
    for step in range(3):
        batch = ahead.take((0, step), "", None)
        assert Batch.alive == 1
        del batch
        assert Batch.alive == 0
    ahead.take((0, 3), "", (0, 4))
    ahead.close()
    assert Batch.alive == 0


def test_a_closed_one_says_so(make: Callable[..., tuple[Ahead[At], Source]]) -> None:
    ahead, _ = make()
    ahead.take((0, 0), "", (0, 1))
    ahead.close()
    ahead.close()
    with pytest.raises(RuntimeError, match="has ended"):
        ahead.take((0, 1), "", None)


class Device:
    """A stream, and the events in it, which pass one by one."""

    def __init__(self) -> None:
        self.recorded = self.passed = self.looked = 0
        self.broken = False

    def record_event(self) -> Device:
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        self.recorded += 1
        event = Device()
        # an event that is asked this one's way
        event.query = functools.partial(self._query, self.recorded)  # type: ignore[method-assign]
        return event

    def query(self) -> bool:
        raise NotImplementedError

    def _query(self, number: int) -> bool:
        self.looked += 1
        self.passed += self.looked % 5 == 0
        return self.passed >= number


def test_the_host_does_not_run_ahead_of_the_device_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda which: device)
    source: Any = Source()
    ahead = Ahead(source, source.batches, source.said.append, lambda batch: [], torch.device("cuda", 0))
    for taken in range(1, 10):
        ahead._pace()
        assert device.recorded == taken
        assert device.passed == max(0, taken - AHEAD)
    on_the_cpu = Ahead(source, source.batches, source.said.append, lambda batch: [], torch.device("cpu"))
    on_the_cpu._pace()
    assert device.recorded == 9


def test_an_error_that_the_event_meets_is_the_batch_s(
    make: Callable[..., tuple[Ahead[At], Source]], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    device.broken = True

    @contextlib.contextmanager
    def on_a_stream(which: torch.device) -> Iterator[Device]:
        yield device

    monkeypatch.setattr("dali_imagenet.ahead._on_a_stream", on_a_stream)
    monkeypatch.setattr("dali_imagenet.ahead.hand_over", lambda tensors, ready, device: None)
    ahead, _ = make()
    with pytest.raises(RuntimeError, match="device-side assert"):
        ahead.take((0, 0), "", (0, 1))
    device.broken = False
    assert ahead.take((0, 1), "", None) == (0, 1)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_peeked_batch_is_whole_on_another_stream(folder: Path, backend: Any, workers: int) -> None:
    with load(folder, STRONG, device="cuda", backend=backend, num_workers=workers) as loader:
        torch.cuda._sleep(20_000_000)
        seen = loader.peek()[0]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            images, _ = next(iter(loader))
            found = images.clone()
            torch.cuda._sleep(20_000_000)
            del images
        torch.cuda.synchronize()
        assert torch.equal(found, seen)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_slow_consumer_holds_few_batches(folder: Path, backend: Any, workers: int) -> None:
    size = 8 * 3 * 256 * 256 * 4
    with load(
        folder, TrainRecipe.classic(input_size=256), device="cuda", backend=backend, num_workers=workers
    ) as loader:
        batches = loader.endless()
        next(batches)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(40):
            next(batches)
            torch.cuda._sleep(20_000_000)
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() < (AHEAD + 12) * size
        batches.close()


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_the_callers_stream_sees_whole_batches(folder: Path, backend: str, workers: int) -> None:
    """A consumer far behind on a stream of its own, which overwrites what it holds."""

    def run(loader: Loader) -> list[torch.Tensor]:
        side, found = torch.cuda.Stream(), []
        with torch.cuda.stream(side):
            for images, _ in loader:
                torch.cuda._sleep(20_000_000)
                found.append(images.clone())
                images.zero_()
                del images
        torch.cuda.synchronize()
        return found

    with load(folder, STRONG, backend=backend, device="cuda", num_workers=workers, batch_size=4) as loader:
        assert loader._open_engine() is not None
        assert loader._ahead is not None
        first = run(loader)
        loader.set_epoch(0)
        for a, b in zip(run(loader), first, strict=True):
            assert (a.float() - b.float()).abs().mean() < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_a_capture_goes_on_while_the_thread_works(folder: Path, backend: Any, workers: int) -> None:
    """In thread_local mode: the thread may allocate meanwhile."""
    options: dict[str, Any] = {"backend": backend, "num_workers": workers, "batch_size": 4}
    with load(folder, STRONG, device="cuda", static_buffers=1, **options) as loader:
        steps = iter(loader)
        images, _ = next(steps)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            mean = images.mean()
        means = []
        for images, _ in steps:
            graph.replay()
            means.append(abs(mean.item() - images.mean().item()))
        assert means
        assert max(means) < 1e-5
