"""The same images in every kind of container, written once into a folder."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali_imagenet import SampleIndex

SHARD = "100MB"


def tar_of_tars(index: SampleIndex, out: Path) -> Any:
    """A tar with a tar for each class, as ImageNet's training images are downloaded."""
    file = out / "train.tar"
    by_class: dict[str, list[int]] = {}
    for i in range(len(index)):
        by_class.setdefault(index.relative_path(i).partition("/")[0], []).append(i)
    with tarfile.open(file, "w") as outer:
        for name, samples in by_class.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for i in samples:
                    _add(archive, index.relative_path(i).partition("/")[2], index.source.read(i))
            _add(outer, f"{name}.tar", inner.getvalue())
    return file


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def webdataset(index: SampleIndex, out: Path) -> Any:
    """Tar shards, labels beside the images."""
    from dali_imagenet import pack

    pack(index, out / "webdataset", shard_size=SHARD, progress=False)
    for file in (out / "webdataset").glob("*.dali-index"):  # as another program would have written them
        file.unlink()
    return out / "webdataset"


def stored_zip(index: SampleIndex, out: Path) -> Any:
    """One zip, nothing packed."""
    file = out / "train.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i in range(len(index)):
            archive.writestr(index.relative_path(i), index.source.read(i))
    return file


def tfrecord(index: SampleIndex, out: Path) -> Any:
    """TFDS's features of imagenet2012."""
    file = out / "imagenet2012-train.tfrecord-00000-of-00001"
    with open(file, "wb") as records:
        for i in range(len(index)):
            features = b"".join(
                _field(1, _field(1, key) + _field(2, value))
                for key, value in (
                    (b"file_name", _field(1, _field(1, index.relative_path(i).encode()))),
                    (b"image", _field(1, _field(1, index.source.read(i)))),
                    (b"label", _field(3, _field(1, _varint(int(index.labels[i]))))),
                )
            )
            data = _field(1, features)
            length = struct.pack("<Q", len(data))
            records.write(length + _masked_crc(length) + data + bytes(4))  # nobody checks the last one
    return file


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _masked_crc(data: bytes) -> bytes:
    """TFRecord's check of a length: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def arrow(index: SampleIndex, out: Path) -> Any:
    """A folder of Hugging Face datasets' save_to_disk."""
    _dataset(index).save_to_disk(str(out / "arrow"))
    return out / "arrow"


def parquet(index: SampleIndex, out: Path) -> Any:
    """As Hugging Face datasets writes it."""
    folder = out / "parquet"
    folder.mkdir()
    _dataset(index).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return folder


def _dataset(index: SampleIndex) -> Any:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(index.classes))})

    def rows() -> Any:
        for i in range(len(index)):
            image = {"bytes": index.source.read(i), "path": index.relative_path(i)}
            yield {"image": image, "label": int(index.labels[i])}

    return datasets.Dataset.from_generator(rows, features=features, cache_dir=None, keep_in_memory=True)


KINDS: dict[str, Callable[[SampleIndex, Path], Any]] = {
    "tar of tars": tar_of_tars,
    "WebDataset": webdataset,
    "zip": stored_zip,
    "TFRecord": tfrecord,
    "Arrow": arrow,
    "Parquet": parquet,
}
NEEDS = {"Arrow": "datasets", "Parquet": "datasets"}
"""What has to be installed to write and read some of them."""
