"""Lightning on ImageNetDataModule: every stage, resuming in the middle of an epoch, two processes."""

from __future__ import annotations

import importlib
import json
import pickle
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dali_imagenet import EvalRecipe, TrainRecipe, create_loader
from tests.helpers import make_folder, python

pytest.importorskip("lightning")

from dali_imagenet.integrations.lightning import ImageNetDataModule

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = TrainRecipe.classic(input_size=32, mixup_alpha=0.8)
EVAL = EvalRecipe(input_size=32, resize_size=36)


def module(data: Path, **options: Any) -> Any:
    usual: dict[str, Any] = {"batch_size": 4, "train_recipe": TRAIN, "val_recipe": EVAL, "num_workers": 0, "seed": 1}
    return ImageNetDataModule(data, **(usual | options))


def net(package: str = "lightning.pytorch") -> Any:
    """A small model with dropout, so that torch's own generator counts; it remembers what it saw."""
    pl = importlib.import_module(package)

    class Net(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4))
            self.losses: list[float] = []
            self.seen: list[float] = []
            self.random: list[torch.Tensor] = []
            self.labels: dict[str, list[int]] = {"val": [], "test": []}

        def forward(self, images: Any) -> Any:
            return self.head(images)

        def training_step(self, batch: Any, step: int) -> Any:
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(float(loss.detach()))
            self.random.append(torch.random.get_rng_state())
            self.seen.append(float(batch[0].double().sum()))
            return loss

        def validation_step(self, batch: Any, step: int) -> None:
            if not self.trainer.sanity_checking:
                self.labels["val"] += batch[1].tolist()

        def test_step(self, batch: Any, step: int) -> None:
            self.labels["test"] += batch[1].tolist()

        def predict_step(self, batch: Any, step: int) -> Any:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Net()


def trainer(out: Path, package: str = "lightning.pytorch", **options: Any) -> Any:
    usual = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": out,
    }  # fmt: skip
    return importlib.import_module(package).Trainer(**(usual | options))


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_every_stage(folder: Path, tmp_path: Path, package: str) -> None:
    pytest.importorskip(package)
    data, model = module(folder, val_batch_size=5), net(package)
    run = trainer(tmp_path, package, reload_dataloaders_every_n_epochs=1)
    run.fit(model, datamodule=data)
    loader = create_loader(folder, TRAIN, batch_size=4, backend="torchvision", device="cpu", num_workers=0, seed=1)
    assert model.seen == [float(images.double().sum()) for _ in range(2) for images, _ in loader]
    assert sorted(model.labels["val"]) == sorted(2 * [i % 4 for i in range(24)])
    run.test(model, datamodule=data)
    assert sorted(model.labels["test"]) == sorted(i % 4 for i in range(24))
    found = torch.cat(run.predict(model, datamodule=data))
    with torch.no_grad():
        expected = torch.cat([model.eval()(images) for images, _ in module(folder).predict_dataloader()])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("stop", [4, 6, 8])  # of 6 steps an epoch
def test_resumed_is_uninterrupted(folder: Path, tmp_path: Path, stop: int) -> None:
    save = importlib.import_module("lightning.pytorch.callbacks").ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1
    )
    whole = net()
    trainer(tmp_path, callbacks=[save], enable_checkpointing=True).fit(whole, datamodule=module(folder))
    second = net()
    torch.random.set_rng_state(whole.random[stop - 1])  # Lightning's checkpoints hold none
    file = tmp_path / f"step={stop}.ckpt"
    torch.load(file, weights_only=True)  # what Lightning asks for depends on its version
    trainer(tmp_path).fit(second, datamodule=module(folder), ckpt_path=file)
    assert second.seen == whole.seen[stop:]
    assert second.losses == whole.losses[stop:]
    assert all(map(torch.equal, second.state_dict().values(), whole.state_dict().values()))


def test_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4)
    run.fit(net(), datamodule=module(folder))
    run.save_checkpoint(tmp_path / "run.ckpt")
    other = module(folder, train_recipe=TRAIN.replace(hflip=0.1))
    trainer(tmp_path).test(net(), datamodule=other, ckpt_path=tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="hflip"):
        trainer(tmp_path).fit(net(), datamodule=other, ckpt_path=tmp_path / "run.ckpt")


def test_state_and_epoch_without_a_trainer(folder: Path) -> None:
    data = module(folder)
    assert data.state_dict() == {}
    data.set_epoch(3)
    batches = iter(data.train_dataloader())
    next(batches)
    state = json.loads(json.dumps(data.state_dict()))
    assert (state["train"]["epoch"], state["train"]["step"]) == (3, 1)
    expected = next(batches)[0].clone()
    other = pickle.loads(pickle.dumps(data))  # as a process is spawned: with loaders of its own
    assert other.state_dict() == {}
    other.load_state_dict(state)
    assert torch.equal(next(iter(other.train_dataloader()))[0], expected)
    data.load_state_dict(state)
    assert torch.equal(next(iter(data.train_dataloader()))[0], expected)


def test_a_batch_size_that_changes(folder: Path) -> None:
    data = module(folder, device="cpu")
    assert data.train_dataloader() is data.train_dataloader()
    data.batch_size = 8
    assert len(next(iter(data.train_dataloader()))[0]) == 8


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val_recipe=EvalRecipe\(\)"):
        module(folder, val_recipe=None).test_dataloader()
    model = net()
    trainer(tmp_path, max_steps=1).fit(model, datamodule=module(folder, val_recipe=None))
    assert not model.labels["val"]


def test_two_processes(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", 23)
    code = tmp_path / "run.py"
    code.write_text(
        textwrap.dedent("""
            import json, sys
            from pathlib import Path
            import torch
            from tests.test_trainer_lightning import module, net, trainer
            torch.set_num_threads(1)
            out, model = Path(sys.argv[2]), net()
            data = module(Path(sys.argv[1]))
            run = trainer(out, strategy="ddp", devices=2, max_epochs=1)
            run.fit(model, datamodule=data)
            found = {"seen": model.seen, "labels": model.labels["val"], "steps": run.global_step}
            (out / f"{run.global_rank}.json").write_text(json.dumps(found))
        """)
    )
    done = python(str(code), str(data), str(tmp_path), env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["steps"] == two["steps"] == 2  # 23 images, global batches of 8
    assert len({*one["seen"], *two["seen"]}) == 4
    assert sorted(one["labels"] + two["labels"]) == sorted(i % 4 for i in range(23))
