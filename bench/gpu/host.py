"""What a GPU target costs the host, measured here: no GPU is run, and none is needed.

CPU times, so that other programs on the machine count little; of several rounds the best one is said.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import PROGRAM, images, machine

if TYPE_CHECKING:
    from dali_imagenet import SampleIndex

NAME = "gpu-host"
HELP = "CPU time of the host behind a GPU target, without a GPU"
STEPS_A_BATCH = 20
FED = (
    "classic",
    "strong",
    "advanced",
    "rsb_a1",
    "deit3",
    "simclr",
    "augmix",
)  # recipes that the feeder is measured with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="ImageFolder tree; default: generated images")
    add("--ask", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS), help="some only; default: all")
    add("--rounds", type=int, metavar="N", default=3, help="of which the best is taken (3)")
    add("--steps", type=int, metavar="N", default=20, help="batches a round (20)")
    add("--json", type=Path, metavar="FILE", help="write rows and machine there")


def run(options: argparse.Namespace) -> int:
    from dali_imagenet import SampleIndex

    index = SampleIndex.from_folder(options.data or images.default_data() / "train")
    rows = []
    for ask in options.ask:
        for row in QUESTIONS[ask](index, options.rounds, options.steps):
            rows.append({"question": ask, **row})
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        about = {
            "command": f"{PROGRAM} {NAME}",
            "gpu": "none was run",
            "rounds": options.rounds,
            "steps": options.steps,
            "machine": machine.describe(),
            "versions": machine.versions(),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


def workers(index: SampleIndex, rounds: int, steps: int) -> list[dict[str, Any]]:
    """The torchvision backend's worker processes and main process on a GPU target, batches of 64 at 224 pixels.

    Files come from memory, so that the system calls of reading are not in it; and copies to the GPU, which its own
    engines make, take no time. "shared memory" is DataLoader's own way, without the ring.
    """
    import psutil

    from dali_imagenet import Plan, TrainRecipe
    from torchvision_fallback.workers import Workers

    batch_size = 64
    index = index.repeat(-(-batch_size * (steps + 4) // len(index)))
    index = dataclasses.replace(index, source=_InMemory(index))
    plan = Plan(index, TrainRecipe.classic(), batch_size=batch_size, seed=0)
    rows: list[dict[str, Any]] = []
    for way in ("ring", "shared memory"):
        found = []
        for _ in range(rounds):
            with contextlib.closing(Workers(plan, None, num_workers=1)) as made:
                if way != "ring":
                    made._tasks.free.clear()
                upload = _no_copy(made.slots)
                batches = made.batches(0, 0)
                processes = []
                for step in range(steps + 4):
                    if step == 4:  # the first ones warm up
                        processes = psutil.Process().children()
                        before, start = [p.cpu_times() for p in processes], time.process_time()
                    upload.wait()
                    _, pixels, _ = next(batches)
                    upload(pixels)
                    del pixels
                main = time.process_time() - start
                after = [p.cpu_times() for p in processes]
                system = sum(b.system - a.system for a, b in zip(before, after, strict=True))
            found.append((1e6 * system / batch_size / steps, 1e3 * main / steps))
        rows.append(
            {
                "way": way,
                "worker_system_us_an_image": round(min(s for s, _ in found), 1),
                "main_ms_a_batch": round(min(m for _, m in found), 2),
            }
        )
    return rows


class _InMemory:
    """A source whose files have been read."""

    fork_safe = True

    def __init__(self, index: SampleIndex) -> None:
        files: dict[str | None, bytes] = {}
        self._names = [index.source.local_path(i) for i in range(len(index))]
        for i, name in enumerate(self._names):
            if name not in files:
                files[name] = index.source.read(i)
        self._files = files

    def __len__(self) -> int:
        return len(self._names)

    def read(self, sample: int) -> bytes:
        return self._files[self._names[sample]]

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        return [self.read(sample) for sample in samples]

    def will_read(self, samples: Sequence[int]) -> None: ...

    def name(self, sample: int) -> str:
        return os.path.basename(self._names[sample] or "")

    def local_path(self, sample: int) -> str | None:
        return None

    def close(self) -> None: ...


def _no_copy(slots: Any) -> Any:
    """An upload to a device that has its copy at once."""
    import torch

    from torchvision_fallback.upload import Upload

    class NoCopy(Upload):
        def _register(self, address: int, nbytes: int) -> str:
            return ""

        def _staged(self, image: torch.Tensor) -> torch.Tensor:
            return image

        def _copied(self, images: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
            return list(images), _Passed()

        @staticmethod
        def _unregister(address: int) -> None: ...

    return NoCopy(torch.device("cpu"), slots)


class _Passed:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


def feeder(index: SampleIndex, rounds: int, steps: int) -> list[dict[str, Any]]:
    """The thread that draws, feeds DALI and prepares the batch stage, batches of 256 that are read for the first time:
    see `paper.feeder_us`. The recipes take turns."""
    import torch

    from .paper import feeder_us, recipes

    batch_size, some = 256, min(steps, 3)
    index = index.repeat(-(-batch_size * (some + 1) // len(index)))
    chosen = {name: recipe for name, recipe in recipes().items() if name in FED}
    found: dict[str, list[float]] = {name: [] for name in chosen}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other in a busy loop are not what is asked
    for _ in range(rounds):
        for name, recipe in chosen.items():
            found[name].append(feeder_us(index, recipe, batch_size, some))
    torch.set_num_threads(before)
    return [
        {"recipe": name, "feeder_us_an_image": round(min(times), 1), "worst_us": round(max(times), 1)}
        for name, times in found.items()
    ]


def ahead(index: SampleIndex, rounds: int, steps: int) -> list[dict[str, Any]]:
    """What the thread that makes batches ahead takes from a main thread of 1,000 small torch operations a step.

    Steps while a batch of 64 is made (DALI's graph for a GPU, on the CPU, with one thread) take turns with as many
    while nothing is made. Waiting for a batch does not count, being slowed does; but "loss" leaves out the time for
    which the main thread could run and had no core, since DALI's threads want more of them here than behind a GPU, and
    "loss_in_all" has it.
    """
    import numpy as np
    import torch

    from dali_imagenet import Plan, TrainRecipe
    from dali_imagenet.ahead import Ahead
    from dali_imagenet.dali.engine import DaliEngine
    from dali_imagenet.engine import EngineOptions

    batch_size, device = 64, torch.device("cpu")
    index = index.repeat(-(-batch_size * (steps + 2) // len(index)))
    plan = Plan(index, TrainRecipe.classic(), batch_size=batch_size, seed=0)
    small = torch.zeros(8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def thousand() -> tuple[float, float]:
        """Seconds, and of these the ones without a core."""
        start, waited = time.perf_counter(), _without_a_core()
        for _ in range(1000):
            small.add_(1)
        return time.perf_counter() - start, _without_a_core() - waited

    found: list[dict[str, Any]] = []
    for _ in range(rounds):
        engine = DaliEngine(plan, EngineOptions(device, num_workers=1, roi_decode=False, in_graph=True))
        thread = Ahead(engine, engine.batches, lambda form: None, lambda batch: [], device)
        alone, beside, taking = list[tuple[float, float]](), list[tuple[float, float]](), list[float]()
        thread.take((0, 0), None, None)
        for at in range(1, steps + 1):
            alone += [thousand() for _ in range(STEPS_A_BATCH)]
            asked = thread._ask((0, at), None)
            while thread._desk.answer is None or thread._desk.answer.serial != asked.serial:
                beside.append(thousand())
            start = time.thread_time()
            batch = thread.take((0, at), None, None)
            taking.append(time.thread_time() - start)
            del batch
        thread.close()
        engine.close()
        (step, idle), (slowed, waiting) = np.mean(alone, axis=0).tolist(), np.mean(beside, axis=0).tolist()
        found.append(
            {
                "step_alone_ms": round(1e3 * step, 3),
                "step_beside_ms": round(1e3 * slowed, 3),
                "without_a_core_ms": round(1e3 * waiting, 3),
                "loss": round((slowed - waiting) / (step - idle) - 1, 4),
                "loss_in_all": round(slowed / step - 1, 4),
                "taking_us_a_batch": round(1e6 * min(taking), 1),
            }
        )
    torch.set_num_threads(before)
    return found


def _without_a_core() -> float:
    """Seconds for which this thread could have run and had no core; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


QUESTIONS: dict[str, Callable[[SampleIndex, int, int], list[dict[str, Any]]]] = {
    f.__name__: f for f in (workers, feeder, ahead)
}
