"""Decoding a box, with and without the compiled module: the same bits as the whole image gives."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.checks.inputs import segment
from dali_imagenet.decode import decode as decoding
from dali_imagenet.decode.decode import decode, decoder_name
from dali_imagenet.jpeg_markers import find_marker_anomaly
from tests import helpers
from tests.helpers import photo

built = pytest.mark.skipif(decoding._jpeg is None, reason="dali_imagenet.decode._jpeg was not built")
encode = functools.partial(helpers.encode, quality=90)
jpeg: Any = decoding._jpeg
WAYS = [(simd, pairs) for simd in (True, False) for pairs in (0, 1, 2)]
"""Arguments of `decode_region`: vector instructions; tables of two coefficients never, where they pay, always."""

FORMS: list[dict[str, Any]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "progressive": True},
    {"subsampling": 0, "progressive": True, "optimize": True},
    {"subsampling": 2, "restart_marker_blocks": 3},
    {"subsampling": 1, "restart_marker_rows": 1},
    {"mode": "L"},
    {"mode": "L", "progressive": True},
]


def pil(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def boxes(rng: np.random.Generator, height: int, width: int, count: int) -> list[tuple[int, int, int, int]]:
    found = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1)]
    for _ in range(count):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        found.append((int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w))
    return found


def use(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if decoder != "region decoder":
        monkeypatch.setattr(decoding, "_jpeg", None)
    if decoder == "Pillow":
        monkeypatch.setattr(decoding, "_simplejpeg_module", lambda: None)
    if decoder_name() != decoder:
        pytest.skip(f"{decoder} is not here")


@pytest.mark.parametrize("decoder", ["region decoder", "simplejpeg", "Pillow"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_box_is_that_of_the_whole_image(form: dict[str, Any], decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(decoder, monkeypatch)
    rng = np.random.default_rng(len(str(form)))
    options = dict(form)
    mode = options.pop("mode", "RGB")
    for height, width in ((1, 1), (7, 90), (101, 67), (160, 243), (320, 64)):
        data = encode(photo(rng, height, width, mode), **options)
        whole, buffer = pil(data), np.empty(height * width * 3, np.uint8)
        for top, left, h, w in boxes(rng, height, width, 25):
            expected = whole[top : top + h, left : left + w]
            for memory in (None, buffer):
                got = decode(data, (height, width), (top, left, h, w), memory)
                assert got.dtype == np.uint8
                assert np.array_equal(got, expected), (height, width, top, left, h, w)


@pytest.mark.parametrize("decoder", ["region decoder", "simplejpeg", "Pillow"])
def test_other_files_are_pillows(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(decoder, monkeypatch)
    image = photo(np.random.default_rng(0), 40, 30)
    for data in (helpers.encode(image, "PNG"), encode(image.convert("CMYK"))):
        assert np.array_equal(decode(data, (40, 30), (5, 6, 20, 21)), pil(data)[5:25, 6:27])
    data = encode(image)
    with pytest.raises(ValueError, match=r"40x30 pixels, but the index says 30x40"):
        decode(data, (30, 40), (0, 0, 30, 40))
    with pytest.raises(OSError, match="truncated"):
        decode(data[:-100], (40, 30), (0, 0, 4, 4))


@pytest.mark.parametrize("decoder", ["region decoder", "simplejpeg", "Pillow"])
def test_an_error_behind_sound_markers_is_no_picture(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the sample would show what lay in the memory: another image."""
    use(decoder, monkeypatch)
    data = encode(photo(np.random.default_rng(2), 64, 48))
    warned = patched(data, 0xDA, 7, 0xC4)  # libjpeg warns of the first coefficient; an error comes after it
    for broken in (patched(warned, 0xDA, 6, 0xFF), patched(data, 0xDA, 4, 0x33), patched(data, 0xC0, 8, 3)):
        assert not find_marker_anomaly(broken)
        with pytest.raises(OSError, match="broken data stream"):
            pil(broken)
        for box in ((0, 0, 64, 48), (0, 0, 16, 16), (20, 8, 20, 30)):
            with pytest.raises(OSError, match="broken data stream"):
                decode(broken, (64, 48), box, np.full(64 * 48 * 3, 7, np.uint8))


def test_threads_leave_the_users_filters_of_warnings() -> None:
    png = helpers.encode(photo(np.random.default_rng(0), 40, 30), "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: decode(png, (40, 30), (5, 6, 20, 21)), range(2000)))
    assert warnings.filters == before


@built
def test_the_region_decoder_refuses_what_is_wrong() -> None:
    """Nothing is written outside the region, and whatever libjpeg warns about is an error."""
    rng = np.random.default_rng(1)
    data = encode(photo(rng, 64, 48))
    region = jpeg.decode_region
    out = np.full(64 * 48 * 3 + 8, 7, np.uint8)
    region(data, (64, 48), (0, 0, 64, 48), out[:-8])
    assert (out[-8:] == 7).all()
    out[:] = 7
    region(data, (64, 48), (3, 5, 7, 11), out)
    assert np.array_equal(out[: 7 * 11 * 3].reshape(7, 11, 3), pil(data)[3:10, 5:16])
    assert (out[7 * 11 * 3 :] == 7).all()
    for bad in ((-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 65, 4), (0, 0, 4, 49), (0, 0, 0, 4), (2**40, 0, 4, 4)):
        with pytest.raises(ValueError, match="leaves the image"):
            region(data, (64, 48), bad, out)
    with pytest.raises(ValueError, match="of another size"):
        region(data, (64, 49), (0, 0, 4, 4), out)
    with pytest.raises(ValueError, match="too small"):
        region(data, (64, 48), (0, 0, 64, 48), out[: 64 * 48 * 3 - 1])
    for other, match in (
        (encode(photo(rng, 64, 48).convert("CMYK")), "frame of another kind"),
        (encode(photo(rng, 64, 48), progressive=True), "of another kind"),
        (encode(photo(rng, 64, 48), keep_rgb=True), "other colours"),
        (patched(data, 0xC0, 7, 0x12), "another chroma subsampling"),  # 4:4:0
        (patched(data, 0xC4, 1, 9), "Huffman table"),  # nine codes of one bit
        (patched(data, 0xDB, 0, 0x10), "quantization table"),
        (patched(data, 0xDA, 2, 0x33), "a scan of another kind"),
        (data[:2] + b"\xff\xdd\x00\x04\x00\x01" + data[2:], "restart marker"),
    ):
        with pytest.raises(ValueError, match=match):
            region(other, (64, 48), (0, 0, 64, 48), out)
    for n in range(0, len(data), 97):
        with pytest.raises(ValueError, match=r"\w"):
            region(data[:n], (64, 48), (0, 0, 64, 48), out)
    with pytest.raises(TypeError, match="read-write"):
        region(data, (64, 48), (0, 0, 4, 4), bytes(9999))


def patched(data: bytes, marker: int, at: int, value: int) -> bytes:
    """With another byte in the first segment of that kind, counted from behind its length."""
    where = segment(data, marker)[0] + 4 + at
    return data[:where] + bytes([value]) + data[where + 1 :]


@built
@pytest.mark.parametrize("quality", [1, 30, 95, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("restarts", [{}, {"restart_marker_blocks": 1}, {"restart_marker_rows": 2}], ids=str)
def test_every_code_and_every_edge(quality: int, subsampling: int, restarts: dict[str, Any]) -> None:
    """Noise has codes of every length, quality 1 the largest steps, narrow images no chroma to interpolate."""
    rng = np.random.default_rng(quality)
    region = jpeg.decode_region
    for height, width in ((1, 1), (2, 3), (9, 4), (5, 6), (8, 7), (17, 33), (16, 32), (70, 1000), (130, 91)):
        image = Image.fromarray(rng.integers(0, 2, (height, width, 3), np.uint8) * 255)
        data = encode(image, quality=quality, subsampling=subsampling, **restarts)
        whole = pil(data)
        for box in boxes(rng, height, width, 12):
            top, left, h, w = box
            expected = whole[top : top + h, left : left + w]
            for way in WAYS:
                out = np.zeros((h, w, 3), np.uint8)
                if subsampling and width < 5:
                    with pytest.raises(ValueError, match="too narrow"):
                        region(data, (height, width), box, out, *way)
                    continue
                region(data, (height, width), box, out, *way)
                assert np.array_equal(out, expected), (height, width, box, way)


def gray_of(blocks: str, quant: int = 1, codes: bytes = b"\x00\x02\x01" + bytes(13) + b"\xf0\x00\x01") -> bytes:
    """A gray JPEG, as wide as there are blocks: a DC code of one bit (11 bits follow), and those AC codes."""

    def part(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

    count = blocks.count(" ") + 1
    bits = blocks.replace(" ", "")
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    frame = b"\x08\x00\x08" + (8 * count).to_bytes(2, "big") + b"\x01\x01\x11\x00"
    tables = b"\x00\x01" + bytes(15) + b"\x0b" + b"\x10" + codes
    return b"".join((b"\xff\xd8", part(0xDB, bytes([0]) + bytes([quant]) * 64), part(0xC0, frame), part(0xC4, tables),
                     part(0xDA, b"\x01\x01\x00\x00\x3f\x00"), scan, b"\xff\xd9"))  # fmt: skip


@built
@pytest.mark.parametrize("quant", [1, 8, 16, 32, 64, 255])
def test_coefficients_that_overflow(quant: int) -> None:
    """As libjpeg-turbo computes them: where no row but the first has any, 16 bits wrap, else they saturate."""
    dc, zrl, end, one = "0" + "00000000000", "00", "01", "100"
    for blocks in ([dc + end], [dc + zrl + end], [dc + one + "1" + end[:2]], [dc + one + "0" + one + "1" + end],
                   [dc + end, dc + zrl + end, dc + one + "1" + end, "0" + "1" * 11 + zrl + end]):  # fmt: skip
        data = gray_of(" ".join(blocks), quant)
        expected = pil(data)
        for way in WAYS:
            out = np.zeros(expected.shape, np.uint8)
            jpeg.decode_region(data, expected.shape[:2], (0, 0, *expected.shape[:2]), out, *way)
            assert np.array_equal(out, expected), (blocks, way)


@built
@pytest.mark.parametrize(
    "options", [{"quality": 60}, {"quality": 98, "optimize": True, "restart_marker_rows": 1}], ids=str
)
def test_every_way_delivers_and_refuses_the_same(options: dict[str, Any]) -> None:
    """Of damaged data, too: one code at a time without vector instructions is the reference."""
    rng = np.random.default_rng(8)
    data = encode(photo(rng, 90, 130), **options)
    start, refused = segment(data, 0xDA)[0] + 14, 0
    for _ in range(300):
        broken, box = bytearray(data), boxes(rng, 90, 130, 1)[-1]
        broken[rng.integers(start, len(data))] ^= 1 << int(rng.integers(8))
        results = []
        for way in WAYS:
            out = np.zeros((box[2], box[3], 3), np.uint8)
            try:
                jpeg.decode_region(broken, (90, 130), box, out, *way)
                results.append(out.tobytes())
            except ValueError as error:
                results.append(str(error).encode())
                refused += 1
        assert len(set(results)) == 1
    assert 0 < refused < 300 * len(WAYS)
    with pytest.raises(ValueError, match="pairs: must be 0, 1 or 2"):
        jpeg.decode_region(data, (90, 130), box, out, True, 3)


@built
def test_tables_of_one_image_are_not_taken_for_anothers() -> None:
    rng = np.random.default_rng(9)
    kinds: list[dict[str, Any]] = [{}, {"optimize": True}, {"quality": 95, "optimize": True}]
    encoded = [encode(photo(rng, 40, 50), **kind) for kind in kinds]
    short = encoded[1][: segment(encoded[1], 0xC4)[0] + 30]  # ends within a table
    out = np.zeros((40, 50, 3), np.uint8)
    for which in rng.integers(0, 4, 60):
        pairs = int(rng.integers(0, 3))
        if which == 3:
            with pytest.raises(ValueError, match="broken"):
                jpeg.decode_region(short, (40, 50), (0, 0, 40, 50), out, True, pairs)
            continue
        jpeg.decode_region(encoded[which], (40, 50), (0, 0, 40, 50), out, True, pairs)
        assert np.array_equal(out, pil(encoded[which]))


@built
def test_what_pillow_refuses_is_refused() -> None:
    rng = np.random.default_rng(6)
    out = np.zeros(8 * 65504 * 3, np.uint8)
    gray = encode(photo(rng, 64, 48, "L"))
    all_ones = gray_of("0" + "0" * 11 + "1", 1, b"\x02" + bytes(15) + b"\x01\x00")
    wide = gray_of(" ".join(["0" + "0" * 11 + "01"] * 8188))
    factors = [(patched(gray, 0xC0, 7, value), (64, 48)) for value in (0, 0x10, 0x55, 0xFF)]
    short = [(gray[:2] + segment + gray[2:], (64, 48)) for segment in (b"\xff\xe0\0\6JFIF", b"\xff\xee\0\7Adobe")]
    for data, size in ((all_ones, (8, 8)), (wide, (8, 65504)), *factors, *short):
        with pytest.raises((OSError, SyntaxError)):
            pil(data)
        with pytest.raises(ValueError, match=r"\w"):
            jpeg.decode_region(data, size, (0, 0, *size), out)


@built
def test_a_gray_image_with_sampling_factors_is_as_without() -> None:
    data = encode(photo(np.random.default_rng(5), 61, 83, "L"))
    twice = patched(data, 0xC0, 7, 0x22)
    out = np.zeros((30, 40, 3), np.uint8)
    jpeg.decode_region(twice, (61, 83), (20, 30, 30, 40), out)
    assert np.array_equal(out, pil(twice)[20:50, 30:70])


def tried(call: Any, data: bytearray, *rest: Any) -> Any:
    """None where the file is refused."""
    try:
        return call(bytes(data), *rest)
    except Exception:
        return None


@pytest.fixture
def files(request: pytest.FixtureRequest) -> list[bytes]:
    """Real images where there are some, else one of each form."""
    if "DALI_IMAGENET_SAMPLE" in os.environ:
        return [path.read_bytes() for path in sorted(request.getfixturevalue("sample").rglob("*.JPEG"))[:20]]
    rng = np.random.default_rng(3)
    forms = [{"mode": "RGB"} | form for form in FORMS]
    return [encode(photo(rng, 120, 90 + n, form.pop("mode")), **form) for n, form in enumerate(forms)]


@built
def test_damaged_files_show_what_pillow_shows(files: list[bytes]) -> None:
    rng = np.random.default_rng(2)
    refused = delivered = passed = 0
    for original in files:
        height, width = pil(original).shape[:2]
        for _ in range(20):
            data = bytearray(original)
            for at in rng.integers(2, len(data), rng.integers(1, 4)):
                data[at] = rng.integers(0, 256)
            box = (height // 3, width // 3, height // 3, width // 3)
            got, whole = tried(decode, data, (height, width), box), tried(pil, data)
            out = np.empty(box[2] * box[3] * 3, np.uint8)
            with contextlib.suppress(ValueError):  # what passes here has passed the other backends' check as well
                jpeg.decode_region(bytes(data), (height, width), box, out)
                assert not find_marker_anomaly(bytes(data))
                passed += 1
            if whole is not None and whole.shape[:2] != (height, width):
                continue
            assert (got is None) == (whole is None)
            if whole is None:
                refused += 1
                continue
            delivered += 1
            assert np.array_equal(got, whole[box[0] :, box[1] :][: box[2], : box[3]])
    assert refused
    assert delivered
    assert passed
