"""Files that one decoder alone would lose, or that would cost time or memory: bounded, the same on every backend."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from bench.checks.inputs import (
    behind_jfif,
    encoded,
    frame,
    hostile,
    inputs,
    metadata,
    mpo,
    scans,
    segment,
    with_segment,
)
from dali_imagenet import EvalRecipe, SampleIndex, create_loader
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.data import folder as folder_module
from dali_imagenet.decode import decode as decode_module
from dali_imagenet.jpeg_markers import (
    LONG_HEADER,
    MANY_SCANS,
    MAX_HEADER,
    MAX_SCANS,
    MAX_SEGMENTS,
    find_marker_anomaly,
    strip_metadata,
)
from dali_imagenet.pillow import open_image

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ["torchvision", "reference", *(["dali"] if dali_available()[0] else [])]
JPEG = encoded()
SIZE, WHOLE = (70, 90), (0, 0, 70, 90)
EVAL = EvalRecipe(input_size=32)
HOSTILE = hostile()
METADATA = metadata()


def pixels(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB"))


def written(tmp_path: Path, make: Callable[[Path], Any], name: str = "x.JPEG") -> Path:
    path = tmp_path / "data" / "class" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    return path


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("backend", BACKENDS)
def test_metadata_that_pillow_cannot_parse_cost_no_sample(tmp_path: Path, name: str, backend: Any) -> None:
    case = METADATA[name]
    path = written(tmp_path, case.make)
    with pytest.raises((OSError, IndexError, TypeError, SyntaxError)):
        Image.open(path).convert("RGB")
    assert case.same is not None
    (tmp_path / "same" / "class").mkdir(parents=True)
    (tmp_path / "same" / "class" / "x.JPEG").write_bytes(case.same)
    found = []
    for folder in ("data", "same"):
        index = SampleIndex.from_folder(tmp_path / folder, cache=False)
        with create_loader(index, EVAL, batch_size=1, backend=backend, device="cpu", num_workers=0) as loader:
            found += [images.clone() for images, _ in loader]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", METADATA)
def test_every_decoder_delivers_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without the compiled modules, and without simplejpeg."""
    case = METADATA[name]
    data = written(tmp_path, case.make).read_bytes()
    assert case.same is not None
    expected = pixels(Image.open(io.BytesIO(case.same)))
    assert np.array_equal(decode_module._pillow(data, SIZE, WHOLE), expected)
    for decoder in decode_module.DECODERS:
        if not decoder.available():
            continue
        if (found := decoder.decode(data, SIZE, WHOLE, None)) is not None:
            assert np.array_equal(found, expected)
    # in the index, too, where something else makes it ask Pillow
    at = sum(segment(data, 0xDB))
    written(tmp_path, lambda path: path.write_bytes(data[:at] + b"\0" + data[at:]))
    index = SampleIndex.from_folder(tmp_path / "data", cache=False)
    assert (index.reason(0), index.height[0], index.width[0]) == (None, *SIZE)


def test_stripping_changes_no_pixel(tmp_path: Path) -> None:
    count = 0
    for name, case in inputs().items():
        if case.readable and case.same is None and case.later is None and "folder" not in name:
            path = written(tmp_path, case.make, f"{count}.JPEG")
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as plain, open_image(data) as ours:
                assert plain.mode == ours.mode, name
                assert np.array_equal(pixels(plain), pixels(ours)), name
            count += data.startswith(b"\xff\xd8")
    assert count > 20
    assert b"MPF\0" not in strip_metadata(mpo())


def test_what_is_cut_out_and_what_stays() -> None:
    plain = JPEG
    assert strip_metadata(plain) == plain
    for marker in (*range(0xE1, 0xEE), 0xEF, 0xFE):
        assert strip_metadata(with_segment(marker, b"anything")) == plain
    for marker in (0xE0, 0xEE):
        assert strip_metadata(with_segment(marker, b"JFXX and others")) == with_segment(marker, b"JFXX and others")
    # stray bytes go, too: behind a fill byte they would become a marker once the segment between them is gone
    assert strip_metadata(JPEG[:2] + b"\xff\xff\xe1\0\2\xc0\0\x11" + JPEG[2:]) == plain
    assert strip_metadata(JPEG[:2] + b"\xff\xe1\0\0" + JPEG[2:]) == plain
    for marker in (0xC8, 0xD9, 0xF3):  # what no decoder goes on behind
        odd = JPEG[:2] + bytes([0xFF, marker]) + with_segment(0xE1, b"x")[2:]
        assert strip_metadata(odd) == odd
    for cut in range(len(JPEG)):
        assert strip_metadata(JPEG[:cut]) in (JPEG[:cut], JPEG[: cut - 1])  # the first half of a marker is none


def long_headers() -> dict[str, bytes]:
    comment = b"\xff\xfe\0\2"
    table = with_segment(0xDB, (b"\0" + bytes([9] * 64)) * 1000)
    start, length = segment(table, 0xDB)
    tables = table[start : start + length] * (MAX_HEADER // length + 1)
    return {
        "segments": behind_jfif(comment * MAX_SEGMENTS),
        "segments behind a stray byte": behind_jfif(b"\0" + comment * MAX_SEGMENTS),
        "tables": behind_jfif(tables),
        "stray bytes": behind_jfif(bytes(MAX_HEADER)),
        "fill bytes": behind_jfif(b"\xff" * MAX_HEADER),
    }


@pytest.mark.parametrize("name", long_headers())
def test_a_long_header_is_refused_by_every_decoder_and_by_the_index(tmp_path: Path, name: str) -> None:
    data = long_headers()[name]
    for decoder in decode_module.DECODERS[:-1]:
        if not decoder.available():
            continue
        assert decoder.decode(data, SIZE, WHOLE, None) is None
    with pytest.raises(ValueError, match="a header of more than 4096 segments or 1048576 bytes"):
        decode_module._pillow(data, SIZE, WHOLE)
    assert find_marker_anomaly(data)
    written(tmp_path, lambda path: path.write_bytes(data))
    assert LONG_HEADER in str(SampleIndex.from_folder(tmp_path / "data", cache=False).reason(0))


def test_as_many_segments_as_are_looked_at_are_fine() -> None:
    own = find_segments(JPEG)
    data = JPEG[:2] + b"\xff\xfe\0\2" * (MAX_SEGMENTS - own) + JPEG[2:]
    assert find_marker_anomaly(data) == ""
    expected = decode_module._pillow(JPEG, SIZE, WHOLE)
    for decoder in decode_module.DECODERS:
        if not decoder.available():
            continue
        if (found := decoder.decode(data, SIZE, WHOLE, None)) is not None:
            assert np.array_equal(found, expected)
    assert find_marker_anomaly(JPEG[:2] + b"\xff\xfe\0\2" + data[2:]) == LONG_HEADER


def find_segments(data: bytes) -> int:
    from dali_imagenet.jpeg_markers import SOS, segments_in

    for number, found in enumerate(segments_in(data), 1):
        if found.marker == SOS:
            return number
    raise AssertionError


def test_many_scans_are_refused_by_every_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    most, more = scans(MAX_SCANS), scans(MAX_SCANS + 1)
    expected = decode_module._pillow(most, SIZE, WHOLE)
    for decoder in [decoder for decoder in decode_module.DECODERS[:-1] if decoder.available()]:
        assert decoder.decode(more, SIZE, WHOLE, None) is None
        if (found := decoder.decode(most, SIZE, WHOLE, None)) is not None:
            assert np.array_equal(found, expected)
    with monkeypatch.context() as patch:  # before any pixel is decoded
        patch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("was opened"))
        with pytest.raises(ValueError, match="more than 100 scans"):
            decode_module.decode(more, SIZE, WHOLE)
    with pytest.raises(ValueError, match="more than 100 scans"):
        open_image(behind_jfif(b"\0", more))


@pytest.mark.parametrize("later", [False, True], ids=["in the index", "changed later"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_scans_lose_that_sample_alone(tmp_path: Path, backend: Any, later: bool) -> None:
    more = scans(MAX_SCANS + 1)
    contents = [JPEG, scans(MAX_SCANS).ljust(len(more), b"\0") if later else more, encoded(seed=1)]
    folder = tmp_path / "data" / "class"
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.JPEG" for i in range(3)]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    index = SampleIndex.from_folder(tmp_path / "data", cache=False)
    assert not index.broken.any()  # too small to be read for it
    paths[1].write_bytes(more)
    options: dict[str, Any] = {"backend": backend, "device": "cpu", "num_workers": 0, "max_broken": 1.0}
    with create_loader(index, EVAL, batch_size=3, on_error="skip", **options) as loader:
        for _ in range(2):
            [(_, targets)] = loader
            assert targets.tolist() == [0, -100, 0]
        [(name, reason)] = loader.failures.items()
    assert name == str(paths[1])
    assert "more than 100 scans" in reason


def test_the_index_counts_scans_where_they_could_cost_seconds(tmp_path: Path) -> None:
    large = encoded(size=(2500, 2000), quality=5, progressive=True)
    (tmp_path / "data" / "class").mkdir(parents=True)
    for name, data in {"a": scans(MAX_SCANS, large), "b": scans(MAX_SCANS + 1, large), "c": JPEG}.items():
        (tmp_path / "data" / "class" / f"{name}.JPEG").write_bytes(data)
    index = SampleIndex.from_folder(tmp_path / "data", cache=False)
    assert [index.reason(i) for i in range(3)] == [None, MANY_SCANS, None]
    assert index.height.tolist() == [2000, 0, 70]


INDEXING = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
from dali_imagenet import SampleIndex
from PIL import Image
SampleIndex.from_folder(sys.argv[3], cache=False, progress=False)  # Pillow and what it loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index = SampleIndex.from_folder(sys.argv[2], cache=False, progress=False, num_threads=1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([after - before, [index.reason(i) for i in range(len(index))]]))
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_broken_and_cost_little(tmp_path: Path, folder: Path, name: str) -> None:
    written(tmp_path, HOSTILE[name].make)
    command = [sys.executable, "-W", "ignore", "-c", INDEXING, str(ROOT), str(tmp_path / "data"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    kilobytes, (reason,) = json.loads(done.stdout.splitlines()[-1])
    assert reason
    assert kilobytes < 160_000, reason  # the file at most twice, and what it is read with


def test_the_limit_of_bytes_grows_with_the_pixels_and_is_an_argument(tmp_path: Path) -> None:
    path = written(tmp_path, lambda path: path.write_bytes(JPEG + b"\xff\xd9" * 40_000))
    size, pixels_of = path.stat().st_size, 90 * 70

    def scan(**limits: Any) -> SampleIndex:
        return SampleIndex.from_folder(tmp_path / "data", **limits)

    enough = size - 12 * pixels_of
    assert scan(max_bytes=enough).reason(0) is None
    assert scan(max_bytes=enough).scan.cached == 1
    below = scan(max_bytes=enough - 1)
    assert below.scan.read == 1
    assert (
        below.reason(0)
        == f"{size} bytes for 90 x 70 pixels, above the limit of {enough - 1} (max_bytes) and 12 a pixel"
    )
    assert scan(max_bytes=None).reason(0) is None
    written(tmp_path, lambda path: path.write_bytes(encoded(format="BMP")))
    assert scan(max_bytes=1).reason(0) is None
    written(tmp_path, lambda path: path.write_bytes(encoded(format="BMP") + bytes(12 * pixels_of)))
    assert "(max_bytes)" in str(scan(max_bytes=1).reason(0))
    with pytest.raises(ValueError, match=r"max_bytes=0: must be a whole number of at least 1"):
        scan(max_bytes=0)


def test_fewer_bits_than_blocks_are_broken_unless_cut_files_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = frame(width=900, height=6000)
    written(tmp_path, lambda path: path.write_bytes(claims))
    written(tmp_path, lambda path: path.write_bytes(behind_jfif(b"\0", claims)), "y.JPEG")
    index = SampleIndex.from_folder(tmp_path / "data", cache=False)
    for i in range(2):
        assert str(index.reason(i)).endswith("bytes of coded data for 127500 blocks of pixels")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert not SampleIndex.from_folder(tmp_path / "data", cache=False).broken.any()


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 1}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_no_encoder_writes_fewer_bits_than_blocks(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    out = io.BytesIO()
    Image.new(mode, (1999, 999)).save(out, "JPEG", **options)
    written(tmp_path, lambda path: path.write_bytes(out.getvalue()))
    assert SampleIndex.from_folder(tmp_path / "data", cache=False).reason(0) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_has_grown_is_not_read(tmp_path: Path, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        path = written(tmp_path, lambda path: path.write_bytes(JPEG), f"{name}.JPEG")
    index = SampleIndex.from_folder(tmp_path / "data", cache=False)
    os.truncate(path, 100 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options: dict[str, Any] = {
        "batch_size": 2,
        "device": "cpu",
        "num_workers": 0,
        "on_error": "skip",
        "max_broken": 0.9,
    }
    with create_loader(index, EVAL, backend=backend, **options) as loader:
        assert [targets.tolist() for _, targets in loader] == [[0, -100]]
        (reason,) = loader.failures.values()
    assert f"{100 << 30} bytes, but the index says {len(JPEG)}" in reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000


def test_a_source_of_files_reads_one_byte_too_many_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, lambda path: path.write_bytes(JPEG))
    index = SampleIndex.from_folder(tmp_path / "data", cache=False)
    assert index.source.read(0) == JPEG
    path.write_bytes(JPEG + bytes(1000))
    read = []
    real = open

    def counting(*arguments: Any, **options: Any) -> Any:
        file = real(*arguments, **options)

        class Counting:
            def __enter__(self) -> Counting:
                return self

            def __exit__(self, *exc: object) -> None:
                file.close()

            def read(self, size: int) -> bytes:
                read.append(len(data := file.read(size)))
                return bytes(data)

            def fileno(self) -> int:
                return int(file.fileno())

        return Counting()

    monkeypatch.setattr(folder_module, "open", counting, raising=False)
    with pytest.raises(ValueError, match=f"{len(JPEG) + 1000} bytes, but the index says {len(JPEG)}"):
        index.source.read(0)
    assert sum(read) == len(JPEG) + 1
    made = SampleIndex.from_arrays([0], [70], [90], root=tmp_path / "data", paths=["class/x.JPEG"])
    monkeypatch.undo()
    assert len(made.source.read(0)) == len(JPEG) + 1000
    os.truncate(path, 100 << 30)
    with pytest.raises(ValueError, match="bytes, but the index says 67184464"):
        made.source.read(0)


@pytest.mark.skipif(decode_module._jpeg is None, reason="dali_imagenet.decode._jpeg was not built")
def test_the_region_decoder_looks_at_the_first_bytes() -> None:
    out = np.empty(3 * 70 * 90, np.uint8)
    jpeg: Any = decode_module._jpeg
    jpeg.decode_region(JPEG, SIZE, WHOLE, out)
    for start in (b"\0\0", b"\xff\xd9", b"\x00\xd8", b"PK"):
        with pytest.raises(ValueError, match="no JPEG"):
            jpeg.decode_region(start + JPEG[2:], SIZE, WHOLE, out)
    with pytest.raises(ValueError, match="a broken header"):
        jpeg.decode_region(JPEG[:3], SIZE, WHOLE, out)
