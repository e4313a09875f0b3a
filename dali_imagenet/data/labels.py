"""Which class each image of a container is: by the folder in its name, or by what the container holds besides."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dali_imagenet.data.layout import in_order, is_junk, named, split_of
from dali_imagenet.data.names import Names
from dali_imagenet.data.rows import Rows
from dali_imagenet.data.scan import CLASSES_KEY, Scanned
from dali_imagenet.escape import escaped, listed
from dali_imagenet.validation import sequence, wrong

logger = logging.getLogger("dali_imagenet")

_NUMBER = re.compile(r"\d{1,9}")
_KEYED = re.compile(r"(.+)_\d+")  # n01440764_10026: the class and a number
_MOST_CLASSES = 1_000_000  # that are called by their numbers


class Labelled(NamedTuple):
    """Images with their classes.

    Attributes:
        rows: `container` counts the containers, `label` the classes.
        classes: names in label order.
    """

    rows: Rows
    classes: tuple[str, ...]


def joined(scans: Sequence[Scanned]) -> Rows:
    """The images of several containers, one container after the other; labels are still missing."""
    arrays, reasons, at = [], dict[int, str](), 0
    for number, scan in enumerate(scans):
        array = scan.rows.array.copy()
        array["container"] = number
        arrays.append(array)
        reasons |= {at + i: why for i, why in scan.rows.reasons.items()}
        at += len(array)
    return Rows(np.concatenate(arrays), Names(b"".join(bytes(s.rows.names.blob) for s in scans)), reasons)


def archive_prefixes(scans: Sequence[Scanned]) -> list[str] | None:
    """What to put before the names in each of several archives with images in no folder: an archive is a class then."""
    if len(scans) < 2:
        return None
    flat = [any("/" not in scan.rows.names[i] for i in range(len(scan.rows))) for scan in scans]
    if not any(flat):
        return None
    if any(scan.about.get("labels") for scan in scans):
        raise ValueError(
            f"{escaped(scans[0].container.name)} and its like hold labels beside the images, as WebDataset's shards: "
            "read them with SampleIndex.from_webdataset"
        )
    if not all(flat) or any(scan.about.get("nested") for scan in scans):
        return None
    return [os.path.splitext(os.path.basename(scan.container.name))[0] + "/" for scan in scans]


def ordered(rows: Rows, order: Sequence[int], names: Sequence[str], labels: Sequence[int]) -> Rows:
    """Some of the rows in an order, under other names and with labels, one for each."""
    at = np.asarray(order, np.intp)
    array = rows.array[at]
    array["label"] = labels
    broken = np.flatnonzero(array["broken"]).tolist()
    return Rows(array, Names.of(names), {i: rows.reasons[int(at[i])] for i in broken})


def by_folder(
    scans: Sequence[Scanned],
    what: str,
    *,
    classes: Any = "sorted",
    split: str | None = None,
    default_split: str | None = None,
    prefixes: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Labelled:
    """Images whose folder is their class, in the order that an ImageFolder of the same files has.

    Args:
        what: the containers, for messages.
        classes: as `SampleIndex.from_folder` takes it, an index replaced by its classes.
        split: which top folder to read, as there.
        default_split: which one where `split` is None and the folders are train/ and val/.
        prefixes: of each container, what to put before its names.
        labels: {name of a file without its extension, or name as the container has it: class}, in place of folders.

    Raises:
        ValueError: images without a folder, or folders that are probably no classes.
    """
    rows = joined(scans)
    names = [rows.names[i] for i in range(len(rows))]
    if prefixes is not None:
        names = [prefixes[c] + name for c, name in zip(rows.array["container"].tolist(), names, strict=True)]
    if labels is not None:
        kept, names = _by_file(names, labels, what)
    else:
        every = names
        kept, names = _below(range(len(names)), names, what, split, default_split)
    if not names:
        raise FileNotFoundError(f"no image in {escaped(what)}")
    folders = [name.partition("/")[0] for name in names]
    found = sorted({*folders} if labels is None else {*folders, *labels.values()})
    train = [] if labels is not None or len(names) == len(every) else _of_training(every, kept)
    numbers = named(classes, found) or in_order(train or found, str(classes))
    number = {name: i for i, name in enumerate(numbers)}
    if unknown := [name for name in sorted({*folders}) if name not in number]:
        raise _unknown(what, unknown)
    _say_lost(what, numbers, sorted({*folders}))

    def key(i: int) -> tuple[str, str, str]:
        folder, _, base = names[i].rpartition("/")
        return folders[i], folder, base

    order = sorted(range(len(names)), key=key)
    return Labelled(
        ordered(rows, [kept[i] for i in order], [names[i] for i in order], [number[folders[i]] for i in order]),
        tuple(numbers),
    )


def _of_training(names: Sequence[str], kept: Sequence[int]) -> list[str]:
    """The classes of the training part, where the images that are kept are those of another part beside it."""
    parts = names[kept[0]].split("/")[:-1]
    at = next((i for i, part in enumerate(parts) if split_of(part) in ("val", "test")), None)
    if at is None:
        return []
    found = set()
    for name in names:
        other = name.split("/")[:-1]
        if len(other) > at + 1 and other[:at] == parts[:at] and split_of(other[at]) == "train":
            found.add(other[at + 1])
    return sorted(found)


def _unknown(what: str, unknown: Sequence[str]) -> ValueError:
    return ValueError(
        f"{escaped(what)} holds {len(unknown)} class(es) ({listed(unknown)}) which classes= does not name; add them "
        "there"
    )


def _say_lost(what: str, classes: Sequence[str], found: Sequence[str]) -> None:
    if len(classes) == 1:
        logger.warning("%s holds one class, %r: every label is 0", escaped(what), classes[0])
    if len(classes) > len(found):
        lost = len(classes) - len(found)
        logger.info("%s: %d of the %d classes have no image here", escaped(what), lost, len(classes))


def _below(
    kept: Sequence[int], names: list[str], what: str, split: str | None, default_split: str | None
) -> tuple[list[int], list[str]]:
    """The images whose folders are classes, named from there on: folders that hold everything are left away."""
    usable = [i for i, name in enumerate(names) if not any(map(is_junk, name.split("/")[:-1]))]
    if len(usable) < len(names):
        logger.warning("%s: left out %d file(s) in hidden folders", escaped(what), len(names) - len(usable))
    kept, names = [kept[i] for i in usable], [names[i] for i in usable]
    chosen = False
    while names and split != ".":
        tops = {name.partition("/")[0] for name in names}
        deep = all(name.count("/") > 1 for name in names)
        parts = {top: split_of(top) for top in tops}
        if deep and not chosen and all(parts.values()):
            wanted = split or default_split or (next(iter(tops)) if len(tops) == 1 else None)
            if wanted is None:
                say = " or ".join(f"split={part!r}" for part in sorted({str(part) for part in parts.values()}))
                raise ValueError(f"{escaped(what)} holds {listed(sorted(tops))}, parts of a data set: say {say}")
            of = [top for top in sorted(tops) if top == wanted] or [top for top in sorted(tops) if parts[top] == wanted]
            if len(of) != 1:
                raise ValueError(f"split={wanted!r}: {escaped(what)} holds {listed(sorted(tops))}; say one of them")
            chosen = True
        elif deep and not chosen and split is not None and split in tops and split_of(split) is None:
            of, chosen = [split], True
        elif deep and len(tops) == 1:
            of = list(tops)
            logger.info("%s: classes are the folders in %s/", escaped(what), escaped(of[0]))
        else:
            break
        inside = [i for i, name in enumerate(names) if name.startswith(of[0] + "/")]
        kept, names = [kept[i] for i in inside], [names[i][len(of[0]) + 1 :] for i in inside]
    if split not in (None, ".", "train", "val") and not chosen:
        raise FileNotFoundError(f"split={split!r}: {escaped(what)} holds no folder of that name")
    flat = [name for name in names if "/" not in name]
    if flat:
        raise ValueError(
            f"{escaped(what)}: {len(flat)} of {len(names)} images lie in no folder ({listed(flat, 3)}), so that "
            "nothing says their class; give labels= (ImageNet's devkit, Kaggle's LOC_val_solution.csv)"
        )
    return list(kept), names


def _by_file(names: Sequence[str], labels: Mapping[str, str], what: str) -> tuple[list[int], list[str]]:
    """Every image under the folder of the class that a table gives it."""
    bases = [name.rpartition("/")[2] for name in names]
    keys = [name if name in labels else base.rpartition(".")[0] for name, base in zip(names, bases, strict=True)]
    missing = [base for base, key in zip(bases, keys, strict=True) if key not in labels]
    if missing:
        raise ValueError(
            f"labels= says nothing of {len(missing)} of the {len(names)} images of {escaped(what)} "
            f"({listed(missing, 3)}); it must name every file"
        )
    return list(range(len(names))), [f"{labels[key]}/{base}" for base, key in zip(bases, keys, strict=True)]


def read_map(given: Any) -> dict[str, int] | None:
    """{name: label} of a file of lines `n01440764/n01440764_10026.JPEG<TAB>0`, as Swin's `train_map.txt`.

    None for what is no such file.

    Raises:
        ValueError: lines of other kinds after such a line.
    """
    if not isinstance(given, str | os.PathLike) or not os.fspath(given).lower().endswith(".txt"):
        return None
    found: dict[str, int] = {}
    with open(os.path.expanduser(given), encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            name, tab, label = line.rstrip("\r\n").rpartition("\t")
            if not tab or not re.fullmatch(r"\d{1,9}", label):
                if not found and line.strip():
                    return None
                if line.strip():
                    raise ValueError(
                        f"labels={os.fspath(given)!r}: line {number} is {line.strip()!r}: must be name, tab, number"
                    )
                continue
            found[name.removeprefix("./")] = int(label)
    return found


def of_map(table: Mapping[str, int], classes: Any) -> tuple[list[str], dict[str, str]]:
    """The classes' names in label order, and {name: class}, of what `read_map` gives.

    Without names, labels are called by the folders of their images where these are one to one, else "0", "1", ...

    Raises:
        ValueError: labels for which `classes` has no name.
    """
    names, labels = [*table], [*table.values()]
    order, _ = _numbered(names, labels, None, classes, "labels=")
    return order, {name: order[label] for name, label in table.items()}


def by_content(scans: Sequence[Scanned], what: str, *, classes: Any = "sorted", by_name: bool = True) -> Labelled:
    """Images in the order of the containers, with the labels that these hold besides, or else by folder or key.

    Labels that are numbers stay what they are.

    Args:
        what: the containers, for messages.
        classes: as `SampleIndex.from_webdataset` takes it, an index replaced by its classes.
        by_name: whether folder or key may say the class where the container holds no labels.

    Raises:
        ValueError: images without a label, or labels that `classes` does not name.
    """
    rows = joined(scans)
    names = [rows.names[i] for i in range(len(rows))]
    if not names:
        raise FileNotFoundError(f"no image in {escaped(what)}")
    said: list[str | int | None] = []
    for scan in scans:
        said += scan.about.get("labels") or [None] * len(scan.rows)
    if any(label is not None for label in said) or not by_name:
        ends = {int(end) - 1 for end in np.cumsum([len(scan.rows) for scan in scans])}
        cut = [i for i in ends if said[i] is None and scans[int(rows.array["container"][i])].about.get("cut")]
        rows = _without_label(rows, cut)
    else:
        said = [*(_folders(names, what) if any("/" in name for name in names) else map(class_in_key, names))]
        if None in said:
            flat = [name for name, label in zip(names, said, strict=True) if label is None]
            raise ValueError(
                f"{escaped(what)}: nothing says the class of {len(flat)} of {len(names)} images ({listed(flat, 3)}): "
                "there is no .cls, no folder and no key such as n01440764_10026; give label_key= for a field of .json"
            )
    known = [scan.about[CLASSES_KEY] for scan in scans if scan.about.get(CLASSES_KEY)]
    if other := next((one for one in known if one != known[0]), None):
        raise ValueError(
            f"{escaped(what)}: containers name classes in different orders: {listed(known[0], 3)} and "
            f"{listed(other, 3)}; read them one by one"
        )
    return labelled(rows, said, what, classes=classes, known=known[0] if known else None)


def labelled(
    rows: Rows, said: Sequence[str | int | None], what: str, *, classes: Any, known: Sequence[str] | None
) -> Labelled:
    """Images with the labels that were said of them.

    Args:
        rows: labels are still missing.
        said: numbers, or names of classes; None for nothing, which only a broken image may have.
        what: they are called together.
        classes: as `SampleIndex.from_webdataset` takes it, an index replaced by its classes.
        known: what numbers are called where that is known.

    Raises:
        ValueError: images without a label, or labels that `classes` does not name.
    """
    names = [rows.names[i] for i in range(len(rows))]
    lacking = [i for i, label in enumerate(said) if label is None and i not in rows.reasons]
    if lacking:
        raise ValueError(
            f"{escaped(what)}: {len(lacking)} of {len(names)} images have no label "
            f"({listed([names[i] for i in lacking], 3)}); give label_key=, or leave them out"
        )
    plain = [bool(_NUMBER.fullmatch(str(label))) for label in said if label is not None]
    if any(plain) and not all(plain):
        odd = next(label for label in said if label is not None and not _NUMBER.fullmatch(str(label)))
        raise ValueError(
            f"{escaped(what)}: label {odd!r} among labels that are numbers: must all be whole numbers from 0 on, or "
            "all names that are no numbers"
        )
    if all(plain):
        order, numbers = _numbered(names, [None if v is None else int(v) for v in said], known, classes, what)
    else:
        found = sorted({str(label) for label in said if label is not None})
        order = list(named(classes, found) or in_order(found, str(classes)))
        number = {name: i for i, name in enumerate(order)}
        if unknown := [name for name in found if name not in number]:
            raise _unknown(what, unknown)
        _say_lost(what, order, found)
        numbers = [number.get(str(label), 0) for label in said]
    array = rows.array.copy()
    array["label"] = numbers
    return Labelled(Rows(array, rows.names, rows.reasons), tuple(order))


def _without_label(rows: Rows, lost: Sequence[int]) -> Rows:
    """Some of them broken, because their labels were cut off."""
    array, reasons = rows.array.copy(), dict(rows.reasons)
    for i in lost:
        reasons.setdefault(i, "its label is missing: the container was cut short")
        array[i] = (array["offset"][i], array["size"][i], array["container"][i], 0, 0, 0, 0, 0, True, 0)
    return Rows(array, rows.names, reasons)


def _folders(names: list[str], what: str) -> list[str | None]:
    """The class folder of each."""
    labels: list[str | None] = [None] * len(names)
    for i, name in zip(*_below(range(len(names)), names, what, None, None), strict=True):
        labels[i] = name.partition("/")[0]
    return labels


def class_in_key(name: str) -> str | None:
    """What stands before the number of a key, as in n01440764_10026."""
    found = _KEYED.fullmatch(name.partition(".")[0])
    return found[1] if found else None


def _numbered(
    names: Sequence[str], labels: Sequence[int | None], known: Sequence[str] | None, classes: Any, what: str
) -> tuple[list[str], list[int]]:
    """The classes' names and numbers where labels are numbers already."""
    top = max((label for label in labels if label is not None), default=0)
    if known is not None and top >= len(known):
        raise ValueError(f"{escaped(what)} holds label {top}, but names for {len(known)} classes only")
    if known is None and top >= _MOST_CLASSES and named(classes, []) is None:
        raise ValueError(
            f"{escaped(what)} holds label {top}: that many classes are numbers of something else; give label_key=, or "
            "classes= with their names"
        )
    # Names of classes that a container gives need be no names of folders.
    chosen = known if known is not None and sequence(classes) == tuple(known) else named(classes, known or [])
    if chosen is not None and known is not None:  # another order of the same names
        number = {name: i for i, name in enumerate(chosen)}
        if unknown := [known[v] for v in sorted({v for v in labels if v is not None}) if known[v] not in number]:
            raise _unknown(what, unknown)
        return list(chosen), [0 if v is None else number[known[v]] for v in labels]
    if chosen is None and classes == "natural":
        raise wrong("classes", classes, "'sorted' or names here, where labels are numbers already")
    order = list(chosen if chosen is not None else known or _named_by_folder(names, labels) or map(str, range(top + 1)))
    if top >= len(order):
        raise ValueError(
            f"{escaped(what)} holds label {top}, but there are names for {len(order)} classes: labels count from 0"
        )
    return order, [0 if v is None else v for v in labels]


def _named_by_folder(names: Sequence[str], labels: Sequence[int | None]) -> list[str] | None:
    """Where each label is one folder and each folder one label, without a gap, the folders are the classes."""
    found: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        folder, slash, _ = name.partition("/")
        if label is None or not slash or found.setdefault(label, folder) != folder:
            return None
    if len({*found.values()}) < len(found) or {*found} != {*range(len(found))}:
        return None
    return [found[i] for i in range(len(found))]


def classes_of(order: Any) -> Any:
    """`classes` as given, an index or a loader replaced by its class names."""
    order = getattr(order, "dataset", order)
    names = getattr(order, "classes", None)
    return names if isinstance(names, tuple) and not isinstance(order, str | os.PathLike) else order
