"""What is remembered of JPEGs, against files and records that are exchanged, damaged or torn: no crop may be wrong.

Each trial does one of `ON_FILES` to a file, whose header, size and time stay, or one of `ON_RECORDS` to what is
remembered of it; then crops are decoded by the record, and from the top without it. They must be the same, bit for bit,
or both refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..inputs import encoded, segment

TRIALS = 3000
"""Of a round."""
Draw = np.random.Generator


def _scan(data: bytes) -> int:
    """Where the compressed data begin."""
    return sum(segment(data, 0xDA))


def _of_length(data: bytes, length: int) -> bytes:
    """Cut before another end marker, or with zeros behind its own."""
    return data + bytes(length - len(data)) if len(data) <= length else data[: length - 2] + b"\xff\xd9"


def exchanged(rng: Draw, data: bytes, other: bytes) -> bytes:
    """Another image's scan under the same header."""
    return _of_length(data[: _scan(data)] + other[_scan(other) :], len(data))


def damaged(rng: Draw, data: bytes, other: bytes) -> bytes:
    """Some bytes of the scan are others."""
    out, start = bytearray(data), _scan(data)
    for _ in range(int(rng.integers(1, 4))):
        at, count = int(rng.integers(start, len(data))), int(rng.integers(1, 9))
        out[at : at + count] = rng.integers(0, 256, len(out[at : at + count]), np.uint8).tobytes()
    return bytes(out)


def shifted(rng: Draw, data: bytes, other: bytes) -> bytes:
    """A byte of the scan is gone, and one more behind the end."""
    at = int(rng.integers(_scan(data), len(data)))
    return _of_length(data[:at] + data[at + 1 :], len(data))


def flipped(rng: Draw, record: bytes, other: bytes) -> bytes:
    """One to four bits of the record."""
    out, used = bytearray(record), len(record.rstrip(b"\0"))
    for _ in range(int(rng.integers(1, 5))):
        out[int(rng.integers(used))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def swapped(rng: Draw, record: bytes, other: bytes) -> bytes:
    """Another image's."""
    return other[: len(record)].ljust(len(record), b"\0")


def torn(rng: Draw, record: bytes, other: bytes) -> bytes:
    """The one up to some byte, another behind it."""
    at = int(rng.integers(1, len(record)))
    return record[:at] + swapped(rng, record, other)[at:]


def noise(rng: Draw, record: bytes, other: bytes) -> bytes:
    """Anything."""
    return rng.integers(0, 256, len(record), np.uint8).tobytes()


Attack = Callable[[Draw, bytes, bytes], bytes]
ON_FILES: tuple[Attack, ...] = (exchanged, damaged, shifted)
ON_RECORDS: tuple[Attack, ...] = (flipped, swapped, torn, noise)


def write_files(folder: Path, sources: Sequence[bytes]) -> None:
    """JPEGs of a class each: those of `sources` that have a scan, and pairs under one header."""
    sizes: list[dict[str, Any]] = [{"size": size} for size in ((90, 70), (64, 200), (210, 33))]
    kinds: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"subsampling": 1}]
    pairs = [encoded(seed=seed, **size, **kind) for size in sizes for kind in kinds for seed in (1, 2)]
    for number, data in enumerate([*pairs, *(data for data in sources if data[:2] == b"\xff\xd8")]):
        (folder / f"{number:04d}").mkdir(parents=True)
        (folder / f"{number:04d}" / "x.JPEG").write_bytes(data)


def attack_rows(root: Path, seed: int, trials: int = TRIALS) -> dict[str, Any]:
    """The account of that many attacks on the files that `write_files` has put below `root`."""
    from dali_imagenet import SampleIndex
    from dali_imagenet.decode.decode import DECODERS
    from dali_imagenet.decode.seek_index import OUTCOMES, seek_index_for

    index = SampleIndex.from_folder(root, progress=False, cache_dir=root.parent / "cache of rows")
    seek = seek_index_for(index, True)
    assert seek is not None
    decode, rng, count = DECODERS[0].decode, np.random.default_rng(seed), Counter[str]()
    wrong, known = list[str](), dict[int, bytes]()
    files = {i: index.source.read(i) for i in range(len(index)) if not index.broken[i] and seek.slot(i) is not None}
    files = {
        i: data
        for i, data in files.items()
        if decode(data, _size(index, i), (0, 0, *_size(index, i)), None) is not None
    }
    alike: dict[Any, list[int]] = {}
    for i, data in files.items():
        alike.setdefault((data[: _scan(data)], _size(index, i)), []).append(i)

    def crop(i: int, data: bytes, what: str) -> None:
        height, width = _size(index, i)
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        box = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
        plain, found = (decode(data, (height, width), box, None, slot) for slot in (None, seek.slot(i)))
        count["crops"] += 1
        count["crops refused"] += plain is None
        same = found is None if plain is None else found is not None and np.array_equal(plain, found)
        if not same:
            wrong.append(f"seed {seed}, {what}: another crop of {index.path(i)} at {box}")

    def put(i: int, record: bytes) -> None:
        slot = seek.slot(i)
        assert slot is not None
        seek.write(slot.at * 4, record)

    for i, data in files.items():  # cold, and most of them only in part
        crop(i, data, "nothing")
    for _ in range(trials):
        i, j = (int(k) for k in rng.choice([*files], 2))
        slot = seek.slot(i)
        assert slot is not None
        crop(i, files[i], "nothing")
        known[i] = bytes(slot.record)
        attack = (*ON_FILES, *ON_RECORDS)[int(rng.integers(len(ON_FILES) + len(ON_RECORDS)))]
        data = files[i]
        if attack in ON_FILES:
            twins = alike[data[: _scan(data)], _size(index, i)]
            other = files[twins[int(rng.integers(len(twins)))]] if rng.random() < 0.7 else files[j]
            data = attack(rng, data, other)
            assert len(data) == len(files[i])
        else:
            put(i, attack(rng, known[i], known.get(j, b"")))
        count[attack.__name__] += 1
        for _ in range(3):
            crop(i, data, attack.__name__)
        if rng.random() < 0.5:
            put(i, known[i])
    counts = dict(zip(OUTCOMES, seek.taken(), strict=True))
    return {"wrong": wrong, **count, **counts, "images": len(files), "bytes of the index": os.path.getsize(seek.file)}


def _size(index: Any, i: int) -> tuple[int, int]:
    return int(index.height[i]), int(index.width[i])
