"""The command line: its help, its errors, its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dali_imagenet.__main__ import COMMANDS, main
from tests.helpers import write

ROOT = Path(__file__).resolve().parent.parent
NAMES = [name.replace("_", "-") for name in COMMANDS]
OWN = ("bench",)  # has a parser of its own
HEAVY = {"torch", "torchvision", "timm", "PIL", "scipy", "nvidia", "tqdm", "platformdirs"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--help", 0),
        ("preview --help", 0),
        ("", 2),
        ("nonsense", 2),
        ("preview", 2),
        ("preview . --recipe nonsense", 2),
        ("preview . --seed -1", 2),
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


@pytest.mark.parametrize("command", [name for name in NAMES if name not in OWN])
def test_help_reads_well(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option has help, no line is longer than 80 columns, and the exit codes are told."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "exit codes: 0 fine, 1 failed, 2 wrong usage, 3 findings" in shown
    listed = set(re.findall(r"^  (--[\w-]+|-h, --help|\w+)(?: [A-Z/=]+)?(?:  +\S|\n {10,}\S)", shown, re.MULTILINE))
    assert len(listed) == len(re.findall(r"^  (?=[-\w])", shown, re.MULTILINE)), f"without help: {shown}"


def test_the_top_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert [name for name in NAMES if not re.search(rf"^    {name} ", shown, re.MULTILINE)] == []


def test_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(folder)]) == 0
    assert "24 images in 4 classes, 0 broken" in capsys.readouterr().out
    assert main(["index", str(folder / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["index", str(folder), "--label-key", "x"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "error: --label-key cannot be given here: such data take --split, --classes, --labels"


def test_index_with_broken_images(new_folder: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(new_folder)
    root = new_folder(6)
    write(next(root.iterdir()) / "odd\x1b.jpg", b"no image")
    assert main(["index", str(root)]) == 3
    assert "odd\\x1b.jpg: " in capsys.readouterr().out
    assert main(["index", str(root), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["classes"]) == (7, 4)
    [broken] = found["broken"]
    assert broken["path"].endswith("odd\\x1b.jpg")
    assert broken["reason"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("preview DATA --count 0", 2, r"--count 0: must be a whole number in \[1, 24\]"),
        ("preview DATA --set re_prob=7", 2, r"--set re_prob=7: must be a probability"),
        ("preview DATA --set nonsense=7", 2, "--set TrainRecipe has no field 'nonsense'; it has"),
        ("preview DATA --set re_prob", 2, "--set 're_prob': must be FIELD=VALUE"),
        ("preview nowhere", 1, "data '.*nowhere' does not exist"),
        ("pack DATA OUT --part 7", 2, "--part '7': must be I/N"),
        ("timm-train nowhere.py", 2, "nowhere.py does not exist"),
    ],
)
def test_errors_speak_the_options_words(
    words: str, status: int, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("DATA", str(folder)).replace("OUT", str(tmp_path)) for word in words.split()]
    assert main(given) == status
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(f"error: .*{message}", said), said
