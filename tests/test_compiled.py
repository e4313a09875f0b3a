"""A compiled module that is older than its source is refused; a missing one is done without."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dali_imagenet._compiled import compiled
from tests.helpers import HERE, python, script

HEADER = "/* for all */"


def module(folder: Path, name: str, built_from: str, source: str | None) -> str:
    (folder / f"{name}.py").write_text(f'"""{hashlib.sha256((built_from + HEADER).encode()).hexdigest()}"""\n')
    if source is not None:
        (folder / f"{name}.c").write_text(source)
    return name


def test_a_module_of_another_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "_cpu.h").write_text(HEADER)
    monkeypatch.setattr("dali_imagenet._compiled.HEADER", tmp_path / "_cpu.h")
    monkeypatch.delenv("DALI_IMAGENET_PURE", raising=False)
    assert compiled(module(tmp_path, "_of_this_source", "int x;", "int x;")) is not None
    assert compiled(module(tmp_path, "_of_a_wheel", "int x;", None)) is not None
    assert compiled("_that_was_not_built") is None
    old = module(tmp_path, "_of_yesterday", "int x;", "long x;")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"_of_yesterday\.py was built from another _of_yesterday\.c.*build it"):
            compiled(old)
    monkeypatch.setenv("DALI_IMAGENET_PURE", "1")
    assert compiled(old) is None


def test_the_modules_here_are_of_the_sources_here() -> None:
    code = "from dali_imagenet._compiled import compiled_modules as built; print(*built())"
    done = python("-c", code, env={"DALI_IMAGENET_PURE": "0"})
    assert done.returncode == 0, done.stderr


BATCHES = """
    import hashlib
    import sys
    import torch
    from dali_imagenet import EvalRecipe, TrainRecipe, create_loader

    for backend in sys.argv[2:]:
        for recipe in (TrainRecipe.classic(input_size=40), TrainRecipe.strong(input_size=40), EvalRecipe(input_size=9)):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                digest = hashlib.sha256()
                where = {"backend": backend, "device": "cpu", "num_workers": 0}
                with create_loader(sys.argv[1], recipe, batch_size=4, seed=3, dtype=dtype, **where) as loader:
                    for images, targets in loader:
                        digest.update(images.view(torch.uint8).numpy().tobytes() + targets.numpy().tobytes())
                print(backend, type(recipe).__name__, dtype, digest.hexdigest())
"""


def test_batches_are_the_same_without_them() -> None:
    """All the way, in a process that has no compiled module."""
    pictures = str(Path(__file__).parent / "data" / "pictures")
    made = [script(BATCHES, pictures, *HERE, env={"DALI_IMAGENET_PURE": pure}) for pure in ("0", "1")]
    assert [done.returncode for done in made] == [0, 0], made[0].stderr + made[1].stderr
    assert made[0].stdout == made[1].stdout
    assert len(made[0].stdout.splitlines()) == 9 * len(HERE)
