"""SampleIndex: the same samples as ImageFolder, each broken kind named, and a cache that can only cost time."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision.datasets import ImageFolder

from dali_imagenet import storage
from dali_imagenet.data import headers, index_cache
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.formats import FORMATS, IMG_EXTENSIONS, MAX_PIXELS
from tests import helpers
from tests.helpers import encode_small as encode
from tests.helpers import start, write

posix = pytest.mark.skipif(os.name == "nt", reason="links, pipes and raw names of POSIX")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path_factory.mktemp("cache")))


def encode16() -> bytes:
    return helpers.encode(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG")


def scan(root: Path, **options: Any) -> SampleIndex:
    return SampleIndex.from_folder(root, progress=False, **options)


def one(root: Path, data: bytes, **options: Any) -> SampleIndex:
    write(root / "class" / "x.JPEG", data)
    return scan(root, **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    jpeg = encode()
    for name in (
        "b/z.JPEG", "b/a.jpg", "b/A.JpEg", "b/sub/1.jpeg", "b/sub-1/2.jpg", "b/sub/deep/3.jpg", "b/sub.JPEG/4.jpg",
        "a/ä.jpg", "a/notes.txt", "a/x.gif", "a/.hidden.jpg", "a/empty/none.txt", "a/two\nlines.jpg", "Z/1.jpg",
    ):  # fmt: skip
        write(root / name, jpeg)
    for extension in IMG_EXTENSIONS:
        write(root / "a" / f"as{extension.upper()}", jpeg)
    write(root / "no-class.jpg", jpeg)
    return root


def assert_same_as_imagefolder(index: SampleIndex, root: Path) -> None:
    expected = ImageFolder(str(root))
    assert list(index.samples) == expected.samples
    assert index.imgs[:] == expected.imgs
    assert index.targets == expected.targets
    assert list(index.classes) == expected.classes
    assert index.class_to_idx == expected.class_to_idx
    assert len(index) == len(expected)


def test_same_samples_as_imagefolder(tree: Path) -> None:
    index = scan(tree)
    assert_same_as_imagefolder(index, tree)
    assert index.samples[-1] == index.samples[len(index) - 1]
    assert (index.height == 30).all()
    assert (index.width == 40).all()
    assert (index.components == 3).all()
    assert (index.file_size == len(encode())).all()
    assert not index.broken.any()
    assert index.labels.dtype == np.int64
    assert index.height.dtype == index.width.dtype == np.int32


@posix
def test_links_are_followed_and_loops_are_not(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "elsewhere" / "l.jpg", encode())
    (tree / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "c").symlink_to(tmp_path / "elsewhere")
    (tree / "b" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "l.jpg")
    assert_same_as_imagefolder(scan(tree), tree)
    before = scan(tree).fingerprint
    for target in (tree, tree / "b", tree / "b" / "sub"):
        (tree / "b" / "sub" / f"up-{target.name}").symlink_to(target)
    assert scan(tree).fingerprint == before
    assert "link to a folder that it lies in" in caplog.text


@posix
def test_names_that_are_not_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "root" / "class")
    os.makedirs(folder)
    for name in (b"caf\xe9.jpg", b"ok.jpg", "\uffee.jpg".encode(), "\U0001f600.jpg".encode()):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(encode())
    index = scan(tmp_path / "root")
    assert_same_as_imagefolder(index, tmp_path / "root")
    assert not index.broken.any()
    assert folder + b"/caf\xe9.jpg" in [os.fsencode(index.path(i)) for i in range(4)]
    assert scan(tmp_path / "root").scan.read == 0


def test_splits(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    write(root / "train" / "train" / "1.jpg", encode())
    write(root / "train" / "dog" / "1.jpg", encode())
    write(root / "validation" / "dog" / "1.jpg", encode())
    assert scan(root, split="train").classes == ("dog", "train")
    assert scan(root, split="val").root == str(root / "validation")
    assert scan(root / "train").classes == ("dog", "train")
    # A class that is called "train" is no split: it holds images, not folders.
    assert scan(root / "train", split="train").classes == ("dog", "train")
    with pytest.raises(ValueError, match=r"both train/ and validation/.*split='train' or split='val'"):
        scan(root)
    with pytest.raises(FileNotFoundError, match=r"split='test'.*no folder of that name; it holds train, validation"):
        scan(root, split="test")
    with pytest.raises(ValueError, match=r"split='\.\./x': must be 'train', 'val', the name of a subfolder, '\.'"):
        scan(root, split="../x")
    shutil.rmtree(root / "validation")
    with pytest.raises(FileNotFoundError, match="holds train/ but no val/ or validation/ or valid/ or eval/ or test/"):
        scan(root, split="val")


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing' does not exist"):
        scan(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no class folders in"):
        scan(tmp_path)
    with pytest.raises(NotADirectoryError, match="not a folder"):
        scan(write(tmp_path / "root" / "full" / "1.jpg", encode()))
    for name in ("empty", "void"):
        (tmp_path / "root" / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in 2 of the 3 class folders.*empty, void.*\.jpeg"):
        scan(tmp_path / "root")
    with pytest.raises(ValueError, match="num_threads=0"):
        scan(tmp_path / "root", num_threads=0)
    with pytest.raises(ValueError, match="max_pixels=0"):
        scan(tmp_path / "root", max_pixels=0)


def segments(data: bytes, *extra: bytes) -> bytes:
    """A JPEG with segments put in before the frame header."""
    return data[:2] + b"".join(extra) + data[2:]


def app(marker: int, size: int) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, size + 2) + b"\xff\xd9" * (size // 2)


def frame(data: bytes, **fields: int) -> bytes:
    """A JPEG whose frame header claims something else."""
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    out = bytearray(data)
    offsets = {"marker": ("B", 1), "bits": ("B", 4), "height": (">H", 5), "width": (">H", 7), "components": ("B", 9)}
    for name, value in fields.items():
        struct.pack_into(offsets[name][0], out, at + offsets[name][1], value)
    return bytes(out)


GOOD = {
    "baseline": (encode(), "JPEG", 3),
    "progressive": (encode(progressive=True), "JPEG", 3),
    "gray": (encode(mode="L"), "JPEG", 1),
    "cmyk": (encode(mode="CMYK"), "JPEG", 4),
    "huge blocks": (segments(encode(), *[app(0xE2, 65000)] * 20, app(0xE1, 65000)), "JPEG", 3),
    "comment, fill bytes": (segments(encode(), app(0xFE, 100), b"\xff\xff\xff"), "JPEG", 3),
    "junk in the header": (segments(encode(), app(0xE0, 14), b"junk"), "JPEG", 3),
    "zeros behind": (encode() + bytes(1000), "JPEG", 3),
    "text behind": (encode() + b"appended by some tool", "JPEG", 3),
    "exif orientation": (encode(exif=b"Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"), "JPEG", 3),
    "png": (encode(format="PNG"), "PNG", 0),
    "16-bit png": (encode16(), "PNG", 0),
    "webp": (encode(format="WEBP"), "WEBP", 0),
    "bmp": (encode(format="BMP"), "BMP", 0),
    "gif": (encode(mode="L", format="GIF"), "GIF", 0),
    "tiff": (encode(format="TIFF"), "TIFF", 0),
    "ppm": (encode(format="PPM"), "PPM", 0),
}


@pytest.mark.parametrize("kind", GOOD)
def test_readable_kinds(kind: str, tmp_path: Path) -> None:
    data, name, components = GOOD[kind]
    index = one(tmp_path, data)
    assert index.reason(0) is None
    assert not index.broken[0]
    assert (index.width[0], index.height[0]) == (40, 30)
    assert FORMATS[index.format[0]] == name
    assert index.components[0] == components
    assert ImageFolder(str(tmp_path))[0][0].size == (40, 30)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (8, 65500)])
def test_odd_sizes(width: int, height: int, tmp_path: Path) -> None:
    index = one(tmp_path, encode(width, height, "L"))
    assert (index.width[0], index.height[0]) == (width, height)


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"not an image at all", "no known image: it starts with b'not an image"),
    "html": (b"<!DOCTYPE html><html></html>", "no known image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no known image"),
    "only the magic": (b"\xff\xd8\xff", "cut short"),
    "cut in the header": (encode()[:100], "cut short"),
    "cut in the body": (encode()[:-300], "truncated.*no end marker"),
    "no scan": (encode()[:20] + b"\xff\xd9", "cannot"),
    "12 bits": (frame(encode(), bits=12), "frame type 0 with 12 bits"),
    "lossless": (frame(encode(), marker=0xC3), "frame type 3"),
    "hierarchical": (frame(encode(), marker=0xC5), "frame type 5"),
    "no components": (frame(encode(), components=0), "0 components"),
    "two components": (frame(encode(), components=2), "2 components"),
    "no width": (frame(encode(), width=0), "0 x 30"),
    "no height": (frame(encode(), height=0), "40 x 0"),
    "bomb": (frame(encode(), width=30000, height=30000), "30000 x 30000 pixels, above the limit of 178956970"),
    "endless header": (segments(encode(), *[app(0xFE, 0)] * 5000), "more than 4096 segments"),
    "cut png": (encode(format="PNG")[:-800], "."),
    "cut webp": (encode(format="WEBP")[:-100], "."),
    "cut gif": (encode(mode="L", format="GIF")[:-100], "."),
    "cut tiff": (encode(format="TIFF")[:-800], "."),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_kinds(kind: str, tmp_path: Path) -> None:
    data, why = BROKEN[kind]
    index = one(tmp_path, data)
    assert index.broken.tolist() == [True]
    assert index.height[0] == index.width[0] == index.components[0] == index.format[0] == 0
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(index.reason(0))
    again = scan(tmp_path)
    assert again.scan.read == 0
    assert again.reason(0) == index.reason(0)


def test_pixel_limit(tmp_path: Path) -> None:
    for name in ("jpeg", "png"):
        write(tmp_path / "class" / f"x.{name}", encode(format=name.upper()))
    assert scan(tmp_path, max_pixels=1200).broken.sum() == 0
    below = scan(tmp_path, max_pixels=1199)
    assert below.broken.all()
    assert below.reason(1) == "40 x 30 pixels, above the limit of 1199 (max_pixels)"
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == MAX_PIXELS


@posix
def test_what_is_no_file(tmp_path: Path) -> None:
    write(tmp_path / "class" / "good.jpg", encode())
    (tmp_path / "class" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "class" / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(tmp_path / "class" / "pipe.jpg")
    (tmp_path / "class" / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "class" / "folder.jpg").mkdir()
    index = scan(tmp_path)
    reasons = {os.path.basename(index.path(i)): index.reason(i) for i in range(len(index))}
    assert reasons.pop("good.jpg") is None
    assert reasons.keys() == {"dangling.jpg", "self.jpg", "pipe.jpg", "null.jpg"}
    assert "No such file" in str(reasons["dangling.jpg"])
    assert "not a regular file" in str(reasons["pipe.jpg"])
    # What could not be read is tried again: the reason may lie outside the file.
    write(tmp_path / "gone.jpg", encode())
    assert scan(tmp_path).broken.sum() == 3


def test_a_read_that_fails_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(headers, "pread", fail)
        patch.setattr(storage, "WAITS", (0.0, 0.0))
        assert one(tmp_path, encode()).reason(0) == "cannot be read: Input/output error"
    assert scan(tmp_path).reason(0) is None


def pillow_loads(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS[1:]) as image:
            image.convert("RGB")
    except Exception:
        return False
    return True


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}])
def test_cut_anywhere_as_pillow_judges(options: dict[str, Any], tmp_path: Path) -> None:
    data = encode(17, 13, **options)
    cuts = range(1, len(data) + 1)
    for cut in cuts:
        write(tmp_path / "class" / f"{cut:06d}.jpg", data[:cut])
    assert scan(tmp_path).broken.tolist() == [not pillow_loads(data[:cut]) for cut in cuts]


def test_damaged_header_is_never_judged_harder_than_pillow_does(tmp_path: Path) -> None:
    """Every byte of the structure; what lies inside tables and scans only a decoder can judge."""
    data = encode(17, 13)
    structure, at = [2, 3], 2
    while data[at + 1] != 0xDA:
        structure += range(at, at + (10 if data[at + 1] == 0xC0 else 4))
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    files = [
        data[:at] + bytes([value]) + data[at + 1 :] for at in sorted(set(structure)) for value in (0, 1, 9, 0xD9, 0xFF)
    ]
    for i, damaged in enumerate(files):
        write(tmp_path / "class" / f"{i:06d}.jpg", damaged)
    index = scan(tmp_path)
    # larger than any data could be for it: Pillow shows gray
    broken = index.broken & [" of coded data for " not in (index.reason(i) or "") for i in range(len(index))]
    loads = np.array([pillow_loads(damaged) for damaged in files])
    loads[index.broken & ~broken] = False
    assert not (broken & loads).any()
    assert broken.sum() > 100
    assert (~broken & ~loads).sum() < 0.1 * broken.sum(), np.flatnonzero(~broken & ~loads)


def test_truncated_images_flag_of_pillow_is_obeyed_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one(tmp_path, encode()[:-300]).broken[0]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert not scan(tmp_path).broken[0]
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_cache_reads_only_what_changed(tree: Path) -> None:
    n = len(scan(tree))
    again = scan(tree)
    assert (again.scan.files, again.scan.read, again.scan.cached) == (n, 0, n)
    write(tree / "b" / "a.jpg", encode(50, 20))  # changed
    write(tree / "b" / "aa.jpg", b"broken")  # new
    (tree / "Z" / "2.jpg").write_bytes(encode(5, 6))  # new
    (tree / "b" / "z.JPEG").unlink()  # deleted
    changed = scan(tree)
    assert (changed.scan.files, changed.scan.read) == (n + 1, 3)
    fresh = scan(tree, cache=False)
    assert fresh.scan.read == n + 1
    for name in ("labels", "height", "width", "components", "format", "broken", "file_size"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(fresh, name))
    assert list(changed.samples) == list(fresh.samples)
    assert [changed.reason(i) for i in range(n + 1)] == [fresh.reason(i) for i in range(n + 1)]
    assert changed.fingerprint == fresh.fingerprint
    assert scan(tree).scan.read == 0


def test_cache_notices_the_same_size_and_repairs(tmp_path: Path) -> None:
    good = encode()
    file = write(tmp_path / "class" / "x.jpg", bytes(len(good)))
    write(tmp_path / "class" / "y.jpg", b"bad")
    assert scan(tmp_path).broken.tolist() == [True, True]
    file.write_bytes(good)
    os.utime(file, ns=(0, 12345))
    index = scan(tmp_path)
    assert index.broken.tolist() == [False, True]
    assert index.reason(0) is None
    assert index.scan.read == 1
    assert scan(tmp_path).scan.read == 0


def cache_of(folder: Path) -> Path:
    files = list(folder.glob("index-*.bin"))
    assert len(files) == 1, files
    return files[0]


def sealed(body: bytes) -> bytes:
    return index_cache._MAGIC + index_cache._digest([body]) + body


HOSTILE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-7],
    "longer": lambda data: data + b"\0",
    "one bit": lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:],
    "other version": lambda data: data.replace(b"index 1", b"index 2"),
    "pickle": lambda data: pickle.dumps({"height": 1}),
    "no body": lambda data: sealed(b""),
    "negative lengths": lambda data: sealed(struct.pack("<qqq", -1, 0, 29)),
    "huge lengths": lambda data: sealed(struct.pack("<qqq", 1 << 62, 1 << 62, 1 << 62)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_bad_cache_file_is_ignored(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache"
    expected = one(tmp_path / "data", encode(), cache_dir=folder)
    file = cache_of(folder)
    file.write_bytes(HOSTILE[kind](file.read_bytes()))
    with caplog.at_level(logging.WARNING, "dali_imagenet"):
        index = scan(tmp_path / "data", cache_dir=folder)
    assert index.scan.read == 1
    assert index.fingerprint == expected.fingerprint
    records = [record for record in caplog.records if "holds one class" not in record.message]
    assert caplog.text.count("is ignored and made anew") == len(records) == 1
    assert scan(tmp_path / "data", cache_dir=folder).scan.read == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [("height", -1), ("height", 0), ("width", 2_000_000_000), ("components", 5), ("format", 200), ("broken", 1)],
)
def test_hostile_cache_contents_are_ignored(column: str, value: int, tmp_path: Path) -> None:
    """A well-formed cache, digest and all, that claims what cannot be."""
    folder = tmp_path / "cache"
    expected = one(tmp_path / "data", encode(), cache_dir=folder)
    file = cache_of(folder)
    table = index_cache._unpack(file.read_bytes(), MAX_PIXELS)
    table.columns = {name: values.copy() for name, values in table.columns.items()}
    table.columns[column][0] = value
    file.write_bytes(sealed(b"".join(index_cache._pack(table))))
    index = scan(tmp_path / "data", cache_dir=folder)
    assert index.scan.read == 1
    assert index.fingerprint == expected.fingerprint


@pytest.mark.parametrize("reasons", [b"{}", b"[[0]]", b'[[5, "x"]]', b"[[0, 1]]", b"[" * 100_000, b"\xff", b"nan"])
def test_hostile_reasons_are_ignored(reasons: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    one(tmp_path / "data", b"bad", cache_dir=folder)
    file = cache_of(folder)
    table = index_cache._unpack(file.read_bytes(), MAX_PIXELS)
    counts, *rest = index_cache._pack(table)
    counts = counts[:16] + struct.pack("<q", len(reasons))
    file.write_bytes(sealed(b"".join([counts, *rest[:-1], reasons])))
    index = scan(tmp_path / "data", cache_dir=folder)
    assert index.scan.read == 1
    assert index.broken[0]


def test_cache_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocker = write(tmp_path / "file", b"")
    with caplog.at_level(logging.WARNING, "dali_imagenet"):
        index = one(tmp_path / "data", encode(), cache_dir=blocker / "cache")
    assert not index.broken.any()
    assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert len(one(tmp_path / "data", encode(), cache_dir=tmp_path / "cache")) == 1
    assert "No space left" in caplog.text
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".lock"}


def test_read_only_data_folder(tree: Path) -> None:
    folders = [tree, *[p for p in tree.rglob("*") if p.is_dir()]]
    before = sorted(tree.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        index = scan(tree)
        assert scan(tree).scan.read == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert not index.broken.any()
    assert sorted(tree.rglob("*")) == before


def test_interrupted_reading_keeps_what_was_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tree / "Z" / "1.jpg", b"broken")
    n = len(ImageFolder(str(tree)))
    real = headers._probe_file
    calls = 0

    def stop_after_five(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(headers, "_probe_file", stop_after_five)
        with pytest.raises(KeyboardInterrupt):
            scan(tree, num_threads=1)
    index = scan(tree)
    assert index.scan.read == n - 5
    assert index.fingerprint == scan(tree, cache=False).fingerprint


def test_processes_at_once(tree: Path, tmp_path: Path) -> None:
    code = "import sys; from dali_imagenet import SampleIndex as S; print(S.from_folder(sys.argv[1]).fingerprint)"
    ranks = [start("-c", code, str(tree), env={"DALI_IMAGENET_CACHE": str(tmp_path / "cache")}) for _ in range(3)]
    seen = {rank.communicate(timeout=300)[0].strip() for rank in ranks}
    index = scan(tree, cache_dir=tmp_path / "cache")
    assert seen == {index.fingerprint}
    assert index.scan.read == 0
    cache_of(tmp_path / "cache")


def test_fingerprint(tree: Path, tmp_path: Path) -> None:
    index = scan(tree)
    copy = shutil.copytree(tree, tmp_path / "copy")
    os.utime(copy / "b" / "a.jpg", ns=(0, 0))
    assert scan(copy).fingerprint == index.fingerprint
    assert len(index.fingerprint) == 32
    seen = {index.fingerprint}
    times = iter(range(1, 9))  # one for each change: those of older kernels are too coarse to tell them apart
    for change in (
        lambda: (copy / "b" / "a.jpg").rename(copy / "b" / "b.jpg"),
        lambda: (copy / "b").rename(copy / "bb"),
        lambda: write(copy / "Z" / "1.jpg", encode(30, 40)),
        lambda: write(copy / "Z" / "1.jpg", bytes(len(encode(30, 40)))),
        lambda: write(copy / "Z" / "1.jpg", encode(30, 40) + b"\0"),
    ):
        change()
        if (copy / "Z").exists():
            os.utime(copy / "Z" / "1.jpg", ns=(0, next(times)))
        seen.add(scan(copy).fingerprint)
    assert len(seen) == 6


def test_pickle(tree: Path) -> None:
    write(tree / "a" / "broken.jpg", b"bad")
    index = scan(tree)
    assert index.targets  # made on demand, so not sent along
    data = pickle.dumps(index)
    other = pickle.loads(data)
    assert other.fingerprint == index.fingerprint
    assert list(other.samples) == list(index.samples)
    assert [other.reason(i) for i in range(len(other))] == [index.reason(i) for i in range(len(index))]
    assert b"targets" not in data


def test_from_arrays() -> None:
    index = SampleIndex.from_arrays([0, 1, 1], [10, 20, 30], 40, root="/data", reasons={1: "lost"})
    assert len(index) == 3
    assert index.classes == ("0", "1")
    assert index.height.tolist() == [10, 0, 30]
    assert index.width.tolist() == [40, 0, 40]
    assert index.broken.tolist() == [False, True, False]
    assert index.reason(1) == index.reason(-2) == "lost"
    assert index.relative_path(2) == "0000000002.JPEG"
    assert index.path(2) == os.path.join(os.path.abspath("/data"), "0000000002.JPEG")
    named = SampleIndex.from_arrays([0, 0], 1, 1, paths=["a/ü.jpg", "b.jpg"], classes=["x"])
    assert [named.relative_path(i) for i in range(2)] == ["a/ü.jpg", "b.jpg"]
    with pytest.raises(IndexError, match="image 2 of an index of 2"):
        named.path(2)
    with pytest.raises(ValueError, match=r"labels from 0 to 3: must lie in 0\.\.1"):
        SampleIndex.from_arrays([0, 3], 1, 1, classes=["a", "b"])
    with pytest.raises(ValueError, match="height and width must be 1 or more"):
        SampleIndex.from_arrays([0, 0], 0, 1)
    with pytest.raises(ValueError, match="1 paths for 2 labels"):
        SampleIndex.from_arrays([0, 0], 1, 1, paths=["a"])
    wrong: dict[str, Any] = {"height": None, "width": [1.5, 2], "labels": [[0, 1]]}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"{name}=.*: must be 2 integers, or one for all images"):
            SampleIndex.from_arrays(**dict[str, Any](labels=[0, 1], height=1, width=1) | {name: value})
    with pytest.raises(ValueError, match=r"height=\[1, 2\]: must be 3 integers"):
        SampleIndex.from_arrays([0, 0, 0], [1, 2], 1)
    with pytest.raises(ValueError, match="read-only"):
        index.labels[0] = 1


def test_a_million_samples_are_small() -> None:
    n = 1_281_167
    index = SampleIndex.from_arrays(np.arange(n) % 1000, 400, 500)
    assert index.path(n - 1).endswith("0001281166.JPEG")
    assert index.samples[n - 1][1] == (n - 1) % 1000
    rows = index.rows
    assert len(rows.names.blob) + rows.names.ends.nbytes + rows.array.nbytes < 64 * n


def test_real_images(sample: Path) -> None:
    index = scan(sample)
    assert_same_as_imagefolder(index, sample)
    for i in range(0, len(index), 50):
        with Image.open(index.path(i)) as image:
            assert image.size == (index.width[i], index.height[i])


def test_an_index_leaves_no_thread(folder: Path) -> None:
    """A progress bar that is not shown has none either."""
    before = set(threading.enumerate())
    SampleIndex.from_folder(folder, cache=False)
    assert not set(threading.enumerate()) - before
