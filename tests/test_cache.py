"""The one rule of where things are remembered, and that a missing home costs time and never the run."""

from __future__ import annotations

import logging
import pwd
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import SampleIndex
from dali_imagenet.cache import cache_folder

PICTURES = Path(__file__).parent / "data" / "pictures"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A container's unknown user: no variable, no entry of its own; works in an empty folder."""

    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "DALI_IMAGENET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_argument_comes_first_then_the_variable_then_the_users_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("DALI_IMAGENET_CACHE", "~/there")
    assert cache_folder("~/here") == tmp_path / "here"
    assert cache_folder() == cache_folder("") == tmp_path / "there"
    monkeypatch.setenv("DALI_IMAGENET_CACHE", "")
    found = cache_folder()
    assert found is not None
    assert found.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_home_nothing_is_remembered_and_nothing_fails(
    no_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache_folder() is None
    with caplog.at_level(logging.WARNING):
        assert len(SampleIndex.from_folder(PICTURES, progress=False)) == 9
    assert "no home folder here" in caplog.text
    assert not list(no_home.iterdir())  # no folder called "~"
    assert cache_folder("here") == no_home / "here"
