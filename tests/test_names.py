"""Whatever a file, a folder or a class is called: messages show it harmlessly, and reports give it back."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dali_imagenet import BadImageError, EvalRecipe, SampleIndex, TrainRecipe, create_loader, read_failures
from dali_imagenet.__main__ import main
from dali_imagenet.escape import either, escaped, listed, printable, unescaped
from tests.helpers import encode_small as encode
from tests.helpers import make_folder, write

posix = pytest.mark.skipif(os.name == "nt", reason="raw names of POSIX")
EVAL, CLASSIC = EvalRecipe(input_size=32), TrainRecipe.classic(input_size=32)
NAMES = {
    "plain.jpg": "plain.jpg",
    "ä 猫 \U0001f600.jpg": "ä 猫 \U0001f600.jpg",
    "two\nlines\r\t.jpg": r"two\nlines\r\t.jpg",
    "\x1b[31mred\x9b.jpg": r"\x1b[31mred\x9b.jpg",
    "\u202egpj.exe\u2066\u200f.jpg": r"\u202egpj.exe\u2066\u200f.jpg",
    "caf\udce9.jpg": r"caf\udce9.jpg",
    r"back\nslash\.jpg": r"back\\nslash\\.jpg",
    "\\\n\\udce9\udce9.jpg": r"\\\n\\udce9\udce9.jpg",
    "\u2028\ufeff\U000e0041.jpg": r"\u2028\ufeff\U000e0041.jpg",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_harmlessly_and_found_again(name: str) -> None:
    shown = escaped(name)
    assert shown == NAMES[name]
    assert shown.isprintable()
    assert shown.encode()
    assert unescaped(shown) == name
    assert printable(shown) == shown


def test_every_character_comes_back() -> None:
    text = "".join(map(chr, range(0x110000)))
    assert escaped(text).isprintable()
    assert unescaped(escaped(text)) == text


def test_lists_of_names() -> None:
    assert listed(["a", "b\n"]) == r"a, b\n"
    assert listed([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert either(["a"]) == "a"
    assert either(map(repr, "abc")) == "'a', 'b' or 'c'"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Images of odd names that are broken, beside as many healthy ones."""
    root = make_folder(tmp_path / "data", 2 * len(NAMES), classes=2)
    for name in NAMES:
        (root / "class_001" / name).write_bytes(b"bad")
    return root


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@posix
@pytest.mark.parametrize("file", ["bad.json", "bad.CSV"])
def test_reports_give_the_paths_back(odd: Path, tmp_path: Path, file: str) -> None:
    with create_loader(odd, EVAL, batch_size=4, device="cpu", num_workers=0, on_error="skip", max_broken=1.0) as loader:
        names = {os.path.basename(path) for path in loader.failures}
        assert names == set(NAMES)
        loader.save_failures(tmp_path / file)
        found = read_failures(str(tmp_path / file))
        assert {row["path"]: row["reason"] for row in found} == loader.failures
        assert [row["path"] for row in found] == [loader.dataset.path(row["sample"]) for row in found]
    assert all(os.path.exists(row["path"]) for row in found)
    assert harmless((tmp_path / file).read_text("utf-8"))


def test_two_samples_of_one_path(tmp_path: Path) -> None:
    index = SampleIndex.from_arrays([0, 0, 0], 40, 40, paths=["a", "a", "b"], reasons={0: "lost", 1: "gone"})
    options = {"batch_size": 1, "device": "cpu", "num_workers": 0, "on_error": "replace", "max_broken": 1.0}
    with create_loader(index, CLASSIC, **options) as loader:  # type: ignore[arg-type]  # of many types
        loader.save_failures(tmp_path / "bad.csv")
    found = read_failures(tmp_path / "bad.csv")
    path = index.path(0)
    assert found == [{"sample": 0, "path": path, "reason": "lost"}, {"sample": 1, "path": path, "reason": "gone"}]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"sample": 0}]', "[" * 10])
def test_other_files_are_no_report(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json' is no table of Loader\.save_failures"):
        read_failures(tmp_path / "x.json")


@posix
def test_messages_are_harmless(odd: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadImageError) as caught:
        create_loader(odd, EVAL, batch_size=4, device="cpu", num_workers=0)
    assert harmless(str(caught.value))
    for shown in NAMES.values():
        assert f"/{shown}: no known image" in str(caught.value)
    assert main(["index", str(odd)]) == 3
    with caplog.at_level(logging.INFO, "dali_imagenet"):
        create_loader(odd, EVAL, batch_size=4, device="cpu", num_workers=0, on_error="skip", max_broken=1.0).close()
    assert "are broken" in caplog.text
    said = capsys.readouterr()
    assert harmless(caplog.text + said.out + said.err)
    assert all(f"/{shown}: no known image" in said.out for shown in NAMES.values())


@posix
@pytest.mark.parametrize("backend", ["torchvision", "reference"])
def test_an_image_that_goes_bad_is_named_harmlessly(
    new_folder: Callable[..., Path], backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = new_folder(4, classes=2)
    path = write(root / "class_001" / "\x1b[2J\udce9\\.jpg", encode())
    index = SampleIndex.from_folder(root, cache=False)
    path.write_bytes(b"P6\n\x1b[31m0000000000000")  # Pillow's message repeats what it read
    options = {"batch_size": 5, "device": "cpu", "num_workers": 0, "backend": backend, "max_broken": 1.0}
    with create_loader(index, EVAL, **options) as loader, pytest.raises(BadImageError) as caught:  # type: ignore[arg-type]  # of many types
        list(loader)
    assert harmless(str(caught.value))
    assert r"/\x1b[2J\udce9\\.jpg: " in str(caught.value)
    with create_loader(index, EVAL, on_error="skip", **options) as loader:  # type: ignore[arg-type]  # of many types
        list(loader)
        assert list(loader.failures) == [str(path)]
    assert harmless(caplog.text)


@posix
def test_folders_of_odd_names_in_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "\x1b[1mroot"
    write(root / "good" / "1.jpg", encode())
    (root / "\u202eempty").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        SampleIndex.from_folder(root, cache=False)
    assert harmless(str(caught.value))
    assert r"\u202eempty" in str(caught.value)
    (root / "\u202eempty" / "up\n").symlink_to(root)
    write(root / "\u202eempty" / "1.jpg", encode())
    SampleIndex.from_folder(root, cache_dir=write(tmp_path / "\x07", b"") / "cache")
    assert "link to a folder that it lies in" in caplog.text
    assert "cannot be written" in caplog.text
    assert harmless(caplog.text)
