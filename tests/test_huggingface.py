"""Hugging Face's Datasets, the Arrow files that they are saved to: rows in their order, images read by pread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import SampleIndex
from tests.helpers import encode_small, hf_dataset

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
OPTIONS: dict[str, Any] = {"progress": False, "cache": False}


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In two shards."""
    out = tmp_path_factory.mktemp("saved") / "ds"
    hf_dataset(folder).save_to_disk(out, num_shards=2)
    return out


@pytest.fixture(scope="module")
def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))]


def read(index: SampleIndex) -> list[bytes]:
    return [index.source.read(i) for i in range(len(index))]


class TestDataset:
    def test_has_its_rows_names_and_classes(self, saved: Path, folder: Path, files: list[bytes]) -> None:
        index = SampleIndex.from_huggingface(datasets.load_from_disk(saved), **OPTIONS)
        assert read(index) == files
        assert index.classes == ("class_000", "class_001", "class_002", "class_003")
        assert index.labels.tolist() == SampleIndex.from_folder(folder, **OPTIONS).labels.tolist()
        assert index.relative_path(5) == sorted(folder.rglob("*.JPEG"))[5].name
        assert index.fingerprint == SampleIndex.from_huggingface(saved, **OPTIONS).fingerprint

    @pytest.mark.parametrize(
        "change",
        [
            lambda ds: ds.shuffle(seed=3),
            lambda ds: ds.select(range(5, 17)),
            lambda ds: ds.select([3, 3, 20, 0]),
            lambda ds: ds.shuffle(seed=1).select(range(9)),
            lambda ds: ds.train_test_split(0.5, seed=0)["test"],
            lambda ds: ds.filter(lambda label: label % 2 == 1, input_columns="label"),
            lambda ds: ds.sort("label", reverse=True),
            lambda ds: ds.rename_column("image", "picture").add_column("n", list(range(24))),
            lambda ds: ds.cast_column("image", datasets.Image(decode=False)),
            lambda ds: datasets.concatenate_datasets([ds.select(range(3)), ds.shuffle(seed=0)]),
            lambda ds: ds.with_format("torch"),
            lambda ds: ds.map(lambda label: {"label": 3 - label}, input_columns="label"),
        ],
    )
    def test_what_was_done_to_it_is_kept(self, saved: Path, change: Callable[[Any], Any]) -> None:
        ds = change(datasets.load_from_disk(saved))
        index = SampleIndex.from_huggingface(ds, **OPTIONS)
        image = "picture" if "picture" in ds.column_names else "image"
        plain = ds.with_format(None).cast_column(image, datasets.Image(decode=False))
        assert read(index) == [row["bytes"] for row in plain[image]]
        assert index.labels.tolist() == list(plain["label"])
        assert not index.broken.any()

    def test_split_of_a_dict(self, folder: Path, tmp_path: Path) -> None:
        whole = hf_dataset(folder)
        both = datasets.DatasetDict({"train": whole.select(range(20)), "validation": whole.select(range(20, 24))})
        both.save_to_disk(tmp_path / "both")
        for data in (datasets.load_from_disk(tmp_path / "both"), tmp_path / "both"):
            assert len(SampleIndex.from_huggingface(data, split="train", **OPTIONS)) == 20
            assert len(SampleIndex.from_huggingface(data, split="val", **OPTIONS)) == 4
            with pytest.raises(ValueError, match="holds train, validation: say split='train' or split='validation'"):
                SampleIndex.from_huggingface(data, **OPTIONS)
            with pytest.raises(ValueError, match="holds train, validation: say"):
                SampleIndex.from_huggingface(data, split="holdout", **OPTIONS)
        train = SampleIndex.open(tmp_path / "both", split="train", **OPTIONS)
        val = SampleIndex.open(tmp_path / "both", split="val", classes=train, **OPTIONS)
        assert val.classes == train.classes

    def test_an_index_is_remembered_by_what_it_holds(self, saved: Path, tmp_path: Path, files: list[bytes]) -> None:
        ds = datasets.load_from_disk(saved)
        options: dict[str, Any] = {"progress": False, "cache_dir": tmp_path}
        for _ in range(2):
            assert read(SampleIndex.from_huggingface(ds, **options)) == files
            assert read(SampleIndex.from_huggingface(ds.select(range(2)), **options)) == files[:2]
            other = ds.map(lambda label: {"label": 3 - label}, input_columns="label")
            assert SampleIndex.from_huggingface(other, **options).labels.tolist() == [3 - v for v in ds["label"]]
        assert SampleIndex.from_huggingface(ds.shuffle(seed=0), **options).scan.read == 0


class TestRefused:
    def test_streams_transforms_and_memory(self, saved: Path, folder: Path) -> None:
        ds = datasets.load_from_disk(saved)
        with pytest.raises(ValueError, match=r"IterableDataset: an epoch is a permutation .* streaming=False"):
            SampleIndex.from_huggingface(ds.to_iterable_dataset(), **OPTIONS)
        with pytest.raises(ValueError, match=r"a transform of its own .* ds\.reset_format\(\)"):
            SampleIndex.from_huggingface(ds.with_transform(lambda batch: batch), **OPTIONS)
        with pytest.raises(ValueError, match=r"lie in memory, not in a file: ds\.save_to_disk\(folder\)"):
            SampleIndex.from_huggingface(hf_dataset(folder), **OPTIONS)

    def test_files_behind_paths(self, folder: Path, tmp_path: Path, files: list[bytes]) -> None:
        """As load_dataset("imagefolder") makes them; saving takes them in, as the error says."""
        ds = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "c"))
        with pytest.raises(ValueError, match=r"24 images .* behind paths .* ds\.save_to_disk\(folder\), and give that"):
            SampleIndex.from_huggingface(ds, **OPTIONS)
        ds.save_to_disk(tmp_path / "saved")
        index = SampleIndex.from_huggingface(tmp_path / "saved", **OPTIONS)
        assert read(index) == files
        assert index.classes == ("class_000", "class_001", "class_002", "class_003")

    def test_several_columns_that_could_be_meant(self, saved: Path, tmp_path: Path, files: list[bytes]) -> None:
        ds = datasets.load_from_disk(saved)
        two = datasets.concatenate_datasets(
            [ds, ds.select_columns(["image"]).rename_column("image", "mask")], axis=1
        ).rename_column("label", "fine")
        two.save_to_disk(tmp_path / "two")
        for data in (datasets.load_from_disk(tmp_path / "two"), tmp_path / "two"):
            with pytest.raises(ValueError, match=r"2 columns of encoded images \(image, mask\).* image_key="):
                SampleIndex.from_huggingface(data, **OPTIONS)
            with pytest.raises(ValueError, match=r"image_key='fine': .* no such column of encoded images; it"):
                SampleIndex.from_huggingface(data, image_key="fine", **OPTIONS)
            index = SampleIndex.from_huggingface(data, image_key="mask", **OPTIONS)
            assert read(index) == files

    def test_rows_without_a_label(self, saved: Path, tmp_path: Path) -> None:
        """As the test split of ImageNet-1k has -1."""
        ds = datasets.load_from_disk(saved)
        ds = ds.map(lambda label: {"label": -1 if label == 2 else label}, input_columns="label")
        ds.save_to_disk(tmp_path / "test")
        for data in (ds, tmp_path / "test"):
            with pytest.raises(ValueError, match="6 of 24 images have no label"):
                SampleIndex.from_huggingface(data, **OPTIONS)


def arrow_file(file: Path, table: Any, kind: str = "stream", **options: Any) -> Path:
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(file), "wb") as out, make(out, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=7)
    return file


class TestArrowFiles:
    @pytest.mark.parametrize("kind", ["stream", "file"])
    @pytest.mark.parametrize("large", [False, True])
    def test_plain_columns(self, tmp_path: Path, files: list[bytes], kind: str, large: bool) -> None:
        """Behind columns of many layouts; text labels; a slice, whose offsets do not begin with 0."""
        n = len(files)
        table = pa.table(
            {
                "id": pa.array(range(n), pa.int64()),
                "boxes": pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32())),
                "pairs": pa.array([[1, 2]] * n, pa.list_(pa.int32(), 2)),
                "flags": pa.array([True, None] * (n // 2)),
                "nothing": pa.nulls(n),
                "info": pa.array([{"a": "x", "b": [1]}] * n),
                "kind": pa.array(["a", "b"] * (n // 2)).dictionary_encode(),
                "time": pa.array(range(n), pa.timestamp("s", "UTC")),
                "data": pa.array(files, pa.large_binary() if large else pa.binary()),
                "label": pa.array([f"c{i % 3}" for i in range(n)], pa.large_string() if large else pa.string()),
            }
        )
        file = arrow_file(tmp_path / "a.arrow", table.slice(1), kind)
        index = SampleIndex.from_huggingface(file, **OPTIONS)
        assert read(index) == files[1:]
        assert index.classes == ("c0", "c1", "c2")
        assert index.labels.tolist() == [i % 3 for i in range(1, n)]
        assert index.relative_path(8) == "00000008"

    def test_missing_cells_are_broken(self, tmp_path: Path, files: list[bytes]) -> None:
        cells: list[Any] = [{"bytes": data, "path": None} for data in files]
        cells[3], cells[10], cells[11] = None, {"bytes": None, "path": "x/y.jpg"}, {"bytes": b"", "path": "/abs/z.jpg"}
        image = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        labels = pa.array([None if i == 3 else i % 2 for i in range(24)], pa.int32())
        file = arrow_file(tmp_path / "a.arrow", pa.table({"image": image, "label": labels}))
        index = SampleIndex.from_huggingface(file, **OPTIONS)
        assert index.broken.nonzero()[0].tolist() == [3, 10, 11]
        assert index.reason(3) == "its cell holds no image"
        assert index.reason(10) == "its cell holds no bytes, but the path 'x/y.jpg'"
        assert index.relative_path(11) == "z.jpg"
        assert [index.source.read(i) for i in (2, 4, 23)] == [files[2], files[4], files[23]]

    def test_compressed_batches_are_refused(self, tmp_path: Path, files: list[bytes]) -> None:
        table = pa.table({"image": pa.array(files, pa.binary()), "label": pa.array([0] * 24)})
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        file = arrow_file(tmp_path / "a.arrow", table, options=options)
        with pytest.raises(ValueError, match=r"a\.arrow: its batches are compressed: no image .* without compression"):
            SampleIndex.from_huggingface(file, **OPTIONS)

    def test_shards_that_name_classes_otherwise_are_refused(self, folder: Path, tmp_path: Path) -> None:
        ds = hf_dataset(folder)
        ds.save_to_disk(tmp_path / "a")
        names = ["class_003", "class_002", "class_001", "class_000"]
        ds.cast_column("label", datasets.ClassLabel(names=names)).save_to_disk(tmp_path / "b")
        shards = sorted(tmp_path.rglob("*.arrow"))
        with pytest.raises(ValueError, match="name classes in different orders: class_000, class_001"):
            SampleIndex.from_huggingface(shards, **OPTIONS)

    def test_one_that_was_cut_short_is_refused(
        self, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = next(iter(sorted(saved.glob("data-*.arrow")))).read_bytes()
        for left in (len(whole) - 1000, len(whole) // 2):
            (tmp_path / "a.arrow").write_bytes(whole[:left])
            with pytest.raises(ValueError, match=r"a\.arrow is damaged: a (batch|message) of .* copy or download"):
                SampleIndex.from_huggingface(tmp_path / "a.arrow", **OPTIONS)
        (tmp_path / "a.arrow").write_bytes(whole[: whole.rindex(b"\xff\xff\xff\xff")])
        with caplog.at_level("WARNING"):
            SampleIndex.from_huggingface(tmp_path / "a.arrow", **OPTIONS)
        assert "a.arrow has no end: it was probably cut short" in caplog.text
        (tmp_path / "a.arrow").write_bytes(b"hello" * 20)
        with pytest.raises(ValueError, match="is no Arrow file: it starts with b'hello"):
            SampleIndex.from_huggingface(tmp_path / "a.arrow", **OPTIONS)

    def test_hostile_numbers_do_no_harm(self, tmp_path: Path, fuzz: Callable[..., None]) -> None:
        image = [{"bytes": encode_small(), "path": f"{i}.jpg"} for i in range(4)]
        table = pa.table({"image": image, "label": pa.array(range(4))})
        file = arrow_file(tmp_path / "a.arrow", table.cast(pa.schema([table.schema.field(0), ("label", pa.int64())])))
        whole = file.read_bytes()
        first = whole.index(encode_small()[:20])
        fuzz(file, range(first), lambda: SampleIndex.from_huggingface(file, **OPTIONS))

    def test_a_damaged_state_is_refused(self, saved: Path, tmp_path: Path) -> None:
        for text in ("{", json.dumps({"_data_files": [{"filename": "../a.arrow"}]}), "{}"):
            (tmp_path / "state.json").write_text(text)
            with pytest.raises(ValueError, match=r"state\.json"):
                SampleIndex.from_huggingface(tmp_path, **OPTIONS)
