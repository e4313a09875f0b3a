"""The check of a JPEG's markers: what encoders write passes; where it passes, decoders agree."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.checks.fuzz import mutate
from bench.checks.inputs import arithmetic, encoded, exif, patched, restarts, scans, scribbled, segment
from dali_imagenet import jpeg_markers
from dali_imagenet.jpeg_markers import find_marker_anomaly, has_too_many_scans, is_one_scan

USUAL = {
    "4:2:0": encoded(),
    "4:4:4": encoded(subsampling=0),
    "gray": encoded("L"),
    "progressive": encoded(progressive=True),
    "restarts": encoded(size=(300, 200), restart_marker_rows=1),
    "progressive with restarts, whose interval changes between scans": encoded(progressive=True, restart_marker_rows=1),
    "a JPEG within EXIF": exif(1)[:2] + b"\xff\xe1\x10\x00" + (encoded() * 3)[:4094] + encoded()[2:],
    "1 x 1": encoded(size=(1, 1)),
    "100 scans": scans(100),
    "a JPEG of 300 scans behind the end": encoded() + scans(300),
    "text behind the end": encoded() + b"\xff\xd8 appended by some tool",
}


@pytest.mark.parametrize("name", USUAL)
def test_what_encoders_write_passes(name: str) -> None:
    assert find_marker_anomaly(USUAL[name]) == ""
    assert find_marker_anomaly(memoryview(np.frombuffer(USUAL[name], np.uint8))) == ""


def inside(new: bytes, data: bytes = USUAL["4:2:0"]) -> bytes:
    """`new` over some bytes in the middle of the scan."""
    return patched(data, (segment(data, 0xDA)[0] + len(data)) // 2, new)


def cut_out(data: bytes, marker: int, times: int) -> bytes:
    """With the first segment of that kind repeated, or left out (0 times)."""
    at, length = segment(data, marker)
    return data[:at] + data[at : at + length] * times + data[at + length :]


JPEG = USUAL["4:2:0"]
UNUSUAL = {
    "a marker that means nothing, within the scan": (inside(b"\xff\x02"), "marker 02"),
    "a table within the scan": (inside(b"\xff\xdb"), "marker DB"),
    "a frame header within the scan": (inside(b"\xff\xc0"), "marker C0"),
    "a second scan in a sequential file": (inside(b"\xff\xda"), "marker DA"),
    "a restart marker that was not announced": (inside(b"\xff\xd0"), "restart marker D0"),
    "a restart marker missing": (restarts("missing"), "restart marker D2"),
    "a restart marker with a wrong number": (restarts("wrong"), "restart marker D6"),
    "a second frame header": (cut_out(JPEG, 0xC0, 2), "a second frame header"),
    "four colours": (encoded("CMYK"), "neither gray nor of three colours"),
    "no frame header": (cut_out(JPEG, 0xC0, 0), "a scan without a frame header"),
    "arithmetic coding": (arithmetic(), "marker C9"),
    "bytes between segments": (JPEG[:2] + b"\0\0" + JPEG[2:], "no marker at byte 2"),
    "a fill byte": (JPEG[:2] + b"\xff" + JPEG[2:], "marker FF"),
    "an impossible length": (patched(JPEG, 4, b"\0\1"), "a segment of 1 bytes"),
    "a JFIF segment without a version": (JPEG[:2] + b"\xff\xe0\0\6JFIF" + JPEG[2:], "a segment of 6 bytes at byte 2"),
    "an Adobe segment without a version": (JPEG[:2] + b"\xff\xee\0\7Adobe" + JPEG[2:], "a segment of 7 bytes"),
    "a segment that leaves the file": (patched(JPEG, segment(JPEG, 0xC4)[0] + 2, b"\xff\xff"), "of 65535 bytes"),
    "101 scans": (scans(101), "more than 100 scans"),
    "cut in the scan": (JPEG[:-300], "no marker after the last scan"),
    "no scan": (JPEG[: segment(JPEG, 0xDA)[0]], "no marker at byte"),
    "no JPEG": (b"hello", "no marker at byte 2"),
    "empty": (b"", "no marker at byte 2"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_they_do_not_write_is_named(name: str) -> None:
    data, reason = UNUSUAL[name]
    assert reason in find_marker_anomaly(data)


def test_damage_that_every_decoder_shows_passes() -> None:
    assert find_marker_anomaly(scribbled(JPEG)) == ""


def test_scans_are_counted_as_libjpeg_meets_them() -> None:
    for name, data in USUAL.items():
        assert not has_too_many_scans(data), name
    for name, (data, _) in UNUSUAL.items():
        assert has_too_many_scans(data) == (name == "101 scans"), name
    most, more = scans(100), scans(101)
    first = more.index(b"\xff\xda")
    in_metadata = b"\xff\xe1\x10\x00" + (b"\xff\xda" * 2047)
    for stray in (b"", b"\0\0", b"\xff", b"\xff\xd3", b"\xff\x01", in_metadata, segment_of(more, 0xC4)):
        assert has_too_many_scans(more[:first] + stray + more[first:])
        assert not has_too_many_scans(most[:first] + stray + most[first:])
        assert not has_too_many_scans(JPEG[:2] + stray + JPEG[2:-2] + b"\xff\xda" * 200 + JPEG[-2:])  # one scan
        assert has_too_many_scans(more.replace(b"\xff\xda", stray + b"\xff\xda"))
    cut = more[: more.rindex(b"\xff\xda")]
    assert not has_too_many_scans(cut)
    for end in range(len(JPEG)):
        assert not has_too_many_scans(JPEG[:end])
    between = more[:first] + more[first:].replace(b"\xff\xda", b"\xff\xfe\0\2" * 500 + b"\xff\xda", 10)
    assert has_too_many_scans(scans(20).replace(b"\xff\xda", b"\xff\xfe\0\2" * 500 + b"\xff\xda", 10))
    assert has_too_many_scans(between)


def segment_of(data: bytes, marker: int) -> bytes:
    at, length = segment(data, marker)
    return data[at : at + length]


def test_a_scan_of_one_component_is_not_the_only_one() -> None:
    """Sequential, but each component in scans of its own: libjpeg then reads to the end, too."""
    at = segment(JPEG, 0xDA)[0]
    one = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    assert has_too_many_scans(JPEG[:at] + (one + b"\0") * 101 + b"\xff\xd9")
    assert not has_too_many_scans(JPEG[:at] + (one + b"\0") * 100 + b"\xff\xd9")
    assert is_one_scan(0xC0, 1, 1)
    assert not is_one_scan(0xC2, 3, 3)
    assert not is_one_scan(0xC0, 3, 1)


def refused(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB")
    except OSError:
        return True
    return False


def test_pillow_decodes_whatever_passes() -> None:
    """Damage anywhere in the scan, by the thousand: what Pillow refuses is never usual, and some of it is refused."""
    rng = np.random.default_rng(0)
    outcomes = dict.fromkeys([(False, False), (True, False), (True, True)], 0)
    for source in (JPEG, USUAL["gray"], USUAL["restarts"]):
        start = segment(source, 0xDA)[0] + 14
        for _ in range(700):
            data = source[:start] + mutate(source[start:-2], rng, source) + source[-2:]
            outcomes[bool(find_marker_anomaly(data)), refused(data)] += (
                1  # (usual, and refused all the same) is a KeyError
            )
    assert min(outcomes.values()) > 50


def test_millions_of_markers_take_no_memory() -> None:
    data = JPEG[: segment(JPEG, 0xDA)[0] + 14] + b"\xff" * 2**24
    tracemalloc.start()
    try:
        assert find_marker_anomaly(data)
        assert tracemalloc.get_traced_memory()[1] < 2**26  # bytes; a list of all would take 2**29
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_markers_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    data = memoryview(USUAL["restarts"])
    expected = list(jpeg_markers._markers(data, 100))
    assert len(expected) > 10
    monkeypatch.setattr(jpeg_markers, "_BLOCK", block)
    assert list(jpeg_markers._markers(data, 100)) == expected


def test_real_images_pass(sample: Path) -> None:
    files = sorted(sample.rglob("*.JPEG"))[:200]
    assert files
    assert [reason for file in files if (reason := find_marker_anomaly(file.read_bytes()))] == []


@pytest.mark.skipif(jpeg_markers._image_kernels is None, reason="dali_imagenet.transforms._image_kernels was not built")
def test_compiled_search_equals_python(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    files = [rng.choice([0, 1, 255], int(n)).astype(np.uint8).tobytes() for n in rng.integers(0, 40, 300)]
    starts = [int(rng.integers(0, len(data) + 2)) for data in files]
    compiled = [list(jpeg_markers._markers(memoryview(d), s)) for d, s in zip(files, starts, strict=True)]
    monkeypatch.setattr(jpeg_markers, "_image_kernels", None)
    assert compiled == [list(jpeg_markers._markers(memoryview(d), s)) for d, s in zip(files, starts, strict=True)]
    assert any(compiled)


@pytest.mark.skipif(jpeg_markers._image_kernels is None, reason="dali_imagenet.transforms._image_kernels was not built")
def test_compiled_verdict_equals_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg_markers._image_kernels is not None
    rng = np.random.default_rng(7)
    whole = [*USUAL.values(), *(data for data, _ in UNUSUAL.values())]
    usual = USUAL.values()
    cut = [data[:end] for data in (JPEG, USUAL["progressive"]) for end in range(0, len(data), 7)]
    files = [*whole, *cut, *(mutate(data, rng, JPEG) for data in usual for _ in range(100))]
    compiled = [jpeg_markers._image_kernels.usual_markers(data) for data in files]
    monkeypatch.setattr(jpeg_markers, "_image_kernels", None)
    assert compiled == [find_marker_anomaly(data) == "" for data in files]
    assert 100 < sum(compiled) < len(files) - 100
