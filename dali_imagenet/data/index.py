"""N encoded images: where they are, their labels, sizes and health.

A folder tree is listed at every start; the header and the end marker of each image are read once and remembered. One
process of a machine does that, the others map what it has written.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt

from dali_imagenet.cache import cache_folder
from dali_imagenet.data import algebra, huggingface, lists, parquet, tfrecord
from dali_imagenet.data import labels as labelling
from dali_imagenet.data.arrow import Arrow
from dali_imagenet.data.detect import constructor_of
from dali_imagenet.data.files import as_sizes, read_files, stat_files
from dali_imagenet.data.folder import FileSource, list_tree
from dali_imagenet.data.headers import Limits
from dali_imagenet.data.imagenet import flat_files, read_labels, solution_of, within_kaggle
from dali_imagenet.data.layout import find_classes, flat_part, folder_path, in_order, is_split, named, resolve_split
from dali_imagenet.data.names import Names
from dali_imagenet.data.places import expand, expand_split, expand_tars, is_url, public
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.data.remote import locate
from dali_imagenet.data.rows import NO_FILE, Array, Rows, new_rows
from dali_imagenet.data.scan import Found, Kind, LocalStorage, Scanned, ScanOptions, scan_containers, write_beside
from dali_imagenet.data.shared import Made, key_of, shared
from dali_imagenet.data.source import Source
from dali_imagenet.data.tar import Tar
from dali_imagenet.data.zip import Zip
from dali_imagenet.escape import escaped, listed
from dali_imagenet.formats import MAX_BYTES, MAX_PIXELS
from dali_imagenet.validation import boolean, number_of_bytes, real, sequence, whole, wrong

logger = logging.getLogger("dali_imagenet")


@dataclass(frozen=True, slots=True)
class Scan:
    """What building the index took: `files` listed, of which `read` were opened and `cached` came from the cache."""

    files: int
    read: int
    cached: int
    seconds: float

    @property
    def files_per_second(self) -> float:
        return self.files / self.seconds if self.seconds > 0 else 0.0


class HasIndex(Protocol):
    """A `Loader`."""

    @property
    def dataset(self) -> SampleIndex: ...


class IndexOptions(TypedDict, total=False):
    """How an index is made; what every constructor of `SampleIndex` takes.

    Attributes:
        num_threads: threads that list and read; None for four a core, 32 at most.
        progress: show a progress bar on standard error where that is a terminal. Default: True.
        cache: remember what was read. A cache that cannot be read or written costs time, never the run. Default: True.
        cache_dir: where; None for `$DALI_IMAGENET_CACHE`, else the user's cache folder.
        max_pixels: height * width above which an image counts as broken and is never decoded, None for no limit.
            Beyond the default (178,956,970), Pillow's own `Image.MAX_IMAGE_PIXELS` must be raised too.
        max_bytes: size above which a file counts as broken and is never read, besides 12 bytes for each pixel that its
            header claims; None for no limit. Default: 64 MiB. With `max_pixels` it bounds the memory that an image may
            take.
        storage_options: for data in object storage or on a web server: the keyword arguments of obstore's store, as
            `{"region": "eu-west-1", "skip_signature": True}`. What they leave out, obstore finds as the provider's
            own tools do. See docs/remote.md.
        local_cache: a folder on a local disk in which remote data are kept once they were read. None: nothing is.
        local_cache_size: bytes that it may take, or "200GB". None: as much as the data are.
        write_index: write what was found beside each container, as `<name>.dali-index`, where whoever opens it next
            finds it. Default: False.
    """

    num_threads: int | None
    progress: bool
    cache: bool
    cache_dir: str | os.PathLike[str] | None
    max_pixels: int | None
    max_bytes: int | None
    storage_options: Mapping[str, Any] | None
    local_cache: str | os.PathLike[str] | None
    local_cache_size: int | str | None
    write_index: bool


def scan_options(
    *,
    num_threads: int | None = None,
    progress: bool = True,
    cache: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    max_pixels: int | None = MAX_PIXELS,
    max_bytes: int | None = MAX_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    local_cache: str | os.PathLike[str] | None = None,
    local_cache_size: int | str | None = None,
    write_index: bool = False,
) -> ScanOptions:
    """`IndexOptions`, checked and filled up.

    Raises:
        ValueError: one is out of range.
    """
    if num_threads is None:
        num_threads = min(32, 4 * (os.cpu_count() or 1))
    num_threads = whole("num_threads", num_threads, 1)
    if max_pixels is not None:
        max_pixels = whole("max_pixels", max_pixels, 1)
    if max_bytes is not None:
        max_bytes = whole("max_bytes", max_bytes, 1)
    if storage_options is not None and not (
        isinstance(storage_options, Mapping) and all(isinstance(name, str) for name in storage_options)
    ):  # what it holds is not shown: it may be a password
        raise ValueError(f"storage_options is a {type(storage_options).__name__}: must be a dict of obstore's options")
    if local_cache_size is not None:
        local_cache_size = number_of_bytes("local_cache_size", local_cache_size)
        if local_cache is None:
            raise wrong("local_cache_size", local_cache_size, "given with local_cache, a folder")
    limits = Limits(max_pixels, max_bytes)
    return ScanOptions(
        num_threads, progress, cache, cache_dir, limits, storage_options, local_cache, local_cache_size,
        boolean("write_index", write_index),
    )  # fmt: skip


class Samples(Sequence[tuple[str, int]]):
    """`ImageFolder.samples`: (path, label) pairs, made when asked for."""

    __slots__ = ("_index",)

    def __init__(self, index: SampleIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, i: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, i: slice) -> list[tuple[str, int]]: ...
    def __getitem__(self, i: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return self._index.path(i), int(self._index.labels[i])


class Folds(Sequence[tuple["SampleIndex", "SampleIndex"]]):
    """(training, evaluation) for each of k folds, made when asked for: see `SampleIndex.folds`."""

    __slots__ = ("_fold", "_index", "_k")

    def __init__(self, index: SampleIndex, fold: npt.NDArray[np.int32], k: int) -> None:
        self._index, self._fold, self._k = index, fold, k

    def __len__(self) -> int:
        return self._k

    @overload
    def __getitem__(self, i: int) -> tuple[SampleIndex, SampleIndex]: ...
    @overload
    def __getitem__(self, i: slice) -> list[tuple[SampleIndex, SampleIndex]]: ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self._k))]
        if not -self._k <= i < self._k:
            raise IndexError(f"fold {i} of {self._k}")
        inside = self._fold == i % self._k
        return self._index.subset(~inside), self._index.subset(inside)


@dataclass(frozen=True, eq=False, repr=False)
class SampleIndex:
    """N encoded images: where they are, their labels, sizes and health. Made by one of the `from_...`.

    The arrays that it has are read-only. Processes that are given it share its memory where it could be written to a
    file.

    Attributes:
        root: the absolute folder that the paths are relative to, or what the containers are called together.
        classes: class names in label order.
        source: where the encoded bytes come from.
        scan: how many files were listed, read and taken from the cache, and how fast.
        rows: what is known of each image, and what it is called.
    """

    root: str
    classes: tuple[str, ...]
    scan: Scan
    source: Source
    rows: Rows
    _fingerprint: str | None = None
    _cache_dir: str | os.PathLike[str] | Literal[False] | None = None

    @property
    def cache_folder(self) -> Path | None:
        """Where what took time is remembered of these images; None where nothing shall (`cache=False`) or can be."""
        return None if self._cache_dir is False else cache_folder(self._cache_dir)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [N], 0 <= label < len(classes)."""
        return _read_only(self.rows.array["label"].astype(np.int64))

    @property
    def height(self) -> npt.NDArray[np.int32]:
        """int32 [N], pixels as stored (EXIF orientation is not applied); 0 where broken."""
        return self.rows.array["height"]

    @property
    def width(self) -> npt.NDArray[np.int32]:
        """int32 [N], as `height`."""
        return self.rows.array["width"]

    @property
    def components(self) -> npt.NDArray[np.uint8]:
        """uint8 [N], colour components of a JPEG (1, 3 or 4); 0 for other formats and where broken."""
        return self.rows.array["components"]

    @property
    def format(self) -> npt.NDArray[np.uint8]:
        """uint8 [N], position in `FORMATS`; 0 where broken."""
        return self.rows.array["format"]

    @property
    def broken(self) -> npt.NDArray[np.bool_]:
        """bool [N], True where the image cannot be decoded; `reason(i)` says why."""
        return self.rows.array["broken"]

    @cached_property
    def file_size(self) -> npt.NDArray[np.int64]:
        """int64 [N], bytes of each file, 4 GiB at most; -1 where there is no regular file, 0 where it is not known."""
        sizes = self.rows.array["size"].astype(np.int64)
        sizes[sizes == NO_FILE] = -1
        return _read_only(sizes)

    @classmethod
    def open(
        cls,
        data: Any,
        *,
        split: str | None = None,
        classes: Classes | None = None,
        labels: Labels = None,
        default_split: str | None = None,
        **options: Any,
    ) -> SampleIndex:
        """Index whatever it is: finds out which of the constructors reads it, and says so in the log.

        Args:
            data: a folder of images, tars, zips, TFRecords or Parquet files; such a file, or a list of them; a
                manifest; [(path, label), ...]; a Dataset; or an index, which is given back.
            split: see the constructor.
            classes: see the constructor; None: its default.
            labels: see the constructor.
            default_split: the part that is read where the data have train/, val/ and the like, and `split` is None.
            options: what else the constructor takes.

        Raises:
            FileNotFoundError: nothing there.
            TypeError: an option that the constructor does not take.
            ValueError: several or none of the constructors fit, or what that one raises.
        """
        if isinstance(data, SampleIndex):
            for name, value in {"split": split, "classes": classes, "labels": labels, **options}.items():
                if value is not None:
                    raise wrong(name, value, "None where data is a SampleIndex: give it to what makes the index")
            return data
        name = constructor_of(data)
        make = getattr(cls, name)
        given = {"split": split, "classes": classes, "labels": labels, **options}
        given = {key: value for key, value in given.items() if value is not None}
        takes = {*inspect.signature(make).parameters}
        takes |= {*IndexOptions.__annotations__} if "options" in takes else set()
        if unknown := sorted(given.keys() - takes):
            listed_options = ", ".join(sorted(takes - {"data", "root", "options", "default_split"}))
            raise TypeError(f"SampleIndex.{name} has no option {unknown[0]!r}: it takes {listed_options}")
        if name == "from_folder" and split is None and is_split(within_kaggle(folder_path("data", data))):
            given["split"] = default_split
        elif "default_split" in takes:
            given["default_split"] = default_split
        what = public(os.fspath(data)) if isinstance(data, str | os.PathLike) else f"a {type(data).__name__}"
        logger.info("SampleIndex.%s reads %s", name, escaped(what))
        index: SampleIndex = make(data, **given)
        return index

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike[str],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        labels: Labels = None,
        num_threads: int | None = None,
        progress: bool = True,
        cache: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        max_bytes: int | None = MAX_BYTES,
    ) -> SampleIndex:
        """Index an ImageFolder tree: `root/<class>/**/<image>`, in the order of torchvision's `ImageFolder`.

        Other than there, hidden folders, `._*` files and what systems leave behind (`__MACOSX`, `@eaDir`, `lost+found`
        and the like) are neither classes nor images, unless `classes` names them.

        Args:
            root: the folder, or the top of ImageNet as Kaggle gives it (that holds `ILSVRC/`); `~` and `file://` URLs
                are taken. Links are followed; one that leads back to a folder it
                lies in is left out.
            split: "train" descends into `train/` (or `training/`), "val" into `val/` (`validation/`, `valid/`,
                `eval/`, or `test/` where there is none of them), another name into the subfolder of that name. Where
                there are no such folders, "train" and "val" read root itself. None: root itself, where its subfolders
                look like classes. ".": root itself, with a warning where they do not.
            classes: what number each class has. "sorted": the order of their names as text; "natural": 2 before 10;
                names in label order, or an index or a loader that has them, or the `Path` of a text file with one name
                a line (and perhaps words about it, as ImageNet's `LOC_synset_mapping.txt`): other folders are refused,
                and classes without images keep their number. Where `split` reads an evaluation folder beside a
                training folder, rules are those of the training folder's classes.
            labels: the classes of images that lie in no folder of a class, as ImageNet's validation images are
                downloaded: the devkit (the tar or its folder; needs scipy, `pip install dali-imagenet[imagenet]`),
                Kaggle's `LOC_val_solution.csv`, or {name of a file without its extension: class}. None: that table,
                where it lies in the folder, beside it, or where Kaggle has it. Class folders need none. The index is
                that of the same images sorted into folders, fingerprint included; `classes` are all that are named.
            num_threads: threads that list and read; None for four a core, 32 at most.
            progress: show a progress bar on standard error where that is a terminal.
            cache: remember what was read. A cache that cannot be read or written costs time, never the run.
            cache_dir: where; None for `$DALI_IMAGENET_CACHE`, else the user's cache folder.
            max_pixels: height * width above which an image counts as broken and is never decoded, None for no limit.
                Beyond the default, Pillow's own `Image.MAX_IMAGE_PIXELS` must be raised too.
            max_bytes: size above which a file counts as broken and is never read, besides 12 bytes for each pixel that
                its header claims; None for no limit. With `max_pixels` it bounds the memory that an image may take.

        Raises:
            FileNotFoundError: no such root or split, no class folder in it, or class folders without an image.
            NotADirectoryError: root is a file.
            ValueError: an argument out of range; folders that are probably not the classes, or that `classes` does not
                name.
        """
        options = scan_options(
            num_threads=num_threads,
            progress=progress,
            cache=cache,
            cache_dir=cache_dir,
            max_pixels=max_pixels,
            max_bytes=max_bytes,
        )
        top, table = within_kaggle(folder_path("root", root)), read_labels(labels)
        if os.path.isdir(top) and (flat := flat_part(top, split)) is not None:
            if table is None and (beside := solution_of(flat[0])) is not None:
                logger.info("%s: labels are those of %s", escaped(flat[0]), escaped(beside))
                table = read_labels(beside)
            if table is not None:
                return cls._from_flat(*flat, table, labelling.classes_of(classes), options)
        folder, train = resolve_split(top, split)
        if table is not None:
            raise ValueError(
                f"labels= says the classes of images in no folder, but {folder!r} holds folders: leave it out, or give "
                "the folder of the images"
            )
        ordered = find_classes(folder, labelling.classes_of(classes), train, split)

        def make() -> tuple[Rows, tuple[str, ...], int]:
            found = list_tree(folder, ordered, options.num_threads, progress)
            rows, read = read_files(folder, found, options)
            return rows, ordered.names, read

        key = ["folder", os.fsencode(folder).hex(), ordered.names]
        return cls._made(key, folder, make, options, lambda rows: FileSource(folder, rows), True)

    @classmethod
    def _from_flat(
        cls, folder: str, train: str | None, table: Mapping[str, str], order: Any, options: ScanOptions
    ) -> SampleIndex:
        """An index of a folder of images whose classes a table says."""
        files = flat_files(folder, table)
        every = sorted({*table.values()})
        names = named(order, every) or (find_classes(train, order, None, None).names if train else None)
        names = tuple(names or in_order(every, str(order)))
        number = {name: i for i, name in enumerate(names)}
        if unknown := sorted({name for name, _ in files if name not in number}):
            where = f"which {train!r} does not have" if train else "which classes= does not name"
            raise ValueError(f"labels= gives images of {folder!r} {len(unknown)} class(es) ({listed(unknown)}) {where}")

        def make() -> tuple[Rows, tuple[str, ...], int]:
            labels = np.array([number[name] for name, _ in files], np.int64)
            rows, read = read_files(folder, stat_files(folder, [file for _, file in files], labels, options), options)
            called = Names.of(f"{name}/{file}" for name, file in files)
            return Rows(rows.array, called, rows.reasons), names, read

        key = ["flat", os.fsencode(folder).hex(), names, [name for name, _ in files]]
        return cls._made(key, folder, make, options, lambda rows: FileSource(folder, rows, flat=True), True)

    @classmethod
    def from_tar(
        cls,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        labels: Labels = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index tar archives as if they had been unpacked: the samples, order and fingerprint of that folder.

        Tars within a tar are looked into, as ImageNet's `ILSVRC2012_img_train.tar` has one for each class. Where images
        lie in no folder, the name of the tar that they lie in is their class. Only headers are read, and the archives
        are never written to.

        Args:
            data: an archive, a folder of them, names with numbers in braces (`{000..127}.tar`), or a list; paths, or
                addresses (`s3://`, `gs://`, `az://`, `https://`; docs/remote.md).
            split: which of train/, val/ and the like to read, where the archive has them; ".": none.
            classes: as `from_folder` takes it.
            labels: the classes of images that lie in no folder, as `ILSVRC2012_img_val.tar` has them: ImageNet's devkit
                (the tar or its folder), Kaggle's `LOC_val_solution.csv`, or {name of a file without its extension:
                class}.
            default_split: which of them is read where `split` says nothing and there is more than one.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such archive, or no image in it.
            StorageError: a server or the network fails, or refuses to let this process read.
            ValueError: no tar archives, compressed ones, or images without a class.
        """
        places = expand_tars(data, split, default_split)
        table = read_labels(labels)
        order = labelling.classes_of(classes)
        what = _called(places)

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            prefixes = labelling.archive_prefixes(scans) if table is None else None
            return labelling.by_folder(
                scans, what, classes=order, split=split, default_split=default_split, prefixes=prefixes, labels=table
            )

        key = ["tar", _said(order), split, default_split, table and sorted(table.items())]
        return cls._from_containers(key, what, places, Tar(), label, options)

    @classmethod
    def from_webdataset(
        cls,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        label_key: str | None = None,
        image_key: str | None = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index WebDataset shards, in their order. Any image is read by itself: an epoch is a true permutation.

        Args:
            data: shards: names with numbers in braces (`{000000..001281}.tar`), a folder of them, or a list; paths, or
                addresses (`s3://`, `gs://`, `az://`, `https://`; docs/remote.md).
            split: which shards of a folder: "train", "val" or another part of their names; ".": all of them.
            classes: names in label order, where labels are numbers; else as `from_folder` takes it. Without names,
                numbers are called by the folders of their images where these are one to one, else "0", "1", ...
            label_key: "cls", or a field of the `.json` member, with dots between levels. None: the `.cls` member, or
                the field "label"; where there is neither, the folder of a key, or what stands before its number
                (`n01440764_10026`).
            image_key: which of a key's images, as "jpg" or "jpg;png". None: each key has one.
            default_split: which shards where `split` says nothing and their names say several parts.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such shard, or no image in them.
            StorageError: a server or the network fails, or refuses to let this process read.
            ValueError: no tar archives, compressed ones, keys with several images, or images without a label.
        """
        places = expand_tars(data, split, default_split)
        order = labelling.classes_of(classes)
        what = _called(places)

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            twice = [name for scan in scans for name in scan.about.get("twice", ())]
            if twice:
                raise ValueError(
                    f"{escaped(what)}: {listed(twice, 3)} share a key with other images; say which with image_key= "
                    "(its extension)"
                )
            return labelling.by_content(scans, what, classes=order)

        kind = Tar(label_key, image_key)
        return cls._from_containers(["webdataset", _said(order)], what, places, kind, label, options)

    @classmethod
    def from_zip(
        cls,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        labels: Labels = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index zip archives as if they had been unpacked: the samples, order and fingerprint of that folder.

        Members have to be stored (`zip -0`), as Swin's and ImageNet-22k's are. Where images lie in no folder and there
        are several archives, the name of the archive is their class. Only the directory and headers are read.

        Args:
            data: an archive, a folder of them, names with numbers in braces (`{000..127}.zip`), or a list.
            split: as `from_tar` takes it.
            classes: as `from_folder` takes it; with a map, names in label order.
            labels: as `from_tar` takes it, or the map that Swin keeps beside its archives (`train_map.txt`: a name, a
                tab and a number a line), which must name every image. Without `classes`, a map's numbers are called by
                the folders of their images where these are one to one, else "0", "1", ...
            default_split: as `from_tar` takes it.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such archive, or no image in it.
            ValueError: no zip archives, ones that were cut short, compressed or encrypted members, or images without a
                class.
        """
        places = expand(data, (".zip",))
        order = labelling.classes_of(classes)
        numbers = labelling.read_map(labels)
        if numbers is None:
            table = read_labels(labels)
        else:
            order, table = labelling.of_map(numbers, order)
        what = _called(places)

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            prefixes = labelling.archive_prefixes(scans) if table is None else None
            return labelling.by_folder(
                scans, what, classes=order, split=split, default_split=default_split, prefixes=prefixes, labels=table
            )

        key = [_said(order), split, default_split, table and sorted(table.items())]
        return cls._from_containers(key, what, places, Zip(), label, options)

    @classmethod
    def from_tfrecord(
        cls,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        image_key: str | None = None,
        label_key: str | None = None,
        first_label: int | None = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index TFRecords of tf.train.Example in their order, as TFDS and the older scripts for ImageNet write them.

        TensorFlow is not needed. Any image is read by itself: an epoch is a true permutation.

        Args:
            data: shards: a folder of them, names with numbers in braces
                (`imagenet2012-train.tfrecord-{00000..01023}-of-01024`), or a list.
            split: which shards of a folder, by what their names say: "train", "val" ("validation", "valid", "eval", or
                "test" where there is none of them), another part of the names, "." for all. None: where there is one.
            classes: names in label order, where labels are numbers; else as `from_folder` takes it. Without names,
                numbers are called by TFDS's `label.labels.txt` beside the shards, else "0", "1", ...
            image_key: the feature of the encoded images; None: "image" (TFDS) or "image/encoded".
            label_key: the feature of the labels; None: "label" (TFDS), "image/class/synset" or "image/class/label".
            first_label: the lowest number of a class, 0 or 1. None: 0, but "image/class/label" counts from 1 where its
                numbers are 1 to the number of classes; where neither a 0 nor this says so, it is refused.
            default_split: which part is read where `split` says nothing and there is more than one.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such shard, or no image in them.
            ValueError: no TFRecords, compressed ones, records without an image or a label, or labels that may count
                from 0 or from 1.
        """
        places = expand_split(data, tfrecord.SHARD, "TFRecords", split, default_split)
        first_label = None if first_label is None else whole("first_label", first_label, 0, 1)
        order = labelling.classes_of(classes)
        what = _called(places)
        beside = tfrecord.named_beside(places, label_key)

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            scans = tfrecord.counted_from_zero(scans, what, len(sequence(order) or beside or ()), first_label)
            return labelling.by_content(tfrecord.with_classes(scans, beside), what, classes=order, by_name=False)

        key = [_said(order), first_label, beside]
        kind = tfrecord.TFRecord(image_key, label_key)
        return cls._from_containers(key, what, places, kind, label, options)

    @classmethod
    def from_huggingface(
        cls,
        data: Any,
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        image_key: str | None = None,
        label_key: str | None = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index the images of a `datasets.Dataset`, or of the Arrow files that it was saved to, in its order.

        Images are read from the Arrow files themselves, not through the Dataset and its memory map. What `select`,
        `shuffle`, `filter` and `train_test_split` made of it is kept. Labels that are a ClassLabel have its names.

        Args:
            data: a Dataset or DatasetDict with a column of images; the folder of `save_to_disk`; a folder of Arrow
                files, one of them, or a list. For folders pyarrow is enough.
            split: which part of a DatasetDict or of a folder: its name, or "train", "val" ("validation", or "test"
                where there is none). None: where there is one.
            classes: names in label order; None, or a rule: those of the ClassLabel, where labels are one. With labels
                that are text: as `from_folder` takes it.
            image_key: the column of images; None: the only one.
            label_key: the column of labels; None: "label", "labels" or the only ClassLabel.
            default_split: which part is read where `split` says nothing and there is more than one.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such folder, or no image in it.
            ImportError: pyarrow is not installed.
            ValueError: a stream, a transform of the Dataset's own, images in memory or behind paths, several columns
                that could be meant, or images without a label.
        """
        order = labelling.classes_of(classes)
        if not huggingface.is_dataset(data):
            places = huggingface.saved_files(data, split, default_split)
            what = _called(places)

            def by_content(scans: Sequence[Scanned]) -> labelling.Labelled:
                return labelling.by_content(scans, what, classes=order, by_name=False)

            return cls._from_containers([_said(order)], what, places, Arrow(image_key, label_key), by_content, options)
        table = huggingface.table_of(huggingface.chosen_split(data, split, default_split), image_key, label_key)
        rows = huggingface.rowed(table)

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            return huggingface.with_rows(scans, table, rows, order)

        return cls._from_containers(
            [_said(order), rows.digest], _called(table.files), table.files, rows.kind, label, options
        )

    @classmethod
    def from_parquet(
        cls,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
        image_key: str | None = None,
        label_key: str | None = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index Parquet files with a column of encoded images, in their order, as `ILSVRC/imagenet-1k` has them.

        Cells must be stored plain (uncompressed, without a dictionary): then each is read by itself, and an epoch is a
        true permutation. Other files are refused with the line that writes them again.

        Args:
            data: a folder of files, in folders of its own perhaps; one file, names with numbers in braces, a list, or
                `hf://datasets/owner/name@revision/path`, found with huggingface_hub (HF_ENDPOINT and HF_HUB_OFFLINE
                count).
            split: which files of a folder, by what their names say (`data/train-00000-of-00294.parquet`): as
                `from_tfrecord` takes it.
            classes: as `from_huggingface` takes it.
            image_key: the column of images, binary or a struct of "bytes" and "path"; None: the only one.
            label_key: the column of labels; None: "label", "labels" or the only ClassLabel.
            default_split: which part is read where `split` says nothing and there is more than one.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such file, or no image in them.
            ImportError: pyarrow is not installed.
            ValueError: no Parquet files, compressed images, several columns that could be meant, or images without a
                label.
        """
        places = expand_split(data, parquet.FILES, "Parquet files", split, default_split)
        order = labelling.classes_of(classes)
        what = _called(places)

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            return labelling.by_content(scans, what, classes=order, by_name=False)

        kind = parquet.Parquet(image_key, label_key)
        return cls._from_containers([_said(order)], what, places, kind, label, options)

    @classmethod
    def from_samples(
        cls,
        samples: Any,
        *,
        classes: Classes | None = None,
        root: str | os.PathLike[str] | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index files that are listed, in the order of the list.

        Headers are read once and remembered, as `from_folder` does. Of a dataset its files and labels are taken, not
        its transform: that is the recipe's.

        Args:
            samples: (path, label) pairs, or (address, label), whose labels are numbers counted from 0, or names of
                classes; torchvision's
                ImageFolder, DatasetFolder or ImageNet; timm's ImageDataset with its readers of folders and tars; an
                index; or a `torch.utils.data.Subset` of these, as `random_split` gives them.
            classes: the order of the names, as `from_folder` takes it. None: that of the dataset; of a list sorted,
                or "0", "1", ... where labels are numbers.
            root: the folder that relative paths are relative to, and below which all lie. None: that of the dataset; of
                a list the current folder, and the index is relative to the folder that holds all.
            options: `IndexOptions`.

        Raises:
            TypeError: what lists no files.
            ValueError: no sample, samples that are no (path, label), a `target_transform`, addresses and paths, files
                outside of root, or labels out of range.
        """
        inner, at = lists.unwrapped(samples)
        if isinstance(inner, SampleIndex):
            if classes is not None or root is not None:
                raise ValueError("samples are of an index, which has classes and a root already: use relabel()")
            return inner if at is None else inner.subset(at)
        found = lists.listing(inner)
        if isinstance(found, lists.Tarred):
            index = cls._from_extents(found, classes, options)
            return index if at is None else index.subset(at)
        if root is not None:
            found = found._replace(root=folder_path("root", root))
        return cls._from_list(found if at is None else found.take(at.tolist()), classes, options, True)

    @classmethod
    def from_manifest(
        cls,
        file: str | os.PathLike[str],
        *,
        split: str | None = None,
        classes: Classes | None = None,
        default_split: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index the files that a table names, in its order.

        Args:
            file: CSV with a header, JSONL (an object a line) or Parquet (needs pyarrow), with the columns "path",
                relative to the table's folder, "label", a number counted from 0 or the name of a class, and perhaps
                "split". In CSV labels are numbers where all of them are digits.
            split: the rows of that split: "train", "val" (or "validation" and the like), another value of that column,
                or "." for all. None: all, where there is one.
            classes: as `from_samples` takes it.
            default_split: which split is read where `split` says nothing and there is more than one.
            options: `IndexOptions`.

        Raises:
            FileNotFoundError: no such file.
            ImportError: Parquet without pyarrow.
            ValueError: another kind of file, a column or a value is missing, addresses and paths, or more than one
                split.
        """
        return cls._from_list(lists.read_manifest(file, split, default_split), classes, options, False)

    @classmethod
    def from_dataset(
        cls,
        data: Any,
        read: Callable[[Any], Any] | None = None,
        labels: Any = None,
        *,
        classes: Classes | None = None,
        version: str | None = None,
        fork_safe: bool = False,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index any map-style dataset whose items give encoded images, or paths of images.

        Every item is looked at once, one by one. Where they give paths, the index is that of `from_samples`. Else the
        workers read `data[i]`, one item at a time each; what it raises stops the run.

        Args:
            data: with `data[i]` and `len(data)`. Where workers are spawned it is pickled.
            read: a function of an item that gives its encoded bytes or its path. None: the item, or its first part.
            labels: one label for each item, or a function of an item that gives it: numbers counted from 0, or names.
                None: the item's second part.
            classes: as `from_samples` takes it.
            version: what changes whenever the data do, and is another one for each dataset of that class (as
                "train 3"): the index is remembered under it. None: every start looks at every item.
            fork_safe: whether a forked process may go on with the dataset, as it may where it opens its files itself
                in each process. False: workers are spawned.
            options: `IndexOptions`.

        Raises:
            TypeError: no map-style dataset, items that are decoded images, dicts without `read`, or without labels.
            ValueError: no item, labels that are out of range or too few.
        """
        items = lists.Items(data, read, labels)
        if not len(items):
            raise wrong("data", data, "a dataset of at least one item")
        if labels is not None and not callable(labels) and len(labels) != len(items):
            raise ValueError(f"{len(labels)} labels for {len(items)} items: must be one for each")
        if isinstance(items.image(data[0]), str):
            pairs = [(str(items.image(item)), items.label(i, item)) for i in range(len(data)) for item in [data[i]]]
            return cls.from_samples(pairs, classes=classes, **options)

        def look(i: int) -> tuple[bytes, Any]:
            item = data[i]
            image = items.image(item)
            if isinstance(image, str):
                raise TypeError(f"item {i} gives a path, and item 0 encoded bytes: must all give the one or the other")
            return image, items.label(i, item)

        def source(rows: Rows) -> Source:
            return lists.DatasetSource(items, rows, fork_safe)

        if version is not None:
            given = [getattr(one, "__qualname__", None) for one in (read, labels)]
            version = key_of(version, given, None if labels is None or callable(labels) else list(map(str, labels)))
        return cls._from_reads(type(data).__name__, len(items), look, None, classes, version, options, source)

    @classmethod
    def from_source(
        cls,
        source: Source,
        labels: Sequence[int] | Sequence[str] | npt.ArrayLike,
        *,
        names: Sequence[str] | None = None,
        classes: Classes | None = None,
        version: str | None = None,
        **options: Unpack[IndexOptions],
    ) -> SampleIndex:
        """Index a source of your own: what it reads is looked at once.

        Args:
            source: of N samples.
            labels: N numbers counted from 0, or names of classes.
            names: what the samples are called in the fingerprint, as `n01440764/n01440764_10026.JPEG`: with the names
                that the files of a folder have, the index has its fingerprint. None: their numbers.
            classes: as `from_samples` takes it.
            version: as `from_dataset` takes it.
            options: `IndexOptions`.

        Raises:
            ValueError: labels or names that are not N, or out of range.
        """
        n = len(source)
        given, _ = algebra.new_labels(labels, n)
        found = list(labels) if given is not None else np.asarray(labels).tolist()  # type: ignore[arg-type]  # names are a sequence
        if names is not None and (len(names) != n or any("\0" in name for name in names)):
            raise ValueError(f"{len(names)} names for {n} samples: must be as many, and none may hold a NUL")
        what = type(source).__name__
        version = None if version is None else key_of(version, list(map(str, found)))
        return cls._from_reads(
            what, n, lambda i: (source.read(i), found[i]), names, classes, version, options, lambda rows: source
        )

    @classmethod
    def _from_list(
        cls, given: lists.Listed, classes: Classes | None, options: IndexOptions, strict: bool
    ) -> SampleIndex:
        if given.paths and all(map(is_url, given.paths)):
            return cls._from_addresses(given, classes, options)
        settings = scan_options(**options)
        if settings.write_index:
            raise wrong("write_index", True, "False for files that lie alone: there is no shard to write it beside")
        root, names = lists.placed(given, strict)
        labels, order = _labels_of(given.labels, given.classes, classes)
        of = lists.digest_key(names, labels)

        def make() -> tuple[Rows, tuple[str, ...], int]:
            rows, read = read_files(root, stat_files(root, names, labels, settings), settings, of)
            return rows, tuple(order), read

        key = ["list", os.fsencode(root).hex(), of, order]
        return cls._made(key, root, make, settings, lambda rows: FileSource(root, rows), True)

    @classmethod
    def _from_addresses(cls, given: lists.Listed, classes: Classes | None, options: IndexOptions) -> SampleIndex:
        """Images that are objects of their own."""
        labels, order = _labels_of(given.labels, given.classes, classes)
        places = list(dict.fromkeys(given.paths))
        number = {place: i for i, place in enumerate(places)}
        called = [public(place) for place in given.paths]
        folders = [f"{place.rpartition('/')[0]}/" for place in called]
        start = os.path.commonprefix(folders).rindex("/") + 1  # noqa: RUF071 - cut at a slash

        def label(scans: Sequence[Scanned]) -> labelling.Labelled:
            at = [number[place] for place in given.paths]
            rows = labelling.ordered(labelling.joined(scans), at, [place[start:] for place in called], labels.tolist())
            return labelling.Labelled(rows, tuple(order))

        key = ["addresses", lists.digest_key(called, labels), order]
        return cls._from_containers(key, _called(places), places, lists.Alone(), label, options)

    @classmethod
    def _from_extents(cls, given: lists.Tarred, classes: Classes | None, options: IndexOptions) -> SampleIndex:
        """Images at known places of local files."""
        settings, storage = scan_options(**options), LocalStorage()
        labels, order = _labels_of(given.labels, given.classes, classes)
        number = {place: i for i, place in enumerate(dict.fromkeys(one.archive for one in given.extents))}
        containers = [storage.identify(place) for place in number]
        which = np.array([number[one.archive] for one in given.extents], np.int64)

        def make() -> tuple[Rows, tuple[str, ...], int]:
            rows, source = [], [one.name for one in given.extents]
            for i, container in enumerate(containers):
                reader = storage.open(container)
                try:
                    found = Found(reader.read, container.size, settings.limits, threading.Event())
                    for at in np.flatnonzero(which == i).tolist():
                        found.add(*given.extents[at][1:])
                finally:
                    reader.close()
                rows.append(found.rows)
            arrays = np.concatenate([one.array for one in rows])
            back = np.argsort(np.argsort(which, kind="stable"), kind="stable")
            reasons = [why for one in rows for i in range(len(one)) for why in [one.reasons.get(i, "")]]
            array = arrays[back]
            array["container"], array["label"] = which, labels
            told = {i: reasons[int(k)] for i, k in enumerate(back) if reasons[int(k)]}
            return Rows(array, Names.of(source), told), tuple(order), len(array)

        places = [list(one[1:]) for one in given.extents]
        key = ["extents", containers, key_of(places), lists.digest_key([], labels), order]
        what = _called([*number])
        return cls._made(key, what, make, settings, lambda rows: storage.source(containers, rows), False)

    @classmethod
    def _from_reads(
        cls,
        what: str,
        n: int,
        look: Callable[[int], tuple[bytes, Any]],
        names: Sequence[str] | None,
        classes: Classes | None,
        version: str | None,
        options: IndexOptions,
        source: Callable[[Rows], Source],
    ) -> SampleIndex:
        """An index of n samples, each of which `look` gives with its label."""
        settings = scan_options(**options)

        def make() -> tuple[Rows, tuple[str, ...], int]:
            labels: list[Any] = []
            found = Found(_part_of(b""), 0, settings.limits, threading.Event())
            with progress_bar(None, n, "indexing", "image", settings.progress) as bar:
                for i in range(n):
                    data, label = look(i)
                    found.restart(_part_of(data), len(data))
                    found.add(f"{i:010d}" if names is None else names[i], 0, len(data))
                    labels.append(label)
                    bar.update(1)
            numbers, order = _labels_of(labels, None, classes)
            rows = found.rows
            return rows.replace(label=numbers), tuple(order), n

        said = "sorted" if classes is None else _said(labelling.classes_of(classes))
        key = ["reads", what, n, version, None if names is None else key_of(list(names)), said]
        return cls._made(key, what, make, settings, source, False, may_share=version is not None)

    @classmethod
    def _from_containers(
        cls,
        key: list[Any],
        what: str,
        places: Sequence[str],
        kind: Kind,
        label: Callable[[Sequence[Scanned]], labelling.Labelled],
        options: IndexOptions,
    ) -> SampleIndex:
        """An index of containers.

        Args:
            key: what decides the result besides the containers and their kind, as JSON holds it.
            what: they are called together.
            label: gives every image its class.
        """
        settings = scan_options(**options)
        storage, containers = locate(places, settings)
        scans: list[Scanned] = []

        def make() -> tuple[Rows, tuple[str, ...], int]:
            scans[:] = scan_containers(containers, kind, storage, settings)
            rows, names = label(scans)
            return rows, names, sum(len(scan.rows) for scan in scans if scan.fresh)

        full = [kind.name, containers, *key]
        index = cls._made(full, what, make, settings, lambda rows: storage.source(containers, rows), False)
        if settings.write_index:
            write_beside(scans or scan_containers(containers, kind, storage, settings), kind, storage, settings.limits)
        return index

    @classmethod
    def _made(
        cls,
        key: list[Any],
        root: str,
        make: Callable[[], tuple[Rows, tuple[str, ...], int]],
        options: ScanOptions,
        source: Callable[[Rows], Source],
        listed: bool,
        may_share: bool = True,
    ) -> SampleIndex:
        """An index of what `make` gives (rows, classes, images read now), or another process has made by that key."""
        from PIL import ImageFile

        start, read = time.perf_counter(), 0

        def made() -> Made:
            nonlocal read
            rows, classes, read = make()
            return rows, {"classes": classes, "fingerprint": _fingerprint(rows, classes)}

        if options.cache and may_share:
            full = key_of(*key, *options.limits, bool(ImageFile.LOAD_TRUNCATED_IMAGES))
            rows, info, here = shared(full, made, options.cache_dir, listed=listed)
        else:
            (rows, info), here = made(), True
        n = len(rows)
        scan = Scan(n, read, n - read, time.perf_counter() - start)
        fingerprint, known = str(info["fingerprint"]), tuple(info["classes"])
        index = cls(root, known, scan, source(rows), rows, fingerprint, options.cache_dir if options.cache else False)
        how = f"{read} files read and {n - read} from the cache" if here else "mapped from another process or start"
        logger.info("%r; %s in %.1f s (%.0f files/s)", index, how, scan.seconds, scan.files_per_second)
        return index

    @classmethod
    def from_arrays(
        cls,
        labels: npt.ArrayLike,
        height: npt.ArrayLike,
        width: npt.ArrayLike,
        *,
        root: str | os.PathLike[str] = "",
        paths: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        components: npt.ArrayLike | None = None,
        format: npt.ArrayLike | None = None,
        file_size: npt.ArrayLike | None = None,
        reasons: Mapping[int, str] | None = None,
    ) -> SampleIndex:
        """An index from what is already known, without looking at a file.

        Args:
            labels: integers [N], or one that is spread over the others, as the next two.
            height: integers [N], pixels.
            width: integers [N], pixels.
            root: folder that `paths` are relative to.
            paths: N paths; None makes up `0000000000.JPEG`, `0000000001.JPEG`, ...
            classes: names; None makes up "0", "1", ... up to the largest label.
            components: as the attribute; None for 3.
            format: as the attribute; None for JPEG.
            file_size: as the attribute; None for 0, not known.
            reasons: {position: why} for broken images; their height and width become 0.

        Raises:
            ValueError: lengths that differ, a label or size out of range.
        """
        given = {"labels": labels, "height": height, "width": width}
        most = max((np.size(values) for values in given.values() if np.ndim(values)), default=1)
        for name, values in given.items():
            array = np.asarray(values)
            fits = array.ndim == 0 or (array.ndim == 1 and array.size in (1, most))
            if not fits or (array.size and array.dtype.kind not in "iu"):
                raise wrong(name, values, f"{most} integers, or one for all images; from_folder reads sizes from files")
        labels, height, width = (np.array(a, ndmin=1) for a in np.broadcast_arrays(labels, height, width))
        n = len(labels)
        top = int(labels.max(initial=-1))
        names = tuple(map(str, range(top + 1))) if classes is None else tuple(classes)
        if n and (int(labels.min()) < 0 or top >= len(names)):
            raise ValueError(f"labels from {int(labels.min())} to {top}: must lie in 0..{len(names) - 1}, one a class")
        reasons = dict(reasons or {})
        if any(not 0 <= i < n for i in reasons):
            raise ValueError(f"reasons: positions must lie in 0..{n - 1}")
        broken = np.zeros(n, np.bool_)
        broken[list(reasons)] = True
        if bool(((height < 1) | (width < 1))[~broken].any()):
            raise ValueError("height and width must be 1 or more, except for the positions in reasons")
        height[broken] = width[broken] = 0

        def column(values: npt.ArrayLike, dtype: npt.DTypeLike) -> Array:
            return np.broadcast_to(np.asarray(values), n).astype(dtype)

        if paths is None:
            blob = _numbered_paths(n)
        elif len(paths) != n or any("\0" in p for p in paths):
            raise ValueError(f"{len(paths)} paths for {n} labels: must be as many, and none may hold a NUL")
        else:
            blob = os.fsencode("".join(p + "\0" for p in paths))
        array = new_rows(n)
        array["label"], array["height"], array["width"], array["broken"] = labels, height, width, broken
        array["components"] = np.where(broken, 0, column(3 if components is None else components, np.uint8))
        array["format"] = np.where(broken, 0, column(1 if format is None else format, np.uint8))
        array["size"] = as_sizes(column(0 if file_size is None else file_size, np.int64))
        rows = Rows(array, Names(blob), reasons)
        folder = os.path.abspath(root)
        return cls(folder, names, Scan(n, 0, 0, 0.0), FileSource(folder, rows), rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        n, bad = len(self), len(self.rows.reasons)
        return f"SampleIndex({self.root!r}, {n} images, {len(self.classes)} classes, {bad} broken)"

    def __getstate__(self) -> dict[str, Any]:
        # What can be made again is not worth sending to every worker.
        return {k: v for k, v in self.__dict__.items() if k not in ("targets", "labels", "file_size")}

    def path(self, i: int) -> str:
        """What image i is called: its absolute path; bytes that are not valid text are surrogate-escaped."""
        return self.source.name(self._position(i))

    def relative_path(self, i: int) -> str:
        """The name of image i below `root`, '/'-separated."""
        return self.rows.names[self._position(i)]

    def reason(self, i: int) -> str | None:
        """Why image i is broken, or None where it is not."""
        return self.rows.reasons.get(self._position(i))

    def _position(self, i: int) -> int:
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"image {i} of an index of {n}")
        return int(i) % n

    @overload
    def __getitem__(self, i: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, i: slice) -> SampleIndex: ...
    def __getitem__(self, i: int | slice) -> tuple[str, int] | SampleIndex:
        """(path, label) of image i, as `samples[i]`; of a slice the index of these images, as `subset`."""
        if isinstance(i, slice):
            return self.subset(np.arange(len(self))[i])
        if not hasattr(i, "__index__") or isinstance(i, bool):
            raise TypeError(f"index[{i!r}]: must be a whole number or a slice; give several to subset()")
        return self.samples[i]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(path, label) of each image."""
        return iter(self.samples)

    def subset(self, rows: npt.ArrayLike) -> SampleIndex:
        """Some of the images, in the order given. Classes keep their numbers, those without images too.

        The fingerprint is that of an index that was made of the same images in this order.

        Args:
            rows: positions, of which negative ones count from the end, and which may be given more than once: integers
                of any length; or a mask, bool [N], which keeps the order.

        Raises:
            ValueError: positions that the index does not have, or a mask of another length.
        """
        at = algebra.positions(rows, len(self))
        return self._of(*algebra.selected(self.rows, self.source, at), self.classes)

    def select_classes(self, names: Classes) -> SampleIndex:
        """The images of some classes, which are numbered anew: ImageNet-100 of ImageNet.

        Args:
            names: of the classes, in the order of their new labels; an index or a loader that has them; or the `Path`
                of a text file with one name a line.

        Raises:
            ValueError: names that the index does not have, or that are given twice.
        """
        given = named(labelling.classes_of(names), self.classes)
        if given is None:
            raise wrong("names", names, "names of classes, or the Path of a file of them")
        known = {*self.classes}
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"names: {listed(unknown)}: must be classes of the index, as {listed(self.classes, 3)}")
        labels = algebra.renumbered(self.labels, self.classes, given)
        return self.subset(labels >= 0)._labelled(labels[labels >= 0], given)

    def relabel(
        self, labels: Mapping[str, str] | Sequence[int] | Sequence[str] | npt.ArrayLike, *, classes: Classes = "sorted"
    ) -> SampleIndex:
        """The same images with other classes.

        Args:
            labels: {class: new class}, where several may become one, and what is not named keeps its name; or one label
                for each image: a number, or the name of a class.
            classes: the order of the new names: "sorted", "natural", names in label order, an index or a loader that
                has them, or the `Path` of a text file. Must say the names where labels are numbers.

        Raises:
            ValueError: unknown classes, labels that are out of range, or more or fewer than there are images.
        """
        if isinstance(labels, Mapping):
            known = {*self.classes}
            if unknown := [str(name) for name in labels if name not in known]:
                raise ValueError(f"labels names {listed(unknown)}: must be classes of the index")
            new = [labels.get(name, name) for name in self.classes]
            if (odd := next((name for name in new if not isinstance(name, str) or not name), None)) is not None:
                raise wrong("labels", odd, "{class: new class}, both of them names")
            found, numbers = algebra.unified([new]), self.labels
            numbers = algebra.renumbered(np.arange(len(new)), new, found)[numbers]
        else:
            names, numbers = algebra.new_labels(labels, len(self))
            if names is None:
                return self._labelled(numbers, _names_of(numbers, classes))
            found = names
        order = _order_of(found, classes)
        return self._labelled(algebra.renumbered(numbers, found, order), order)

    def per_class(self, n: int, seed: int = 0) -> SampleIndex:
        """`n` images of each class, drawn without replacement, in the order of the index.

        A function of the seed and of the images' positions: the ten that are drawn are among the twenty.

        Raises:
            ValueError: a class has fewer.
        """
        n, sizes = whole("n", n, 1), np.bincount(self.labels, minlength=len(self.classes))
        if short := [f"{self.classes[c]} ({sizes[c]})" for c in np.flatnonzero(sizes < n)]:
            raise ValueError(
                f"n={n}: {len(short)} class(es) have fewer images: {listed(short)}; take fewer, or leave these classes "
                "out with select_classes()"
            )
        counts = np.full(len(sizes), n)
        return self.subset(algebra.first_of_each(self.labels, counts, whole("seed", seed, 0, 2**64 - 1)))

    def fraction(self, p: float, seed: int = 0) -> SampleIndex:
        """A share of each class, drawn without replacement, in the order of the index.

        Of c images round(p * c) are drawn, halves rounded up, but one at least. A function of the seed and of the
        images' positions: the 1% that are drawn are among the 10%.

        Args:
            p: above 0, 1 at most.
            seed: 0..2**64-1.
        """
        if real("p", p, 0, 1) == 0:
            raise wrong("p", p, "a number above 0, 1 at most")
        sizes = np.bincount(self.labels, minlength=len(self.classes))
        counts = np.minimum(sizes, np.maximum(1, np.floor(sizes * float(p) + 0.5).astype(np.int64)))
        return self.subset(algebra.first_of_each(self.labels, counts, whole("seed", seed, 0, 2**64 - 1)))

    def folds(self, k: int, seed: int = 0) -> Folds:
        """k-fold cross-validation: `folds(5)[i]` is (training, evaluation) of fold i.

        Every image is in the evaluation of one fold. Folds are stratified: their sizes differ by one at most, as a
        whole and in each class. A function of the seed and of the images' positions.

        Args:
            k: 2..N.
            seed: 0..2**64-1.
        """
        k = whole("k", k, 2, max(2, len(self)))
        return Folds(self, algebra.fold_of(self.labels, k, whole("seed", seed, 0, 2**64 - 1)), k)

    @classmethod
    def concat(cls, parts: Sequence[SampleIndex], *, classes: Classes | None = None) -> SampleIndex:
        """One index after the other; classes of one name are one class. Parts may lie in different kinds of storage.

        Args:
            parts: at least one.
            classes: the order of the names, as `relabel` takes it. None: those of the first part, whose labels stay,
                then those that the others have besides.

        Raises:
            ValueError: no part, or `classes` does not name all.
        """
        parts = list(parts)
        if not parts or not all(isinstance(part, SampleIndex) for part in parts):
            raise wrong("parts", parts, "a list of at least one SampleIndex")
        found = algebra.unified([part.classes for part in parts])
        order = found if classes is None else _order_of(found, classes)
        labels = [algebra.renumbered(part.labels, part.classes, order) for part in parts]
        roots = list(dict.fromkeys(part.root for part in parts))
        rows, source = algebra.joined([(part.rows, part.source) for part in parts], labels)
        return parts[0]._of(rows, source, order, _called(roots))

    def repeat(self, counts: Any) -> SampleIndex:
        """Each image as often as said, one copy after the other. Copies are augmented each on their own.

        Args:
            counts: of at least 0: one number, one for each image, one for each class, or {class: count}, where other
                classes count once.

        Raises:
            ValueError: no whole numbers of at least 0, or as many as neither images nor classes.
        """
        times = algebra.per_sample("counts", counts, self.labels, self.classes, 1)
        if times.size and (times.dtype.kind not in "iu" or times.min() < 0):
            raise wrong("counts", counts, "whole numbers of at least 0")
        return self.subset(np.repeat(np.arange(len(self)), times))

    def _labelled(self, labels: npt.NDArray[np.int64], classes: Sequence[str]) -> SampleIndex:
        """The same images with these labels."""
        rows, source = self.rows.replace(label=labels), self.source
        return self._of(rows, source.with_rows(rows) if isinstance(source, algebra.ByRows) else source, classes)

    def _of(self, rows: Rows, source: Source, classes: Sequence[str], root: str | None = None) -> SampleIndex:
        """An index of what is known already."""
        scan = Scan(len(rows), 0, 0, 0.0)
        root = self.root if root is None else root
        return SampleIndex(root, tuple(classes), scan, source, rows, _cache_dir=self._cache_dir)

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    @property
    def samples(self) -> Samples:
        """(path, label) pairs, as `ImageFolder.samples`."""
        return Samples(self)

    @property
    def imgs(self) -> Samples:
        """The older name of `samples`."""
        return Samples(self)

    @cached_property
    def targets(self) -> list[int]:
        """The labels as a list, as `ImageFolder.targets`."""
        return list(self.labels.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over classes, relative paths, labels, file sizes, image sizes and health.

        The same for a copy of the data elsewhere: neither `root` nor modification times count.
        """
        return self._fingerprint or _fingerprint(self.rows, self.classes)


Labels: TypeAlias = str | os.PathLike[str] | Mapping[str, str] | None
"""Classes of images that lie in no folder: see `SampleIndex.from_tar`."""

Classes: TypeAlias = Literal["sorted", "natural"] | Sequence[str] | os.PathLike[str] | SampleIndex | HasIndex
"""Which class has which number: see `SampleIndex.from_folder`."""


def _part_of(data: bytes) -> Callable[[int, int], bytes]:
    """What reads bytes as a container is read."""
    return lambda at, count: data[at : at + count]


def _labels_of(
    labels: Any, known: Sequence[str] | None, classes: Classes | None
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Numbers, and the names of the classes, of labels as somebody lists them; `known` are the names of numbers."""
    names, numbers = algebra.new_labels(labels, len(labels))
    if names is None and known is not None:
        top = int(numbers.max(initial=-1))
        if top >= len(known):
            raise ValueError(f"label {top}, but there are {len(known)} classes: labels count from 0")
        names = list(known)
    if names is not None:
        order = (
            list(known)
            if known is not None and classes is None
            else _order_of(names, "sorted" if classes is None else classes)
        )
        return algebra.renumbered(numbers, names, order), order
    if classes is None:
        return numbers, [str(i) for i in range(int(numbers.max(initial=-1)) + 1)]
    return numbers, _names_of(numbers, classes)


def _order_of(found: Sequence[str], classes: Any) -> list[str]:
    """The names of classes in label order."""
    order = labelling.classes_of(classes)
    names = list(named(order, found) or in_order(found, str(order)))
    known = {*names}
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"classes= does not name {listed(unknown)}: must name every class")
    return names


def _names_of(labels: npt.NDArray[np.int64], classes: Any) -> list[str]:
    """The names of classes that are numbers."""
    names, top = named(labelling.classes_of(classes), []), int(labels.max(initial=-1))
    if names is None:
        raise ValueError(f"labels are numbers up to {top}: give classes=, the names in label order")
    if top >= len(names):
        raise ValueError(f"label {top}, but classes= names {len(names)}: labels count from 0")
    return list(names)


def _read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array


def _fingerprint(rows: Rows, classes: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([len(rows), classes]).encode())
    digest.update(rows.names.blob)
    array = rows.array
    sizes = array["size"].astype("<i8")
    sizes[sizes == NO_FILE] = -1
    for column, dtype in (
        (array["label"], "<i8"),
        (sizes, "<i8"),
        (array["height"], "<i4"),
        (array["width"], "<i4"),
        (array["broken"], "?"),
    ):
        digest.update(np.ascontiguousarray(column, dtype).data)
    return digest.hexdigest()


def _said(classes: Any) -> Any:
    """What `classes` says, as JSON holds it."""
    if isinstance(classes, os.PathLike):
        with open(os.path.expanduser(classes), encoding="utf-8-sig", errors="surrogateescape") as file:
            return ["file", file.read()]
    return classes if isinstance(classes, str) else list(classes)


def _called(places: Sequence[str]) -> str:
    """Several containers, in a few words that tell no secrets."""
    places = [public(place) for place in places]
    if len(places) == 1:
        return places[0]
    folder = os.path.dirname(places[0])
    same = all(os.path.dirname(place) == folder for place in places)
    return f"{folder}/ ({len(places)} files)" if same else f"{places[0]} and {len(places) - 1} more"


def _numbered_paths(n: int) -> bytes:
    out = np.empty((n, 16), np.uint8)
    out[:, 10:] = np.frombuffer(b".JPEG\0", np.uint8)
    i = np.arange(n)
    for k in range(10):
        out[:, 9 - k] = i // 10**k % 10 + ord("0")
    return out.tobytes()
