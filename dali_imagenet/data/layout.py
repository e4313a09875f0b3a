"""Which folder holds the class folders, which folders are classes, and which number each class has."""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

from dali_imagenet.escape import either, escaped, listed
from dali_imagenet.formats import IMG_EXTENSIONS
from dali_imagenet.validation import sequence, wrong

logger = logging.getLogger("dali_imagenet")

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval"),
    "test": ("test",),
}
_PART = {name: part for part, names in SPLITS.items() for name in names}
_JUNK = {"__macosx", "@eadir", "lost+found", "system volume information", "$recycle.bin"}
_LOOKS = 1000  # folders that are looked into before one counts as without images


class Classes(NamedTuple):
    """The classes of a folder.

    Attributes:
        names: in label order.
        folders: those of them that are there, in the order in which they are listed: that of their names.
        left_out: other folders, relative to the folder.
        may_be_empty: whether a class folder without images is right.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: list[str]
    may_be_empty: bool


def folder_path(name: str, given: Any) -> str:
    """The absolute path of a folder as users write it: `~` is the home folder, and `file://` URLs are taken.

    Raises:
        ValueError: for what names no folder, as an empty string; `name` is what the argument is called.
    """
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise wrong(name, given, "the path of a folder ('.' is the current one)")
    if path[:7].lower() == "file://":
        host, slash, rest = path[7:].partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise wrong(name, given, "file:///path: a folder of this machine")
        path = url2pathname(slash + rest) if os.name == "nt" else os.fsdecode(unquote_to_bytes(slash + rest))
    return os.path.abspath(os.path.expanduser(path))


def is_junk(name: str) -> bool:
    """Whether a folder of this name is something that systems and tools leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def is_dir(entry: os.DirEntry[str]) -> bool:
    """As its own, with False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def stat_key(path: str) -> tuple[int, int]:
    """The same for every name of one folder."""
    info = os.stat(path)
    return info.st_dev, info.st_ino


def keys_above(folder: str) -> frozenset[tuple[int, int]]:
    """The folder and those that it lies in: a link to one of them is a loop."""
    found, path = [], os.path.realpath(folder)
    while True:
        found.append(stat_key(path))
        if path == (path := os.path.dirname(path)):
            return frozenset(found)


def split_of(name: str) -> str | None:
    """The split that a folder of this name is."""
    return _PART.get(name.lower())


def _look(folder: str) -> tuple[list[str], int]:
    """Names of the folders in it, junk left out, and how many images lie in it directly; nothing of what fails."""
    names, images = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_dir(entry):
                    names += [] if is_junk(entry.name) else [entry.name]
                else:
                    images += entry.name.lower().endswith(IMG_EXTENSIONS) and not entry.name.startswith("._")
    except OSError:
        pass
    return sorted(names), images


def _has_images(folder: str) -> bool:
    """Whether an image lies in it or below, as far as a look into the first folders tells."""
    waiting = deque([folder])
    for _ in range(_LOOKS):
        if not waiting:
            return False
        path = waiting.popleft()
        names, images = _look(path)
        if images:
            return True
        waiting.extend(os.path.join(path, name) for name in names)
    return False


def _holds_classes(folder: str, depth: int = 4) -> bool:
    """Whether it looks like a folder of classes, not like a class: it, or its only folder, has two with images."""
    names, images = _look(folder)
    if not depth or images > len(names):
        return False
    some = list(islice((path for name in names if _has_images(path := os.path.join(folder, name))), 2))
    return len(some) == 2 or (len(some) == 1 and _holds_classes(some[0], depth - 1))


def _probable(folder: str, depth: int = 4) -> list[str]:
    """The folders below which the classes probably lie."""
    names = _look(folder)[0]
    inner = [name for name in names if split_of(name)] or names[: len(names) == 1]
    paths = [(name, os.path.join(folder, name)) for name in inner]
    likely = [path for name, path in paths if _holds_classes(path) or (split_of(name) and _look(path)[0])]
    return [found for path in likely if depth for found in _probable(path, depth - 1)] or [folder]


def _doubt(folder: str, names: Sequence[str], whole: bool) -> str | None:
    """Why these subfolders are probably not classes, and what to do; None where they may be.

    Args:
        whole: whether `split` can still choose one of them.
    """
    parts = sorted(filter(split_of, names), key=lambda name: [*SPLITS].index(_PART[name.lower()]))
    filled = [name for name in parts if _look(os.path.join(folder, name))[0]]
    kinds = {split_of(name) for name in filled}
    if parts and (len(parts) == len(names) or ("train" in kinds and len(kinds) > 1)):
        shown = " and ".join(f"{escaped(name)}/" for name in parts)
        what = "a part of a data set, not a class" if len(parts) == 1 else "parts of a data set, not classes"
        problem = f"holds {'both ' * (len(parts) == 2)}{shown}: {what}"
    else:
        suspects = [n for n in parts or names[: len(names) == 1] if _holds_classes(os.path.join(folder, n))]
        if not suspects:
            return None
        problem = f"would be read with {escaped(suspects[0])}/ as one class, but that holds folders of images itself"
    say = dict.fromkeys(f"split={(n if split_of(n) == 'test' else split_of(n))!r}" for n in filled)
    give = [path for path in _probable(folder) if path != folder]
    remedies = [f"say {' or '.join(say)}"] if say and whole else []
    remedies += [f"give {either(map(repr, give))}"] if give else []
    return f"{folder!r} {problem}; {', or '.join(remedies) or 'put the images of each class into a folder of its own'}"


def is_split(root: str) -> bool:
    """Whether it holds train/, val/ or the like. A class may be called "train": a split holds folders itself."""
    names, _ = _look(root)
    parts = {split_of(name) for name in names} - {None}
    if not any(split_of(name) and _look(os.path.join(root, name))[0] for name in names):
        return False
    return len(parts) > 1 or not any(_has_images(os.path.join(root, name)) for name in names if not split_of(name))


def flat_part(root: str, split: str | None) -> tuple[str, str | None] | None:
    """The folder whose images lie in no folder of a class, and the one whose classes count; None for class folders."""
    names = _look(root)[0] if split not in (None, ".") else []
    parts = sorted((n for n in names if split in (n, split_of(n))), key=lambda name: name != split)
    folder = os.path.join(root, parts[0]) if parts else root
    inner, images = _look(folder)
    if not images or any(_has_images(os.path.join(folder, name)) for name in inner):
        return None
    train = next((path for n in names if split_of(n) == "train" and _look(path := os.path.join(root, n))[0]), None)
    return folder, train


def resolve_split(root: str, split: str | None) -> tuple[str, str | None]:
    """The folder whose subfolders are the classes, and the one whose classes count where that is another."""
    if split is not None and (not isinstance(split, str) or (not _is_name(split) and split != ".")):
        raise wrong("split", split, "'train', 'val', the name of a subfolder, '.' for the folder itself, or None")
    if not os.path.lexists(root):
        raise FileNotFoundError(f"data folder {root!r} does not exist; give the folder that holds one folder a class")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{root!r} is not a folder; give the folder that holds one folder a class")
    if split in (None, "."):
        return root, None
    names = _look(root)[0]
    full = {name: os.path.join(root, name) for name in names if split_of(name)}
    filled = [name for name, path in full.items() if _look(path)[0]]
    if split in ("train", "val"):
        if not filled:  # not a split, but the classes themselves
            return root, None
        name = _choose(root, split, list(full), filled)
    else:
        name = str(split)
        if not os.path.isdir(os.path.join(root, name)):
            raise FileNotFoundError(
                f"split={split!r}: {root!r} holds no folder of that name; it holds {listed(names) or 'none'}"
            )
    train = [n for n in filled if split_of(n) == "train"]
    counts = train and split_of(name) in ("val", "test")
    return os.path.join(root, name), os.path.join(root, _choose(root, "train", train, train)) if counts else None


def _choose(root: str, split: str, names: Sequence[str], filled: Sequence[str]) -> str:
    """Which of the split folders is asked for, `filled` being those with class folders."""
    wanted = [name for name in names if split_of(name) == split]
    spare = [name for name in names if split_of(name) == "test"] if split == "val" and not wanted else []
    if not wanted and not spare:
        known = [f"{name}/" for name in SPLITS[split] + (SPLITS["test"] if split == "val" else ())]
        raise FileNotFoundError(
            f"split={split!r}: {root!r} holds {' and '.join(f'{escaped(n)}/' for n in filled)} but no "
            f"{' or '.join(known)}; add it, or say split={filled[0]!r} to read that one, or split='.'"
        )
    if len(wanted) > 1 and split not in wanted:
        raise ValueError(f"split={split!r}: {root!r} holds {listed(wanted)}; say split={either(map(repr, wanted))}")
    name = split if split in wanted else (wanted or spare)[0]
    if name not in filled:
        others = " or ".join(f"split={n!r}" for n in filled)
        raise ValueError(
            f"split={split!r}: {os.path.join(root, name)!r} holds no class folders; sort its images into "
            f"{escaped(name)}/<class>/, give labels= (ImageNet's devkit, Kaggle's LOC_val_solution.csv), or say "
            f"{others} to read that one instead"
        )
    if spare:
        logger.warning("%s: no val/ here, so evaluation reads %s/", escaped(root), escaped(name))
    return name


def find_classes(
    folder: str, order: str | os.PathLike[str] | Sequence[str], train: str | None, split: str | None
) -> Classes:
    """The classes of a folder.

    Args:
        order: "sorted", "natural", names in label order, or a text file of them.
        train: the folder whose classes count, where `order` gives no names.
        split: as `resolve_split` took it; with "." doubts are warnings.

    Raises:
        FileNotFoundError: no class folder.
        ValueError: the folder is probably not that of the classes, or holds others than the named ones.
    """
    above = keys_above(folder)
    with os.scandir(folder) as entries:
        every = sorted(entry.name for entry in entries if is_dir(entry))
    for name in list(every):
        path = os.path.join(folder, name)
        if os.path.islink(path) and stat_key(path) in above:
            logger.warning("%s: left out, it is a link to a folder that it lies in", escaped(path))
            every.remove(name)
    given = named(order, every)
    known = {*(given or ())}
    folders = [name for name in every if not is_junk(name) or name in known]
    if not folders:
        raise FileNotFoundError(
            f"no class folders in {folder!r}; images must lie in one folder a class: {escaped(folder)}/<class>/, or "
            "labels= must say the class of each (ImageNet's devkit, Kaggle's LOC_val_solution.csv)"
        )
    doubt = None if known >= {*folders} else _doubt(folder, folders, split is None)
    if doubt and split != ".":
        raise ValueError(f"{doubt}, or give {folder!r} with split='.' where these folders are the classes")
    if doubt:
        logger.warning("%s", doubt)
    lacking = "which classes= does not name; remove them, or add them there"
    if given is None and train is not None:
        given = find_classes(train, order, None, split).names
        lacking = f"which {train!r} does not have; rename or remove them, or name all classes with classes=[...]"
    names = in_order(folders, str(order)) if given is None else given
    known = {*names}
    unknown = [name for name in folders if name not in known]
    if unknown:
        raise ValueError(f"{folder!r} holds {len(unknown)} class folder(s) ({listed(unknown)}) {lacking}")
    if len(names) == 1 and not doubt:
        logger.warning("%s holds one class, %r: every label is 0", escaped(folder), names[0])
    left_out = [f"{name}/" for name in every if name not in known]
    return Classes(tuple(names), tuple(folders), left_out, given is not None)


def _is_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not {*name} & {"/", os.sep, "\0"}


def named(order: Any, there: Sequence[str]) -> Sequence[str] | None:
    """The names that `classes` gives; None where it is a rule."""
    if isinstance(order, os.PathLike):
        return _from_file(os.path.expanduser(order), there)
    names = sequence(order)
    if names is None:
        what = "names" if not isinstance(order, str) else f"names, or a file of them (Path({order!r}))"
        if order not in ("sorted", "natural"):
            raise wrong("classes", order, f"'sorted', 'natural', {what}, or an index or loader that has them")
        return None
    return _checked("classes", names)


def _checked(what: str, names: Sequence[Any]) -> Sequence[str]:
    odd = next((name for name in names if not isinstance(name, str) or not _is_name(name)), None)
    if odd is not None or not names:
        raise ValueError(f"{what}: {odd!r} among {len(names)} names: must be names of folders, in label order")
    if len({*names}) < len(names):
        twice = sorted(name for name in {*names} if names.count(name) > 1)
        raise ValueError(f"{what}: {listed(twice)} more than once: each class must be named once")
    return names


def _from_file(file: str, there: Sequence[str]) -> Sequence[str]:
    """Names from a text file: a line is a name, or a name, a space and words about it."""
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as given:
            lines = [line.strip() for line in given if line.strip()]
    except OSError as error:
        problem = f"classes={file!r} cannot be read: {error.strerror}"
        raise type(error)(f"{problem}; give a text file of one class a line") from None
    first = [line.split()[0] for line in lines]
    whole = {*there} <= {*lines} or len({*first}) < len(lines)  # names may hold spaces
    if not there:  # numbers are to be named
        whole = whole and not all(re.fullmatch(r"n\d{8}", name) for name in first)
    return _checked(f"classes={file!r}", lines if whole else first)


def _natural(name: str) -> list[Any]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))] + [name]


def in_order(names: Iterable[str], order: str) -> list[str]:
    found = sorted(names)
    natural = sorted(found, key=_natural)
    if order == "natural":
        return natural
    if natural != found and all(name.isascii() and name.isdecimal() for name in found):
        logger.warning(
            "classes are numbered in the order of their names as text (%s): say classes='natural' for that of their "
            "numbers (%s)",
            listed(found, 3),
            listed(natural, 3),
        )
    return found
