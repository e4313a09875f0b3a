"""Which folders are classes, which number each has, and what is refused rather than guessed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from dali_imagenet import EvalRecipe, Loader, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.__main__ import main
from dali_imagenet.data import folder as folder_module
from dali_imagenet.data.layout import folder_path
from tests.helpers import encode_small as encode
from tests.helpers import write

posix = pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
JPEG = encode()
TRAIN, EVAL = TrainRecipe.classic(input_size=32), EvalRecipe(input_size=32)


def fill(root: Path, *files: str) -> Path:
    """Images of these names; "a b/" stands for two in the class folder a and two in b."""
    for file in files:
        folder, slash, name = file.rpartition("/")
        for leaf in name.split() if name else ["0.JPEG", "1.JPEG"]:
            write(root / folder / leaf if slash else root / leaf, JPEG)
    return root


def classes(root: Path, *names: str) -> Path:
    return fill(root, *(f"{name}/" for name in names))


def scan(root: Any, **options: Any) -> SampleIndex:
    return SampleIndex.from_folder(root, progress=False, cache=False, **options)


def load(root: Any, recipe: Any = TRAIN, **options: Any) -> Loader:
    return create_loader(root, recipe, batch_size=2, device="cpu", num_workers=0, **options)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# which folder


def test_train_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "train", "a", "b")
    assert load(tmp_path).dataset.classes == ("a", "b")
    assert load(tmp_path, TrainRecipe.strong(input_size=32, num_classes=9)).dataset.root == str(tmp_path / "train")
    assert scan(tmp_path, split="train").classes == ("a", "b")
    assert not warnings_of(caplog)
    with pytest.raises(FileNotFoundError, match=r"split='val'.*holds train/ but no val/.* split='train' to read that"):
        load(tmp_path, EVAL)
    with pytest.raises(ValueError, match=r"holds train/: a part of.*say split='train', or give '.*/train', or give '"):
        scan(tmp_path)
    assert load(tmp_path, EVAL, split="train").dataset.classes == ("a", "b")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "eval", "Val"])
def test_names_of_the_evaluation_folder(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "Training", "a", "b")
    classes(tmp_path / name, "a", "b")
    classes(tmp_path / "test", "a", "b")
    (tmp_path / "devkit").mkdir()
    assert load(tmp_path).dataset.root == str(tmp_path / "Training")
    assert load(tmp_path, EVAL).dataset.root == scan(tmp_path, split="val").root == str(tmp_path / name)
    assert scan(tmp_path, split="test").root == str(tmp_path / "test")
    assert scan(tmp_path, split=name).root == str(tmp_path / name)
    assert not warnings_of(caplog)
    with pytest.raises(ValueError, match=r"holds Training/ and .*: parts of .* say split='train' or "):
        scan(tmp_path)


def test_two_evaluation_folders_are_not_guessed(tmp_path: Path) -> None:
    for name in ("train", "valid", "eval"):
        classes(tmp_path / name, "a", "b")
    with pytest.raises(ValueError, match=r"split='val': .* holds eval, valid; say split='eval' or 'valid'"):
        load(tmp_path, EVAL)
    assert load(tmp_path, EVAL, split="valid").dataset.root == str(tmp_path / "valid")
    classes(tmp_path / "val", "a", "b")
    assert load(tmp_path, EVAL).dataset.root == str(tmp_path / "val")


def test_a_test_folder_in_the_place_of_val(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "train", "a", "b")
    classes(tmp_path / "test", "a", "b")
    assert load(tmp_path).dataset.root == str(tmp_path / "train")
    assert not warnings_of(caplog)
    assert load(tmp_path, EVAL).dataset.root == str(tmp_path / "test")
    assert warnings_of(caplog) == [f"{tmp_path}: no val/ here, so evaluation reads test/"]


def test_a_flat_val_is_never_replaced_by_test(tmp_path: Path) -> None:
    fill(tmp_path / "val", "1.JPEG", "2.JPEG")
    for name in ("train", "test"):
        classes(tmp_path / name, "a", "b")
    with pytest.raises(
        ValueError, match=r"/val' holds no class folders; sort.*val/<class>/.* split='test' or split='tr"
    ):
        load(tmp_path, EVAL)
    assert load(tmp_path).dataset.root == str(tmp_path / "train")
    assert load(tmp_path, EVAL, split="test").dataset.root == str(tmp_path / "test")


REFUSED = {
    "unzipped twice": (["train/train/a/", "train/train/b/", "val/val/a/", "val/val/b/"], "train/train", "val/val"),
    "a folder above": (["data/train/a/", "data/train/b/", "data/val/a/"], "data/train' or '{}/data/val", None),
    "two folders above": (["x/data/a/", "x/data/b/"], "x/data", None),
    "a folder above train alone": (["data/train/a/", "data/train/b/"], "data/train", None),
    "one level too high": (["train/a/", "train/b/", "unlabeled/1/"], "train", None),
    "val one level deeper": (["train/a/", "train/b/", "val/images/a/", "val/images/b/"], None, "val/images"),
    "a stray image": (["data/a/", "data/b/", "data/montage.png"], "data", None),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("recipe", [TRAIN, EVAL])
def test_what_is_no_class_is_refused_with_the_probable_path(tmp_path: Path, case: str, recipe: Any) -> None:
    files, *paths = REFUSED[case]
    fill(tmp_path, *files)
    path = paths[recipe is EVAL] or (paths[0] if paths[1] is None else None)
    if path is None:
        load(tmp_path, recipe)
        return
    wanted = re.escape("give '" + f"{{}}/{path}'".replace("{}", str(tmp_path)))
    with pytest.raises(ValueError, match=wanted + r".*split='\.' where these folders are the classes"):
        load(tmp_path, recipe)


def test_flat_splits(tmp_path: Path) -> None:
    fill(tmp_path, "train/", "test/")
    with pytest.raises(ValueError, match=r"both train/ and test/: parts of .*put the images of each"):
        load(tmp_path)
    assert load(tmp_path, split=".").dataset.classes == ("test", "train")


OPENED = {
    "plain": (["a/", "b/"], (), ("a", "b")),
    "a class called train": (["a/", "train/"], (), ("a", "train")),
    "a class called val": (["a/", "val/", "train/"], (), ("a", "train", "val")),
    "a class called train, sorted further": (["a/", "train/images/"], (), ("a", "train")),
    "Tiny ImageNet": (["train/n1/images/", "train/n2/images/", "val/images/1.JPEG"], ("train",), ("n1", "n2")),
    "subfolders in one class of two": (["a/x/", "a/y/", "b/"], (), ("a", "b")),
}


@pytest.mark.parametrize("case", OPENED)
def test_what_must_open(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    files, below, expected = OPENED[case]
    index = load(fill(tmp_path, *files)).dataset
    assert index.classes == expected
    assert index.root == str(tmp_path.joinpath(*below))
    assert list(index.samples) == ImageFolder(index.root).samples
    assert not warnings_of(caplog)


@pytest.mark.parametrize("files", [["dog/"], ["dog/images/"], ["dog/", "dog/more/"]])
def test_one_class_has_a_warning(tmp_path: Path, files: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert load(fill(tmp_path, *files)).dataset.classes == ("dog",)
    assert warnings_of(caplog) == [f"{tmp_path} holds one class, 'dog': every label is 0"]


def test_the_folder_itself_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "train", "a", "b")
    classes(tmp_path / "val", "a", "b")
    for index in (scan(tmp_path, split="."), load(tmp_path, split=".").dataset):
        assert index.classes == ("train", "val")
        assert index.root == str(tmp_path)
    assert len(warnings_of(caplog)) == 2
    assert "both train/ and val/: parts of a data set" in caplog.text
    assert scan(tmp_path, classes=["val", "train"]).class_to_idx == {"val": 0, "train": 1}  # named: no doubt


def test_a_subfolder_by_its_name(tmp_path: Path) -> None:
    classes(tmp_path / "train", "a", "b")
    classes(tmp_path / "sketch", "b", "c")
    assert load(tmp_path, EVAL, split="sketch").dataset.classes == ("b", "c")
    with pytest.raises(FileNotFoundError, match=r"split='photos': .* no folder of that name; it holds sketch, train"):
        load(tmp_path, split="photos")
    for split in ("", "..", "a/b", 3, b"train"):
        with pytest.raises(ValueError, match=r"split=.*: must be 'train', 'val', the name of a subfolder"):
            load(tmp_path, split=split)
    for option in ({"split": "train"}, {"classes": "natural"}):
        with pytest.raises(ValueError, match="must be None where data is a SampleIndex"):
            load(scan(tmp_path / "train"), **option)


# which number


def test_val_has_the_numbers_of_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "train", "cat", "cow", "dog", "emu")
    classes(tmp_path / "val", "cow", "dog", "emu")
    (tmp_path / "train" / "cat" / "0.JPEG").write_bytes(b"bad")  # not looked at
    train, val = scan(tmp_path, split="train"), load(tmp_path, EVAL).dataset
    assert val.class_to_idx == train.class_to_idx
    assert val.targets == [1, 1, 2, 2, 3, 3]
    assert val.scan.files == 6
    assert scan(tmp_path, split="val").targets == val.targets
    assert load(tmp_path, EVAL).num_classes == 4
    classes(tmp_path / "val", "gnu")
    with pytest.raises(ValueError, match=r"/val' holds 1 class folder\(s\) \(gnu\) which '.*/train' does not have"):
        load(tmp_path, EVAL)
    assert scan(tmp_path / "val").classes == ("cow", "dog", "emu", "gnu")
    assert not warnings_of(caplog)


def test_natural_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path, *map(str, range(12)))
    assert scan(tmp_path).class_to_idx["10"] == 2
    assert len(warnings_of(caplog)) == 1
    assert "(0, 1, 10 and 9 more): say classes='natural'" in caplog.text
    caplog.clear()
    natural = load(tmp_path, classes="natural").dataset
    assert natural.classes == tuple(map(str, range(12)))
    assert [os.path.basename(os.path.dirname(path)) for path, _ in natural.samples] == [
        str(label) for label in natural.targets
    ]
    assert bytes(natural.rows.names.blob) == bytes(
        scan(tmp_path).rows.names.blob
    )  # numbers change, the samples' order does not
    caplog.clear()
    assert scan(tmp_path, split=".", classes=[str(i) for i in range(12)]).targets == natural.targets
    assert not warnings_of(caplog)
    for order in (natural, load(tmp_path, classes="natural")):
        assert scan(tmp_path, classes=order).targets == load(tmp_path, classes=order).dataset.targets == natural.targets


def test_natural_order_of_mixed_names(tmp_path: Path) -> None:
    classes(tmp_path, "b10", "b9", "a", "01", "1", "9x", "b9.5")
    assert scan(tmp_path, classes="natural").classes == ("01", "1", "9x", "a", "b9", "b9.5", "b10")
    classes(tmp_path / "train", "1", "10", "2")
    classes(tmp_path / "val", "10")
    assert scan(tmp_path, split="val", classes="natural").targets == [2, 2]


def test_numbers_of_one_length_need_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert scan(classes(tmp_path, "00", "01", "10", "02")).classes == ("00", "01", "02", "10")
    assert not warnings_of(caplog)


def test_names_in_label_order(tmp_path: Path) -> None:
    classes(tmp_path, "n3", "n1")
    index = scan(tmp_path, classes=["n3", "n2", "n1"])
    assert index.classes == ("n3", "n2", "n1")
    assert index.targets == [2, 2, 0, 0]
    assert load(index, TrainRecipe.strong(input_size=32)).num_classes == 3
    with pytest.raises(ValueError, match=r"holds 1 class folder\(s\) \(n1\) which classes= does not name"):
        scan(tmp_path, classes=("n2", "n3"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 class folders.*empty; .*name all classes"):
        scan(tmp_path)
    assert scan(tmp_path, classes=["empty", "n1", "n3"]).targets == [1, 1, 2, 2]
    (tmp_path / "none" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no image in 1 of the 1 class folders"):
        scan(tmp_path / "none", classes=["a", "b"])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("labels.txt", r"classes='labels\.txt': must be 'sorted', 'natural'.*Path\('labels\.txt'\)"),
        (None, "classes=None: must be 'sorted'"),
        (7, "classes=7: must be 'sorted'"),
        ([], "None among 0 names: must be names of folders"),
        (["a", 3], "3 among 2 names"),
        (["a", "../b"], r"'\.\./b' among 2 names"),
        (["a", "b", "a"], "classes: a more than once"),
    ],
)
def test_orders_that_are_none(tmp_path: Path, order: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scan(classes(tmp_path, "a", "b"), classes=order)


@pytest.mark.parametrize(
    "text",
    [
        "n2\nn1\nn3\n",
        "n2 tench, Tinca tinca\r\nn1 goldfish\r\nn3 shark",
        "\ufeffn2\tthe first\n\n  n1\nn3 n1 x\n",
    ],
)
def test_names_from_a_file(tmp_path: Path, text: str) -> None:
    classes(tmp_path / "data", "n1", "n2")
    file = write(tmp_path / "LOC_synset_mapping.txt", text.encode())
    assert scan(tmp_path / "data", classes=file).classes == ("n2", "n1", "n3")
    assert load(tmp_path / "data", classes=file).dataset.targets == [1, 1, 0, 0]


@posix
def test_files_of_odd_names_and_missing_ones(tmp_path: Path) -> None:
    classes(tmp_path / "data", "great white", "great auk", os.fsdecode(b"caf\xe9"))
    file = write(tmp_path / "names.txt", b"great white\ngreat auk\ncaf\xe9\n")
    assert scan(tmp_path / "data", classes=file).classes == ("great white", "great auk", "caf\udce9")
    with pytest.raises(FileNotFoundError, match=r"classes='.*gone.txt' cannot be read: No such file.*a text file"):
        scan(tmp_path / "data", classes=tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="among 0 names"):
        scan(tmp_path / "data", classes=write(tmp_path / "void.txt", b"\n"))


# junk


def test_junk_is_no_class_and_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path, "cat", "dog")
    plain = scan(tmp_path)
    junk = [
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir",
        "lost+found",
        ".Trash-1000",
        "System Volume Information",
        ".git",
    ]
    for name in junk:
        (tmp_path / name).mkdir()
    assert scan(tmp_path).fingerprint == plain.fingerprint
    for name in junk:
        fill(tmp_path, f"{name}/", f"cat/{name}/")
    fill(tmp_path, "dog/._0.JPEG", "dog/._1.JPEG", "dog/._notes.txt")
    caplog.clear()
    assert scan(tmp_path).fingerprint == plain.fingerprint
    assert len(warnings_of(caplog)) == 1
    assert "left out 14 folder(s) and 2 file(s) that are hidden or left behind by a system: .Trash-1000/" in caplog.text
    named = scan(tmp_path, classes=[".ipynb_checkpoints", "cat", "dog"])
    assert named.targets == [0, 0, 1, 1, 2, 2]


def test_junk_does_not_count_where_a_split_is_looked_for(tmp_path: Path) -> None:
    classes(tmp_path / "train", "a", "b")
    fill(tmp_path, "val/1.JPEG", "val/.ipynb_checkpoints/", "__MACOSX/")
    with pytest.raises(ValueError, match="/val' holds no class folders"):
        load(tmp_path, EVAL)


def test_hidden_images_stay(tmp_path: Path) -> None:
    """Only `._*`: ImageFolder's numbering of the samples is kept wherever that harms nobody."""
    assert len(scan(fill(tmp_path, "a/", "b/.x.jpg"))) == 3


# paths


def test_ways_to_write_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "a b" / "train", "a", "b").parent
    classes(root / "val", "a", "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(root)
    for given in ("~/a b", Path("~/a b"), f"{root}/", root.as_uri(), "file://localhost" + root.as_uri()[7:], "."):
        assert load(given).dataset.root == scan(given, split="train").root == str(root / "train")
    refused: tuple[Any, ...] = ("", None, 3, b"x")
    for wrong in refused:
        with pytest.raises((TypeError, ValueError), match=r"data=.*: must be a folder of images"):
            load(wrong)
        with pytest.raises(ValueError, match=r"root=.*: must be the path of a folder"):
            scan(wrong)
    with pytest.raises(ValueError, match=r"data='file://server/x': must be file:///path"):
        load("file://server/x")


@posix
def test_urls_of_odd_names() -> None:
    assert folder_path("x", "file:///a%20b/%C3%A4%3F?#") == "/a b/ä??#"
    assert os.fsencode(folder_path("x", "FILE:///caf%E9/")) == b"/caf\xe9"


# links


@posix
def test_link_loops_at_class_level(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = classes(tmp_path / "data", "a", "b")
    expected = scan(root).fingerprint
    (root / "c").symlink_to(root)
    (root / "d").symlink_to(tmp_path)
    (root / "e").symlink_to("e")
    (root / "a" / "up").symlink_to(tmp_path)
    assert scan(root).fingerprint == expected
    for name in ("c", "d", "a/up"):
        assert f"{root / name}: left out, it is a link to a folder that it lies in" in caplog.text


@posix
def test_links_that_multiply_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "data", "a", "b")
    for level in range(4):  # three ways from each to the next: 3 + 9 + 27 + 81
        for way in range(3):
            link = tmp_path / "farm" / str(level) / str(way)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../{level + 1}")
    fill(tmp_path, "farm/4/")
    (tmp_path / "data" / "a" / "farm").symlink_to(tmp_path / "farm" / "0")
    assert len(scan(tmp_path / "data")) == 4 + 2 * 81
    assert folder_module.MAX_LINKED_FOLDERS == 1_000_000
    monkeypatch.setattr(folder_module, "MAX_LINKED_FOLDERS", 121)
    scan(tmp_path / "data")
    monkeypatch.setattr(folder_module, "MAX_LINKED_FOLDERS", 120)
    with pytest.raises(ValueError, match=r"/a': more than 120 folders are reached through links.*remove the links"):
        scan(tmp_path / "data")


@posix
def test_looking_for_splits_is_bounded(tmp_path: Path) -> None:
    """Nothing of the farm is an image, so every way through it would have to be walked."""
    for level in range(12):
        for way in range(10):
            link = tmp_path / "farm" / str(level) / str(way)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"../{level + 1}")
    (tmp_path / "farm" / "12").mkdir()
    classes(tmp_path / "data" / "train", "a", "b")
    (tmp_path / "data" / "other").symlink_to(tmp_path / "farm" / "0")
    assert load(tmp_path / "data").dataset.classes == ("a", "b")


# the command line


def test_the_command_line_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DALI_IMAGENET_CACHE", str(tmp_path / "cache"))
    root = classes(tmp_path / "data", "train/a", "train/b", "val/b", "more/1", "more/10", "more/2")
    file = write(tmp_path / "names.txt", b"b\na\n")

    def said(*words: str) -> str:
        assert main(["index", *words]) == 0
        return capsys.readouterr().out

    assert "4 images in 2 classes" in said(str(root), "--split", "train")
    assert "2 images in 2 classes" in said(str(root), "--split", "val")
    assert "2 images in 2 classes" in said(str(root / "val"), "--classes", str(file))
    assert "6 images in 3 classes" in said(str(root), "--split", "more", "--classes", "natural")
    assert "12 images in 3 classes" in said(str(root), "--split", ".")
    out = tmp_path / "out.png"
    words = ["preview", str(root), "--device", "cpu", "--count", "1", "--recipe", "eval", "--output", str(out)]
    assert main([*words, "--classes", str(file)]) == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("index ROOT/nowhere", "data '.*nowhere' does not exist; give the folder"),
        ("index ROOT/train/a/0.JPEG", "'.*0.JPEG' is not a folder; give the folder"),
        ("index ROOT", "say --split 'train' or --split 'val', or give '.*/train'"),
        ("index ROOT --split a/b", "--split 'a/b': must be 'train', 'val', the name of a subfolder"),
        ("index ROOT --split train --classes ROOT/no.txt", "--classes '.*no.txt' cannot be read: No such file"),
        ("index VOID", r"data '': must be a folder"),
        ("preview ROOT --count 100", r"--count 100: must be a whole number in \[1, 4\]"),
        ("preview ROOT --count 0", r"--count 0: must be a whole number in \[1, 4\]"),
        ("preview ROOT --output p", r"--output 'p': must be a name that ends in \.png, \.jpg or another"),
        (
            "preview ROOT --recipe eval --split test",
            "--split 'test': .* holds no folder of that name; it holds train, val",
        ),
    ],
)
def test_the_command_line_speaks_its_own_words(
    tmp_path: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path, "train/a", "train/b", "val/a")
    given = [word.replace("ROOT", str(tmp_path)).replace("VOID", "") for word in words.split()]
    assert main(given) == (2 if message.startswith("--") else 1)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(f"error: .*{message}", said), said
    assert "Traceback" not in said
