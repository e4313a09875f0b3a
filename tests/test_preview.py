"""The preview picture and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dali_imagenet import TrainRecipe, create_loader
from dali_imagenet.__main__ import main
from dali_imagenet.preview import save_preview

ROOT = Path(__file__).resolve().parent.parent


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


HEAVY = {"torch", "torchvision", "timm", "PIL", "scipy", "nvidia", "tqdm", "platformdirs"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help", 0),
        ("index --help", 0),
        ("preview --help", 0),
        ("", 2),
        ("nonsense", 2),
        ("preview", 2),
        ("preview . --recipe nonsense", 2),
        ("preview . --backend nonsense", 2),
        ("preview . --count many", 2),
        ("index . --nonsense", 2),
    ],
)
def test_help_and_wrong_options_import_nothing_heavy(words: str, status: int) -> None:
    code = """if True:
        import atexit, runpy, sys
        atexit.register(lambda: print("loaded", *sorted({name.split(".")[0] for name in sys.modules})))
        sys.argv = ["dali_imagenet", *sys.argv[1:]]
        runpy.run_module("dali_imagenet", run_name="__main__")
    """
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status, done.stderr
    assert "usage: python -m dali_imagenet" in (done.stderr if status else done.stdout), done
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "dali_imagenet" in loaded
    assert not loaded & HEAVY


def test_index_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(folder)]) == 0
    assert "24 images in 4 classes, 0 broken" in capsys.readouterr().out
    assert main(["index", str(folder / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
