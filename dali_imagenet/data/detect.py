"""What kind of data somebody has given, as the name of the constructor of `SampleIndex` that reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dali_imagenet.data.container import FileReader
from dali_imagenet.data.labels import class_in_key
from dali_imagenet.data.layout import folder_path, is_dir, is_junk, is_split
from dali_imagenet.data.places import expand, expand_braces, is_url, public
from dali_imagenet.data.scan import ahead
from dali_imagenet.data.tar import is_image, tar_members
from dali_imagenet.data.tfrecord import SHARD
from dali_imagenet.escape import either, escaped
from dali_imagenet.formats import IMG_EXTENSIONS
from dali_imagenet.validation import wrong

_SUFFIXES = {
    ".tar": "from_tar",
    ".zip": "from_zip",
    ".parquet": "from_parquet",
    ".arrow": "from_huggingface",
    ".csv": "from_manifest",
    ".jsonl": "from_manifest",
}
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MEMBERS = 1024  # of a tar that are looked at
_WHAT = (
    "a folder of images, tars, zips, TFRecords or Parquet files, such a file or a list of them, a manifest "
    "(.csv, .jsonl), [(path, label), ...], a Dataset, or a SampleIndex"
)


def constructor_of(data: Any) -> str:
    """The name of the constructor of `SampleIndex` that reads it.

    Raises:
        FileNotFoundError: nothing there.
        TypeError: what is no data at all.
        ValueError: several or none of them fit.
    """
    if isinstance(data, str | os.PathLike):
        return _of_place(data)
    if isinstance(data, list | tuple):
        return _of_list(data)
    if data is None or isinstance(data, bytes | bytearray | int | float):
        raise wrong("data", data, _WHAT)
    home = type(data).__module__.partition(".")[0]
    if home == "datasets":
        return "from_huggingface"
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return "from_samples" if _lists_its_files(data) else "from_dataset"
    raise TypeError(f"data={type(data).__name__}: must be {_WHAT}")


def _of_list(data: Sequence[Any]) -> str:
    if not data:
        raise wrong("data", data, "at least one file")
    if all(isinstance(one, str | os.PathLike) for one in data):
        kinds = {_of_place(one) for one in (data[0], data[-1])} | {_of_name(os.fspath(one)) for one in data[1:-1]}
        kinds.discard(None)
        # the first and the last say whether they are a WebDataset
        kinds -= {"from_tar"} if "from_webdataset" in kinds else set()
        if len(kinds) != 1:
            raise ValueError(f"data: a list of several kinds of files ({', '.join(sorted(map(str, kinds)))})")
        return str(kinds.pop())
    if all(isinstance(one, Sequence) and len(one) == 2 for one in data[:100]):
        return "from_samples"
    raise wrong("data", data[:3], "a list of paths, or of (path, label)")


def _lists_its_files(data: Any) -> bool:
    """A dataset of torchvision's or timm's, or a part of one, which knows the files that it would read."""
    inner = data
    while type(inner).__module__.startswith("torch.utils.data") and hasattr(inner, "dataset"):
        inner = inner.dataset
    if type(inner).__module__.partition(".")[0] == "datasets":
        return False
    return hasattr(inner, "samples") or hasattr(getattr(inner, "reader", None), "samples")


def _of_place(data: str | os.PathLike[str]) -> str:
    text = os.fspath(data)
    if not isinstance(text, str) or not text:
        raise wrong("data", data, _WHAT)
    if is_url(text):
        return _of_url(text)
    path = folder_path("data", data)
    if os.path.isdir(path):
        return _of_folder(path)
    first = path if os.path.lexists(path) else expand(path, ())[0] if "*" in path else expand_braces(path)[0]
    if not os.path.exists(first):
        raise FileNotFoundError(
            f"data {first!r} does not exist; give the folder that holds one folder a class, or {_WHAT}"
        )
    kind = _of_name(first)
    if kind == "from_tar":
        return _of_tars([first] if first == path else expand_braces(path), first == path)
    if is_image(first):
        raise NotADirectoryError(f"{first!r} is not a folder; give the folder that holds one folder a class")
    if kind is None:
        raise ValueError(f"{first!r} is a file of no kind that is known by its name; give {_WHAT}")
    return kind


def _of_url(url: str) -> str:
    place = expand_braces(url.partition("?")[0])[0]
    if place.startswith("hf://"):
        return "from_parquet"
    kind = _of_name(place)
    if kind is None:
        raise ValueError(
            f"{escaped(public(place))}: what lies there cannot be listed; give the shards, as {{000..127}}.tar"
        )
    return "from_webdataset" if kind == "from_tar" and place != url.partition("?")[0] else kind


def _of_name(name: str) -> str | None:
    """By the name of a file."""
    base = name.lower().rpartition("/")[2]
    if base.endswith(_PACKED):
        raise ValueError(
            f"{escaped(public(name))} is compressed: no image in it can be read alone; unpack it once (gunzip and the "
            "like: a .tar is read as it is)"
        )
    return _SUFFIXES.get(os.path.splitext(base)[1]) or ("from_tfrecord" if SHARD.search(base) else None)


def _of_folder(path: str) -> str:
    found: dict[str, list[str]] = {}
    folders = images = 0
    with os.scandir(path) as entries:
        for entry in entries:
            if is_junk(entry.name) or entry.name.endswith(".dali-index"):
                continue
            if is_dir(entry):
                folders += 1
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                images += 1
            else:
                name = entry.name
                if name in ("state.json", "dataset_dict.json"):
                    found["from_huggingface"] = [name]
                elif name == "data.mdb":
                    raise ValueError(f"{path!r} is an LMDB: wrap it in a dataset of yours and give that (from_dataset)")
                elif (kind := _kind_within(name)) is not None:
                    found.setdefault(kind, []).append(name)
    if "from_huggingface" in found:
        return "from_huggingface"
    if not found and _holds(path, "data", ".parquet"):
        return "from_parquet"
    if folders and is_split(path):  # the tars that it came out of may lie there, too
        return "from_folder"
    if found and (folders or images or len(found) > 1):
        others = ["from_folder"] if folders or images else []
        raise ValueError(
            f"{path!r} holds several kinds of data; say which with SampleIndex.{either(sorted([*found, *others]))}, or "
            "give the one that is meant"
        )
    if "from_tar" in found:
        return _of_tars([os.path.join(path, name) for name in sorted(found["from_tar"])], False)
    return next(iter(found), "from_folder")


def _kind_within(name: str) -> str | None:
    """By the name of a file of a folder; tables and packed files may lie there besides the data."""
    if name.lower().endswith((*_PACKED, ".csv", ".jsonl")):
        return None
    return _of_name(name)


def _holds(path: str, folder: str, suffix: str) -> bool:
    inner = os.path.join(path, folder)
    return os.path.isdir(inner) and any(name.endswith(suffix) for name in os.listdir(inner))


def _of_tars(paths: Sequence[str], alone: bool) -> str:
    """WebDataset's shards have labels beside the images, keys that say the class, or folders and numbers."""
    names = _members(paths[0]) + (_members(paths[-1]) if len(paths) > 1 else [])
    if any(name.lower().endswith((".cls", ".json")) for name in names):
        return "from_webdataset"
    images = [name for name in names if is_image(name)]
    flat = [name for name in images if "/" not in name]
    numbered = not alone and all(re.search(r"\d{3,}\.tar$", path, re.IGNORECASE) for path in paths)
    if not flat:
        return "from_webdataset" if images and numbered else "from_tar"
    keys = {class_in_key(name) for name in flat}
    if None not in keys and not keys <= {os.path.splitext(os.path.basename(path))[0] for path in paths}:
        return "from_webdataset"
    if numbered and None in keys:
        raise ValueError(
            f"{escaped(paths[0])} and its like hold images without folders or labels: SampleIndex.from_tar takes each "
            "tar for a class, SampleIndex.from_webdataset needs label_key= or .cls beside the images; say which"
        )
    return "from_tar"


def _members(path: str) -> list[str]:
    """The names of the first members of a tar."""
    reader = FileReader(path)
    try:
        return [m.name for m in _first(tar_members(ahead(reader.read), path, 0, reader.container.size))]
    finally:
        reader.close()


def _first(members: Iterable[Any]) -> Iterable[Any]:
    for member, _ in zip(members, range(_MEMBERS), strict=False):
        yield member
