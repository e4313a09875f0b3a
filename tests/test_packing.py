"""`pack`: the same samples in few files, also for other readers, in parts, after an interruption, made smaller."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali_imagenet import SampleIndex, TrainRecipe, pack, packing
from dali_imagenet.__main__ import main
from dali_imagenet.data.scan import INDEX_SUFFIX
from tests.helpers import copied, encode, encode_small, load, make_folder, photo, same, write

STRONG = TrainRecipe.strong(input_size=40)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_folder(tmp_path_factory.mktemp("data") / "train", 20, high=90)
    write(root / "class_000" / "sub.1" / "two.dots.JPEG", encode_small())
    write(root / "class_001" / "same.jpg", encode_small())
    write(root / "class_001" / "same.png", encode_small(format="PNG"))
    return root


def packed(source: Any, out: Path, **options: Any) -> packing.Packed:
    return pack(source, out, progress=False, shard_size="30KB", **options)


def test_the_same_samples_as_the_folder(folder: Path, tmp_path: Path) -> None:
    index = SampleIndex.from_folder(folder, progress=False)
    done = packed(folder, tmp_path / "out")
    assert done.images == len(index) == 23
    assert len(done.shards) > 2
    assert done.left_out == {}
    found = SampleIndex.open(tmp_path / "out")
    assert found.scan.read == 0  # the index lies beside
    assert found.fingerprint == index.fingerprint
    with load(index, STRONG) as a, load(found, STRONG) as b:
        assert same(copied(a), copied(b))
        b.load_state_dict(a.state_dict())
    assert (tmp_path / "out" / "classes.txt").read_text().split() == list(index.classes)
    # Copied elsewhere, without the times of the files, it still belongs to them.
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in sorted((tmp_path / "out").iterdir()):
        (copy / file.name).write_bytes(file.read_bytes())
    assert SampleIndex.open(copy).scan.read == 0
    for file in copy.glob(f"*{INDEX_SUFFIX}"):
        file.unlink()
    alone = SampleIndex.from_webdataset(copy, classes=index.classes)
    assert alone.scan.read == 23
    assert alone.labels.tolist() == index.labels.tolist()
    assert [alone.source.read(i) for i in range(23)] == [index.source.read(i) for i in range(23)]


def test_another_file_under_the_index_is_noticed(folder: Path, tmp_path: Path) -> None:
    done = packed(folder, tmp_path / "out")
    shard = Path(done.shards[0])
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    assert SampleIndex.open(tmp_path / "out").scan.read > 0


def test_other_readers_find_samples_by_key(folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    index = SampleIndex.from_folder(folder, progress=False)
    done = packed(folder, tmp_path / "out")
    samples = list(wds.WebDataset(done.shards, shardshuffle=False, empty_check=False))
    assert len(samples) == 23
    for i, sample in enumerate(samples):
        extension = index.relative_path(i).rpartition(".")[2]
        assert sample[extension.lower()] == index.source.read(i)
        assert int(sample["cls"]) == index.labels[i]
    assert len({sample["__key__"] for sample in samples}) == 23


def test_shards_are_the_same_bytes_every_time_and_in_parts(folder: Path, tmp_path: Path) -> None:
    whole = packed(folder, tmp_path / "a")
    for i in (1, 2, 3):
        packed(folder, tmp_path / "b", part=(i, 3), num_threads=1)
    for one, other in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
    assert max(Path(shard).stat().st_size for shard in whole.shards) < 60_000


def test_it_goes_on_where_it_was_interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    real, calls = packing._add, list[str]()

    def fail(archive: tarfile.TarFile, name: str, data: bytes) -> int:
        calls.append(name)
        if len(calls) == 22:
            raise OSError(28, "No space left on device")
        return real(archive, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_add", fail)
        with pytest.raises(OSError, match="No space left"):
            packed(folder, out, num_threads=1)
    assert not list(out.glob(".*")), "a half-written shard"
    there = {file: file.stat().st_mtime_ns for file in out.glob("*.tar")}
    assert there
    done = packed(folder, out)
    assert {file: file.stat().st_mtime_ns for file in there} == there
    assert done.images == 23
    assert packed(folder, out).written == 0
    with pytest.raises(FileExistsError, match=r"shard-000000\.tar is of other data or options: give another folder"):
        packed(folder, out, shuffle=1)


def test_the_data_are_not_written_into(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out")
    for source in (tmp_path / "out", SampleIndex.open(tmp_path / "out")):
        with pytest.raises(ValueError, match="holds the data themselves"):
            packed(source, tmp_path / "out")
    with pytest.raises(ValueError, match="holds the data themselves"):
        packed(folder, folder)


def test_permuted(folder: Path, tmp_path: Path) -> None:
    index = SampleIndex.from_folder(folder, progress=False)
    packed(folder, tmp_path / "out", shuffle=7)
    found = SampleIndex.open(tmp_path / "out")
    names = [found.relative_path(i) for i in range(len(found))]
    assert names != sorted(names)
    label = {index.relative_path(i): int(index.labels[i]) for i in range(len(index))}
    assert {name: int(found.labels[i]) for i, name in enumerate(names)} == label


def test_what_cannot_be_read_is_left_out_by_name(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    write(copy / "class_000" / "bad.JPEG", b"not an image")
    index = SampleIndex.from_folder(copy, progress=False)
    (copy / "class_002" / "00002.JPEG").unlink()  # after it was indexed
    done = packed(index, tmp_path / "out")
    assert done.images == 22
    reasons = {Path(path).name: why for path, why in done.left_out.items()}
    assert reasons.keys() == {"bad.JPEG", "00002.JPEG"}
    assert "no known image" in reasons["bad.JPEG"]
    assert "No such file" in reasons["00002.JPEG"]
    assert "left out" in caplog.text
    assert not SampleIndex.open(tmp_path / "out").broken.any()
    assert packed(index, tmp_path / "out").left_out.keys() == done.left_out.keys()


def test_made_smaller(tmp_path: Path) -> None:
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for i in range(6):
        size = (300 + 20 * i, 400) if i < 4 else (100, 120)
        write(root / f"c{i % 2}" / f"{i}.jpg", encode(photo(rng, *size, mode="L" if i == 3 else "RGB"), quality=95))
    index = SampleIndex.from_folder(root, progress=False)
    done = pack(root, tmp_path / "out", max_side=256, quality=85, progress=False)
    found = SampleIndex.open(tmp_path / "out")
    assert done.reencoded == 4
    assert max(found.height.max(), found.width.max()) == 256
    for i in range(6):
        ratio = index.width[i] / index.height[i]
        assert found.width[i] / found.height[i] == pytest.approx(ratio, abs=0.02)
        kept = found.source.read(i) == index.source.read(i)
        assert kept == (max(index.height[i], index.width[i]) <= 256)
    assert done.size_ratio is not None
    assert done.pixel_difference is not None
    assert 0 < done.size_ratio < 1
    assert 0 < done.pixel_difference < 10
    assert done.time_ratio is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": "1XB"}, "shard_size='1XB': must be a number of bytes"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"max_side": 3}, "max_side=3"),
        ({"quality": 80}, "quality=80: must be None where max_side is None"),
        ({"part": (3, 2)}, "part=3"),
        ({"part": "1/2"}, r"part='1/2': must be \(i, n\)"),
        ({"shuffle": -1}, "shuffle=-1"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pack(folder, tmp_path / "out", progress=False, **options)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["pack", str(folder), out, "--shard-size", "30KB", "--part", "1/1"]) == 0
    assert "23 images in 4 shard(s) of" in capsys.readouterr().out
    assert main(["index", out]) == 0
    assert "23 images in 4 classes, 0 broken" in capsys.readouterr().out
    assert main(["pack", str(folder), out, "--part", "2"]) == 2
    assert "error: --part '2': must be I/N" in capsys.readouterr().err
    assert main(["pack", str(folder), out, "--shard-size", "x"]) == 2
    assert "error: --shard-size 'x': must be a number of bytes" in capsys.readouterr().err
