"""The command line: its help, its errors, its exit codes."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import SampleIndex, TrainRecipe, create_loader
from dali_imagenet.__main__ import COMMANDS, main, parsers
from dali_imagenet.cache import KINDS, entries
from dali_imagenet.explain import said_of
from dali_imagenet.ops import OPS
from tests.helpers import write

ROOT = Path(__file__).resolve().parent.parent
NAMES = [name.replace("_", "-") for name in COMMANDS]
OWN = ("bench", "train")  # have parsers of their own
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


def test_index_with_broken_images(new_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_explain_tells_the_rows_of_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", str(folder), "--recipe", "advanced", "--batch-size", "6", "--epoch", "1", "--step", "2"]
    with create_loader(folder, TrainRecipe.advanced(), batch_size=6, device="cpu", num_workers=0) as loader:
        expected = loader.explain(2, epoch=1)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*words, "--row", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    row = expected[4]
    assert f"row 4: {row['path']}" in said
    assert f"region {row['box'][3]} x {row['box'][2]} at ({row['box'][1]}, {row['box'][0]})" in said
    assert ("flip horizontal" in said) == row["hflip"]
    assert f"with row 1 (sample {expected[1]['index']}, class {expected[1]['label']})" in said
    operations = [op for part in row["program"] for op in part]
    assert operations
    assert all(op["op"].removeprefix("PIL_").lower().replace("_", " ") in said for op in operations)
    # what that run had lost, as Loader.save_failures wrote it
    lost = write(tmp_path / "lost.json", json.dumps([{"sample": row["index"], "path": "x", "reason": "y"}]).encode())
    assert main([*words, "--row", "4", "--failures", str(lost)]) == 0
    assert f"read in the place of sample {row['index']}" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--row", "6"]) == 2
    assert "error: --row 6: must be a whole number in [0, 5]" in capsys.readouterr().err
    assert main([*words[:-1], "4"]) == 2
    assert "error: --step 4: must be a whole number in [0, 3]" in capsys.readouterr().err


def test_every_operation_has_words() -> None:
    for op, info in OPS.items():
        aux = {"none": 0, "filter": info.filters[-1], "kernel": 23}[info.aux]
        said = said_of({"op": op.name, "arg": 0.4375, "aux": aux})
        assert said.startswith(op.name.removeprefix("PIL_").lower().split("_")[0])
        assert ("0.4375" in said) == ((info.low, info.high) != (-math.inf, math.inf) or info.mirror is not None), said


def test_failures_of_a_run(new_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = new_folder(6)
    table = str(tmp_path / "bad.csv")
    options: dict[str, Any] = {"batch_size": 2, "device": "cpu", "num_workers": 0, "on_error": "replace"}
    with create_loader(root, TrainRecipe.classic(input_size=32), max_broken=1.0, **options) as loader:
        loader.save_failures(table)
        assert main(["failures", table]) == 0
        assert capsys.readouterr().out == "0 images could not be read\n"
        Path(loader.dataset.path(3)).unlink()
        list(loader)
        loader.save_failures(table)
        lost = loader.dataset.path(3)
    assert main(["failures", table]) == 3
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{lost}: ")
    assert f"{lost}: {lost}: " not in first
    assert last == "1 images could not be read"
    assert main(["failures", table, "--json"]) == 3
    assert [row["sample"] for row in json.loads(capsys.readouterr().out)] == [3]
    assert main(["failures", str(write(tmp_path / "x.json", b"{}"))]) == 1


def test_the_cache_is_listed_and_cleared_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(cache))
    SampleIndex.from_folder(folder)
    own = {path.name for path in cache.iterdir()}
    assert {path.name for kind in KINDS for path in entries(kind, cache)} == own
    write(cache / "roi_decode.json", b"{}")
    write(cache / "images-v1-seed0" / "train" / "a.jpg", b"0" * 5000)
    write(cache / "links" / ("0" * 16) / "a.jpg", b"0")
    foreign = ["notes.txt", "index-mine.bin", "links/mine/a.jpg", "converted/a.jpg", "images/a.jpg", "rows-x.rows"]
    for name in foreign:
        write(cache / name, b"mine")
    (cache / "images-v1-seed7").symlink_to(tmp_path)
    assert main(["cache", "--json"]) == 0
    kinds = {row["kind"]: row for row in json.loads(capsys.readouterr().out)["kinds"]}
    assert {name: row["entries"] for name, row in kinds.items()} == {
        "index": len(own),
        "seek": 0,
        "probe": 1,
        "trial": 0,
        "images": 2,
    }
    assert kinds["images"]["bytes"] >= 5001
    assert main(["cache", "clear", "probe", "images"]) == 0
    assert "removed    2 file(s)" in capsys.readouterr().out
    assert not (cache / "roi_decode.json").exists()
    assert not (cache / "images-v1-seed0").exists()
    assert own <= {path.name for path in cache.iterdir()}
    assert main(["cache", "clear", "--all"]) == 0
    left = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert left == {*foreign, "images-v1-seed7"}
    assert (tmp_path / "cache").is_dir()


def test_copies_of_remote_files_are_cleared_in_their_own_folder(tmp_path: Path) -> None:
    copy = write(tmp_path / f"{'0' * 24}-{'1' * 24}.copy", b"0")
    other = write(tmp_path / "mine.copy", b"0")
    assert main(["cache", "clear", "remote"]) == 2
    assert main(["cache", "clear", "remote", "--local-cache", str(tmp_path)]) == 0
    assert (copy.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("words", ["cache clear", "cache clear nothing", "cache list index", "cache clear index --all"])
def test_wrong_words_for_the_cache(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_commands_of_the_docs_are_understood() -> None:
    """Every line of a console or shell block, but those of bench, which has a parser of its own."""
    parser, _ = parsers()
    found: set[str] = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in re.findall(
            r"^(?:\$ )?(?:python -m dali_imagenet|dali-imagenet) (\S.*)$",
            page.read_text(encoding="utf-8").replace("\\\n", ""),  # a command may take several lines
            re.MULTILINE,
        ):
            words = shlex.split(line, comments=True)
            if words[0] in NAMES and words[0] not in OWN:
                found.add(parser.parse_args(words).command)
    assert found == set(NAMES) - set(OWN)


def test_the_page_of_the_command_names_each() -> None:
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in page] == []
