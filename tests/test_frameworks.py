"""Other people's training loops with `as_dataloader()`, for a few steps each; skipped where one is not installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dali_imagenet import EvalRecipe, Loader, TrainRecipe
from tests.helpers import copied, finish, launch, load, same

TRAIN = TrainRecipe.classic(input_size=32)
EVAL = EvalRecipe(input_size=32)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def wrapped(loader: Loader) -> Any:
    return loader.as_dataloader()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# ---- Accelerate


@pytest.fixture
def accelerator() -> Any:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()
    yield accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def test_accelerate_sees_the_end_of_an_epoch(folder: Path, accelerator: Any) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = accelerator.prepare(wrapped(loader))
        assert dataloader.loader is loader
        net = accelerator.prepare(model())
        synced = []
        for images, targets in dataloader:
            with accelerator.accumulate(net):
                accelerator.backward(nn.functional.cross_entropy(net(images), targets))
                synced.append(accelerator.sync_gradients)
    assert synced == [False, False, False, True, False, True]


def test_accelerate_skips_and_restores(folder: Path, tmp_path: Path, accelerator: Any) -> None:
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = accelerator.prepare(wrapped(loader))
        expected = copied(dataloader)
        loader.set_epoch(0)
        assert same(copied(accelerator.skip_first_batches(dataloader, 4)), expected[4:])
        batches = iter(dataloader)  # the next epoch
        next(batches)
        accelerator.save_state(str(tmp_path))
        rest = copied(batches)
    with load(folder, TRAIN, batch_size=4) as loader:
        accelerator._dataloaders.clear()
        dataloader = accelerator.prepare(wrapped(loader))
        accelerator.load_state(str(tmp_path))
        assert same(copied(dataloader), rest)


GATHER = """
import sys
import torch
from accelerate import Accelerator
from dali_imagenet import EvalRecipe, create_loader

accelerator = Accelerator(cpu=True)
for batch_size in (5, 8):
    loader = create_loader(sys.argv[1], EvalRecipe(input_size=32), batch_size=batch_size, device="cpu", num_workers=0,
                           with_index=True)
    dataloader = accelerator.prepare(loader.as_dataloader())
    found = torch.cat([accelerator.gather_for_metrics(index) for _, _, index in dataloader])
    assert sorted(found.tolist()) == list(range(23)), found
    loader.close()
accelerator.end_training()
print("gathered")
"""


def test_accelerate_gathers_each_image_once(new_folder: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "gather.py").write_text(GATHER)
    assert finish(launch(2, str(tmp_path / "gather.py"), str(new_folder(23)))).count("gathered") == 2


# ---- Lightning


def test_fabric_takes_it(folder: Path) -> None:
    fabric_module = pytest.importorskip("lightning.fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    with load(folder, TRAIN, batch_size=4) as loader:
        expected = [copied(loader) for _ in range(3)]
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = fabric.setup_dataloaders(wrapped(loader))
        assert same(copied(dataloader), expected[0])
        batches = iter(dataloader)
        next(batches)
        next(batches)
        state = loader.state_dict()
    with load(folder, TRAIN, batch_size=4) as loader:
        dataloader = fabric.setup_dataloaders(wrapped(loader))
        loader.load_state_dict(state)
        assert same(copied(dataloader), expected[1][2:])
        assert same(copied(dataloader), expected[2])


def test_lightning_overfits_the_same_batches(folder: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    seen: list[Tensor] = []

    base: Any = lightning.LightningModule

    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: Any, step: int) -> Tensor:
            seen.append(batch[0].clone())
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    with load(folder, TRAIN, batch_size=4) as loader:
        trainer = lightning.Trainer(
            overfit_batches=2, max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(), wrapped(loader))
    assert len(seen) == 6
    assert all(torch.equal(seen[i], seen[i % 2]) for i in range(6))
    assert not torch.equal(seen[0], seen[1])


# ---- Keras, fastai, Ignite, Composer, torchtnt


def test_keras_fits_and_evaluates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("keras has another backend")
    net = keras.Sequential(
        [keras.layers.Input((3, 32, 32)), keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")]
    )
    net.compile(optimizer="sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    with load(folder, TRAIN, batch_size=4) as train, load(folder, EVAL, batch_size=8) as val:
        history = net.fit(wrapped(train), validation_data=wrapped(val), epochs=2, verbose=0)
        assert len(history.history["val_accuracy"]) == 2
        # Keras takes a first batch to build its metrics with: that was epoch 0.
        assert (train.state_dict()["epoch"], train.state_dict()["step"]) == (2, 6)
        assert net.predict(wrapped(val), verbose=0).shape == (24, 4)


def test_fastai_fits_and_predicts(folder: Path) -> None:
    pytest.importorskip("fastai")
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    with load(folder, TRAIN, batch_size=4) as train, load(folder, EVAL, batch_size=8) as val:
        learner = Learner(DataLoaders(wrapped(train), wrapped(val)), model(), loss_func=nn.CrossEntropyLoss())
        with learner.no_logging():
            learner.fit(2)
            predictions, targets = learner.get_preds()
        assert predictions.shape == (24, 4)
        assert targets.tolist() == val.dataset.labels.tolist()
        assert train.state_dict()["epoch"] == 1


def test_ignite_runs_it(folder: Path) -> None:
    engine = pytest.importorskip("ignite.engine")
    seen: list[Tensor] = []
    trainer = engine.Engine(lambda engine, batch: seen.append(batch[1].clone()))
    with load(folder, TRAIN, batch_size=4) as loader:
        expected = [targets for _ in range(2) for _, targets in copied(loader)]
    with load(folder, TRAIN, batch_size=4) as loader:
        trainer.run(wrapped(loader), max_epochs=2)
        assert torch.equal(torch.cat(seen), torch.cat(expected))
        distributed = pytest.importorskip("ignite.distributed")
        with pytest.raises(TypeError, match="a Loader is no dataset"):
            next(iter(distributed.auto_dataloader(loader, batch_size=4, shuffle=True)))
        with pytest.raises(TypeError, match="the loader orders the samples"):
            next(iter(distributed.auto_dataloader(wrapped(loader).dataset, batch_size=4, shuffle=True)))


def test_composer_does_not_break_on_it(folder: Path) -> None:
    composer = pytest.importorskip("composer")
    from composer.models import ComposerClassifier

    with load(folder, TRAIN, batch_size=4) as train, load(folder, EVAL, batch_size=8) as val:
        net = ComposerClassifier(model(), num_classes=4)
        trainer = composer.Trainer(
            model=net, train_dataloader=wrapped(train), eval_dataloader=wrapped(val), max_duration="2ep", device="cpu",
            optimizers=torch.optim.SGD(net.parameters(), 0.1), progress_bar=False,
        )  # fmt: skip
        trainer.fit()
        assert trainer.state.timestamp.batch == 12
        assert int(trainer.state.timestamp.sample) == 48
        trainer.close()


def test_torchtnt_trains(folder: Path) -> None:
    framework = pytest.importorskip("torchtnt.framework")
    count = []

    base: Any = framework.TrainUnit

    class Unit(base):
        def train_step(self, state: Any, data: Any) -> None:
            count.append(data)

    with load(folder, TRAIN, batch_size=4) as loader:
        framework.train(Unit(), wrapped(loader), max_epochs=2)
    assert len(count) == 12
