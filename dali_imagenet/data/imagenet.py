"""What says the classes of ImageNet's validation images, as it is downloaded: the devkit, or Kaggle's table."""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from dali_imagenet.escape import escaped, listed
from dali_imagenet.formats import IMG_EXTENSIONS
from dali_imagenet.validation import wrong

SOLUTION = "LOC_val_solution.csv"
"""Kaggle's table of the validation images."""
_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_WNID = re.compile(r"n\d{8}")
_IMAGES = "ILSVRC2012_val_{:08d}"


def read_labels(given: Any) -> dict[str, str] | None:
    """{name of a file without its extension: class}, of what `labels` of `SampleIndex.from_tar` may be.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the devkit needs scipy.
        ValueError: nothing of the kind.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        if bad := next(
            (item for item in given.items() if not all(isinstance(part, str) and part for part in item)), None
        ):
            raise wrong("labels", bad, "{name of a file without its extension: class}")
        return dict(given)
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise wrong("labels", given, "ImageNet's devkit, Kaggle's LOC_val_solution.csv, or {file: class}")
    path = os.path.expanduser(os.fspath(given))
    if not os.path.exists(path):
        raise FileNotFoundError(f"labels={path!r} does not exist")
    if os.path.isdir(path):
        return _devkit(path, _of_folder(path))
    if path.lower().endswith(".csv"):
        return _kaggle(path)
    if tarfile.is_tarfile(path):
        return _devkit(path, _of_tar(path))
    if os.path.basename(path) == _TRUTH:
        raise ValueError(
            f"labels={path!r} counts classes by ILSVRC2012_ID, not in the order of their names, and only the devkit "
            "says which is which: give the devkit (ILSVRC2012_devkit_t12.tar.gz, or its folder)"
        )
    raise wrong(
        "labels", path, "ImageNet's devkit (ILSVRC2012_devkit_t12.tar.gz, or its folder) or LOC_val_solution.csv"
    )


def _of_folder(path: str) -> dict[str, bytes]:
    found = {}
    for folder, _, files in os.walk(path):
        for name in {_META, _TRUTH} & {*files}:
            with open(os.path.join(folder, name), "rb") as file:
                found[name] = file.read()
    return found


def _of_tar(path: str) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in (_META, _TRUTH) and (file := archive.extractfile(member)) is not None:
                found[name] = file.read()
    return found


def _devkit(path: str, files: Mapping[str, bytes]) -> dict[str, str]:
    """The ground truth is one ILSVRC2012_ID a line; `meta.mat` says which class has which."""
    if missing := {_META, _TRUTH} - files.keys():
        raise ValueError(
            f"labels={path!r} holds no {' and no '.join(sorted(missing))}: it is not the devkit of ILSVRC2012"
        )
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f"labels={path!r}: the devkit's {_META} is read with scipy: pip install dali-imagenet[imagenet], "
            "or give Kaggle's LOC_val_solution.csv"
        ) from error
    try:
        synsets = loadmat(io.BytesIO(files[_META]), squeeze_me=True, chars_as_strings=True)["synsets"]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if not int(s["num_children"])}
        return _named(wnids[int(line)] for line in files[_TRUTH].split())
    except (KeyError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        raise ValueError(f"labels={path!r}: the devkit's files do not fit: {type(error).__name__}: {error}") from error


def _named(wnids: Iterable[str]) -> dict[str, str]:
    return {_IMAGES.format(i): wnid for i, wnid in enumerate(wnids, 1)}


def _kaggle(path: str) -> dict[str, str]:
    """ImageId, PredictionString: a class and its box, for each object; the image's class is the first."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if not {"ImageId", "PredictionString"} <= {*(table.fieldnames or ())}:
            raise ValueError(
                f"labels={path!r} has columns {table.fieldnames}: must be Kaggle's, ImageId and PredictionString"
            )
        found = {row["ImageId"]: (row["PredictionString"] or "").split(" ")[0] for row in table}
    bad = next((image for image, wnid in found.items() if not _WNID.fullmatch(wnid)), None)
    if bad is not None:
        raise ValueError(f"labels={path!r}: image {escaped(bad)} has no class such as n01440764")
    return found


def within_kaggle(folder: str) -> str:
    """The folder that holds train/ and val/, where this is the top of ImageNet as Kaggle gives it, else this one."""
    for skipped in range(len(_KAGGLE)):
        inner = os.path.join(folder, *_KAGGLE[skipped:])
        if os.path.isdir(inner) and os.path.isdir(os.path.join(inner, "train")):
            return inner
    return folder


def solution_of(folder: str) -> str | None:
    """Kaggle's table for a flat folder of validation images: in it, beside it, or where Kaggle has it."""
    above = [folder, os.path.dirname(folder)]
    if above[1].endswith(os.path.join(*_KAGGLE)):
        above.append(above[1].removesuffix(os.path.join(*_KAGGLE)))
    return next((file for one in above if os.path.isfile(file := os.path.join(one, SOLUTION))), None)


def flat_files(folder: str, table: Mapping[str, str]) -> list[tuple[str, str]]:
    """(class, file) of each image that lies in the folder itself, in the order that an ImageFolder of them has.

    Raises:
        ValueError: the table does not name them all.
    """
    with os.scandir(folder) as entries:
        files = [e.name for e in entries if e.name.lower().endswith(IMG_EXTENSIONS) and not e.name.startswith("._")]
    missing = sorted(name for name in files if name.rpartition(".")[0] not in table)
    if missing:
        raise ValueError(
            f"labels= says nothing of {len(missing)} of the {len(files)} images of {escaped(folder)} "
            f"({listed(missing, 3)}); it must name every file"
        )
    return sorted((table[name.rpartition(".")[0]], name) for name in files)
