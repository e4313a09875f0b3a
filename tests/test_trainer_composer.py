"""Composer: what LoaderState restores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dali_imagenet import TrainRecipe, create_loader

composer = pytest.importorskip("composer")

from dali_imagenet.integrations.composer import LoaderState  # noqa: E402 - if it is there

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = TrainRecipe.classic(input_size=32, mixup_alpha=0.8)


class Net(composer.ComposerModel):  # type: ignore[name-defined]
    """Has dropout, so that torch's own generator counts; it remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4))
        self.losses: list[float] = []
        self.seen: list[float] = []

    def forward(self, batch: Any) -> Any:
        self.seen.append(float(batch[0].double().sum()))
        return self.head(batch[0])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        found = functional.cross_entropy(outputs, batch[1])
        self.losses.append(float(found.detach()))
        return found


def loader(folder: Path, recipe: TrainRecipe = RECIPE) -> Any:
    return create_loader(folder, recipe, batch_size=4, backend="torchvision", device="cpu", num_workers=0)


def trainer(model: Net, data: Any, **options: Any) -> Any:
    usual: dict[str, Any] = {
        "max_duration": "2ep", "device": "cpu", "callbacks": [LoaderState(data)], "progress_bar": False, "seed": 0,
        "optimizers": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), "python_log_level": "error",
    }  # fmt: skip
    return composer.Trainer(model=model, train_dataloader=data, **(usual | options))


def same(a: Net, b: Net) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.usefixtures("step_by_step")
def test_resumed_is_uninterrupted(folder: Path, tmp_path: Path) -> None:
    whole = Net()
    trainer(whole, loader(folder), save_folder=str(tmp_path), save_interval="2ba", save_filename="{batch}.pt").fit()
    assert len(whole.seen) == 12
    for stop in (4, 6, 8):  # the middle and the end of an epoch of 6 steps
        read: list[int] = []
        data, second = loader(folder), Net()
        real = type(data.dataset.source).read

        def noted(source: Any, sample: int, real: Any = real, read: list[int] = read) -> bytes:
            read.append(sample)
            return bytes(real(source, sample))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(data.dataset.source), "read", noted)
            trainer(second, data, load_path=str(tmp_path / f"{stop}.pt")).fit()
        assert second.seen == whole.seen[stop:]
        assert second.losses == whole.losses[stop:]
        assert same(second, whole)
        assert len(read) == 4 * (12 - stop)  # nothing of what was seen


def test_fit_again_goes_on(folder: Path) -> None:
    """In parts, with no checkpoint between them."""
    whole, parts = Net(), Net()
    trainer(whole, loader(folder)).fit()
    run = trainer(parts, loader(folder), max_duration=None)
    for duration in ("4ba", "2ba", "6ba"):
        run.fit(duration=duration)
    assert parts.losses == whole.losses
    assert same(parts, whole)


def test_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    options = {"save_folder": str(tmp_path), "save_interval": "2ba", "save_filename": "{batch}.pt"}
    trainer(Net(), loader(folder), max_duration="2ba", **options).fit()
    other = loader(folder, RECIPE.replace(hflip=0.1))
    with pytest.raises(ValueError, match="hflip"):
        trainer(Net(), other, load_path=str(tmp_path / "2.pt")).fit()
