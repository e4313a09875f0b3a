"""Parquet files of images: plain cells wherever they lie, others refused with the line that writes them again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet import SampleIndex
from tests.helpers import encode_small, hf_dataset

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
OPTIONS: dict[str, Any] = {"progress": False, "cache": False}
PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}


@pytest.fixture(scope="module")
def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.JPEG"))]


def table_of(files: list[bytes]) -> Any:
    """As ILSVRC/imagenet-1k."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(files)]
    columns = [pa.array(cells, image), pa.array([i % 4 for i in range(len(files))], pa.int64())]
    names = '["tench", "goldfish, Carassius auratus", "a/b", "d"]'
    features = f'{{"image": {{"_type": "Image"}}, "label": {{"names": {names}, "_type": "ClassLabel"}}}}'
    schema = pa.schema(
        [("image", image), ("label", pa.int64())], {"huggingface": f'{{"info": {{"features": {features}}}}}'}
    )
    return pa.table(columns, schema=schema)


def read(index: SampleIndex) -> list[bytes]:
    return [index.source.read(i) for i in range(len(index))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 7},
        {"data_page_size": 4000, "write_batch_size": 2},
        {"data_page_version": "2.0", "row_group_size": 10},
        {"data_page_version": "2.0", "data_page_size": 4000, "write_batch_size": 1},
        {"write_page_index": True, "write_page_checksum": True, "write_statistics": True},
    ],
)
def test_plain_cells_are_found(tmp_path: Path, files: list[bytes], options: dict[str, Any]) -> None:
    pq.write_table(table_of(files), tmp_path / "train-00000-of-00001.parquet", **PLAIN, **options)
    index = SampleIndex.from_parquet(tmp_path, **OPTIONS)
    assert read(index) == files
    assert index.labels.tolist() == [i % 4 for i in range(24)]
    assert index.classes == ("tench", "goldfish, Carassius auratus", "a/b", "d")
    assert index.relative_path(5) == "5.jpg"
    assert not index.broken.any()
    assert SampleIndex.from_parquet(tmp_path, classes=index, **OPTIONS).fingerprint == index.fingerprint


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("gaps", [[], [0, 1, 5], [*range(24)], [*range(0, 24, 2)], [*range(9)]])
@pytest.mark.parametrize("kind", ["struct", "plain", "required", "large"])
def test_missing_cells_are_broken(tmp_path: Path, files: list[bytes], version: str, gaps: list[int], kind: str) -> None:
    cells: list[Any] = [None if i in gaps else data for i, data in enumerate(files)]
    if kind == "struct":
        cells = [None if cell is None and i % 2 else {"bytes": cell, "path": None} for i, cell in enumerate(cells)]
    types = {"struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "large": pa.large_binary()}
    if kind == "required":
        gaps, cells = [], list(files)
    field = pa.field("jpg", types.get(kind, pa.binary()), nullable=kind != "required")
    table = pa.table(
        [pa.array(cells, field.type), pa.array(["a", "b"] * 12)], schema=pa.schema([field, ("cls", pa.string())])
    )
    pq.write_table(
        table, tmp_path / "a.parquet", **PLAIN, data_page_version=version, data_page_size=9000, write_batch_size=3
    )
    index = SampleIndex.from_parquet(tmp_path / "a.parquet", label_key="cls", **OPTIONS)
    assert index.broken.nonzero()[0].tolist() == gaps
    assert [index.source.read(i) for i in range(24) if i not in gaps] == [
        f for i, f in enumerate(files) if i not in gaps
    ]
    assert index.classes == ("a", "b")
    if gaps:
        assert index.reason(gaps[-1]) == "its cell holds no image"


@pytest.mark.parametrize(
    ("version", "codec", "dictionary", "kind"),
    [
        ("1.0", "none", False, "int32"),
        ("2.0", "none", True, "string"),
        ("1.0", "snappy", True, "int64"),
        ("2.0", "snappy", False, "string"),
        ("1.0", "zstd", True, "string"),
        ("2.0", "zstd", True, "uint8"),
        ("1.0", "gzip", False, "int64"),
        ("2.0", "brotli", True, "int64"),
        ("1.0", "lz4", False, "int64"),
    ],
)
def test_labels_may_be_packed(
    tmp_path: Path, files: list[bytes], version: str, codec: str, dictionary: bool, kind: str
) -> None:
    """As pyarrow reads them, over several pages and row groups."""
    cells, numbers = [*files, *files], [k * k % 5 for k in range(48)]
    columns = {"image": pa.array(cells), "label": pa.array(numbers).cast(kind), "unused": [[1, 2]] * 48}
    more: dict[str, Any] = {"data_page_version": version, "data_page_size": 20, "write_batch_size": 7}
    packs = {"image": "none", "label": codec, "unused.list.element": "snappy"}
    pq.write_table(
        pa.table(columns),
        tmp_path / "a.parquet",
        compression=packs,
        use_dictionary=["label"] if dictionary else False,
        row_group_size=30,
        **more,
    )
    index = SampleIndex.from_parquet(tmp_path, **OPTIONS)
    assert [index.classes[label] for label in index.labels.tolist()] == [str(number) for number in numbers]
    assert read(index) == cells


def test_labels_of_other_encodings_are_refused(tmp_path: Path, files: list[bytes]) -> None:
    table = pa.table({"image": files, "label": [*range(24)]})
    packs = {"label": "DELTA_BINARY_PACKED", "image": "PLAIN"}
    pq.write_table(table, tmp_path / "a.parquet", **PLAIN, column_encoding=packs)
    with pytest.raises(ValueError, match=r"labels or names have encoding 5, .* Write the files again, plain: python"):
        SampleIndex.from_parquet(tmp_path, **OPTIONS)
    table = pa.table({"image": files, "label": [None, *range(23)]})
    pq.write_table(table, tmp_path / "a.parquet", **PLAIN)
    with pytest.raises(ValueError, match=r"1 of 24 images have no label \(00000000\)"):
        SampleIndex.from_parquet(tmp_path, **OPTIONS)


def test_what_datasets_writes_is_read(tmp_path: Path, folder: Path, files: list[bytes]) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    hf_dataset(folder).to_parquet(tmp_path / "train.parquet")
    index = SampleIndex.open(tmp_path / "train.parquet", **OPTIONS)
    assert read(index) == files
    assert index.classes == ("class_000", "class_001", "class_002", "class_003")


def test_parts_by_name(tmp_path: Path, files: list[bytes]) -> None:
    (tmp_path / "data").mkdir()
    for name, some in {
        "train-00000-of-00002": files[:8],
        "train-00001-of-00002": files[8:16],
        "validation-00000-of-00001": files[16:20],
        "test-00000-of-00001": files[20:],
    }.items():
        pq.write_table(table_of(some), tmp_path / "data" / f"{name}.parquet", **PLAIN)
    assert read(SampleIndex.open(tmp_path, split="train", **OPTIONS)) == files[:16]
    assert read(SampleIndex.from_parquet(tmp_path, split="val", **OPTIONS)) == files[16:20]
    assert read(SampleIndex.from_parquet(tmp_path / "data", split="test", **OPTIONS)) == files[20:]
    pattern = str(tmp_path / "data" / "train-{00000..00001}-of-00002.parquet")
    assert read(SampleIndex.from_parquet(pattern, **OPTIONS)) == files[:16]
    with pytest.raises(ValueError, match="several parts of a data set: say split='test', split='train' or split='val'"):
        SampleIndex.from_parquet(tmp_path, **OPTIONS)


@pytest.mark.parametrize("options", [{"compression": "snappy"}, {"compression": "zstd"}, {"compression": "none"}])
def test_the_line_that_errors_name_makes_files_that_are_read(
    tmp_path: Path, files: list[bytes], options: dict[str, Any]
) -> None:
    """Run by a shell, on a folder with a blank in its name. Without compression there are dictionaries by default."""
    old, new = tmp_path / "it's old", tmp_path / "new"
    old.mkdir()
    table = table_of([files[0]] * 12 + files[12:])
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(table, old / name, **options)
    with pytest.raises(ValueError, match=r"stored compressed .* Write the files again, plain: python -c") as error:
        SampleIndex.from_parquet(old, **OPTIONS)
    line = str(error.value).rpartition("plain: ")[2].replace("NEW_FOLDER", shlex.quote(str(new)))
    subprocess.run(line.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    index = SampleIndex.from_parquet(new, **OPTIONS)
    assert read(index) == ([files[0]] * 12 + files[12:]) * 2
    assert index.classes[0] == "tench"


class TestDamaged:
    def test_other_and_cut_files_are_refused(self, tmp_path: Path, files: list[bytes]) -> None:
        pq.write_table(table_of(files), tmp_path / "a.parquet", **PLAIN)
        whole = (tmp_path / "a.parquet").read_bytes()
        (tmp_path / "a.parquet").write_bytes(whole[:-100])
        with pytest.raises(ValueError, match=r"a\.parquet: the footer is missing or damaged .* copy or download"):
            SampleIndex.from_parquet(tmp_path, **OPTIONS)
        (tmp_path / "a.parquet").write_bytes(b"hello" * 20)
        with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file: it starts with b'hello"):
            SampleIndex.from_parquet(tmp_path, **OPTIONS)

    @pytest.mark.parametrize("label", [[1], 0.5, True, b"x" * 3])
    def test_labels_of_other_types_are_refused(self, tmp_path: Path, files: list[bytes], label: Any) -> None:
        kind = pa.binary(3) if isinstance(label, bytes) else None
        table = pa.table({"image": files, "label": pa.array([label] * 24, kind)})
        pq.write_table(table, tmp_path / "a.parquet", **PLAIN)
        with pytest.raises(ValueError, match=r"must hold an integer or a text|labels or names have values of type"):
            SampleIndex.from_parquet(tmp_path, **OPTIONS)

    @pytest.mark.parametrize("version", ["1.0", "2.0"])
    @pytest.mark.parametrize("where", ["pages", "footer"])
    def test_hostile_numbers_do_no_harm(
        self, tmp_path: Path, fuzz: Callable[..., None], version: str, where: str
    ) -> None:
        file = tmp_path / "a.parquet"
        options: dict[str, Any] = {"data_page_version": version, "write_statistics": False}
        pq.write_table(table_of([encode_small()] * 4), file, **PLAIN, **options)
        whole = file.read_bytes()
        first, last = whole.index(encode_small()), whole.rindex(encode_small()) + len(encode_small())
        spots = range(last, len(whole)) if where == "footer" else [*range(first), *range(last, last + 200)]
        fuzz(file, spots, lambda: SampleIndex.from_parquet(file, **OPTIONS))
