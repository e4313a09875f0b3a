"""Training and evaluation under torchrun equal those of one process with the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dali_imagenet.metrics import Accuracy
from tests.helpers import BACKENDS, ROOT, finish, launch

EXAMPLE = str(ROOT / "examples" / "train_ddp.py")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_on_two_processes_equals_training_on_one(folder: Path, tmp_path: Path, backend: str) -> None:
    """The strong recipe, mixing on: parameters up to the order of floating-point sums, every sample evaluated once."""
    common = [EXAMPLE, str(folder), "--backend", backend, "--size", "32", "--epochs", "3", "--workers", "1"]
    runs = [
        launch(
            processes, *common, "--batch-size", str(8 // processes), "--checkpoint", str(tmp_path / f"{processes}.pt")
        )
        for processes in (1, 2)
    ]
    # not what Gloo of PyTorch 2.9 says in between
    printed = [[line for line in finish(run).splitlines() if line.startswith("epoch")] for run in runs]
    one, two = (torch.load(tmp_path / f"{processes}.pt") for processes in (1, 2))
    assert one["loader"] == two["loader"]
    for name, value in one["model"].items():
        assert torch.allclose(two["model"][name], value, rtol=1e-4, atol=1e-6), name
    assert float(one["optimizer"]["state"][0]["momentum_buffer"].abs().max()) > 1e-3  # it did train
    assert len(printed[0]) == len(printed[1]) == 3
    for a, b in zip(*printed, strict=True):
        assert a.split("top-1")[1] == b.split("top-1")[1]
        assert a.endswith("of 24 images")


_EVALUATE = """
import sys, torch
import torch.distributed as dist
from dali_imagenet import EvalRecipe, create_loader
from dali_imagenet.metrics import Accuracy
dist.init_process_group("gloo")
accuracy = Accuracy((1, 2))
with create_loader(sys.argv[1], EvalRecipe(input_size=32), batch_size=5, device="cpu", backend="torchvision",
                   num_workers=0) as loader:
    steps = 0
    for images, targets in loader:
        outputs = torch.zeros(len(images), 4)
        outputs[:, 2], outputs[:, 0] = 2.0, 1.0
        accuracy.update(outputs, targets)
        steps += 1
print(f"{accuracy.compute()} {steps} {loader.plan.world_size}")
dist.destroy_process_group()
"""


def test_three_processes_count_every_sample_once(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "evaluate.py"
    script.write_text(_EVALUATE)
    # 24 images on 3 ranks by 5: two steps, six rows of padding; the ranks' lines may run into one another
    assert finish(launch(3, str(script), str(folder))).count("({1: 0.25, 2: 0.5}, 24) 2 3") == 3


def test_accuracy_in_one_process() -> None:
    accuracy = Accuracy((1, 3))
    assert accuracy.compute() == ({1: 0.0, 3: 0.0}, 0)
    accuracy.update(torch.eye(4), torch.tensor([0, 1, -100, 0]))
    accuracy.update(torch.eye(4)[:1], torch.tensor([0]))
    assert accuracy.compute() == ({1: 0.75, 3: 1.0}, 4)
    with pytest.raises(ValueError, match="class numbers"):
        accuracy.update(torch.eye(4), torch.eye(4))
    with pytest.raises(ValueError, match="topk"):
        Accuracy((0,))
