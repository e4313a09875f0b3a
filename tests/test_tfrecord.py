"""TFRecords of images: TFDS's and the older ones, labels that count from 1, damage."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import SampleIndex
from dali_imagenet.data.tfrecord import masked_crc
from tests.helpers import tf_example, tf_record

OPTIONS: dict[str, Any] = {"progress": False, "cache": False}


def paths_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.JPEG"))


def tfds(file: Path, paths: list[Path]) -> Path:
    """As TFDS writes imagenet2012: features in the order of their names."""
    records = [
        tf_example(file_name=path.name.encode(), image=path.read_bytes(), label=int(path.parent.name[6:]))
        for path in paths
    ]
    file.write_bytes(b"".join(map(tf_record, records)))
    return file


def older(file: Path, paths: list[Path], first: int = 1, synset: bool = False) -> Path:
    """As build_imagenet_data.py of the TensorFlow models writes them."""
    records = []
    for path in paths:
        more = {"image__class__synset": path.parent.name.encode()} if synset else {}
        label = int(path.parent.name[6:]) + first
        records.append(
            tf_example(
                image__height=40,
                image__colorspace=b"RGB",
                image__class__label=label,
                image__encoded=path.read_bytes(),
                image__filename=path.name.encode(),
                **more,
            )
        )
    file.write_bytes(b"".join(map(tf_record, records)))
    return file


def test_checksums_are_those_of_tensorflow() -> None:
    """Of nine bytes CRC-32C is known: 0xE3069283 (RFC 3720 and the catalogue of CRCs)."""
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)


class TestTFDS:
    def test_samples_keep_their_order(self, tmp_path: Path, folder: Path) -> None:
        paths = paths_of(folder)[::-1]
        tfds(tmp_path / "imagenet2012-train.tfrecord-00000-of-00002", paths[:10])
        tfds(tmp_path / "imagenet2012-train.tfrecord-00001-of-00002", paths[10:])
        index = SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        assert [index.relative_path(i) for i in range(24)] == [path.name for path in paths]
        assert [index.source.read(i) for i in range(24)] == [path.read_bytes() for path in paths]
        assert index.labels.tolist() == [int(path.parent.name[6:]) for path in paths]
        assert index.classes == ("0", "1", "2", "3")
        assert not index.broken.any()

    def test_parts_and_class_names(self, tmp_path: Path, folder: Path) -> None:
        tfds(tmp_path / "imagenet2012-train.tfrecord-00000-of-00001", paths_of(folder)[:20])
        tfds(tmp_path / "imagenet2012-validation.tfrecord-00000-of-00001", paths_of(folder)[20:])
        (tmp_path / "label.labels.txt").write_text("n3\nn2\nn1\nn0\n")
        (tmp_path / "features.json").write_text("{}")
        with pytest.raises(ValueError, match="several parts of a data set: say split='train' or split='val'"):
            SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        train = SampleIndex.from_tfrecord(tmp_path, split="train", **OPTIONS)
        assert len(train) == 20
        assert train.classes == ("n3", "n2", "n1", "n0")
        val = SampleIndex.from_tfrecord(tmp_path, split="val", classes=["n0", "n1", "n2", "n3"], **OPTIONS)
        assert val.labels.tolist() == [0, 0, 0, 0]
        assert len(SampleIndex.from_tfrecord(tmp_path, split="validation", **OPTIONS)) == 4
        assert len(SampleIndex.from_tfrecord(tmp_path, split=".", **OPTIONS)) == 24
        with pytest.raises(FileNotFoundError, match=r"split='holdout': .* it holds train, validation"):
            SampleIndex.from_tfrecord(tmp_path, split="holdout", **OPTIONS)

    def test_versions_are_not_mixed(self, tmp_path: Path, folder: Path) -> None:
        for version in ("5.0.0", "5.1.0"):
            (tmp_path / version).mkdir()
            tfds(tmp_path / version / "imagenet2012-train.tfrecord-00000-of-00001", paths_of(folder))
        with pytest.raises(ValueError, match="in 2 folders"):
            SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        assert len(SampleIndex.from_tfrecord(tmp_path / "5.1.0", split="train", **OPTIONS)) == 24

    def test_images_without_a_label_are_refused(self, tmp_path: Path, folder: Path) -> None:
        record = tf_record(tf_example(image=paths_of(folder)[0].read_bytes(), label=-1))
        (tmp_path / "a.tfrecord").write_bytes(record)
        with pytest.raises(ValueError, match=r"1 of 1 images have no label \(00000000\)"):
            SampleIndex.from_tfrecord(tmp_path, **OPTIONS)


class TestOlder:
    def test_labels_count_from_one(self, tmp_path: Path, folder: Path) -> None:
        older(tmp_path / "train-00000-of-00001", paths_of(folder))
        index = SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        assert index.labels.tolist() == [int(path.parent.name[6:]) for path in paths_of(folder)]
        assert index.relative_path(3) == paths_of(folder)[3].name

    def test_a_zero_says_that_they_do_not(self, tmp_path: Path, folder: Path) -> None:
        older(tmp_path / "train-00000-of-00001", paths_of(folder), first=0)
        index = SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        assert index.labels.tolist() == [int(path.parent.name[6:]) for path in paths_of(folder)]
        with pytest.raises(ValueError, match="holds label 0, so that labels count from 0"):
            SampleIndex.from_tfrecord(tmp_path, first_label=1, **OPTIONS)

    def test_what_cannot_be_known_is_refused(self, tmp_path: Path, folder: Path) -> None:
        """Classes 1 and 3 of 0..3 or of 1..4."""
        paths = [path for path in paths_of(folder) if path.parent.name in ("class_001", "class_003")]
        older(tmp_path / "train-00000-of-00001", paths, first=0)
        names = ["a", "b", "c", "d"]
        for classes in ({}, {"classes": names}):
            with pytest.raises(ValueError, match=r"lie in 1\.\.3, .* say first_label=0 or first_label=1"):
                SampleIndex.from_tfrecord(tmp_path, **classes, **OPTIONS)  # type: ignore[arg-type]  # of many types
        zero = SampleIndex.from_tfrecord(tmp_path, classes=names, first_label=0, **OPTIONS)
        one = SampleIndex.from_tfrecord(tmp_path, classes=names, first_label=1, **OPTIONS)
        assert {*zero.labels.tolist()} == {1, 3}
        assert {*one.labels.tolist()} == {0, 2}
        last = SampleIndex.from_tfrecord(tmp_path, classes=names[:3], **OPTIONS)
        assert {*last.labels.tolist()} == {0, 2}

    def test_synsets_are_classes(self, tmp_path: Path, folder: Path) -> None:
        older(tmp_path / "train-00000-of-00001", paths_of(folder), synset=True)
        index = SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        assert index.classes == ("class_000", "class_001", "class_002", "class_003")
        number = SampleIndex.from_tfrecord(tmp_path, label_key="image/class/label", **OPTIONS)
        assert number.labels.tolist() == index.labels.tolist()


class TestRefused:
    def test_compressed_ones(self, tmp_path: Path, folder: Path) -> None:
        data = tfds(tmp_path / "a.tfrecord", paths_of(folder)).read_bytes()
        (tmp_path / "a.tfrecord").write_bytes(gzip.compress(data))
        with pytest.raises(ValueError, match=r"a.tfrecord is compressed \(gzip\).*gunzip"):
            SampleIndex.from_tfrecord(tmp_path / "a.tfrecord", **OPTIONS)
        (tmp_path / "a.tfrecord").write_bytes(zlib.compress(data))
        with pytest.raises(ValueError, match="is no TFRecord, or a compressed one"):
            SampleIndex.from_tfrecord(tmp_path / "a.tfrecord", **OPTIONS)

    def test_records_of_other_things(self, tmp_path: Path) -> None:
        (tmp_path / "a.tfrecord").write_bytes(tf_record(tf_example(text=b"hello", score=3)))
        with pytest.raises(ValueError, match="holds no image and no image/encoded, but score, text; name it with"):
            SampleIndex.from_tfrecord(tmp_path, **OPTIONS)


class TestDamaged:
    def test_one_that_was_cut_short_loses_its_last_image(self, tmp_path: Path, folder: Path) -> None:
        file = tfds(tmp_path / "a.tfrecord", paths_of(folder))
        whole = file.read_bytes()
        last = len(tf_record(tf_example(image=paths_of(folder)[-1].read_bytes())))
        for left in (whole[:-1], whole[:-12], whole[: -last // 2], whole[:-last], whole[: -last - 40]):
            file.write_bytes(left)
            index = SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
            assert len(index) == 24
            assert index.broken.tolist() == [False] * 23 + [len(left) < len(whole) - 4]
            assert index.labels.tolist()[:23] == [int(path.parent.name[6:]) for path in paths_of(folder)][:23]

    def test_a_wrong_length_is_no_place_to_go_on_from(self, tmp_path: Path, folder: Path) -> None:
        file = tfds(tmp_path / "a.tfrecord", paths_of(folder))
        data = bytearray(file.read_bytes())
        second = 12 + int.from_bytes(data[:8], "little") + 4
        data[second + 5] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"is damaged: no record at byte {second}"):
            SampleIndex.from_tfrecord(tmp_path, **OPTIONS)

    def test_hostile_numbers_do_no_harm(self, tmp_path: Path, folder: Path, fuzz: Callable[..., None]) -> None:
        file = tfds(tmp_path / "a.tfrecord", paths_of(folder)[:4])
        whole, at, spots = file.read_bytes(), 0, list[int]()
        while at < len(whole):
            length = int.from_bytes(whole[at : at + 8], "little")
            spots += [*range(at + 12, at + 90), *range(at + length - 30, at + length + 12)]
            at += 16 + length
        fuzz(file, spots, lambda: SampleIndex.from_tfrecord(tmp_path, **OPTIONS))

    @pytest.mark.parametrize("size", [0, 1, 1 << 30, 1 << 62, (1 << 64) - 1, (1 << 64) - 12])
    def test_lengths_with_a_right_checksum(self, tmp_path: Path, folder: Path, size: int) -> None:
        whole = tfds(tmp_path / "a.tfrecord", paths_of(folder)[:1]).read_bytes()
        length = size.to_bytes(8, "little")
        (tmp_path / "a.tfrecord").write_bytes(whole + length + masked_crc(length).to_bytes(4, "little") + b"\0" * 64)
        try:
            index = SampleIndex.from_tfrecord(tmp_path, **OPTIONS)
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017  # either is right
        else:
            assert index.broken.tolist() == [False, True]
