"""Lists of files, manifests and other people's datasets: order, labels, bytes, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.dataset import ImageDataset
from torch.utils.data import Subset, random_split
from torchvision.datasets import DatasetFolder, ImageFolder

from dali_imagenet import BadImageError, SampleIndex, TrainRecipe
from dali_imagenet.formats import IMG_EXTENSIONS
from tests.helpers import copied, encode_small, load, make_folder, same

RECIPE = TrainRecipe.classic(input_size=32)


@pytest.fixture(scope="module")
def index(folder: Path) -> SampleIndex:
    return SampleIndex.from_folder(folder, progress=False)


def of(samples: Any, **options: Any) -> SampleIndex:
    return SampleIndex.from_samples(samples, progress=False, **options)


def test_a_list_keeps_its_order_and_is_read_once(index: SampleIndex, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(24)
    pairs = [index[i] for i in order.tolist()]
    found = of(pairs, cache_dir=tmp_path)
    assert list(found) == pairs
    assert found.root == index.root
    assert found.scan.read == 24
    assert found.fingerprint == index.subset(order).relabel(index.labels[order], classes=[*"0123"]).fingerprint
    assert of(pairs, cache_dir=tmp_path).scan.read == 0
    named = of([(Path(path), index.classes[label]) for path, label in pairs], cache_dir=tmp_path)
    assert named.fingerprint == index.subset(order).fingerprint
    assert of(pairs, classes=index.classes).fingerprint == named.fingerprint


def test_paths_are_relative_to_the_root_or_to_the_current_folder(
    index: SampleIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(index.relative_path(i), i % 2) for i in range(24)]
    assert of(pairs, root=folder).path(5) == index.path(5)
    monkeypatch.chdir(folder / "class_000")
    found = of([("../" + path, label) for path, label in pairs])
    assert (found.root, found.path(5)) == (index.root, index.path(5))
    assert of([("00004.JPEG", 0)]).root == str(folder / "class_000")
    with pytest.raises(ValueError, match="does not lie below root="):
        of([("../class_001/00001.JPEG", 0)], root=folder / "class_000")


def test_what_is_not_there_or_broken_is_named(index: SampleIndex, folder: Path) -> None:
    found = of([index[0], (str(folder / "class_000" / "none.jpg"), 0)])
    assert found.reason(1) == "cannot be read: No such file or directory"
    with pytest.raises(BadImageError, match=r"none\.jpg: cannot be read"):
        load(found, RECIPE, batch_size=2)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one of them"),
        ([("a.jpg",)], r"samples=\('a\.jpg',\): must be \(path, label\)"),
        ([("a.jpg", 0), (b"b.jpg", 0)], r"samples=\(b'b\.jpg', 0\)"),
        ([("a.jpg", -1)], "labels=-1"),
        ([("a.jpg", 0), ("b.jpg", "cat")], "labels='cat'"),
        ([("a.jpg", 0.5)], "labels=0.5"),
        (
            [("https://host/a.jpg?key=1", 0), ("b.jpg", 0)],
            r"https://host/a\.jpg: an address among paths: give addresses alone",
        ),
        ([("a\0.jpg", 0)], "must be the name of a file"),
    ],
)
def test_lists_that_make_no_sense_are_refused(samples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(samples)
    with pytest.raises(ValueError, match="label 1, but classes= names 1"):
        of([("a.jpg", 1)], classes=["only"])


def test_datasets_of_torchvision_are_recognised(index: SampleIndex, folder: Path) -> None:
    for data in (ImageFolder(folder), DatasetFolder(str(folder), Image.open, extensions=IMG_EXTENSIONS)):
        assert of(data).fingerprint == index.fingerprint
        assert SampleIndex.open(data, progress=False).fingerprint == index.fingerprint
    backwards = of(ImageFolder(folder), classes=index.classes[::-1])
    assert backwards.fingerprint == index.relabel({}, classes=index.classes[::-1]).fingerprint
    words = ImageFolder(folder)
    words.wnids, words.classes = words.classes, [(name, "word") for name in words.classes]  # as torchvision's ImageNet
    words.split_folder, words.root = words.root, "elsewhere"
    assert of(words).fingerprint == index.fingerprint
    with pytest.raises(ValueError, match="ImageFolder has a target_transform"):
        of(ImageFolder(folder, target_transform=lambda label: label + 1))
    with pytest.raises(TypeError, match="for other datasets there is"):
        of(object())


def test_parts_of_datasets_are_parts_of_their_index(index: SampleIndex, folder: Path) -> None:
    first, second = random_split(ImageFolder(folder), [10, 14], torch.Generator().manual_seed(0))
    for part in (first, second, Subset(second, [3, 1, -1])):
        inner = np.array([second.indices[k] for k in (3, 1, -1)]) if isinstance(part.dataset, Subset) else part.indices
        assert of(part).fingerprint == index.subset(inner).fingerprint
    held: Any = index
    assert of(Subset(held, [2, 0])).fingerprint == index.subset([2, 0]).fingerprint
    with load(first, RECIPE) as a, load(index.subset(first.indices), RECIPE) as b:
        assert same(copied(a), copied(b))
    with pytest.raises(ValueError, match="use relabel"):
        of(index, classes=["a"])


def test_readers_of_timm_are_recognised(index: SampleIndex, folder: Path, tmp_path: Path) -> None:
    assert of(ImageDataset(str(folder))).fingerprint == index.fingerprint
    one, nested = tmp_path / "one.tar", tmp_path / "nested.tar"
    with tarfile.open(one, "w") as tar:
        tar.add(folder, ".")
    with tarfile.open(nested, "w") as outer:
        for inner in sorted(folder.iterdir()):
            with tarfile.open(tmp_path / "inner.tar_", "w") as tar:
                for file in inner.iterdir():
                    tar.add(file, file.name)
            outer.add(tmp_path / "inner.tar_", f"{inner.name}.tar")
    for root in (one, nested):
        data = ImageDataset(str(root), reader="")
        found = of(data)
        assert found.classes == index.classes
        assert found.labels.tolist() == [data.reader[i][1] for i in range(24)]
        by_name = {found.relative_path(i): found.source.read(i) for i in range(24)}
        assert by_name == {index.relative_path(i): index.source.read(i) for i in range(24)}
        assert [data.reader[i][0].read() for i in range(24)] == found.source.read_many(range(24))
        assert found.subset(np.argsort([found.relative_path(i) for i in range(24)])).fingerprint == index.fingerprint


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as out:
            table = csv.DictWriter(out, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_is_the_list_that_it_holds(index: SampleIndex, new_folder: Any, kind: str) -> None:
    root: Path = new_folder(12)
    plain = SampleIndex.from_folder(root, progress=False)
    rows: list[dict[str, Any]] = [
        {"path": plain.relative_path(i), "label": plain.classes[plain.labels[i]], "more": i} for i in (7, 3, 0, 11)
    ]
    part = plain.subset([7, 3, 0, 11])
    table = write_table(root / f"table.{kind}", rows)
    assert SampleIndex.from_manifest(table, classes=plain.classes).fingerprint == part.fingerprint
    for row, i in zip(rows, (7, 3, 0, 11), strict=True):
        row["label"], row["split"] = int(plain.labels[i]), "train" if i else "validation"
    table = write_table(root / f"split.{kind}", rows)
    options: dict[str, Any] = {"classes": plain.classes, "progress": False}
    assert SampleIndex.from_manifest(table, split="val", **options).fingerprint == plain.subset([0]).fingerprint
    assert SampleIndex.from_manifest(table, split=".", **options).fingerprint == part.fingerprint
    assert (
        SampleIndex.from_manifest(table, split="train", **options).fingerprint == plain.subset([7, 3, 11]).fingerprint
    )
    if kind != "parquet":  # a table of paths is one of images to whoever looks at its name
        with load(table, RECIPE, batch_size=2, classes=plain.classes) as loader:
            assert loader.dataset.fingerprint == plain.subset([7, 3, 11]).fingerprint
    for split in (None, "test"):
        with pytest.raises(ValueError, match="holds train, validation: say split='train', split='validation' or"):
            SampleIndex.from_manifest(table, split=split)


def test_manifests_that_lack_something_are_refused(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.csv", "file,label\na.jpg,0\n", "has columns file, label: must have path and label"),
        ("b.csv", "path,label\n", "at least one row"),
        ("c.csv", "path,label\na.jpg,0\nb.jpg\n", r"image 2 has path='b\.jpg' and label=''"),
        ("d.csv", "path,label\nhttps://host/a.jpg,0\nb.jpg,0\n", "an address among paths"),
        ("e.jsonl", '{"path": "a.jpg", "label": 0}\nnothing\n', "line 2 is no JSON"),
        ("f.jsonl", "[1]\n", "line 1 is no object"),
        ("g.jsonl", '{"path": "a.jpg", "label": 0}\n{"path": "b.jpg"}\n', "label=None"),
        ("h.txt", "path label", r"a name that ends in \.csv, \.jsonl or \.parquet"),
        ("i.csv", "path,label\na.jpg,0\nb.jpg,cat\n", "label 'cat' among labels that are numbers"),
    ):
        file = tmp_path / name
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            SampleIndex.from_manifest(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SampleIndex.from_manifest(tmp_path / "none.csv")


class Encoded:
    """Files as some library of one's own gives them."""

    def __init__(self, files: list[bytes], labels: list[int]) -> None:
        self.files, self.labels, self.reads = files, labels, 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.files[i], self.labels[i]


class Dicts(Encoded):
    def __getitem__(self, i: int) -> Any:
        return {"image": self.files[i], "label": self.labels[i]}


def image_of(item: Any) -> Any:
    return item["image"]


def encoded(index: SampleIndex, kind: type[Encoded] = Encoded) -> Encoded:
    return kind([index.source.read(i) for i in range(len(index))], index.labels.tolist())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fork_safe", [False, True])
def test_batches_of_a_dataset_are_those_of_its_files(index: SampleIndex, workers: int, fork_safe: bool) -> None:
    if not workers and fork_safe:
        pytest.skip("no process is started")
    found = SampleIndex.from_dataset(encoded(index), classes=index.classes, fork_safe=fork_safe, progress=False)
    assert found.source.fork_safe is fork_safe
    assert found.path(3) == "Encoded[3]"
    assert found.source.local_path(0) is None
    with load(found, RECIPE, num_workers=workers) as a, load(index, RECIPE) as b:
        assert same(copied(a), copied(b))


def test_a_dataset_of_paths_is_a_list_of_files(index: SampleIndex) -> None:
    data = Encoded([path for path, _ in index], index.labels.tolist())  # type: ignore[misc]  # paths in place of bytes
    found = SampleIndex.from_dataset(data, classes=index.classes, progress=False)
    assert found.fingerprint == index.fingerprint
    assert found.source.local_path(2) == index.path(2)


def test_functions_say_what_an_item_is(index: SampleIndex, tmp_path: Path) -> None:
    data = encoded(index, Dicts)
    with pytest.raises(TypeError, match="an item is a dict of image, label: give read="):
        SampleIndex.from_dataset(data)
    by_hand: dict[str, Any] = {"labels": [index.classes[label] for label in index.labels], "progress": False}
    by_item: dict[str, Any] = {"labels": lambda item: index.classes[item["label"]], "progress": False}
    a, b = (SampleIndex.from_dataset(data, image_of, **options) for options in (by_hand, by_item))
    assert a.fingerprint == b.fingerprint
    assert a.classes == index.classes
    assert pickle.loads(pickle.dumps(a)).source.read(1) == index.source.read(1)
    unnamed = SampleIndex.from_dataset(data, lambda item: item["image"], **by_hand)
    with pytest.raises(TypeError, match="define it at the top of a module, or say fork_safe=True"):
        pickle.dumps(unnamed)


def test_an_index_of_a_dataset_is_remembered_under_its_version(index: SampleIndex, tmp_path: Path) -> None:
    data = encoded(index)
    options: dict[str, Any] = {"cache_dir": tmp_path, "progress": False}
    first = SampleIndex.from_dataset(data, version="1", **options)
    reads = data.reads
    assert SampleIndex.from_dataset(data, version="1", **options).fingerprint == first.fingerprint
    assert data.reads <= reads + 1
    SampleIndex.from_dataset(data, version="2", **options)
    assert data.reads >= reads + 24
    data.files[5] += b"more"
    with pytest.raises(ValueError, match="the dataset has changed"):
        first.source.read(5)
    data.files[5] = b"nothing"
    assert SampleIndex.from_dataset(data, progress=False).broken.tolist().index(True) == 5


def test_what_gives_no_encoded_image_is_refused(index: SampleIndex) -> None:
    picture = Image.new("RGB", (4, 4))
    for data, labels, error, message in (
        ([(picture, 0)], None, TypeError, "gives a Image: must be encoded bytes or a path, not a decoded image"),
        ([(torch.zeros(3, 4, 4), 0)], None, TypeError, "gives a Tensor"),
        ([index.source.read(0)], None, TypeError, "a bytes without a label: give labels="),
        ([(index.source.read(0), 0)], [0, 1], ValueError, "2 labels for 1 items"),
        ([(index.source.read(0), 0), (index.path(0), 0)], None, TypeError, "item 1 gives a path, and item 0 encoded"),
        ([], None, ValueError, "at least one item"),
        (iter([]), None, TypeError, "must be a map-style dataset"),
    ):
        with pytest.raises(error, match=message):
            SampleIndex.from_dataset(data, labels=labels, progress=False)


def test_an_lmdb_is_a_dataset_of_a_few_lines(index: SampleIndex, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 26) as env, env.begin(write=True) as write:
        for i in range(24):
            write.put(f"{i:04d}".encode(), index.source.read(i))
    found = SampleIndex.from_dataset(Lmdb(str(tmp_path / "db")), labels=index.labels, progress=False)
    assert found.source.read_many(range(24)) == index.source.read_many(range(24))
    with load(found, RECIPE, num_workers=2) as a, load(index, RECIPE) as b:
        assert same(copied(a), copied(b))


class Lmdb:
    """Opened by each process that reads; lmdb does not open one again in a forked child."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened: tuple[int, Any] = (0, None)

    def __getstate__(self) -> Any:
        return self.__dict__ | {"opened": (0, None)}

    def __len__(self) -> int:
        return int(self.env().stat()["entries"])

    def env(self) -> Any:
        import lmdb

        if self.opened[0] != os.getpid():
            self.opened = os.getpid(), lmdb.open(self.path, readonly=True, lock=False)
        return self.opened[1]

    def __getitem__(self, i: int) -> Any:
        with self.env().begin() as read:
            return read.get(f"{i:04d}".encode())


def test_a_dataset_with_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import ImageFolder

    make_folder(tmp_path / "data", 6, classes=2)
    monkeypatch.chdir(tmp_path)
    index = SampleIndex.from_samples(ImageFolder("data"), progress=False)
    assert not index.broken.any()
    assert index.fingerprint == SampleIndex.from_folder("data", progress=False).fingerprint


def test_nothing_is_written_beside_files_that_lie_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write_index=True: must be False for files that lie alone"):
        SampleIndex.from_samples([(str(tmp_path / "a.jpg"), 0)], write_index=True)


def test_a_version_is_that_of_labels_too(tmp_path: Path) -> None:
    images = [encode_small()] * 4
    for labels in ([0, 1, 0, 1], [1, 0, 1, 0]):
        index = SampleIndex.from_dataset(images, labels=labels, version="1", cache_dir=tmp_path, progress=False)
        assert index.labels.tolist() == labels
