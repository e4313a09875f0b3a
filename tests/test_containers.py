"""Containers of every kind, written in the order of a folder: the batches are those of the folder, bit for bit."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import SampleIndex, TrainRecipe, create_loader
from tests.helpers import HERE, Batches, copied, hf_dataset, same, tf_example, tf_record

ENGINES = [(backend, workers) for backend in HERE for workers in (0, 2)]
OPTIONS: dict[str, Any] = {"progress": False, "cache": False}


def batches(index: SampleIndex, backend: Any, workers: int) -> Batches:
    recipe = TrainRecipe.strong(input_size=40)
    with create_loader(
        index, recipe, batch_size=8, seed=5, device="cpu", backend=backend, num_workers=workers
    ) as loader:
        return copied(loader)


@pytest.fixture(scope="module")
def of_folder(folder: Path) -> dict[tuple[str, int], Batches]:
    index = SampleIndex.from_folder(folder, **OPTIONS)
    return {engine: batches(index, *engine) for engine in ENGINES}


def as_zip(folder: Path, out: Path) -> SampleIndex:
    with zipfile.ZipFile(out / "train.zip", "w") as archive:
        for path in sorted(folder.rglob("*.JPEG")):
            archive.write(path, path.relative_to(folder))
    return SampleIndex.from_zip(out / "train.zip", **OPTIONS)


def as_tfrecord(folder: Path, out: Path) -> SampleIndex:
    paths = sorted(folder.rglob("*.JPEG"))
    for k in range(2):
        records = [
            tf_example(file_name=path.name.encode(), image=path.read_bytes(), label=int(path.parent.name[6:]))
            for path in paths[12 * k : 12 * k + 12]
        ]
        (out / f"imagenet2012-train.tfrecord-{k:05d}-of-00002").write_bytes(b"".join(map(tf_record, records)))
    return SampleIndex.from_tfrecord(out, **OPTIONS)


def as_saved(folder: Path, out: Path) -> SampleIndex:
    pytest.importorskip("datasets", reason="datasets is not installed")
    hf_dataset(folder).save_to_disk(out, num_shards=2)
    return SampleIndex.from_huggingface(out, **OPTIONS)


def as_dataset(folder: Path, out: Path) -> SampleIndex:
    """Saved in another order, and put in order again."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    back = range(23, -1, -1)
    hf_dataset(folder).select(back).save_to_disk(out, num_shards=2)
    return SampleIndex.from_huggingface(datasets.load_from_disk(out).select(back), **OPTIONS)


def as_parquet(folder: Path, out: Path) -> SampleIndex:
    """What `datasets` writes."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    (out / "data").mkdir()
    for k in range(2):
        part = hf_dataset(folder).select(range(12 * k, 12 * k + 12))
        part.to_parquet(out / "data" / f"train-{k:05d}-of-00002.parquet", batch_size=5)
    return SampleIndex.from_parquet(out, **OPTIONS)


KINDS = [as_zip, as_tfrecord, as_saved, as_dataset, as_parquet]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_folder(
    kind: Callable[[Path, Path], SampleIndex],
    folder: Path,
    tmp_path: Path,
    of_folder: dict[tuple[str, int], Batches],
    one_thread: None,
) -> None:
    index = kind(folder, tmp_path)
    assert kind is as_dataset or SampleIndex.open(tmp_path, **OPTIONS).fingerprint == index.fingerprint
    for engine, expected in of_folder.items():
        assert same(batches(index, *engine), expected), engine
    assert len(expected) == 3
    assert torch.cat([targets.argmax(1) for _, targets in expected]).unique().numel() == 4
