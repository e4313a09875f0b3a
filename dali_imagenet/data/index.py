"""N encoded images: where they are, their labels, sizes and health.

A folder tree is listed at every start; the header and the end marker of each image are read once and remembered.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from dali_imagenet.data.folder import FileSource, list_tree
from dali_imagenet.data.headers import Limits, read_headers
from dali_imagenet.data.index_cache import COLUMNS, Array, cache_file, load_cache, merge_cached, save_cache
from dali_imagenet.data.layout import find_classes, folder_path, resolve_split
from dali_imagenet.data.names import Names
from dali_imagenet.data.source import Source
from dali_imagenet.formats import BYTES_A_PIXEL, MAX_BYTES, MAX_PIXELS
from dali_imagenet.validation import whole

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


@dataclass(frozen=True, eq=False, repr=False)
class SampleIndex:
    """N encoded images: where they are, their labels, sizes and health. Made by `from_folder` or `from_arrays`.

    Attributes:
        root: the absolute folder that the paths are relative to.
        classes: class names in label order.
        labels: int64 [N], 0 <= label < len(classes).
        height: int32 [N], pixels as stored (EXIF orientation is not applied); 0 where broken.
        width: int32 [N], as `height`.
        components: uint8 [N], colour components of a JPEG (1, 3 or 4); 0 for other formats and where broken.
        format: uint8 [N], position in `FORMATS`; 0 where broken.
        broken: bool [N], True where the image cannot be decoded; `reason(i)` says why.
        file_size: int64 [N], bytes; -1 where there is no regular file.
        source: where the encoded bytes come from.
        scan: how many files were listed, read and taken from the cache, and how fast.

    The arrays are read-only.
    """

    root: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    components: npt.NDArray[np.uint8]
    format: npt.NDArray[np.uint8]
    broken: npt.NDArray[np.bool_]
    file_size: npt.NDArray[np.int64]
    scan: Scan
    source: Source
    _names: Names  # relative paths, '/'-separated: what the fingerprint counts
    _reasons: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (self.labels, self.height, self.width, self.components, self.format, self.broken, self.file_size):
            array.setflags(write=False)

    @classmethod
    def from_folder(
        cls,
        root: str | os.PathLike[str],
        *,
        split: str | None = None,
        classes: Classes = "sorted",
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
            root: the folder; `~` and `file://` URLs are taken. Links are followed; one that leads back to a folder it
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
        if num_threads is None:
            num_threads = min(32, 4 * (os.cpu_count() or 1))
        num_threads = whole("num_threads", num_threads, 1)
        if max_pixels is not None:
            max_pixels = whole("max_pixels", max_pixels, 1)
        if max_bytes is not None:
            max_bytes = whole("max_bytes", max_bytes, 1)
        limits = Limits(max_pixels, max_bytes)
        start = time.perf_counter()
        folder, train = resolve_split(folder_path("root", root), split)
        order: Any = getattr(classes, "dataset", classes)
        order = order.classes if isinstance(order, SampleIndex) else order
        ordered = find_classes(folder, order, train, split)
        found = list_tree(folder, ordered, num_threads, progress)
        cached = cache_file(folder, limits, cache_dir) if cache else None
        old = load_cache(cached, max_pixels) if cached else None
        table, todo = merge_cached(found, old)
        if len(todo):
            try:
                read_headers(folder, table, todo, num_threads, progress, limits)
            finally:  # also when interrupted: what was read is kept, the rest is marked as unread
                if cached:
                    save_cache(cached, table, old)
        elif cached and old is not None and old.paths != table.paths:
            save_cache(cached, table, old)
        n = len(found.labels)
        scan = Scan(n, len(todo), n - len(todo), time.perf_counter() - start)
        names = Names(table.paths)
        index = cls(
            root=folder,
            classes=ordered.names,
            labels=found.labels,
            **{name: table.columns[name] for name in COLUMNS if name != "stamp"},
            scan=scan,
            source=FileSource(folder, names, found.file_size),
            _names=names,
            _reasons=table.reasons,
        )
        logger.info(
            "%r; %d files read and %d from the cache in %.1f s (%.0f files/s)",
            index,
            scan.read,
            scan.cached,
            scan.seconds,
            scan.files_per_second,
        )
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
        labels, height, width = (np.array(a) for a in np.broadcast_arrays(labels, height, width))
        if labels.ndim != 1 or any(a.size and a.dtype.kind not in "iu" for a in (labels, height, width)):
            raise ValueError("labels, height and width must be integers of one dimension")
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
        relative = Names(blob)
        sizes = column(0 if file_size is None else file_size, np.int64)
        pixels = height.astype(np.int64) * width
        return cls(
            root=os.path.abspath(root),
            classes=names,
            labels=column(labels, np.int64),
            height=column(height, np.int32),
            width=column(width, np.int32),
            components=np.where(broken, 0, column(3 if components is None else components, np.uint8)).astype(np.uint8),
            format=np.where(broken, 0, column(1 if format is None else format, np.uint8)).astype(np.uint8),
            broken=broken,
            file_size=sizes,
            scan=Scan(n, 0, 0, 0.0),
            source=FileSource(
                os.path.abspath(root), relative, np.where(sizes > 0, sizes, MAX_BYTES + BYTES_A_PIXEL * pixels)
            ),
            _names=relative,
            _reasons=reasons,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        n, bad = len(self), int(self.broken.sum())
        return f"SampleIndex({self.root!r}, {n} images, {len(self.classes)} classes, {bad} broken)"

    def __getstate__(self) -> dict[str, Any]:
        # What can be made again is not worth sending to every worker.
        return {k: v for k, v in self.__dict__.items() if k != "targets"}

    def path(self, i: int) -> str:
        """What image i is called: its absolute path; bytes that are not valid text are surrogate-escaped."""
        return self.source.name(self._position(i))

    def relative_path(self, i: int) -> str:
        """The name of image i below `root`, '/'-separated."""
        return self._names[self._position(i)]

    def reason(self, i: int) -> str | None:
        """Why image i is broken, or None where it is not."""
        return self._reasons.get(self._position(i))

    def _position(self, i: int) -> int:
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"image {i} of an index of {n}")
        return int(i) % n

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
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([len(self), self.classes]).encode())
        digest.update(self._names.blob)
        for array, dtype in (
            (self.labels, "<i8"),
            (self.file_size, "<i8"),
            (self.height, "<i4"),
            (self.width, "<i4"),
            (self.broken, "?"),
        ):
            digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()


Classes: TypeAlias = Literal["sorted", "natural"] | Sequence[str] | os.PathLike[str] | SampleIndex | HasIndex
"""Which class has which number: see `SampleIndex.from_folder`."""


def _numbered_paths(n: int) -> bytes:
    out = np.empty((n, 16), np.uint8)
    out[:, 10:] = np.frombuffer(b".JPEG\0", np.uint8)
    i = np.arange(n)
    for k in range(10):
        out[:, 9 - k] = i // 10**k % 10 + ord("0")
    return out.tobytes()
