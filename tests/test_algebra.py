"""Parts and combinations of indexes: which images, under which labels, and that the right bytes are read."""

from __future__ import annotations

import dataclasses
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import SampleIndex, TrainRecipe
from dali_imagenet.data.algebra import Picked
from dali_imagenet.data.names import Names
from dali_imagenet.data.source import Source, read_each
from tests.helpers import copied, load, make_folder, same

RECIPE = TrainRecipe.classic(input_size=32)


@pytest.fixture(scope="module")
def index(folder: Path) -> SampleIndex:
    return SampleIndex.from_folder(folder, progress=False)


@pytest.fixture(scope="module")
def tarred(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    path = tmp_path_factory.mktemp("tar") / "data.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return SampleIndex.from_tar(path, progress=False)


def numbered(labels: list[int], **options: Any) -> SampleIndex:
    return SampleIndex.from_arrays(labels, 40, 30, **options)


def test_an_index_is_a_sequence_of_path_and_label(index: SampleIndex) -> None:
    assert index[3] == (index.path(3), int(index.labels[3]))
    assert index[-1] == index[len(index) - 1]
    assert list(index) == list(index.samples)
    assert list(index[4:20:3]) == [index[i] for i in range(4, 20, 3)]
    with pytest.raises(IndexError, match="image 24 of an index of 24"):
        index[24]
    with pytest.raises(TypeError, match="give several to subset"):
        index[[0, 1]]  # type: ignore[call-overload]  # wrong on purpose


def test_names_are_selected_whole_across_chunks() -> None:
    names = [f"{'x' * (i % 17)}ä{i}" for i in range(70_000)]
    rows = np.random.default_rng(0).integers(0, len(names), 140_000)
    found = Names.of(names).select(rows)
    assert [found[i] for i in range(len(rows))] == [names[i] for i in rows.tolist()]
    assert len(Names.of(names).select(rows[:0])) == 0


@pytest.mark.parametrize("rows", [[5, 2, -1, 2], torch.tensor([1, 0]), np.arange(24) % 3 == 0, range(3), []])
def test_a_subset_is_what_was_asked_for(index: SampleIndex, tarred: SampleIndex, rows: Any) -> None:
    at = np.arange(24)[np.asarray(rows, None if len(rows) else int)]
    for whole in (index, tarred):
        part = whole.subset(rows)
        assert list(part) == [whole[i] for i in at]
        assert [part.source.read(i) for i in range(len(at))] == [whole.source.read(i) for i in at]
        assert part.classes == whole.classes


def test_bad_rows_are_refused(index: SampleIndex) -> None:
    for rows, message in (
        ([0, 24], r"rows from 0 to 24: must lie in 0\.\.23"),
        ([-25], "must lie in"),
        ([True, False], "a mask of 2: must be of 24"),
        ([0.5], "must be positions in the index, or a mask"),
        (3, "must be positions"),
    ):
        with pytest.raises(ValueError, match=message):
            index.subset(rows)


def test_the_fingerprint_of_a_part_is_that_of_a_folder_with_this_part(new_folder: Any) -> None:
    root = new_folder(12)
    broken = root / "class_001" / "00001.JPEG"
    broken.write_bytes(b"nothing")
    whole = SampleIndex.from_folder(root, progress=False)
    kept = whole.subset(np.arange(12) % 3 != 2)
    assert kept.reason(list(kept.samples).index((str(broken), 1))) == whole.reason(3)
    for i in range(2, 12, 3):
        Path(whole.path(i)).unlink()
    assert kept.fingerprint == SampleIndex.from_folder(root, classes=whole.classes, progress=False).fingerprint
    assert kept.fingerprint != whole.fingerprint


def test_selected_classes_are_numbered_in_the_order_given(index: SampleIndex, tmp_path: Path) -> None:
    found = index.select_classes(["class_003", "class_001"])
    assert found.classes == ("class_003", "class_001")
    assert [(p, index.classes[label]) for p, label in index if label in (1, 3)] == [
        (p, found.classes[label]) for p, label in found
    ]
    file = tmp_path / "classes.txt"
    file.write_text("class_003\nclass_001\n")
    assert index.select_classes(file).fingerprint == found.fingerprint
    with pytest.raises(ValueError, match=r"names: nothing: must be classes of the index, as class_000"):
        index.select_classes(["class_000", "nothing"])
    with pytest.raises(ValueError, match="must be names of classes"):
        index.select_classes("sorted")


def test_labels_are_replaced_by_name_or_by_number(index: SampleIndex) -> None:
    merged = index.relabel({"class_000": "even", "class_002": "even", "class_001": "a"})
    assert merged.classes == ("a", "class_003", "even")
    assert [merged.classes[label] for label in merged.labels[[0, 6, 12, 18]]] == ["even", "a", "even", "class_003"]
    named = index.relabel(["b", "a"] * 12, classes=["b", "a"])
    assert named.labels.tolist() == [0, 1] * 12
    assert index.relabel(np.arange(24) % 2, classes=["b", "a"]).fingerprint == named.fingerprint
    cases: list[tuple[Any, Any, str]] = [
        ({"class_9": "x"}, "sorted", "names class_9: must be classes of the index"),
        ([0] * 23, ["a"], "23 labels for 24 images"),
        ([0] * 24, "sorted", r"labels are numbers up to 0: give classes="),
        ([0, 2] * 12, ["a", "b"], "label 2, but classes= names 2"),
        ([0, "a"] * 12, ["a", "b"], "labels='a': must be numbers of classes, counted from 0, or names"),
        (["a", "b"] * 12, ["a"], "classes= does not name b"),
        ([-1] * 24, ["a"], "labels=-1"),
    ]
    for labels, classes, message in cases:
        with pytest.raises(ValueError, match=message):
            index.relabel(labels, classes=classes)


def test_so_many_of_each_class_are_drawn_by_the_seed_alone() -> None:
    index = numbered(([0] * 40 + [1] * 60) * 10)
    ten, twenty = index.per_class(10, 3), index.per_class(20, 3)
    assert np.bincount(ten.labels).tolist() == [10, 10]
    assert {*ten} < {*twenty}
    assert list(ten) == sorted(ten)
    assert ten.fingerprint == index.per_class(10, 3).fingerprint != index.per_class(10, 4).fingerprint
    assert [name for name, _ in ten][:3] == [index.path(i) for i in (46, 110, 124)]  # part of what a seed means
    with pytest.raises(ValueError, match=r"n=500: 1 class\(es\) have fewer images: 0 \(400\)"):
        index.per_class(500)


def test_fractions_and_folds_are_stratified() -> None:
    index = numbered([0] * 103 + [1] * 57 + [2] + [0] * 10)
    some = index.fraction(0.1, 1)
    assert np.bincount(some.labels).tolist() == [11, 6, 1]
    assert {*some} < {*index.fraction(0.5, 1)}
    assert index.fraction(1).fingerprint == index.fingerprint
    folds = index.folds(4, 2)
    assert len(folds) == 4
    counts = np.array([np.bincount(val.labels, minlength=3) for _, val in folds])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(1)) <= 1
    for train, val in folds:
        assert {*train} | {*val} == {*index}
        assert not {*train} & {*val}
    assert sorted(path for _, val in folds for path, _ in val) == sorted(path for path, _ in index)
    for call in (lambda: index.fraction(0), lambda: index.fraction(1.5), lambda: index.folds(1)):
        with pytest.raises(ValueError, match="must be a"):
            call()


def test_joined_classes_of_one_name_are_one(tmp_path: Path, index: SampleIndex, tarred: SampleIndex) -> None:
    other = make_folder(tmp_path / "other", 6, classes=2, seed=1)
    (other / "class_001").rename(other / "another")
    more = SampleIndex.from_folder(other, progress=False)
    for first in (index, tarred):
        both = SampleIndex.concat([first, more])
        assert both.classes == (*index.classes, "another")
        assert [(p, both.classes[label]) for p, label in both] == [
            (p, part.classes[label]) for part in (first, more) for p, label in part
        ]
        expected = [part.source.read(i) for part in (first, more) for i in range(len(part))]
        assert [both.source.read(i) for i in range(30)] == expected
        backwards = both.subset(np.arange(30)[::-1])
        assert pickle.loads(pickle.dumps(backwards)).source.read_many(range(30)) == expected[::-1]
        assert backwards.source.local_path(0) == (more.path(5) if first is index else None)
        assert SampleIndex.concat([both, both]).source.read(59) == expected[-1]
    assert SampleIndex.concat([index, more], classes="sorted").classes[0] == "another"
    assert isinstance(both.source, Picked)
    halves = SampleIndex.concat([tarred[:10], tarred[10:]])
    assert type(halves.source) is type(tarred.source)
    assert halves.fingerprint == tarred.fingerprint == index.fingerprint
    with pytest.raises(ValueError, match="at least one SampleIndex"):
        SampleIndex.concat([])


def test_repeated_images_are_samples_of_their_own(index: SampleIndex) -> None:
    assert list(index.repeat(2)) == [pair for pair in index for _ in range(2)]
    assert np.bincount(index.repeat({"class_002": 3, "class_000": 0}).labels).tolist() == [0, 6, 18, 6]
    assert index.repeat([1, 0, 2, 1]).fingerprint == index.repeat({"class_001": 0, "class_002": 2}).fingerprint
    for counts in ([1, 2, 3], -1, 1.5, {"x": 1}):
        with pytest.raises(ValueError, match="counts"):
            index.repeat(counts)
    with pytest.raises(ValueError, match="as many as there are images and classes"):
        numbered([0, 1]).repeat([1, 2])


class Memory:
    """A source that knows nothing of rows."""

    fork_safe = True

    def __init__(self, files: list[bytes]) -> None:
        self.files, self.hints = files, list[int]()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, sample: int) -> bytes:
        return self.files[sample]

    def read_many(self, samples: Any) -> list[bytes | Exception]:
        return read_each(self, samples)

    def will_read(self, samples: Any) -> None:
        self.hints += samples

    def name(self, sample: int) -> str:
        return f"memory:{sample}"

    def local_path(self, sample: int) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_mixture_are_those_of_the_files(index: SampleIndex, tarred: SampleIndex, workers: int) -> None:
    memory = Memory([index.source.read(i) for i in range(24)])
    checked: Source = memory
    held = dataclasses.replace(index, source=checked)
    order = np.random.default_rng(0).permutation(24)
    mixed = SampleIndex.concat([held[:8], tarred[8:16], index[16:]]).subset(order)
    assert mixed.path(int(np.flatnonzero(order == 5)[0])) == "memory:5"
    assert mixed.fingerprint == index.subset(order).fingerprint
    mixed.source.will_read([int(np.flatnonzero(order == 5)[0])])
    assert memory.hints == [5]
    with load(mixed, RECIPE, num_workers=workers) as a, load(index.subset(order), RECIPE) as b:
        assert same(copied(a), copied(b))
