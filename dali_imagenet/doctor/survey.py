"""What the data are, without an index: at most 2,000 images are looked at."""

from __future__ import annotations

import collections
import os
import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dali_imagenet import trial
from dali_imagenet.data.detect import constructor_of
from dali_imagenet.data.headers import Limits
from dali_imagenet.data.imagenet import within_kaggle
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.data.index_cache import cache_file, load_cache
from dali_imagenet.data.layout import flat_part, folder_path, is_junk, is_split, resolve_split
from dali_imagenet.escape import escaped, printable
from dali_imagenet.formats import FORMATS, IMG_EXTENSIONS, MAX_BYTES, MAX_PIXELS
from dali_imagenet.machine import Unknown, known

LOOKED_AT = 2000
_PIXELS_READ = 200  # files whose subsampling is looked at
# Images of ImageNet-1k's parts (ILSVRC2012): all of them, and of the smallest and the largest class.
_IMAGENET = {"training": (1_281_167, 732, 1300), "validation": (50_000, 50, 50)}


class Survey(NamedTuple):
    facts: dict[str, Any]
    samples: list[tuple[str, int]] | None
    """Some of the images, evenly chosen, for a trial; None where they are no files of their own."""
    local: list[str]
    """Local files that hold some of them."""


def survey(data: str, options: dict[str, Any], seconds: float) -> Survey:
    """Look at the data for about so long.

    Raises:
        OSError, ValueError, TypeError, RuntimeError, ImportError: as `SampleIndex.open` does.
        Unknown: they have no index, and it takes longer to make one.
    """
    kind = constructor_of(data)
    if kind == "from_folder" and "labels" not in options:
        top = within_kaggle(folder_path("data", data))
        split = options.get("split") or ("train" if is_split(top) else None)
        if flat_part(top, split) is None:
            return _of_folder(resolve_split(top, split)[0], seconds)
    why = trial.open_for_the_first_time(data, options, limit=seconds)
    if why:
        raise Unknown(f"an index takes longer than there is time for ({why}): run dali-imagenet index first")
    return _of_index(kind, SampleIndex.open(data, progress=False, default_split="train", **options))


def _of_folder(root: str, seconds: float) -> Survey:
    files, counts, complete = _listing(root, seconds)
    if not files:
        raise FileNotFoundError("no image in it")
    chosen = [files[i] for i in _evenly(len(files), LOOKED_AT)]
    facts: dict[str, Any] = {
        "kind": "from_folder",
        "images": len(files),
        "complete": complete,
        "classes": len(counts),
        "images_a_class": _spread(np.array([*counts.values()])),
    }
    if (
        files
        and (file := cache_file(root, Limits(MAX_PIXELS, MAX_BYTES), None))
        and (table := load_cache(file, MAX_PIXELS))
    ):
        facts |= {"looked_at": len(table.found_stamp), "read_from": "the index that is remembered"}
        facts |= _of_columns(table.columns)
        facts["reasons"] = [printable(reason) for reason in list(table.reasons.values())[:3]]
    else:
        index = SampleIndex.from_samples(chosen, root=root, cache=False, progress=False)
        facts |= {
            "looked_at": len(index),
            "read_from": "the headers of a sample" if len(index) < len(files) else "all headers",
        }
        facts |= _of_columns({name: getattr(index, name) for name in _COLUMNS})
        facts["reasons"] = [printable(str(index.reason(int(i)))) for i in index.broken.nonzero()[0][:3]]
    paths = [path for path, _ in chosen]
    facts["jpegs"] = known(lambda: _subsampling([paths[i] for i in _evenly(len(paths), _PIXELS_READ)]))
    facts["plausibility"] = plausible([*counts], len(files), [*counts.values()], complete)
    return Survey(facts, chosen, [paths[i] for i in _evenly(len(paths), 64)])


def _of_index(kind: str, index: SampleIndex) -> Survey:
    counts = np.bincount(index.labels, minlength=len(index.classes))
    facts: dict[str, Any] = {
        "kind": kind,
        "images": len(index),
        "complete": True,
        "classes": len(index.classes),
        "images_a_class": _spread(counts),
        "looked_at": len(index),
        "read_from": "its index",
        **_of_columns({name: getattr(index, name) for name in _COLUMNS}),
        "reasons": [printable(str(index.reason(int(i)))) for i in index.broken.nonzero()[0][:3]],
        "plausibility": plausible(list(index.classes), len(index), counts.tolist(), True),
    }
    places = [index.source.local_path(i) for i in _evenly(len(index), 64)]
    local = [os.fsdecode(place) for place in places if place is not None]
    facts["jpegs"] = known(lambda: _subsampling(local)) if local else {"unknown": "they are no files of their own"}
    index.source.close()
    return Survey(facts, None, local)


def _listing(root: str, seconds: float) -> tuple[list[tuple[str, int]], dict[str, int], bool]:
    """(path, label) of the images, how many each class has, and whether there was time for all of them."""
    end = time.perf_counter() + seconds
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name))
    files: list[tuple[str, int]] = []
    counts: dict[str, int] = {}
    for label, name in enumerate(classes):
        before = len(files)
        for folder, _, names in os.walk(os.path.join(root, name)):
            images = sorted(n for n in names if n.lower().endswith(IMG_EXTENSIONS) and not n.startswith("._"))
            files += ((os.path.join(folder, image), label) for image in images)
            if time.perf_counter() > end:
                return files, counts | {name: len(files) - before}, False
        counts[name] = len(files) - before
    return files, counts, True


_COLUMNS = ("height", "width", "components", "format", "broken", "file_size")


def _of_columns(columns: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    fine = ~columns["broken"]
    formats = collections.Counter(columns["format"][fine].tolist())
    return {
        "broken": int(columns["broken"].sum()),
        "formats": {FORMATS[number]: count for number, count in formats.most_common()},
        "gray": int((columns["components"][fine] == 1).sum()),
        "width": _spread(columns["width"][fine]),
        "height": _spread(columns["height"][fine]),
        "bytes": _spread(columns["file_size"][fine]),
    }


def _spread(values: npt.NDArray[Any]) -> dict[str, int]:
    if not len(values):
        return {}
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def _evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist() if count else []


def _subsampling(files: list[str]) -> dict[str, int]:
    """How many of these files are JPEGs of which kind."""
    from PIL import Image

    found: collections.Counter[str] = collections.Counter()
    for file in files:
        try:
            with Image.open(file, formats=["JPEG"]) as image:
                layers: Any = getattr(image, "layer", [])
                ratio = [(h, v) for _, h, v, _ in layers]
                kind = _NAMES.get(
                    tuple(ratio[0]) if len(ratio) == 3 else (0, 0), "gray" if len(ratio) == 1 else "other"
                )
                found[kind + (" progressive" if image.info.get("progressive") else "")] += 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            found["no JPEG"] += 1
    return dict(found.most_common())


_NAMES = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}


def plausible(classes: list[str], images: int, counts: list[int], complete: bool) -> list[str]:
    """What is striking, in words."""
    if not complete:
        return [f"there was time to list {images:,} images only; nothing is said of the rest"]
    said = []
    wnids = sum(name[:1] == "n" and name[1:].isdecimal() and len(name) == 9 for name in classes)
    if wnids == len(classes) == 1000:
        part = min(_IMAGENET, key=lambda name: abs(_IMAGENET[name][0] - images))
        whole, least, most = _IMAGENET[part]
        if (images, min(counts), max(counts)) == (whole, least, most):
            said.append(f"the counts are those of ImageNet-1k's {part} part")
        elif abs(images - whole) < whole / 10:
            said.append(
                f"ImageNet-1k's {part} part has {whole:,} images, these are {images:,}: the download may be cut"
            )
        else:
            said.append(f"1,000 classes named as ImageNet-1k's, but {images:,} images: a part of it")
    elif wnids == len(classes) and len(classes) > 1:
        said.append(f"classes named as ImageNet's, {len(classes)} of its 1,000")
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        said.append(f"{len(empty)} classes without an image, such as {escaped(empty[0])}")
    few, many = min(counts), max(counts)
    if few and many > 10 * few:
        said.append(f"classes are uneven: from {few:,} to {many:,} images; see create_loader(weights=)")
    if len(classes) == 1:
        said.append("there is one class only: is this folder a class itself, or a part (train, val)?")
    return said or ["nothing is striking"]
