"""Hugging Face's Trainer on our loaders: steps, soft labels, evaluation of every sample once, resuming."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
from tests.helpers import make_folder, python

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dali_imagenet.integrations.transformers import STATE_FILE, DaliTrainerMixin  # noqa: E402 - if it is there

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = TrainRecipe.classic(input_size=32, hflip=0.5)
MIXED = TrainRecipe.classic(input_size=32, mixup_alpha=0.8, label_smoothing=0.1)
EVAL = EvalRecipe(input_size=32, resize_size=36)


class MyTrainer(DaliTrainerMixin, transformers.Trainer):  # type: ignore[name-defined]
    """As users write it; it remembers what it trained with."""

    seen: list[torch.Tensor]
    losses: list[float]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "seen"):
            self.seen, self.losses = [], []
        self.seen.append(inputs["pixel_values"].clone())
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses.append(float(loss))
        return loss


def vit() -> Any:
    """A ViT with dropout, so that torch's own generator counts."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
        num_labels=4, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet() -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=4
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def trainer(out: Path, data: Any, model: Any = None, **options: Any) -> MyTrainer:
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 5, "num_train_epochs": 2, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "learning_rate": 0.01,
        "dataloader_drop_last": True,
    }  # fmt: skip
    own: dict[str, Any] = {"train_recipe": TRAIN, "eval_recipe": EVAL, "loader_options": {"num_workers": 0}}
    own |= {name: options.pop(name) for name in list(options) if name in OWN}
    args = transformers.TrainingArguments(str(out), **(usual | options))
    return MyTrainer(model=vit() if model is None else model, args=args, train_dataset=data, **own)


OWN = ("train_recipe", "eval_recipe", "loader_options", "eval_dataset", "compute_metrics", "compute_loss_func")


def weights(of: MyTrainer) -> list[torch.Tensor]:
    return [value.clone() for value in of.model.state_dict().values()]


def test_counters_and_batches(folder: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, folder, gradient_accumulation_steps=4, data_seed=3)
    out = made.train()
    steps, updates = 6, 2  # 24 images, the last update of an epoch has two batches
    assert made.state.global_step == 2 * updates
    assert made.state.epoch == 2
    assert len(made.seen) == 2 * steps
    seconds = out.metrics["train_runtime"]
    assert out.metrics["train_samples_per_second"] * seconds == pytest.approx(48, rel=0.05)
    loader = create_loader(
        folder, TRAIN, batch_size=4, backend="torchvision", device="cpu", num_workers=0, seed=3, drop_last=True
    )
    expected = [images.clone() for _ in range(2) for images, _ in loader]
    assert all(map(torch.equal, made.seen, expected))


def test_the_last_batch_is_kept_as_the_trainer_says(folder: Path, tmp_path: Path) -> None:
    kept = trainer(tmp_path, folder, per_device_train_batch_size=7, dataloader_drop_last=False)
    front = kept.get_train_dataloader()
    assert [len(batch["labels"]) for batch in front] == [7, 7, 7, 3]
    assert kept.num_examples(front) == 24
    dropped = trainer(tmp_path, folder, per_device_train_batch_size=7)
    assert dropped.num_examples(dropped.get_train_dataloader()) == 21


@pytest.mark.parametrize(("stop", "accumulate"), [(2, 2), (3, 2), (5, 1)])
def test_resumed_is_uninterrupted(folder: Path, tmp_path: Path, stop: int, accumulate: int) -> None:
    options = {"gradient_accumulation_steps": accumulate, "train_recipe": MIXED}
    whole = trainer(tmp_path / "whole", folder, **options)
    whole.train()
    first = trainer(tmp_path / "parts", folder, save_strategy="steps", save_steps=stop, **options)
    first.train()
    state = tmp_path / "parts" / f"checkpoint-{stop}"
    saved = json.loads((state / STATE_FILE).read_text())
    assert saved["epoch"] * 6 + saved["step"] == stop * accumulate
    second = trainer(tmp_path / "parts", folder, **options)
    second.train(resume_from_checkpoint=str(state))
    assert second.state.global_step == whole.state.global_step
    assert second.losses == whole.losses[stop * accumulate :]
    assert all(map(torch.equal, second.seen, whole.seen[stop * accumulate :]))
    assert all(map(torch.equal, weights(second), weights(whole)))
    logged = [
        [(entry["step"], entry["loss"], entry["learning_rate"]) for entry in of.state.log_history if "loss" in entry]
        for of in (second, whole)
    ]
    assert logged[0] == logged[1]


@pytest.mark.usefixtures("step_by_step")
def test_resuming_reads_nothing_that_was_seen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trainer(tmp_path, folder, save_strategy="steps", save_steps=5, max_steps=5)
    first.train()
    index = SampleIndex.from_folder(folder)
    read: list[int] = []
    real = type(index.source).read

    def noted(source: Any, sample: int) -> bytes:
        read.append(sample)
        return real(source, sample)

    monkeypatch.setattr(type(index.source), "read", noted)
    second = trainer(tmp_path, index, max_steps=6)
    second.train(resume_from_checkpoint=True)
    assert len(second.seen) == 1
    order = list(create_loader(folder, TRAIN, batch_size=4, device="cpu", seed=42).batch_sampler)
    assert set(order[5]) <= set(read)
    assert not set(read) & {i for step in order[:5] for i in step}


def test_a_checkpoint_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer(tmp_path, folder, save_strategy="steps", save_steps=3, max_steps=3).train()
    with pytest.raises(ValueError, match="hflip"):
        trainer(tmp_path, folder, train_recipe=TrainRecipe.classic(input_size=32, hflip=0.1)).train(True)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        trainer(tmp_path, folder, gradient_accumulation_steps=2).train(resume_from_checkpoint=True)
    again = trainer(tmp_path, folder, ignore_data_skip=True, num_train_epochs=1)
    again.train(resume_from_checkpoint=True)
    first = next(iter(trainer(tmp_path, folder).get_train_dataloader()))
    assert torch.equal(again.seen[0], first["pixel_values"])  # from the epoch's beginning, as the Trainer means it


def test_a_checkpoint_without_our_state(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = trainer(tmp_path, folder, save_strategy="steps", save_steps=4)
    whole.train()
    (tmp_path / "checkpoint-4" / STATE_FILE).unlink()
    second = trainer(tmp_path, folder)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "is not checked" in caplog.text
    assert second.losses == whole.losses[4:]


@pytest.mark.parametrize("model", [vit, resnet])
def test_soft_labels_have_their_own_loss(folder: Path, tmp_path: Path, model: Any) -> None:
    made = trainer(tmp_path, folder, model().eval(), train_recipe=MIXED)
    batch = next(iter(made.get_train_dataloader()))
    assert batch["labels"].shape == (4, 4)
    loss, outputs = made.compute_loss(made.model, dict(batch), return_outputs=True)
    assert torch.equal(loss, functional.cross_entropy(outputs.logits, batch["labels"]))
    made.model.config.problem_type = "multi_label_classification"
    loss = made.compute_loss(made.model, dict(batch))
    assert torch.equal(loss, functional.binary_cross_entropy_with_logits(outputs.logits, batch["labels"]))


def one_update(out: Path, data: Path, model: Any, rows: int, accumulate: int) -> torch.Tensor:
    """The weights after it, without dropout and statistics of batches."""
    net = model().eval()
    net.train = lambda mode=True: net
    made = trainer(
        out, data, net, train_recipe=TrainRecipe.classic(input_size=32, label_smoothing=0.1), max_steps=1, optim="sgd",
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulate, lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )  # fmt: skip
    made.train()
    return torch.cat([value.flatten().float() for value in weights(made)])


@pytest.mark.parametrize("model", [vit, resnet])
def test_accumulated_soft_labels_are_one_batch(folder: Path, tmp_path: Path, model: Any) -> None:
    """Two batches of four and one of eight give the same gradient, but for the order of sums."""
    found = [one_update(tmp_path, folder, model, rows, accumulate) for rows, accumulate in ((4, 2), (8, 1))]
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not torch.allclose(found[0], torch.cat([v.flatten().float() for v in model().state_dict().values()]))


def test_evaluation_counts_every_sample_once(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", 23)
    plain = create_loader(data, EVAL, batch_size=23, backend="torchvision", device="cpu", num_workers=0)
    [(images, labels)] = plain
    net = vit().eval()
    with torch.no_grad():
        logits = net(images).logits
    expected = float(functional.cross_entropy(logits, labels))
    padded = create_loader(
        data, EVAL, batch_size=6, backend="torchvision", device="cpu", num_workers=0, with_index=True, with_path=True,
        output="dict",
    )  # fmt: skip
    for given in (data, SampleIndex.from_folder(data), padded, {"a": data, "b": padded}):
        made = trainer(tmp_path / "out", None, net, eval_dataset=given, compute_metrics=_accuracy)
        metrics = made.evaluate()
        for name in ("eval_a", "eval_b") if isinstance(given, dict) else ("eval",):
            assert metrics[f"{name}_count"] == 23
            assert metrics[f"{name}_loss"] == pytest.approx(expected, rel=1e-5)
            assert metrics[f"{name}_accuracy"] == float((logits.argmax(1) == labels).float().mean())
    found = made.predict(data)
    assert np.allclose(found.predictions, logits.numpy(), atol=1e-5)
    assert (found.label_ids == labels.numpy()).all()


def _accuracy(found: Any, compute_result: bool = True) -> dict[str, float]:
    hits = (found.predictions.argmax(-1) == found.label_ids).mean()
    return {"accuracy": float(np.float32(hits)), "count": len(found.label_ids)}


def test_metrics_batch_by_batch_know_the_last_one(folder: Path, tmp_path: Path) -> None:
    last: list[bool] = []

    def metrics(found: Any, compute_result: bool) -> dict[str, float]:
        last.append(compute_result)
        return {"n": len(found.label_ids)}

    trainer(tmp_path, None, eval_dataset=folder, batch_eval_metrics=True, compute_metrics=metrics).evaluate()
    assert last == [False] * 4 + [True]


def test_evaluation_while_training_leaves_it_alone(folder: Path, tmp_path: Path) -> None:
    alone = trainer(tmp_path, folder, num_train_epochs=1)
    alone.train()
    both = trainer(tmp_path, folder, eval_dataset=folder, num_train_epochs=1, eval_strategy="steps", eval_steps=2)
    both.train()
    assert both.losses == alone.losses
    assert len(both._made) == 2  # every evaluation used one loader


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="train_recipe="):
        trainer(tmp_path, folder, train_recipe=None).train()
    with pytest.raises(ValueError, match="eval_recipe="):
        trainer(tmp_path, folder, eval_recipe=None, eval_dataset=SampleIndex.from_folder(folder)).evaluate()
    with pytest.raises(ValueError, match="split_batches"):
        trainer(tmp_path, folder, accelerator_config={"split_batches": True})
    loader = create_loader(folder, TRAIN, batch_size=8, backend="torchvision", device="cpu", num_workers=0)
    made = trainer(tmp_path, loader, max_steps=1)
    made.train()
    assert "batch_size=8, TrainingArguments say 4" in caplog.text
    assert made.state.train_batch_size == 8


def test_other_data_are_the_trainers_own(tmp_path: Path) -> None:
    rows = [{"pixel_values": torch.zeros(3, 32, 32), "labels": i % 4} for i in range(8)]
    made = trainer(tmp_path, rows, train_recipe=None, eval_recipe=None, eval_dataset=rows, num_train_epochs=1)
    made.train()
    assert made.state.global_step == 2
    assert "eval_loss" in made.evaluate()


def test_without_the_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    from dali_imagenet.integrations.frameworks import framework

    with pytest.raises(ImportError, match=r"dali-imagenet\[frameworks\]"):
        framework("transformers")


def test_two_processes(tmp_path: Path) -> None:
    """Each sample in one process, metrics of exactly N, the gradient of both, and a resumed run."""
    data = make_folder(tmp_path / "data", 23)
    code = tmp_path / "run.py"
    code.write_text(
        textwrap.dedent("""
            import json, os, sys
            from pathlib import Path
            import torch, transformers
            from dali_imagenet import create_loader
            from tests.test_trainer_transformers import EVAL, _accuracy, one_update, resnet, trainer, vit, weights
            torch.set_num_threads(1)
            data, out, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK"]
            loader = create_loader(data, EVAL, batch_size=6, backend="torchvision", device="cpu", num_workers=0)
            both = {"path": data, "loader": loader}
            found = {"metrics": trainer(out, None, eval_dataset=both, compute_metrics=_accuracy).evaluate()}
            whole = trainer(out / "run", data, save_strategy="steps", save_steps=1)
            whole.train()
            second = trainer(out / "run", data)
            second.train(resume_from_checkpoint=str(out / "run" / "checkpoint-1"))
            found |= {
                "seen": [float(x.double().sum()) for x in whole.seen],
                "step": second.state.global_step,
                "resumed": second.losses == whole.losses[1:],
                "same": all(map(torch.equal, weights(second), weights(whole))),
                "order": list(whole._training.loader.batch_sampler),
                "update": {model.__name__: one_update(out, data, model, 2, 2).tolist() for model in (vit, resnet)},
            }
            Path(out, f"{rank}.json").write_text(json.dumps(found))
        """)
    )
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = python(*words, str(code), str(data), str(tmp_path), env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    alone = trainer(tmp_path, None, eval_dataset=data, compute_metrics=_accuracy).evaluate()
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["step"] == two["step"] == 4  # two epochs of 23 images, global batches of 8
    assert len(set(one["seen"] + two["seen"])) == 8
    assert len({i for step in one["order"] + two["order"] for i in step}) == 16
    for found in (one, two):
        assert found["resumed"]
        assert found["same"]
        for name in ("path", "loader"):
            for key in ("loss", "accuracy", "count"):
                assert found["metrics"][f"eval_{name}_{key}"] == pytest.approx(alone[f"eval_{key}"], rel=1e-5)
    for model in (vit, resnet):
        expected = one_update(tmp_path, data, model, 8, 1)
        assert torch.allclose(torch.tensor(one["update"][model.__name__]), expected, atol=1e-6)
