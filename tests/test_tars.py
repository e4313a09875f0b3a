"""Tars of every make, WebDataset's shards, and the rows that processes share: the folder's samples, bit for bit."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dali_imagenet import EvalRecipe, SampleIndex, StorageError, TrainRecipe
from dali_imagenet.data import rows as rows_module
from dali_imagenet.data import shared
from dali_imagenet.data.rows import Rows, map_rows, read_rows, save_rows
from tests.helpers import ENGINES, copied, encode_small, load, make_folder, python, same, write

STRONG = TrainRecipe.strong(input_size=40)
Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_folder(tmp_path_factory.mktemp("data") / "train", 22, high=90)
    write(root / "class_000" / "sub" / "x.JPEG", encode_small())
    write(root / "class_001" / "broken.JPEG", encode_small()[:-300])
    return root


def index_of(root: Path, **options: Any) -> SampleIndex:
    return SampleIndex.from_folder(root, progress=False, **options)


def tar(file: Path, members: Members, format: int = tarfile.GNU_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=format) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return file


def packed(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def members_of(root: Path) -> Members:
    """In no order of use."""
    files = sorted((f for f in root.rglob("*") if f.is_file()), key=lambda f: f.name[::-1])
    return [(f.relative_to(root).as_posix(), f.read_bytes()) for f in files]


def plain(root: Path, out: Path) -> SampleIndex:
    return SampleIndex.from_tar(tar(out / "all.tar", members_of(root)))


def nested(root: Path, out: Path) -> SampleIndex:
    """As ImageNet's training images are downloaded."""
    classes = sorted(os.listdir(root), reverse=True)
    return SampleIndex.from_tar(tar(out / "outer.tar", [(f"{c}.tar", packed(members_of(root / c))) for c in classes]))


def a_tar_each(root: Path, out: Path) -> SampleIndex:
    """The same, half unpacked."""
    for name in os.listdir(root):
        tar(out / "each" / f"{name}.tar", members_of(root / name))
    return SampleIndex.from_tar(out / "each")


def shards(root: Path, out: Path) -> SampleIndex:
    """As `pack` writes them, labels beside the images."""
    index = index_of(root)
    for shard in range(3):
        members = []
        for i in range(shard * 8, shard * 8 + 8):
            name = index.relative_path(i)
            members += [(name, index.source.read(i)), (f"{name.rpartition('.')[0]}.cls", b"%d\n" % index.labels[i])]
        tar(out / "shards" / f"train-{shard:03d}.tar", members)
    return SampleIndex.from_webdataset(f"{out}/shards/train-{{000..002}}.tar")


LAYOUTS: dict[str, Callable[[Path, Path], SampleIndex]] = {
    "plain": plain,
    "tar of tars": nested,
    "a tar each": a_tar_each,
    "WebDataset": shards,
}

GIVEN = {"plain": "all.tar", "tar of tars": "outer.tar", "a tar each": "each", "WebDataset": "shards"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_as_the_folder(layout: str, folder: Path, tmp_path: Path) -> None:
    expected, found = index_of(folder), LAYOUTS[layout](folder, tmp_path)
    assert found.fingerprint == expected.fingerprint
    assert found.classes == expected.classes
    assert [found.relative_path(i) for i in range(len(found))] == [expected.relative_path(i) for i in range(len(found))]
    assert found.labels.tolist() == expected.labels.tolist()
    assert [found.reason(i) for i in range(len(found))] == [expected.reason(i) for i in range(len(found))]
    assert [found.source.read(i) for i in range(len(found))] == [expected.source.read(i) for i in range(len(found))]
    assert found.source.read_many([1, 0]) == [expected.source.read(1), expected.source.read(0)]
    assert ".tar:" in found.path(0)
    if layout == "a tar each":  # class_000.tar could be a shard
        with pytest.raises(ValueError, match=r"from_tar takes each tar for a class, .*from_webdataset needs"):
            SampleIndex.open(tmp_path / "each")
        return
    again = SampleIndex.open(tmp_path / GIVEN[layout])
    assert again.fingerprint == expected.fingerprint
    assert again.scan.read == 0


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
@pytest.mark.parametrize("recipe", [STRONG, EvalRecipe(input_size=40)], ids=["strong", "eval"])
def test_batches_are_those_of_the_folder(recipe: Any, backend: str, workers: int, folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backend": backend, "num_workers": workers, "batch_size": 4, "seed": 3}
    if not isinstance(recipe, EvalRecipe):
        options |= {"on_error": "replace", "max_broken": 0.1}
    else:
        options |= {"on_error": "skip", "max_broken": 0.1}
    expected = index_of(folder)
    with load(expected, recipe, **options) as loader:
        batches = copied(loader)
        state = loader.state_dict()
    for layout in ("tar of tars", "WebDataset"):
        index = LAYOUTS[layout](folder, tmp_path)
        for rank in range(2):  # of two, the global batch being the same
            with load(index, recipe, **options | {"batch_size": 2}, rank=rank, world_size=2) as loader:
                half = copied(loader)
            assert len(half) == len(batches)
        with load(index, recipe, **options) as loader:
            assert same(copied(loader), batches)
            loader.load_state_dict({**state, "epoch": 0, "step": 2})  # a checkpoint moves between them
            assert same(copied(loader), batches[2:])


def test_spawned_workers_map_what_the_parent_has_written(folder: Path, tmp_path: Path) -> None:
    index = nested(folder, tmp_path)
    assert index.rows.file
    assert len(pickle.dumps(index)) < 3000
    found = pickle.loads(pickle.dumps(index))
    assert found.fingerprint == index.fingerprint
    assert [found.source.read(i) for i in range(3)] == [index.source.read(i) for i in range(3)]
    assert not found.rows.array.flags.writeable
    with load(index_of(folder), STRONG, on_error="replace", max_broken=0.1) as loader:
        batches = copied(loader)
    options: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "spawn"}
    with load(index, STRONG, on_error="replace", max_broken=0.1, **options) as loader:
        assert same(copied(loader), batches)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_format(format: int, tmp_path: Path) -> None:
    names = ["c/" + "d" * 90 + "/" + "x" * 60 + ".JPEG", "c/plain.JPEG"]
    if format != tarfile.USTAR_FORMAT:
        names += ["c/ä" + "y" * 120 + ".JPEG", "c/" + "z" * 300 + ".JPEG"]
    data = encode_small()
    index = SampleIndex.from_tar(tar(tmp_path / "x.tar", [(f"./{name}", data) for name in names], format))
    assert sorted(index.relative_path(i) for i in range(len(index))) == sorted(names)
    assert all(index.source.read(i) == data for i in range(len(index)))


def test_a_tar_of_the_system(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copytree(folder, tmp_path / "copy" / "train")
    os.link(tmp_path / "copy/train/class_000/00000.JPEG", tmp_path / "copy/train/class_000/linked.JPEG")
    (tmp_path / "copy/train/class_000/soft.JPEG").symlink_to("00000.JPEG")
    write(tmp_path / "copy/train/class_000/._00000.JPEG", b"junk")
    write(tmp_path / "copy/__MACOSX/class_000/00000.JPEG", b"junk")
    tool = shutil.which("tar")
    if tool is None:
        pytest.skip("no tar here")
    subprocess.run([tool, "-cf", tmp_path / "x.tar", "-C", tmp_path / "copy", "."], check=True)
    index = SampleIndex.from_tar(tmp_path / "x.tar")
    names = [index.relative_path(i) for i in range(len(index))]
    assert {*names} >= {"class_000/00000.JPEG", "class_000/linked.JPEG", "class_000/soft.JPEG"}
    assert not any("._" in name or "MACOSX" in name for name in names)
    linked, soft = names.index("class_000/linked.JPEG"), names.index("class_000/soft.JPEG")
    assert index.source.read(linked) == (folder / "class_000/00000.JPEG").read_bytes()
    assert index.reason(soft) == "a symbolic link"


def test_splits_in_a_tar(folder: Path, tmp_path: Path) -> None:
    members = [(f"imagenet/{part}/{name}", data) for part in ("train", "val") for name, data in members_of(folder)]
    file = tar(tmp_path / "x.tar", members[: len(members) // 2 + 9])
    train, val = SampleIndex.from_tar(file, split="train"), SampleIndex.from_tar(file, split="val")
    assert (len(train), len(val)) == (24, 9)
    assert train.fingerprint == index_of(folder).fingerprint
    with pytest.raises(ValueError, match="holds train, val, parts of a data set: say split='train' or split='val'"):
        SampleIndex.from_tar(file)
    with load(file, STRONG, on_error="replace", max_broken=0.1) as loader:  # the recipe says which
        assert len(loader.dataset) == 24
    with load(file, EvalRecipe(input_size=40), on_error="skip", max_broken=0.5) as loader:
        assert len(loader.dataset) == 9


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gz": (
        lambda p: subprocess.run(["gzip", "-c", tar(p / "y.tar", [("c/x.jpg", b"")])], stdout=(p / "x.tar").open("wb")),
        r"x\.tar is compressed \(gzip\): no image in it can be read alone; unpack it once",
    ),
    "named gz": (lambda p: write(p / "x.tar.gz", b"x"), "compressed: no image in it can be read alone"),
    "text": (lambda p: write(p / "x.tar", b"no archive" * 100), "is no tar archive: it starts with b'no archive"),
    "flat": (lambda p: tar(p / "x.tar", [("x.jpg", encode_small())]), "lie in no folder.*give labels="),
    "no image": (lambda p: tar(p / "x.tar", [("a/x.txt", b"")]), "no image in"),
    "damaged": (
        lambda p: write(
            p / "x.tar", tar(p / "y.tar", [("c/x.jpg", b"1"), ("c/y.jpg", b"")]).read_bytes()[:1024] + b"z" * 2048
        ),
        "is damaged: no tar header at byte 1024",
    ),
    "tars and images": (
        lambda p: tar(p / "x.tar", [("a.tar", packed([])), ("b/x.jpg", b"")]),
        "holds both tars and images: unpack it",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    make(tmp_path)
    file = tmp_path / ("x.tar.gz" if kind == "named gz" else "x.tar")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SampleIndex.open(file, progress=False)


def test_a_shard_that_was_cut_short(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards(folder, tmp_path)
    last = tmp_path / "shards" / "train-001.tar"
    whole = SampleIndex.from_webdataset(last)
    last.write_bytes(last.read_bytes()[: int(whole.rows.array["offset"][6]) + 100])
    index = SampleIndex.from_webdataset(last)
    assert len(index) == 7
    assert [index.reason(i) is None for i in range(7)] == [whole.reason(i) is None for i in range(6)] + [False]
    assert "cut short" in str(index.reason(6))
    assert "has no end: it was probably cut short" in caplog.text
    last.write_bytes(last.read_bytes()[:-100])  # the label of what is broken already may be lost, too
    assert len(SampleIndex.from_webdataset(last)) == 7


@pytest.mark.parametrize(
    ("extra", "options", "classes", "labels"),
    [
        ([("a.cls", b"3"), ("b.cls", b"0\n")], {}, ["0", "1", "2", "3"], [3, 0]),
        ([("a.cls", b"1"), ("b.cls", b"0\n")], {"classes": ["cat", "dog"]}, ["cat", "dog"], [1, 0]),
        ([("a.cls", b"dog"), ("b.cls", b"cat")], {}, ["cat", "dog"], [1, 0]),
        ([("a.json", b'{"label": 1}'), ("b.json", b'{"label": 0}')], {}, ["0", "1"], [1, 0]),
        (
            [("a.json", b'{"x": {"y": "u"}}'), ("b.json", b'{"x": {"y": "t"}}')],
            {"label_key": "x.y"},
            ["t", "u"],
            [1, 0],
        ),
        (
            [("a.cls", b"5"), ("b.json", b"{}"), ("b.cls", b"0"), ("a.json", b'{"label": 1}')],
            {},
            list("012345"),
            [5, 0],
        ),
    ],
)
def test_labels_of_shards(
    extra: Members, options: dict[str, Any], classes: list[str], labels: list[int], tmp_path: Path
) -> None:
    file = tar(tmp_path / "x-000.tar", [("a.jpg", encode_small()), ("b.jpg", encode_small()), *extra])
    index = SampleIndex.from_webdataset(file, **options)
    assert (list(index.classes), index.labels.tolist()) == (classes, labels)


def test_labels_by_key_and_folder(tmp_path: Path) -> None:
    keyed = tar(tmp_path / "a.tar", [("n02_7.jpg", encode_small()), ("n01_3.jpg", encode_small())])
    index = SampleIndex.from_webdataset(keyed)
    assert (index.classes, index.labels.tolist()) == (("n01", "n02"), [1, 0])
    folders = tar(tmp_path / "b.tar", [("train/n02/sub/7.jpg", encode_small()), ("train/n01/3.jpg", encode_small())])
    index = SampleIndex.from_webdataset(folders)
    assert (index.classes, index.labels.tolist()) == (("n01", "n02"), [1, 0])
    with pytest.raises(ValueError, match=r"nothing says the class of 1 of 1 images \(x\.jpg\).*give label_key="):
        SampleIndex.from_webdataset(tar(tmp_path / "c.tar", [("x.jpg", encode_small())]))
    lacking = [("a.jpg", encode_small()), ("a.cls", b"0"), ("b.jpg", encode_small())]
    with pytest.raises(ValueError, match=r"1 of 2 images have no label \(b\.jpg\); give label_key="):
        SampleIndex.from_webdataset(tar(tmp_path / "d.tar", lacking))
    images = [("a.jpg", encode_small()), ("a.cls", b"7")]
    with pytest.raises(ValueError, match="holds label 7, but there are names for 2 classes: labels count from 0"):
        SampleIndex.from_webdataset(tar(tmp_path / "e.tar", images), classes=["x", "y"])


def test_keys_with_several_images(tmp_path: Path) -> None:
    small, large = encode_small(20, 20), encode_small()
    file = tar(
        tmp_path / "x.tar",
        [("a.jpg", large), ("a.seg.png", encode_small(format="PNG")), ("a.thumb.jpg", small), ("a.cls", b"0")],
    )
    with pytest.raises(ValueError, match=r"a\.jpg share a key with other images; say which with image_key="):
        SampleIndex.from_webdataset(file)
    assert SampleIndex.from_webdataset(file, image_key="jpg").width.tolist() == [40]
    assert SampleIndex.from_webdataset(file, image_key="thumb.jpg").width.tolist() == [20]


def test_containers_that_change_stop_the_run(folder: Path, tmp_path: Path) -> None:
    index = plain(folder, tmp_path)
    file = tmp_path / "all.tar"
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:-10240])
    message = r"all\.tar has changed since it was indexed: its size.*; start again"
    with load(index, STRONG, on_error="replace", max_broken=1.0) as loader, pytest.raises(StorageError, match=message):
        next(iter(loader))
    file.unlink()
    index.source.close()
    with pytest.raises(StorageError, match="has changed since it was indexed: No such file"):
        index.source.read(0)


def test_a_changed_container_is_indexed_anew(folder: Path, tmp_path: Path) -> None:
    shards(folder, tmp_path)
    places = f"{tmp_path}/shards/train-{{000..002}}.tar"
    again = SampleIndex.from_webdataset(places)
    assert again.scan.read == 0
    tar(tmp_path / "shards" / "train-001.tar", [("c/x.jpg", encode_small()), ("c/x.cls", b"1")])
    changed = SampleIndex.from_webdataset(places, classes=list("abcd"))
    assert changed.scan.read == 1
    assert len(changed) == len(again) - 8 + 1


def test_many_containers_are_not_all_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dali_imagenet.data import container

    monkeypatch.setattr(container, "MAX_OPEN", 2)
    for i in range(6):
        tar(tmp_path / "s" / f"{i:03d}.tar", [(f"c{i}/x.jpg", encode_small(30 + i, 30))])
    index = SampleIndex.from_webdataset(tmp_path / "s")

    def opened() -> list[str]:
        return [f.path for f in psutil.Process().open_files() if f.path.startswith(str(tmp_path))]

    assert not opened()
    sizes = [len(index.source.read(i)) for i in (0, 1, 2, 3, 4, 5, 0, 3)]
    assert sizes == [int(index.file_size[i]) for i in (0, 1, 2, 3, 4, 5, 0, 3)]
    assert len(opened()) == 2
    index.source.close()
    assert not opened()


# ---- one index a machine

LIST = """
import logging, sys, time
from dali_imagenet import SampleIndex
from dali_imagenet.data import index as module
logging.basicConfig(level=logging.INFO, format="%(message)s")
real = module.list_tree
def slow(*arguments):
    print("listed", flush=True)
    time.sleep(1.5)
    return real(*arguments)
module.list_tree = slow
print("index", SampleIndex.from_folder(sys.argv[1], progress=False).fingerprint)
"""


def test_one_process_lists_and_the_others_map(folder: Path) -> None:
    from tests.helpers import start

    ranks = {"WORLD_SIZE": "3", "MASTER_PORT": "29501"}
    jobs = [start("-c", LIST, str(folder), env=ranks) for _ in range(3)]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert sum(out.count("listed") for out in said) == 1
    assert {out.split()[-1] for out in said} == {index_of(folder).fingerprint}


def test_a_listing_is_not_taken_over_by_the_next_start(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    n = len(index_of(copy))
    write(copy / "class_000" / "new.JPEG", encode_small())
    assert len(index_of(copy)) == n + 1
    mapped = index_of(copy)
    (copy / "class_000" / "new.JPEG").unlink()
    assert len(index_of(copy)) == n
    assert len(mapped) == n + 1  # its file is another one
    assert len(pickle.loads(pickle.dumps(mapped))) == n + 1


def test_a_process_that_died_holds_nothing_up(folder: Path) -> None:
    done = python("-c", LIST.replace("time.sleep(1.5)", "import os; os._exit(9)"), str(folder))
    assert done.returncode == 9
    assert len(index_of(folder)) == 24


def test_errors_are_not_taken_for_a_full_cache(tmp_path: Path) -> None:
    calls = []

    def make() -> Any:
        calls.append(1)
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        shared.shared("key", make, tmp_path, listed=True)
    assert calls == [1]


def test_without_a_cache_folder_workers_share_a_temporary_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows_module, "_LARGE", 5)
    index = index_of(folder, cache=False)
    assert index.rows.file is None
    found = pickle.loads(pickle.dumps(index))
    assert found.fingerprint == index.fingerprint
    file = index.rows.file
    assert file is not None
    assert os.path.exists(file)
    del index, found
    assert not os.path.exists(file)


def test_rows_of_unknown_origin_are_checked(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.rows"
    rows = index_of(folder).rows
    save_rows(file, rows, {"kind": "x"})
    data = file.read_bytes()
    assert read_rows(data, None)[1] == map_rows(file)[1] == {"kind": "x"}
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match=r"version|damaged"):
            read_rows(bytes(damaged), None)
    for cut in (0, 10, 40, len(data) - 1):
        with pytest.raises(ValueError, match=r"version|damaged"):
            read_rows(data[:cut], None)
        file.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"version|damaged"):
            map_rows(file)
    impossible = {"height": -1, "width": 1 << 30, "offset": -5, "format": 99, "broken": 1, "components": 5}
    for column, value in impossible.items():
        array = rows.array.copy()
        array[column] = value
        save_rows(file, Rows(array, rows.names, rows.reasons), {})
        with pytest.raises(ValueError, match="make no sense"):
            read_rows(file.read_bytes(), 178_956_970)


def test_what_another_user_has_written_is_not_mapped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nested(folder, tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert shared._map(next(Path(os.environ["DALI_IMAGENET_CACHE"]).glob("rows-*.rows"))) is None


# ---- what is what


def test_what_is_what(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dali_imagenet"):
        assert SampleIndex.open(folder, progress=False).fingerprint == index_of(folder).fingerprint
    assert "SampleIndex.from_folder reads " in caplog.text
    plain(folder, tmp_path)
    with pytest.raises(TypeError, match=r"SampleIndex\.from_tar has no option 'image_key': it takes cache, "):
        SampleIndex.open(tmp_path / "all.tar", image_key="jpg")
    with pytest.raises(ValueError, match=r"data=3: must be a folder of images, tars"):
        SampleIndex.open(3)
    with pytest.raises(TypeError, match=r"data=object: must be a folder of images, tars"):
        SampleIndex.open(object())
    write(tmp_path / "c" / "x.jpg", encode_small())
    with pytest.raises(ValueError, match=r"several kinds of data; say which with SampleIndex\.from_folder or from_tar"):
        SampleIndex.open(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"does not exist; give the folder that holds .*, or a folder of images"
    ):
        SampleIndex.open(tmp_path / "missing")
    with pytest.raises(ValueError, match="file of no kind that is known by its name"):
        SampleIndex.open(write(tmp_path / "x.bin", b""))
    for i in range(2):
        tar(tmp_path / f"x-{i:03d}.tar", [])
    with pytest.raises(FileNotFoundError, match=r"x-002\.tar does not exist, and 1 more of 4"):
        SampleIndex.from_webdataset(f"{tmp_path}/x-{{000..003}}.tar")
    with pytest.raises(ValueError, match="must be a range such as"):
        SampleIndex.from_webdataset(f"{tmp_path}/x-{{0-3}}.tar")
    with pytest.raises(ValueError, match="given more than once"):
        SampleIndex.from_tar([tmp_path / "all.tar", tmp_path / "all.tar"])


@pytest.mark.parametrize("name", ["x.bin", "x.tar.gz", "{0-3}.tar", "x/"])
def test_addresses_keep_their_secrets(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="127") as caught:
        SampleIndex.open(f"https://user:SECRET@127.0.0.1:9/{name}?signature=SECRET")
    assert "SECRET" not in str(caught.value) + caplog.text


def test_shards_are_no_classes(tmp_path: Path) -> None:
    """Keys of one class each, or captions beside the images: never a class for each shard."""
    names = ["n01", "n02", "n03"]
    for i, name in enumerate(names):
        tar(tmp_path / "keyed" / f"train-{i:06d}.tar", [(f"{name}_{k}.JPEG", encode_small()) for k in range(2)])
        tar(tmp_path / "text" / f"train-{i:06d}.tar", [("x.jpg", encode_small()), ("x.txt", b"a caption")])
    assert SampleIndex.open(tmp_path / "keyed").classes == ("n01", "n02", "n03")
    assert SampleIndex.open(f"{tmp_path}/keyed/train-{{000000..000002}}.tar").labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(SampleIndex.from_webdataset(f"{tmp_path}/keyed/train-*.tar")) == 6
    with pytest.raises(ValueError, match="say which"):
        SampleIndex.open(tmp_path / "text")


def test_archives_are_classes_only_where_all_images_lie_flat(tmp_path: Path) -> None:
    for i in range(2):
        members = [(f"{name}/{i}.jpg", encode_small()) for name in ("a", "b")]
        tar(tmp_path / "p" / f"part{i}.tar", members + ([("thumbnail.jpg", encode_small())] if i else []))
    with pytest.raises(ValueError, match="1 of 5 images lie in no folder"):
        SampleIndex.open(tmp_path / "p")
    for name in ("Dr.Smith", "Dr.Jones", "cat"):
        tar(tmp_path / "dots" / f"{name}.tar", [("x.jpg", encode_small())])
    assert SampleIndex.open(tmp_path / "dots").classes == ("Dr.Jones", "Dr.Smith", "cat")
    shard = tar(tmp_path / "s" / "a.tar", [("x.jpg", encode_small()), ("x.cls", b"0")])
    tar(tmp_path / "s" / "b.tar", [("x.jpg", encode_small()), ("x.cls", b"1")])
    with pytest.raises(ValueError, match=r"read them with SampleIndex\.from_webdataset"):
        SampleIndex.from_tar(shard.parent)


def test_evaluation_has_the_numbers_of_training(tmp_path: Path) -> None:
    names = ["train/a", "train/b", "train/c", "val/b", "val/c"]
    file = tar(tmp_path / "x.tar", [(f"data/{name}/{i}.jpg", encode_small()) for i, name in enumerate(names)])
    val = SampleIndex.from_tar(file, split="val")
    assert (val.classes, val.labels.tolist()) == (("a", "b", "c"), [1, 2])


def test_parts_in_files_of_their_own(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        members = [m for i in range(count) for m in ((f"{i}.jpg", encode_small()), (f"{i}.cls", b"%d" % i))]
        tar(tmp_path / "s" / f"{part}-000000.tar", members)
    with pytest.raises(ValueError, match="holds several parts of a data set: say split='train' or split='val'"):
        SampleIndex.open(tmp_path / "s")
    assert len(SampleIndex.open(tmp_path / "s", split="train")) == 3
    with load(tmp_path / "s", EvalRecipe(input_size=40), batch_size=2) as loader:
        assert len(loader.dataset) == 2


@pytest.mark.parametrize("odd", [b"-1", b"1.0", b"unknown"])
def test_one_odd_number_is_no_name(odd: bytes, tmp_path: Path) -> None:
    members = [m for i in range(12) for m in ((f"{i}.jpg", encode_small()), (f"{i}.cls", b"%d" % i))]
    file = tar(tmp_path / "x.tar", [*members, ("x.jpg", encode_small()), ("x.cls", odd)])
    with pytest.raises(ValueError, match=r"among labels that are numbers: must all be whole numbers from 0 on"):
        SampleIndex.from_webdataset(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_is_beside_a_shard_is_looked_at_with_care(tmp_path: Path) -> None:
    file = tar(tmp_path / "x.tar", [("a/x.jpg", encode_small())])
    beside = tmp_path / "x.tar.dali-index"
    with beside.open("wb") as out:
        out.truncate(3 << 30)
    assert len(SampleIndex.from_tar(file, cache=False)) == 1
    beside.unlink()
    os.mkfifo(beside)
    assert len(SampleIndex.from_tar(file, cache=False)) == 1
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match=r"pipe\.tar is no regular file"):
        SampleIndex.from_tar(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match="a name that leads out of it"):
        SampleIndex.from_tar(tar(tmp_path / "y.tar", [("a/../../x.jpg", encode_small())]))


def test_rows_that_were_damaged_or_exchanged(folder: Path, tmp_path: Path) -> None:
    index = nested(folder, tmp_path)
    sent, file = pickle.dumps(index), Path(str(index.rows.file))
    file.unlink()  # the mapping lives on
    shutil.copy(str(index_of(folder).rows.file), file)
    with pytest.raises(ValueError, match="is another index than the one that was sent"):
        pickle.loads(sent)
    file.unlink()
    file.write_bytes(b"")
    assert SampleIndex.from_tar(tmp_path / "outer.tar").fingerprint == index.fingerprint
    assert file.stat().st_size > 0
    file.unlink()
    assert pickle.loads(pickle.dumps(index)).fingerprint == index.fingerprint


def test_unpacked_data_beside_its_tars(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "imagenet" / "train")
    tar(tmp_path / "imagenet" / "ILSVRC2012_img_train.tar", [])
    index = SampleIndex.open(tmp_path / "imagenet", split="train", progress=False)
    assert index.fingerprint == index_of(folder).fingerprint


def test_targets_are_tensors_of_the_same_kind(folder: Path, tmp_path: Path) -> None:
    index = shards(folder, tmp_path)
    with load(index, EvalRecipe(input_size=40), on_error="skip", max_broken=0.5) as loader:
        assert next(iter(loader))[1].dtype == torch.int64


def test_an_index_beside_that_says_nonsense_is_made_anew(folder: Path, tmp_path: Path) -> None:
    file = tar(tmp_path / "x.tar", members_of(folder))
    expected = SampleIndex.from_tar(file, write_index=True)
    beside = tmp_path / "x.tar.dali-index"
    rows, info = read_rows(beside.read_bytes(), None)
    for wrong in ({"twice": 5}, {"twice": [5]}, {"class_names": "abc"}, {"labels": [[0]] * len(rows)}):
        save_rows(beside, rows, {**info, **wrong})
        found = SampleIndex.from_tar(file, cache=False)
        assert (found.fingerprint, found.scan.read) == (expected.fingerprint, len(rows)), wrong


def test_names_for_numbers_from_a_file(tmp_path: Path) -> None:
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    file = tar(tmp_path / "x.tar", [("a.jpg", encode_small()), ("a.cls", b"1")])
    assert SampleIndex.from_webdataset(file, classes=names).classes == ("n01440764", "n01443537")


def test_labels_for_images_in_folders_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds folders: leave it out"):
        SampleIndex.from_folder(folder, labels={"x": "y"}, progress=False)


def test_an_odd_world_size_is_no_matter_of_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "x")
    index_of(folder)
    assert len(index_of(folder)) == 24
