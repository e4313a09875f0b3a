"""A compiled module that is older than its source is refused; a missing one is done without."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dali_imagenet._compiled import compiled
from tests.helpers import python

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
