"""`python -m bench decode`: who takes part, how far the pixels are from Pillow's, and a run on three images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from bench import decode
from bench import decode_contestants as contestants
from bench.__main__ import main
from bench.decode_contestants import BY_NAME, DECODERS, Decoder, Picture, each
from tests.helpers import encode_small, make_folder, write


def test_decoders_are_complete() -> None:
    assert len(BY_NAME) == len(DECODERS)
    for decoder in DECODERS:
        assert not decoder.needs or decoder.install
        assert decoder.kind in ("ours", "peer", "bound")


def test_who_is_not_installed_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.decode_contestants.importable", lambda module: module != "cv2")
    monkeypatch.delenv(contestants.SIMD, raising=False)
    assert main(["decode", "--list"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed["opencv"].endswith("no: the module cv2 is not installed (pip install opencv-python-headless)")
    assert "PILLOW_SIMD does not name a folder" in listed["pillow-simd"]
    assert listed["pillow"].endswith("yes")


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--only", "nobody"], "'nobody': must be among ours,"), (["--rounds", "0"], "1 or more")):
        assert main(["decode", *words]) == 2
        assert said in capsys.readouterr().err


def test_data_without_a_jpeg_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data" / "a" / "a.png", encode_small(format="PNG"))
    assert main(["decode", "--data", str(tmp_path / "data")]) == 2
    assert "data: holds no JPEG of one or three components" in capsys.readouterr().err


def made() -> tuple[list[tuple[Picture, contestants.Box]], contestants.Pixels]:
    """Two pictures whose pixels are 0 to 143 and 144 to 287, of 6 x 8, and a box of each."""
    reference = (np.arange(2 * 6 * 8 * 3) % 256).astype(np.uint8)
    pictures = [Picture(bytes([i]), i, (6, 8), ((1, 2, 3, 4),), i * 144) for i in (0, 1)]
    return [(picture, picture.boxes[0]) for picture in pictures], reference


def test_the_difference_from_the_reference_is_counted() -> None:
    asked, reference = made()
    whole = reference.reshape(2, 6, 8, 3)

    def off(picture: Picture, box: contestants.Box) -> Any:
        pixels = whole[picture.sample].copy()
        pixels[1, 2, 0] ^= 4  # within the box, too
        return pixels

    found, able = contestants.compared(each(off), asked, False, reference)
    assert able == [picture for picture, _ in asked]
    assert found == {"failed": 0, "other_size": 0, "mean": 8 / 288, "most": 4, "differing": 2 / 288}
    crop = each(lambda picture, box: off(picture, box)[1:4, 2:6])
    assert contestants.compared(crop, asked, True, reference)[0]["differing"] == 2 / 72
    assert contestants.compared(each(lambda p, b: whole[p.sample]), asked, False, reference)[0]["most"] == 0


def test_what_is_not_decoded_and_what_is_of_another_size_is_counted() -> None:
    asked, reference = made()

    def some(picture: Picture, box: contestants.Box) -> Any:
        if picture.sample:
            raise ValueError("not mine")
        return np.zeros((3, 4, 3), np.uint8)

    found, able = contestants.compared(each(some), asked, False, reference)
    assert (found["failed"], found["other_size"], found["mean"], len(able)) == (1, 1, None, 1)
    with pytest.raises(ValueError, match="none of the images"):
        contestants.compared(each(lambda p, b: ValueError("no")), asked, False, reference)
    with pytest.raises(ValueError, match="not mine"):
        contestants.timed(each(some), asked)


def test_pixels_of_every_form_are_compared() -> None:
    expected = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    for form in (expected, expected.transpose(2, 0, 1), np.dstack([expected, expected[:, :, :1]])):
        found = contestants.rgb(form, expected.shape)
        assert found is not None
        assert (found == expected).all()
    gray = contestants.rgb(expected[:, :, 0], expected.shape)
    assert gray is not None
    assert (gray == expected[:, :, :1]).all()
    assert contestants.rgb(expected[:3], expected.shape) is None


def _breaks(setting: contestants.Setting, pictures: Any) -> Any:
    raise ImportError("no library of that name")


def test_a_run_on_three_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    make_folder(root, 3)
    words = ["decode", "--data", str(root), "--rounds", "1", "--only", "pillow,libjpeg-turbo", "--out", str(out)]
    assert main(words) == 0
    assert "| Pillow | " in capsys.readouterr().out
    made = json.loads((out / "decode-cpu.json").read_text())
    rows = {row["decoder"]: row for row in made["decoders"]}
    assert made["data"]["images"] == 3
    assert rows["pillow"]["whole"]["most"] == 0
    for way in decode.WAYS:
        assert rows["ours"][way]["most"] == 0
        assert rows["ours"][way]["speed"]["median"] == 1
        assert len(rows["ours"][way]["rounds"]) == 1
    whole = rows["pillow"]["whole"]
    assert whole["speed"]["median"] == rows["ours"]["whole"]["cpu_us"]["median"] / whole["cpu_us"]["median"]
    assert "crop" not in rows["pillow"]
    assert rows.get("libjpeg-turbo", {"whole": {"most": 0}})["whole"]["most"] == 0  # where there is a compiler
    assert "libjpeg-turbo" in {*rows, *(one["decoder"] for one in made["skipped"])}
    for name in ("decode-cpu.md", "decode-cpu.png"):
        assert (out / name).stat().st_size > 500
    assert str(tmp_path) not in (out / "decode-cpu.json").read_text()


def test_who_breaks_is_left_out_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the wire is a list of its answers."""
    decoder = Decoder("broken", "broken", _breaks, install="pip install broken")
    monkeypatch.setitem(BY_NAME, "broken", decoder)
    answers = []

    class Wire:
        def send(self, answer: Any) -> None:
            answers.append(answer)

    monkeypatch.setattr("os.dup2", lambda *_: None)
    reference = tmp_path / "reference"
    reference.write_bytes(b"x")
    wire: Any = Wire()
    contestants.serve("broken", contestants.Setting("", [], [], [], [], str(reference), ""), wire)
    assert answers == ["ImportError: no library of that name"]
