"""ImageNet as it is downloaded: the archives, the devkit and Kaggle's folder give the index of the sorted folders."""

from __future__ import annotations

import csv
import logging
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe
from tests.helpers import encode_small, load, write

WNIDS = ("n01440764", "n01443537", "n01484850")
IDS = {"n01440764": 3, "n01443537": 1, "n01484850": 2}  # ILSVRC2012_ID: another order than that of the names
OF_VAL = (1, 0, 2, 1, 0, 2, 2)  # classes of the validation images, in WNIDS


def val_name(i: int) -> str:
    return f"ILSVRC2012_val_{i + 1:08d}.JPEG"


def picture(i: int) -> bytes:
    return encode_small(40 + i, 50)


class Layouts:
    """The same few images in every way in which ImageNet comes."""

    def __init__(self, root: Path) -> None:
        self.root, self.sorted = root, root / "sorted"
        for c, wnid in enumerate(WNIDS):
            for i in range(2):
                write(self.sorted / "train" / wnid / f"{wnid}_{i}.JPEG", picture(10 + 2 * c + i))
        for i, c in enumerate(OF_VAL):
            write(self.sorted / "val" / WNIDS[c] / val_name(i), picture(i))
            write(root / "flat" / val_name(i), picture(i))
        self.train_tar, self.val_tar = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
        with tarfile.open(self.train_tar, "w") as outer:
            for wnid in WNIDS:
                with tarfile.open(root / f"{wnid}.tar", "w") as inner:
                    for file in sorted((self.sorted / "train" / wnid).iterdir()):
                        inner.add(file, file.name)
                outer.add(root / f"{wnid}.tar", f"{wnid}.tar")
        with tarfile.open(self.val_tar, "w") as tar:
            for file in sorted((root / "flat").iterdir()):
                tar.add(file, file.name)
        self.devkit, self.devkit_tar = root / "ILSVRC2012_devkit_t12", root / "ILSVRC2012_devkit_t12.tar.gz"
        truth = "".join(f"{IDS[WNIDS[c]]}\n" for c in OF_VAL)
        write(self.devkit / "data" / "ILSVRC2012_validation_ground_truth.txt", truth.encode())
        self.csv = write(root / "tables" / "LOC_val_solution.csv", b"")
        with self.csv.open("w", newline="") as out:
            table = csv.writer(out)
            table.writerow(["ImageId", "PredictionString"])
            for i in (3, 0, 6, 1, 2, 5, 4):
                other = f"{WNIDS[0]} 1 1 5 5 "  # a second object
                table.writerow([val_name(i)[:-5], f"{WNIDS[OF_VAL[i]]} 85 1 499 272 {other * (i % 2)}"])

    def write_meta(self) -> None:
        savemat = pytest.importorskip("scipy.io").savemat
        leaves = sorted(IDS.items(), key=lambda item: item[1])
        rows = [
            *((n, w, "fish", "a fish", 0, [], 0, 1300) for w, n in leaves),
            (4, "n00001740", "e", "e", 3, [1, 2, 3], 2, 0),
        ]
        fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train")
        synsets = np.array([rows[0]], [(f, "O") for f in fields])
        synsets = np.concatenate([np.array([row], synsets.dtype) for row in rows]).reshape(-1, 1)
        savemat(self.devkit / "data" / "meta.mat", {"synsets": synsets})
        with tarfile.open(self.devkit_tar, "w:gz") as tar:
            tar.add(self.devkit, self.devkit.name)

    def kaggle(self, top: Path, table: bool = True) -> Path:
        inner = top / "ILSVRC" / "Data" / "CLS-LOC"
        shutil.copytree(self.sorted / "train", inner / "train")
        shutil.copytree(self.root / "flat", inner / "val")
        write(inner / "test" / "ILSVRC2012_test_00000001.JPEG", picture(0))
        if table:
            shutil.copy(self.csv, top)
        return top


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return Layouts(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def wanted(layouts: Layouts) -> dict[str, SampleIndex]:
    return {part: SampleIndex.from_folder(layouts.sorted, split=part, progress=False) for part in ("train", "val")}


@pytest.fixture(params=["devkit", "devkit tar", "csv", "mapping"])
def labels(layouts: Layouts, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param.startswith("devkit"):
        layouts.write_meta()
        yield layouts.devkit_tar if request.param.endswith("tar") else layouts.devkit
    elif request.param == "csv":
        yield layouts.csv
    else:
        yield {val_name(i)[:-5]: WNIDS[c] for i, c in enumerate(OF_VAL)}


def same(found: SampleIndex, expected: SampleIndex) -> None:
    assert found.classes == expected.classes
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.fingerprint == expected.fingerprint
    files = [index.source.read_many(range(len(index))) for index in (found, expected)]
    assert files[0] == files[1]


def test_the_tar_of_tars_is_the_folder(layouts: Layouts, wanted: dict[str, SampleIndex]) -> None:
    same(SampleIndex.from_tar(layouts.train_tar, progress=False), wanted["train"])


def test_the_flat_tar_and_folder_are_the_sorted_ones(
    layouts: Layouts, wanted: dict[str, SampleIndex], labels: Any
) -> None:
    same(SampleIndex.from_tar(layouts.val_tar, labels=labels, progress=False), wanted["val"])
    flat = SampleIndex.from_folder(layouts.root / "flat", labels=labels, progress=False)
    same(flat, wanted["val"])
    assert flat.source.local_path(0) == str(layouts.root / "flat" / val_name(1))
    assert flat.relative_path(0) == f"{WNIDS[0]}/{val_name(1)}"
    assert flat.subset([3, 1]).fingerprint == wanted["val"].subset([3, 1]).fingerprint
    assert flat.subset([3, 1]).path(1) == flat.path(1)


def test_a_part_of_the_images_has_all_classes(layouts: Layouts, tmp_path: Path) -> None:
    shutil.copy(layouts.root / "flat" / val_name(2), tmp_path)
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / val_name(2), val_name(2))
    for index in (
        SampleIndex.from_folder(tmp_path, labels=layouts.csv, progress=False),
        SampleIndex.from_tar(tmp_path / "val.tar", labels=layouts.csv, progress=False),
    ):
        assert (index.classes, index.labels.tolist()) == (WNIDS, [2])


def test_kaggles_folder_is_found_from_its_top(
    layouts: Layouts, wanted: dict[str, SampleIndex], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    top = layouts.kaggle(tmp_path / "kaggle")
    caplog.set_level(logging.INFO)
    for data in (top, top / "ILSVRC", top / "ILSVRC" / "Data" / "CLS-LOC"):
        with load(data, EvalRecipe(input_size=32), batch_size=2) as loader:
            same(loader.dataset, wanted["val"])
        with load(data, TrainRecipe.classic(input_size=32), batch_size=2) as loader:
            same(loader.dataset, wanted["train"])
    assert f"labels are those of {top / 'LOC_val_solution.csv'}" in caplog.text
    natural = SampleIndex.from_folder(top, split="val", classes=WNIDS[::-1], progress=False)
    assert natural.classes == WNIDS[::-1]


def test_without_a_table_a_flat_val_is_refused_with_what_to_give(layouts: Layouts, tmp_path: Path) -> None:
    top = layouts.kaggle(tmp_path / "kaggle", table=False)
    with pytest.raises(ValueError, match=r"give labels= \(ImageNet's devkit, Kaggle's LOC_val_solution\.csv\)"):
        SampleIndex.from_folder(top, split="val")
    with pytest.raises(FileNotFoundError, match=r"or labels= must say the class of each"):
        SampleIndex.from_folder(layouts.root / "flat")
    found = SampleIndex.open(top, labels=layouts.csv, split="val", progress=False)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_classes_of_train_govern(layouts: Layouts, tmp_path: Path) -> None:
    top = layouts.kaggle(tmp_path / "kaggle")
    shutil.rmtree(top / "ILSVRC" / "Data" / "CLS-LOC" / "train" / WNIDS[1])
    with pytest.raises(ValueError, match=rf"1 class\(es\) \({WNIDS[1]}\) which '.*train' does not have"):
        SampleIndex.from_folder(top, split="val")


def test_tables_that_do_not_fit_are_refused(layouts: Layouts, tmp_path: Path) -> None:
    layouts.write_meta()
    truth = "ILSVRC2012_validation_ground_truth.txt"
    other = write(tmp_path / "other.csv", b"image,label\nx,y\n")
    odd = write(tmp_path / "odd.csv", b"ImageId,PredictionString\nILSVRC2012_val_00000001,cat 1 2 3 4\n")
    half = write(tmp_path / "half" / "data" / truth, b"1\n").parent.parent
    wrong = shutil.copytree(layouts.devkit, tmp_path / "wrong")
    write(wrong / "data" / truth, b"7\n")
    for labels, message in (
        (other, r"has columns \['image', 'label'\]: must be Kaggle's"),
        (odd, "image ILSVRC2012_val_00000001 has no class such as n01440764"),
        (half, r"holds no meta\.mat: it is not the devkit"),
        (wrong, "the devkit's files do not fit: KeyError: 7"),
        (layouts.devkit / "data" / truth, "counts classes by ILSVRC2012_ID"),
        ({"ILSVRC2012_val_00000001": WNIDS[0]}, "says nothing of 6 of the 7 images"),
        (5, "labels=5: must be ImageNet's devkit"),
    ):
        with pytest.raises(ValueError, match=message):
            SampleIndex.from_folder(layouts.root / "flat", labels=labels)  # type: ignore[arg-type]  # so it is
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SampleIndex.from_folder(layouts.root / "flat", labels=tmp_path / "none.csv")


def test_without_scipy_the_devkit_is_refused(layouts: Layouts, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_meta()
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"pip install dali-imagenet\[imagenet\], or give Kaggle's"):
        SampleIndex.from_folder(layouts.root / "flat", labels=layouts.devkit)
