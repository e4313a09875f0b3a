"""The preview picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dali_imagenet import TrainRecipe, create_loader
from dali_imagenet.__main__ import main
from dali_imagenet.preview import save_preview


@pytest.mark.parametrize("recipe", ["strong", "eval", "deit3"])
def test_preview_command(folder: Path, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid.png"
    command = ["preview", str(folder), "--recipe", recipe, "--device", "cpu", "--count", "3", "--output", str(out)]
    assert main(command) == 0
    assert "saved" in capsys.readouterr().out
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] > 3 * 224
    assert picture.std() > 20


def test_preview_shows_both_and_leaves_the_loader_as_it_was(folder: Path, tmp_path: Path) -> None:
    recipe = TrainRecipe.strong(input_size=64)
    with create_loader(folder, recipe, batch_size=4, device="cpu", num_workers=0) as loader:
        save_preview(loader, tmp_path / "a.png", count=4)
        assert loader.mixup_enabled
        assert loader.state_dict()["step"] == 0
        save_preview(loader, tmp_path / "b.png", count=4)
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        with pytest.raises(ValueError, match="count=0"):
            save_preview(loader, tmp_path / "c.png", count=0)
