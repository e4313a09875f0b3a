"""From the workers' ring to a GPU: slots are registered, and free again when their copy has run. CUDA is played."""

from __future__ import annotations

import gc
import itertools
import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dali_imagenet import Plan, SampleIndex, TrainRecipe
from dali_imagenet.engine import EngineOptions
from tests.helpers import script
from torchvision_fallback.engine import TorchvisionEngine
from torchvision_fallback.ring import make_ring
from torchvision_fallback.upload import Upload

CPU = torch.device("cpu")
IN_PROCESS_AND_FORKED = [(0, None), (1, "fork")]


class Played(Upload):
    """A device whose copies run when they are waited for."""

    let_go: ClassVar[list[int]] = []

    def __init__(self, slots: Sequence[Tensor], refusal: str = "") -> None:
        super().__init__(CPU, slots)
        self.refusal, self.asked = refusal, list[tuple[int, int]]()
        self.staged, self.queue = 0, list[Copy]()
        self.let_go.clear()

    def _register(self, address: int, nbytes: int) -> str:
        self.asked.append((address, nbytes))
        return self.refusal

    @staticmethod
    def _unregister(address: int) -> None:
        Played.let_go.append(address)

    def _staged(self, image: Tensor) -> Tensor:
        self.staged += 1
        return image.clone()

    def _copied(self, images: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        there = [torch.zeros_like(image) for image in images]
        self.queue.append(Copy(images, there))
        return there, self.queue[-1]


class Copy:
    """What is queued on the device, and the event behind it."""

    def __init__(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
        self.parts, self.ran = list(zip(source, target, strict=True)), False

    def query(self) -> bool:
        return self.ran

    def synchronize(self) -> None:
        if not self.ran:
            for source, target in self.parts:
                target.copy_(source)
        self.ran, self.parts = True, []


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return Plan(SampleIndex.from_folder(folder), TrainRecipe.classic(input_size=32), batch_size=4, seed=0)


@pytest.fixture(scope="module")
def expected(plan: Plan) -> list[Tensor]:
    return [batch[1][0] for batch in itertools.islice(engine_of(plan, 0, None, upload=False)[0].batches(0, 0), 6)]


def engine_of(
    plan: Plan, workers: int, context: str | None, *, upload: bool = True, refusal: str = ""
) -> tuple[TorchvisionEngine, list[Played]]:
    made: list[Played] = []

    def play(slots: Sequence[Tensor]) -> Played:
        made.append(Played(slots, refusal))
        return made[-1]

    options = EngineOptions(CPU, num_workers=workers, multiprocessing_context=context)
    return TorchvisionEngine(plan, options, play if upload else None), made


def pixels(engine: TorchvisionEngine, upload: Played, steps: int) -> Iterator[Tensor]:
    """The uploaded bytes of each batch; all copies but the last ones have run."""
    batches = engine._workers.batches(0, 0)
    for _ in range(steps):
        upload.wait()
        _, images, _ = next(batches)
        yield upload(images)[0]


@pytest.mark.parametrize(("workers", "context"), [*IN_PROCESS_AND_FORKED, (1, "spawn")])
def test_batches_are_those_of_the_workers(
    plan: Plan, expected: list[Tensor], workers: int, context: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, [upload] = engine_of(plan, workers, context)
    real = upload._copied

    def at_once(images: Sequence[Tensor]) -> tuple[list[Tensor], Any]:  # what follows on the CPU waits for no stream
        there, copy = real(images)
        copy.synchronize()
        return there, copy

    monkeypatch.setattr(upload, "_copied", at_once)
    found = [images for _, [images], _ in engine.batches(0, 0)]
    engine.close()
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    assert upload.staged == 0
    addresses = {address for address, _ in upload.asked}
    assert len(addresses) == len(upload.asked) <= len(engine._workers.slots)  # each once
    assert addresses <= {slot.data_ptr() for slot in engine._workers.slots}
    assert {nbytes for _, nbytes in upload.asked} == {engine._workers.slots[0].numel()}
    assert set(upload.let_go) == addresses


@pytest.mark.parametrize(("workers", "context"), IN_PROCESS_AND_FORKED)
def test_a_slot_is_not_written_to_before_its_copy_has_run(plan: Plan, workers: int, context: str | None) -> None:
    """A device that is as slow as it may be: a copy runs when the workers need its slot."""
    engine, [upload] = engine_of(plan, workers, context)
    found = list(pixels(engine, upload, 6))
    waiting = [not copy.ran for copy in upload.queue]
    engine.close()
    assert waiting == [False] * 4 + [True] * 2
    quick, [at_once] = engine_of(plan, 0, None)
    for images, expected in zip(found, pixels(quick, at_once, 6), strict=True):
        at_once.queue[-1].synchronize()
        assert torch.equal(images, expected)
    quick.close()


@pytest.mark.parametrize(("workers", "context"), IN_PROCESS_AND_FORKED)
def test_images_never_travel_by_another_way(plan: Plan, workers: int, context: str | None) -> None:
    """Where no slot were free, DataLoader would share them through /dev/shm, which is small in containers."""
    engine, [upload] = engine_of(plan, workers, context)
    slots = {slot.data_ptr() for slot in engine._workers.slots}
    batches = engine._workers.batches(0, 0)
    for _ in range(6):
        upload.wait()
        _, images, _ = next(batches)
        assert images[0].data_ptr() in slots
        upload(images)
    del images
    engine.close()
    gc.collect()
    in_flight = [task.slot for task in engine._workers._tasks.in_flight]
    assert sorted(engine._workers._tasks.free + in_flight) == list(range(len(slots)))


def test_where_registering_fails_there_is_one_copy_more_and_one_warning(
    plan: Plan, expected: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    engine, [upload] = engine_of(plan, 0, None, refusal="out of memory")
    with caplog.at_level(logging.WARNING):
        found = list(pixels(engine, upload, 6))
    assert upload.staged == len(found) == 6
    assert len(upload.asked) == 1
    assert [record.message.count("out of memory") for record in caplog.records] == [1]
    assert engine._workers._tasks.free  # a staged slot is free at once
    engine.close()
    assert upload.let_go == []


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory without a name is Linux's")
def test_what_cuda_registers_no_forked_worker_inherits(plan: Plan) -> None:
    engine, _ = engine_of(plan, 1, "fork")
    theirs = {slot.data_ptr() for slot in engine._workers._ring}
    assert not theirs & {slot.data_ptr() for slot in engine._workers.slots}
    engine._workers._ring[1].fill_(7)
    assert (engine._workers.slots[1] == 7).all()  # the same memory
    engine.close()


def test_closing_after_an_error_of_the_device_lets_go_of_all() -> None:
    class Broken:
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    slot = torch.zeros(64, dtype=torch.uint8)
    upload = Played([slot])
    upload([slot])
    copies: Any = upload._pending
    copies += [(Broken(), []), (Broken(), [])]
    upload.close()
    assert not copies
    assert Played.let_go == [slot.data_ptr()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_batches_of_its_own_without_workers() -> None:
    [slot, *_] = make_ring(3, 100, 0, None)
    slot.fill_(7)
    if not (child := os.fork()):
        slot.numpy()[:] = 0
        os._exit(0)
    os.waitpid(child, 0)
    assert (slot == 7).all()


@pytest.mark.parametrize(("workers", "context"), IN_PROCESS_AND_FORKED)
def test_no_two_slots_share_a_page(plan: Plan, workers: int, context: str | None) -> None:
    """CUDA registers whole pages, each once."""
    for slot in make_ring(3, 100, workers, context, for_device=True).for_device():
        assert slot.data_ptr() % mmap.PAGESIZE == 0


@pytest.mark.gpu
def test_cuda_registers_the_ring(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    options = EngineOptions(torch.device("cuda", 0), num_workers=1)
    engine = TorchvisionEngine(plan, options)
    on_cpu = TorchvisionEngine(plan, EngineOptions(CPU))
    assert engine._upload is not None
    with caplog.at_level(logging.WARNING):
        for (_, [images], _), (_, [expected], _) in zip(engine.batches(0, 0), on_cpu.batches(0, 0), strict=True):
            torch.testing.assert_close(images.cpu(), expected, atol=1e-4, rtol=1e-4)
    assert not caplog.records
    assert engine._upload._registered
    assert all(slot.is_pinned() for slot in engine._upload._registered.values())
    engine.close()
    assert not engine._upload._registered


@pytest.mark.gpu
def test_a_refusal_by_cuda_is_not_taken_for_a_later_error(plan: Plan) -> None:
    engine = TorchvisionEngine(plan, EngineOptions(torch.device("cuda", 0)))
    assert engine._upload is not None
    slot = engine._workers.slots[0]
    with torch.cuda.device(0):
        assert int(torch.cuda.cudart().cudaHostRegister(slot.data_ptr(), slot.numel(), 0)) == 0
    assert engine._upload._register(slot.data_ptr(), slot.numel())  # registered already
    assert torch.ones(3, device="cuda").sum().item() == 3
    torch.cuda.cudart().cudaHostUnregister(slot.data_ptr())
    engine.close()


@pytest.mark.gpu
def test_no_shared_memory_file_is_used(folder: Path) -> None:
    code = """
        import glob, sys
        from dali_imagenet import TrainRecipe, create_loader
        loader = create_loader(sys.argv[1], TrainRecipe.strong(input_size=48), batch_size=8, backend="torchvision",
                               device="cuda", num_workers=2)
        before = set(glob.glob("/dev/shm/torch_*"))
        for images, targets in loader:
            assert set(glob.glob("/dev/shm/torch_*")) <= before
    """
    done = script(code, str(folder))
    assert done.returncode == 0, done.stderr
