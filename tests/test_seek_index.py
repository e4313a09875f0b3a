"""A crop that is decoded from its first row, which is remembered: the same bits as from the top, and whatever does not
fit the file is dropped."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import platform
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from bench.checks.fuzzers.rows import ON_FILES, ON_RECORDS, attack_rows, write_files
from bench.checks.inputs import segment
from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe
from dali_imagenet.cache import KINDS, entries
from dali_imagenet.decode import decode as decoding
from dali_imagenet.decode import seek_index
from dali_imagenet.decode.seek_index import OUTCOMES, SeekIndex, seek_index_for
from tests.helpers import copied, encode, load, photo, same

pytestmark = [
    pytest.mark.skipif(decoding._jpeg is None, reason="dali_imagenet.decode._jpeg was not built"),
    pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no space can be reserved here"),
]
jpeg: Any = decoding._jpeg
TOP, ROW, DROPPED = range(len(OUTCOMES))
HEAD = 25
Box = tuple[int, int, int, int]
FORMS: list[dict[str, Any]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2, "optimize": True},
    {"subsampling": 2, "restart_marker_blocks": 3},
    {"subsampling": 0, "restart_marker_rows": 1},
    {"subsampling": 1, "restart_marker_blocks": 7, "quality": 98},
    {"mode": "L", "restart_marker_blocks": 5},
    {"mode": "L"},
]


@pytest.fixture(autouse=True)
def _no_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of what the oracle leaves out."""
    monkeypatch.setattr(seek_index, "ORACLE", False)
    monkeypatch.setattr(decoding, "ORACLE", False)


def made(form: dict[str, Any], height: int, width: int, seed: int = 0) -> bytes:
    options = {"quality": 90} | form
    return encode(photo(np.random.default_rng(seed), height, width, options.pop("mode", "RGB")), **options)


def cut(data: bytes, size: tuple[int, int], box: Box, slot: bytes = b"", **way: Any) -> tuple[Any, int, bytes]:
    """The pixels, how they were decoded, and the new record; the problem in the place of the pixels."""
    out = np.full((box[2], box[3], 3), 7, np.uint8)
    try:
        outcome, record = jpeg.decode_region(data, size, box, out, way.get("simd", True), way.get("pairs", 1), slot)
    except ValueError as error:
        return error.args[0], error.args[1] if slot else TOP, b""
    return out, outcome, record


def whole(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = cut(data, size, (0, 0, *size))[0]
    return found


def filled(record: bytes, room: int) -> bytes:
    return record + bytes(room - len(record))


def full_record(data: bytes, size: tuple[int, int], room: int = 4000) -> bytes:
    return filled(cut(data, size, (0, 0, *size), bytes(room))[2], room)


def drawn(rng: np.random.Generator, height: int, width: int) -> Box:
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


def hash_of(data: bytes, seed: int) -> int:
    """As `hash_of` in _jpeg.c."""
    odd, wide = 0x9E3779B185EBCA87, 2**64 - 1
    lanes = [odd * (seed + i + 1) & wide for i in range(8)]
    size = len(data)
    words = struct.unpack(f"<{8 * (size // 64 + 1)}Q", data.ljust(64 * (size // 64 + 1), b"\0"))

    def mixed(value: int) -> int:
        return ((value << 29 | value >> 35) & wide) * odd & wide

    for at, word in enumerate(words):
        lanes[at % 8] = mixed(lanes[at % 8] ^ word)
    found = seed ^ size * odd & wide
    for lane in lanes:
        found = mixed(found ^ lane)
        found ^= found >> 32
    return found


def checked(record: bytes, data: bytes) -> bytes:
    """With the checksum that it should have."""
    count, bits = struct.unpack_from("<H", record, 18)[0], sum(record[21:25])
    used = HEAD + (bits * count + 7) // 8
    return struct.pack("<Q", hash_of(record[8:used], hash_of(data, 0))) + record[8:]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_crops_are_those_from_the_top_cold_partial_and_full(form: dict[str, Any]) -> None:
    rng = np.random.default_rng(len(str(form)))
    outcomes = set()
    for height, width in ((1, 5), (9, 90), (101, 67), (160, 243), (321, 64)):
        data, size = made(form, height, width), (height, width)
        pixels = whole(data, size)
        for room in (HEAD + 6, HEAD + 40, 4000):  # few rows, or every other or fourth of them; all
            slot = bytes(room)
            for _ in range(25):
                top, left, h, w = drawn(rng, height, width)
                way = {"simd": bool(rng.integers(2)), "pairs": int(rng.integers(3))}
                found, outcome, record = cut(data, size, (top, left, h, w), slot, **way)
                assert np.array_equal(found, pixels[top : top + h, left : left + w]), (size, room, top, left, h, w)
                assert outcome == (ROW if any(slot) else TOP)
                assert len(record) <= room
                outcomes.add((outcome, bool(record)))
                slot = filled(record, room) if record else slot
    assert outcomes >= {(TOP, True), (ROW, False), (ROW, True)}


def test_a_full_record_is_not_written_again_and_its_last_row_is_compared() -> None:
    data, size = made({}, 61, 83), (61, 83)
    slot = full_record(data, size)
    assert cut(data, size, (0, 0, 61, 83), slot)[1:] == (ROW, b"")
    assert cut(data, size, (40, 5, 21, 20), slot)[1:] == (ROW, b"")
    count = struct.unpack_from("<H", slot, 18)[0]
    assert count == 4  # rows of 16 pixels: three that begin below the first, and the end


@pytest.mark.parametrize("form", [{"subsampling": 0}, {"subsampling": 2, "restart_marker_blocks": 3}], ids=str)
def test_a_wrong_row_is_found_where_rows_are_read_to_their_end(form: dict[str, Any]) -> None:
    """Even under the right checksum; that of its own record is the right one."""
    size, rng = (90, 60), np.random.default_rng(1)
    data = made(form, *size)
    slot, pixels = full_record(data, size), whole(data, size)
    assert checked(slot, data) == slot
    count, bits = struct.unpack_from("<H", slot, 18)[0], sum(slot[21:25])
    used, dropped = HEAD + (bits * count + 7) // 8, 0
    for _ in range(400):
        wrong = bytearray(slot)
        wrong[int(rng.integers(HEAD, used))] ^= 1 << int(rng.integers(8))
        top = int(rng.integers(0, 80))
        found, outcome, record = cut(data, size, (top, 40, 90 - top, 20), checked(bytes(wrong), data))
        if not np.array_equal(found, pixels[top:, 40:]):  # all rows from there on are wrong alike: as with damage above
            raise AssertionError(top)
        dropped += outcome == DROPPED
        assert outcome != DROPPED or record
    assert dropped > 200


def test_whatever_does_not_fit_is_dropped_and_made_anew() -> None:
    size, rng, box = (90, 120), np.random.default_rng(2), (33, 10, 40, 50)
    data, other = made({"subsampling": 0}, *size), made({"subsampling": 0}, *size, seed=1)
    slot, pixels = full_record(data, size), whole(data, size)[33:73, 10:60]
    partial = filled(cut(data, size, (0, 0, 40, 120), bytes(4000))[2], 4000)
    count, bits = struct.unpack_from("<H", slot, 18)[0], sum(slot[21:25])
    used = HEAD + (bits * count + 7) // 8
    wrong = [full_record(other, size), partial[:20] + slot[20:], slot[:60] + partial[60:], bytes([255]) * 4000]
    for _ in range(200):
        flipped = bytearray(slot)
        flipped[int(rng.integers(used))] ^= 1 << int(rng.integers(8))
        wrong.append(bytes(flipped))
    for damaged in wrong:
        found, outcome, record = cut(data, size, box, damaged)
        assert np.array_equal(found, pixels)
        assert outcome == DROPPED
        assert cut(data, size, box, filled(record, 4000))[1] == ROW
    for torn in (bytes(8) + slot[8:], bytes(4000)):  # no checksum: nothing was there
        assert cut(data, size, box, torn)[1] == TOP
    assert cut(data, size, box, slot[: HEAD - 1])[1:] == (TOP, b"")


def test_another_scan_under_the_same_header_is_seen_wherever_it_differs() -> None:
    """Above, beside and below the crop: every byte counts."""
    size, rng = (96, 128), np.random.default_rng(3)
    data = made({"subsampling": 0}, *size)
    slot, start = full_record(data, size), segment(data, 0xDA)[0] + 14
    for _ in range(300):
        changed = bytearray(data)
        changed[int(rng.integers(start, len(data)))] ^= 1 << int(rng.integers(8))
        box = drawn(rng, *size)
        plain, (found, outcome, _) = cut(bytes(changed), size, box)[0], cut(bytes(changed), size, box, slot)
        assert outcome == DROPPED
        assert found == plain if isinstance(plain, str) else np.array_equal(found, plain)


def test_a_damaged_file_fails_as_it_did_and_nothing_beyond_the_damage_is_remembered() -> None:
    size = (160, 64)
    data = made({"subsampling": 0}, *size)
    middle = (segment(data, 0xDA)[0] + 14 + len(data)) // 2
    ones = bytes([0xFF, 0]) * 30  # no code is of nothing but ones
    damaged, slot = data[:middle] + ones + data[middle + len(ones) :], bytes(4000)
    reached = 0
    for height in range(8, 161, 8):
        plain = cut(damaged, size, (0, 0, height, 64))[0]
        found, outcome, record = cut(damaged, size, (0, 0, height, 64), slot)
        if isinstance(plain, str):
            assert (found, record) == (plain, b"")
            assert outcome == DROPPED  # from a row it failed, and then from the top
        else:
            reached = height
            assert np.array_equal(found, plain)
        slot = filled(record, 4000) if record else slot
    assert 8 < reached < 152
    assert struct.unpack_from("<H", slot, 18)[0] <= reached // 8


def test_no_attack_of_the_fuzzer_gives_another_crop(tmp_path: Path) -> None:
    """By hand for minutes: `python -m bench fuzz --only jpeg-index --minutes 5`."""
    write_files(tmp_path / "rows", [])
    account = attack_rows(tmp_path / "rows", seed=1, trials=300)
    assert account["wrong"] == []
    assert account["images"] == 24
    assert min(account[attack.__name__] for attack in (*ON_FILES, *ON_RECORDS)) > 20
    assert min(account[outcome] for outcome in ("from a row", "dropped")) > 200
    assert 0 < account["crops refused"] < account["crops"] / 4


# ---- the file, and loaders that have one


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> SampleIndex:
    return SampleIndex.from_folder(folder, progress=False, cache_dir=tmp_path / "cache")


@pytest.fixture
def opened(index: SampleIndex) -> SeekIndex:
    found = seek_index_for(index, True)
    assert found is not None
    return found


RECIPE = TrainRecipe.strong(input_size=32)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "multiprocessing_context": "fork"}], ids=str)
def test_batches_are_the_same_in_every_epoch(index: SampleIndex, options: dict[str, Any]) -> None:
    with load(index, RECIPE, jpeg_index=True, **options) as ours, load(index, RECIPE, jpeg_index=False) as plain:
        for _ in range(3):
            assert same(copied(ours), copied(plain))
        counts = ours.jpeg_index
        assert plain.jpeg_index is None
        assert counts is not None
        n = counts["from the top"] + counts["from a row"]
        assert n >= 72 - 24 * bool(options)  # the workers are an epoch ahead, or not
        assert 24 <= counts["from the top"] <= 30  # two workers may meet a sample at once
        assert counts["dropped"] == 0
        assert os.path.getsize(counts["file"]) == counts["bytes"]


def test_the_oracle_has_none_and_the_same_batches(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(index, RECIPE, jpeg_index=True) as ours:
        ours.set_epoch(1)
        remembered = [copied(ours), copied(ours)]
    for module in (seek_index, decoding):
        monkeypatch.setattr(module, "ORACLE", True)
    with load(index, RECIPE, jpeg_index=True) as oracle:
        assert oracle.jpeg_index is None
        oracle.set_epoch(1)
        assert same(copied(oracle), remembered[0])
        assert same(copied(oracle), remembered[1])


def test_a_changed_file_is_dropped_and_counted(
    new_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size and time, with another scan under the same header."""
    folder = new_folder(12)
    data = SampleIndex.from_folder(folder, progress=False, cache_dir=tmp_path / "cache")
    recipe = EvalRecipe(input_size=32)
    with load(data, recipe, jpeg_index=True) as ours:
        assert len(list(ours)) == 2
        path = Path(data.path(3))
        content, times = bytearray(path.read_bytes()), path.stat()
        content[-40] ^= 16
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with load(data, recipe, jpeg_index=False) as plain:
            assert same(copied(ours), copied(plain))
        assert ours.jpeg_index is not None
        assert ours.jpeg_index["dropped"] == 1


def test_samples_of_any_source_are_known_by_their_numbers(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as out:
        out.add(folder, "data")
    data = SampleIndex.from_tar(tmp_path / "all.tar", progress=False, cache_dir=tmp_path / "cache")
    files = set()
    for part in (data, data.subset([5, 3, 3, 1, 0, 7, 9, 2]), SampleIndex.from_source(data.source, data.labels)):
        recipe = EvalRecipe(input_size=32)
        with load(part, recipe, jpeg_index=True) as ours, load(part, recipe, jpeg_index=False) as plain:
            assert same(copied(ours), copied(plain))
            assert same(copied(ours), copied(plain))
            assert ours.jpeg_index is not None
            assert ours.jpeg_index["from a row"] >= len(part)
            files.add(ours.jpeg_index["file"])
    assert len(files) == 3


def test_it_lies_beside_the_index_cache_and_is_made_once(index: SampleIndex, opened: SeekIndex, tmp_path: Path) -> None:
    file = Path(opened.file)
    assert file.parent == tmp_path / "cache"
    assert [path for kind in KINDS if kind.name == "seek" for path in entries(kind, file.parent)] == [file]
    assert file.stat().st_blocks * 512 >= opened.nbytes == file.stat().st_size  # reserved
    slot = opened.slot(4)
    assert slot is not None
    slot.note(TOP, b"record")
    assert bytes(slot.record[:6]) == b"record"
    assert opened.taken() == (1, 0, 0)
    assert opened.taken() == (0, 0, 0)
    again, sent = seek_index_for(index, None), pickle.loads(pickle.dumps(opened))
    for other in (again, sent):
        assert other is not None
        found = other.slot(4)
        assert found is not None
        assert bytes(found.record[:6]) == b"record"
    file.unlink()
    gone = pickle.loads(pickle.dumps(opened))
    assert gone.slot(4) is None
    gone.write(0, b"nothing happens")
    assert [file.name for file in file.parent.glob("seek-*")] == []


@pytest.mark.parametrize("damage", ["cut", "another version"])
def test_a_damaged_file_is_made_anew(index: SampleIndex, opened: SeekIndex, damage: str) -> None:
    file = Path(opened.file)
    content = file.read_bytes()
    file.write_bytes(content[:-4] if damage == "cut" else content.replace(b"seek 1", b"seek 0", 1))
    with (
        pytest.raises(seek_index.NotHere, match="another version, or damaged")
        if damage != "cut"
        else pytest.raises(AssertionError)
    ):
        SeekIndex(opened.file, len(index))
        raise AssertionError
    assert seek_index_for(index, True) is not None
    assert file.read_bytes()[:300] == content[:300]
    assert file.stat().st_size == len(content)


def test_of_two_that_make_it_at_once_the_first_stays(index: SampleIndex, opened: SeekIndex) -> None:
    file = Path(opened.file)
    head, first = file.read_bytes()[: int(opened._places[0]) * 4], file.stat().st_ino
    seek_index._make(file, head, opened.nbytes)
    assert file.stat().st_ino == first
    assert [other.name for other in file.parent.glob("seek-*")] == [file.name]


def test_a_closed_loader_has_no_file_open_and_its_counts(index: SampleIndex) -> None:
    def opened() -> set[str]:
        return {file.path for file in psutil.Process().open_files()}

    before = opened()
    with load(index, EvalRecipe(input_size=32), jpeg_index=True) as ours:
        list(ours)
        assert [Path(path).name[:5] for path in opened() - before] == ["seek-"]
    assert not opened() - before
    assert ours.jpeg_index is not None
    assert ours.jpeg_index["from the top"] == 24


def test_files_that_nobody_uses_are_removed(index: SampleIndex, opened: SeekIndex) -> None:
    old, young = (Path(opened.file).with_name(f"seek-{name}.bin") for name in ("old", "young"))
    for file, days in ((old, 61), (young, 59)):
        file.touch()
        os.utime(file, (time.time() - days * 86400,) * 2)
    seek_index_for(index.subset([1, 2]), True)
    assert not old.exists()
    assert young.exists()


def test_without_room_there_is_none_which_is_said_once(
    index: SampleIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    seek_index._say.cache_clear()
    with caplog.at_level(logging.INFO, "dali_imagenet"):
        for _ in range(2):
            assert seek_index_for(index, None) is None
    said = [record for record in caplog.records if "from the top of its file" in record.message]
    assert [record.levelname for record in said] == ["WARNING"]
    with pytest.raises(RuntimeError, match=r"jpeg_index=True, but .*No space left"):
        load(index, RECIPE, jpeg_index=True)
    monkeypatch.undo()
    monkeypatch.setattr(seek_index, "ORACLE", False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(RuntimeError, match="half of what is free"):
        seek_index_for(index, True)
    assert index.cache_folder is not None
    assert list(index.cache_folder.glob("seek-*")) == []


def test_where_nothing_shall_be_remembered_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = SampleIndex.from_folder(folder, progress=False, cache=False)
    assert index.cache_folder is index.subset([1]).cache_folder is None
    assert seek_index_for(index, None) is None
    with pytest.raises(RuntimeError, match=r"jpeg_index=True, but .*cache=False"):
        load(index, RECIPE, jpeg_index=True)
    with pytest.raises(ValueError, match="jpeg_index"):
        load(index, RECIPE, jpeg_index="yes")
    monkeypatch.setenv("DALI_IMAGENET_PURE", "1")
    with pytest.raises(RuntimeError, match="not built"):
        seek_index_for(index, True)


def test_a_disk_that_fails_later_is_not_written_to_any_more(
    opened: SeekIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def fail(*_: Any) -> int:
        tries.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    for _ in range(2):
        opened.write(1000, b"record")
    assert len(tries) == 1
    assert "is not written to any more" in caplog.text


def test_hosts_that_share_a_folder_have_a_file_each(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seek_index, "_is_local", lambda _: False)
    names = []
    for host in ("one", "two"):
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        found = seek_index_for(index, True)
        assert found is not None
        names.append(Path(found.file).stem.rpartition("-")[2])
    assert names == ["one", "two"]


def test_users_that_share_a_folder_have_a_file_each(
    index: SampleIndex, opened: SeekIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(opened.file).read_bytes()
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    name = seek_index._file_for(index)
    assert name == opened.file.removesuffix(".bin") + "-4321.bin"
    assert Path(opened.file).read_bytes() == content
    assert Path(name).stat().st_size == len(content)


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = "dev / ext4 rw 0 0\nhost:/x /net nfs4 rw 0 0\ndev /net/own\\040disk xfs rw 0 0\n"
    (tmp_path / "mounts").write_text(mounts)
    real = open
    monkeypatch.setattr(seek_index, "open", lambda _, **k: real(tmp_path / "mounts", **k), raising=False)
    kinds = {"/home": True, "/net": False, "/net/a": False, "/net/own disk/b": True, "/network": True}
    assert {place: seek_index._is_local(Path(place)) for place in kinds} == kinds


def test_it_takes_less_than_300_bytes_an_image(sample: Path, tmp_path: Path) -> None:
    index = SampleIndex.from_folder(sample, progress=False, cache_dir=tmp_path)
    found = seek_index_for(index, True)
    assert found is not None
    assert found.nbytes / len(index) <= 300
