"""Ray Train, by its example: two workers on one machine, of which one fails in the middle of an epoch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from dali_imagenet import TrainRecipe, create_loader
from tests.helpers import ROOT, make_folder, python

pytest.importorskip("ray.train")


def test_a_worker_that_failed_goes_on(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", 23)
    code = tmp_path / "run.py"
    code.write_text(
        textwrap.dedent("""
            import json, sys
            from pathlib import Path
            import ray, ray.train
            from ray.train.torch import TorchTrainer

            data, out = map(Path, sys.argv[1:])

            def worker(config):
                import torch
                from examples import ray_train
                torch.set_num_threads(1)
                real = ray.train.report

                def report(metrics, checkpoint=None):
                    real(metrics, checkpoint=checkpoint)
                    failed = out / "failed"
                    if metrics["epoch"] == 1 and ray.train.get_context().get_world_rank() == 0 and not failed.exists():
                        failed.touch()
                        raise RuntimeError("as if the machine had failed")

                ray.train.report = report
                ray_train.train_worker(config)

            ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
            settings = {"data": str(data), "batch_size": 4, "size": 32, "epochs": 2, "lr": 0.05, "threads": 0,
                        "save_every": 1}
            result = TorchTrainer(
                worker, train_loop_config=settings, scaling_config=ray.train.ScalingConfig(num_workers=2),
                run_config=ray.train.RunConfig(name="run", storage_path=str(out / "ray"),
                                               failure_config=ray.train.FailureConfig(max_failures=1)),
            ).fit()
            (out / "result.json").write_text(json.dumps({"metrics": result.metrics, "path": result.checkpoint.path}))
            ray.shutdown()
        """)
    )
    done = python(str(code), str(data), str(tmp_path), env={"OMP_NUM_THREADS": "1"}, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "failed").exists()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["images"] == 23  # over both workers
    state = torch.load(Path(result["path"], "state.pt"))
    expected = alone(data)
    assert state["loader"]["epoch"] == 1
    assert all(torch.allclose(state["model"][name], value, atol=1e-6) for name, value in expected.items())


def alone(data: Path) -> dict[str, torch.Tensor]:
    """The weights of one process with batches of both, which nothing interrupted."""
    from examples.ray_train import build

    recipe = TrainRecipe.classic(input_size=32)
    loader = create_loader(data, recipe, batch_size=8, backend="torchvision", device="cpu", num_workers=0)
    torch.manual_seed(0)
    net = build(4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for images, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), targets).backward()
            optimizer.step()
    return net.state_dict()
