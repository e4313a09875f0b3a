"""Zip archives: the samples, order and fingerprint of the folder that they would be unpacked to."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import SampleIndex

OPTIONS: dict[str, Any] = {"progress": False, "cache": False}


def images(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.JPEG"))]


def zipped(file: Path, root: Path, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    """In an order that is nobody's."""
    names = images(root)
    random.Random(0).shuffle(names)
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in names:
            archive.write(root / name, prefix + name)
    return file


@pytest.mark.parametrize("prefix", ["", "train/", "ImageNet/train/"])
def test_has_the_fingerprint_of_the_folder(tmp_path: Path, folder: Path, prefix: str) -> None:
    index = SampleIndex.from_zip(zipped(tmp_path / "train.zip", folder, prefix), split="train", **OPTIONS)
    unpacked = SampleIndex.from_folder(folder, **OPTIONS)
    assert index.fingerprint == unpacked.fingerprint
    assert [index.source.read(i) for i in range(24)] == [unpacked.source.read(i) for i in range(24)]


def test_an_archive_may_be_a_class(tmp_path: Path, folder: Path) -> None:
    for path in folder.iterdir():
        zipped(tmp_path / f"{path.name}.zip", path)
    index = SampleIndex.from_zip(tmp_path, **OPTIONS)
    assert index.fingerprint == SampleIndex.from_folder(folder, **OPTIONS).fingerprint


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_python_and_zip_write_besides_is_understood(tmp_path: Path, folder: Path) -> None:
    """Zip64 members, local headers with other lengths than the directory's, folders, a name twice, bytes before it."""
    file = tmp_path / "odd.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.mkdir("class_000")
        archive.writestr("class_000/00000.JPEG", b"an older version")
        archive.writestr("__MACOSX/class_000/._00000.JPEG", b"junk")
        for name in images(folder):
            with archive.open(name, "w", force_zip64=True) as out:
                out.write((folder / name).read_bytes())
    data = b"#!/bin/sh\n" + file.read_bytes()
    file.write_bytes(data)
    index = SampleIndex.from_zip(file, **OPTIONS)
    assert index.fingerprint == SampleIndex.from_folder(folder, **OPTIONS).fingerprint


@pytest.mark.skipif(not shutil.which("zip"), reason="there is no zip program")
def test_the_line_that_errors_name_makes_one_that_is_read(tmp_path: Path, folder: Path) -> None:
    file = zipped(tmp_path / "packed.zip", folder, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"packed.zip: 24 of 24 images are compressed \(class_00") as error:
        SampleIndex.from_zip(file, **OPTIONS)
    line = str(error.value).rpartition(": ")[2].replace("new.zip", str(tmp_path / "new.zip")).replace("FOLDERS", ".")
    subprocess.run(line.split(), cwd=folder, check=True)
    index = SampleIndex.from_zip(tmp_path / "new.zip", **OPTIONS)
    assert index.fingerprint == SampleIndex.from_folder(folder, **OPTIONS).fingerprint


def test_encrypted_members_are_refused(tmp_path: Path, folder: Path) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", folder).read_bytes())
    for found in re.finditer(b"PK\1\2", bytes(data)):
        data[found.start() + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"24 of 24 images are encrypted .* zip -q -0 -r"):
        SampleIndex.from_zip(tmp_path / "a.zip", **OPTIONS)


class TestMaps:
    def test_numbers_are_called_by_their_folders(self, tmp_path: Path, folder: Path) -> None:
        names = images(folder)
        (tmp_path / "train_map.txt").write_text("".join(f"{name}\t{int(name[6:9])}\n" for name in names))
        index = SampleIndex.from_zip(zipped(tmp_path / "a.zip", folder), labels=tmp_path / "train_map.txt", **OPTIONS)
        assert index.fingerprint == SampleIndex.from_folder(folder, **OPTIONS).fingerprint

    @pytest.mark.parametrize("named", [False, True])
    def test_validation_images_lie_in_no_folder(self, tmp_path: Path, folder: Path, named: bool) -> None:
        names = images(folder)
        with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
            for name in names:
                archive.write(folder / name, name.rpartition("/")[2])
        lines = [f"{name.rpartition('/')[2]}\t{int(name[6:9])}" for name in names]
        (tmp_path / "val_map.txt").write_text("\n".join(lines))
        train = SampleIndex.from_folder(folder, **OPTIONS)
        options: dict[str, Any] = {"classes": train} if named else {}
        index = SampleIndex.from_zip(tmp_path / "val.zip", labels=tmp_path / "val_map.txt", **options, **OPTIONS)
        assert index.classes == (train.classes if named else ("0", "1", "2", "3"))
        assert index.labels.tolist() == train.labels.tolist()
        assert (index.fingerprint == train.fingerprint) is named

    def test_what_it_does_not_name_is_refused(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "map.txt").write_text("class_000/00000.JPEG\t0\n")
        with pytest.raises(ValueError, match="labels= says nothing of 23 of the 24 images"):
            SampleIndex.from_zip(zipped(tmp_path / "a.zip", folder), labels=tmp_path / "map.txt", **OPTIONS)

    def test_other_lines_are_refused(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "map.txt").write_text("class_000/00000.JPEG\t0\nclass_000/00004.JPEG zero\n")
        with pytest.raises(ValueError, match=r"line 2 is 'class_000/00004\.JPEG zero': must be name, tab, number"):
            SampleIndex.from_zip(zipped(tmp_path / "a.zip", folder), labels=tmp_path / "map.txt", **OPTIONS)


class TestDamaged:
    def test_one_that_was_cut_short_has_no_directory(self, tmp_path: Path, folder: Path) -> None:
        file = zipped(tmp_path / "a.zip", folder)
        file.write_bytes(file.read_bytes()[:-2000])
        with pytest.raises(ValueError, match=r"a\.zip: the directory at the end .* is missing .*cut short; copy or"):
            SampleIndex.from_zip(file, **OPTIONS)

    @pytest.mark.parametrize(
        ("head", "message"),
        [(b"\x1f\x8b\x08", "is compressed .gzip."), (b"hello", "is no zip archive: it starts")],
    )
    def test_other_files_are_refused(self, tmp_path: Path, head: bytes, message: str) -> None:
        (tmp_path / "a.zip").write_bytes(head + b"x" * 100)
        with pytest.raises(ValueError, match=message):
            SampleIndex.from_zip(tmp_path / "a.zip", **OPTIONS)

    def test_a_member_without_its_header_is_broken(self, tmp_path: Path, folder: Path) -> None:
        file = zipped(tmp_path / "a.zip", folder)
        file.write_bytes(file.read_bytes().replace(b"PK\3\4", b"PK\3\5", 1))
        index = SampleIndex.from_zip(file, **OPTIONS)
        assert int(index.broken.sum()) == 1
        assert "no header of it at byte 0" in str(index.reason(int(index.broken.argmax())))

    def test_hostile_numbers_do_no_harm(self, tmp_path: Path, folder: Path, fuzz: Callable[..., None]) -> None:
        file = zipped(tmp_path / "a.zip", folder / "class_000", "a/")
        whole = file.read_bytes()
        start = whole.index(b"PK\1\2")
        ends = [found.start() for found in re.finditer(b"PK\3\4", whole)]
        spots = [*range(start, len(whole)), *(end + k for end in ends for k in range(30))]
        fuzz(file, spots, lambda: SampleIndex.from_zip(file, **OPTIONS))

    @pytest.mark.parametrize("at", [-1, 2**63, 2**64 - 2])
    def test_places_that_are_none(self, tmp_path: Path, folder: Path, at: int) -> None:
        """In zip64's records."""
        file = zipped(tmp_path / "a.zip", folder / "class_000", "a/")
        data = bytearray(file.read_bytes())
        entry = data.index(b"PK\1\2")
        extra = struct.pack("<HHQ", 1, 8, at % 2**64)
        name = struct.unpack_from("<H", data, entry + 28)[0]
        struct.pack_into("<H", data, entry + 30, len(extra))
        struct.pack_into("<I", data, entry + 42, 0xFFFFFFFF)
        data[entry + 46 + name : entry + 46 + name] = extra
        end = data.rindex(b"PK\5\6")
        struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] + len(extra))
        file.write_bytes(data)
        index = SampleIndex.from_zip(file, **OPTIONS)
        assert "no header" in str(index.reason(int(index.broken.argmax())))
        assert int(index.broken.sum()) == 1
