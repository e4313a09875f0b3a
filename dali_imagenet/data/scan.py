"""Looking through containers, each once: where its images are, their sizes and health. What was found is remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import numpy as np

from dali_imagenet.cache import cache_folder
from dali_imagenet.data.container import Container, ExtentSource, FileReader, Reader, stamp_of
from dali_imagenet.data.headers import Broken, Image, Limits, probe
from dali_imagenet.data.names import Names
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.data.rows import MAX_SIZE, Rows, new_rows, read_rows, save_rows
from dali_imagenet.data.source import Source
from dali_imagenet.escape import escaped
from dali_imagenet.formats import BYTES_A_PIXEL
from dali_imagenet.storage import patiently

logger = logging.getLogger("dali_imagenet")

_END = 1 << 16  # bytes of each end of a container that say which one it is
_AHEAD = 5632  # bytes: the end of a tar member, its padding, the next header, and 4 kB of the image behind it


class Stopped(Exception):
    """Another thread has failed."""


class Storage(Protocol):
    """Where containers lie."""

    def identify(self, name: str) -> Container:
        """The container of that name, as it is now."""
        ...

    def open(self, container: Container) -> Reader: ...

    def source(self, containers: Sequence[Container], rows: Rows) -> Source:
        """What reads their samples."""
        ...

    def beside(self, container: Container) -> bytes | None:
        """What somebody has written beside the container about its images, None for nothing."""
        ...

    def write_beside(self, container: Container, rows: Rows, info: Mapping[str, Any]) -> None:
        """Write what `beside` finds, whole or not at all."""
        ...


class LocalStorage:
    """`Storage` of files."""

    def identify(self, name: str) -> Container:
        info = os.stat(name)
        return Container(name, info.st_size, stamp_of(info))

    def open(self, container: Container) -> Reader:
        return FileReader(container.name)

    def source(self, containers: Sequence[Container], rows: Rows) -> Source:
        return ExtentSource(containers, rows)

    def beside(self, container: Container) -> bytes | None:
        try:
            fd = os.open(container.name + INDEX_SUFFIX, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            return None
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            # None is larger than what it is about.
            return file.read() if stat.S_ISREG(info.st_mode) and info.st_size <= container.size else None

    def write_beside(self, container: Container, rows: Rows, info: Mapping[str, Any]) -> None:
        save_rows(container.name + INDEX_SUFFIX, rows, info)


CLASSES_KEY = "class_names"
"""Where a container that names its classes in label order remembers them."""
INDEX_SUFFIX = ".dali-index"
"""Of what is written beside a container."""


class Found:
    """The images of a container, in the order in which they are added.

    Args:
        read: of the container.
        limits: above which an image is broken.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, limits: Limits, stop: threading.Event) -> None:
        self.read, self._end, self._limits, self._stop = ahead(read), size, limits, stop
        self.names: list[str] = []
        self.values: list[tuple[Any, ...]] = []
        self.reasons: dict[int, str] = {}

    def restart(self, read: Callable[[int, int], bytes], size: int) -> None:
        """Go on in another container."""
        self.read, self._end = ahead(read), size

    def add(self, name: str, offset: int, size: int, reason: str = "") -> int:
        """An image, whose header and end are looked at now, unless a reason says that it is broken. Its position."""
        if self._stop.is_set():
            raise Stopped
        image, at = Image(0, 0, 0, 0), len(self.names)
        if not reason and offset + size > self._end:
            reason = f"cut short: {offset + size - self._end} of its {size} bytes lie behind the end of the container"
        if not reason and size > MAX_SIZE:
            reason = f"{size} bytes: more than an index can count"
        if not reason:
            try:
                image = probe(lambda a, count: self.read(offset + a, min(count, size - a)), size, self._limits)
            except Broken as error:
                reason = str(error)
        if reason:
            self.reasons[at] = reason
        self.names.append(name)
        self.values.append((offset, min(size, MAX_SIZE), 0, -1, *image, bool(reason), 0))
        return at

    def extend(self, other: Found) -> None:
        """Add what another has found."""
        self.reasons |= {len(self.names) + i: why for i, why in other.reasons.items()}
        self.names += other.names
        self.values += other.values

    @property
    def rows(self) -> Rows:
        array = new_rows(len(self.values))
        array[:] = self.values
        return Rows(array, Names.of(self.names), self.reasons)


def ahead(read: Callable[[int, int], bytes], count: int = _AHEAD) -> Callable[[int, int], bytes]:
    """The same, a stretch at a time: most of what is read next lies behind what was."""
    buffer, start = b"", 0

    def window(at: int, wanted: int) -> bytes:
        nonlocal buffer, start
        begin = at - start
        if begin < 0 or begin + wanted > len(buffer):
            if wanted > count:
                return read(at, wanted)
            buffer, start, begin = read(at, count), at, 0
        return buffer[begin : begin + wanted]

    return window


class Scanned(NamedTuple):
    """One container, looked through.

    Attributes:
        rows: its images; containers and labels are those of nobody.
        about: what the kind of container says besides, as JSON holds it.
        fresh: whether it was read now.
    """

    container: Container
    rows: Rows
    about: dict[str, Any]
    fresh: bool


class Kind(Protocol):
    """How a kind of container is looked through."""

    name: str
    """Of the kind, and of whatever decides what is found."""

    def parts(self, reader: Reader) -> list[Any]:
        """What may be looked through side by side, in order."""
        ...

    def scan(self, reader: Reader, part: Any, found: Found) -> dict[str, Any]:
        """Adds the images of a part. Returns what is to be remembered besides."""
        ...

    def join(self, abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What the parts of a container said, as one."""
        ...


class ScanOptions(NamedTuple):
    """How containers are looked through: see `SampleIndex.from_tar`."""

    num_threads: int
    progress: bool
    cache: bool
    cache_dir: str | os.PathLike[str] | None
    limits: Limits
    storage_options: Mapping[str, Any] | None = None
    local_cache: str | os.PathLike[str] | None = None
    local_cache_size: int | None = None
    write_index: bool = False


def cache_name(kind: Kind, container: Container, limits: Limits) -> str:
    """The name of the file that remembers a container."""
    from PIL import ImageFile

    key = [kind.name, container.name, *limits, bool(ImageFile.LOAD_TRUNCATED_IMAGES)]
    return f"container-{hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()}.rows"


def scan_containers(
    containers: Sequence[Container], kind: Kind, storage: Storage, options: ScanOptions
) -> list[Scanned]:
    """Every container, from what is remembered or written beside it, else looked through.

    Raises:
        OSError: one is not there or cannot be read.
        StorageError: the storage fails, again and again.
        ValueError: one is no container of that kind.
    """
    folder = cache_folder(options.cache_dir) if options.cache else None
    stop = threading.Event()
    with ThreadPoolExecutor(options.num_threads, "dali_imagenet-index") as pool:
        try:
            known = list(pool.map(lambda one: _remembered(one, kind, storage, options, folder), containers))
            todo = [one for one, found in zip(containers, known, strict=True) if found is None]
            if todo:
                total = sum(one.size for one in todo)
                logger.info("looking through %d container(s) of %.1f GB", len(todo), total / 1e9)
            fresh = iter(_scan_all(todo, kind, storage, options, folder, pool, stop))
            return [next(fresh) if found is None else found for found in known]
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _remembered(
    container: Container, kind: Kind, storage: Storage, options: ScanOptions, folder: Any
) -> Scanned | None:
    """What is known of a container as it is now."""
    sources: list[tuple[str, Callable[[], bytes | None]]] = []
    if folder is not None:
        file = folder / cache_name(kind, container, options.limits)
        sources.append((str(file), lambda: file.read_bytes() if file.is_file() else None))
    if getattr(kind, "beside", True):  # what is one image each has none
        sources.append((container.name + INDEX_SUFFIX, lambda: storage.beside(container)))
    for name, load in sources:
        try:
            data = load()
            if data is None:
                continue
            rows, about = read_rows(data, options.limits.pixels)
            if not _is_of(container, kind, options.limits, about, storage):
                continue  # of another time, or made by other rules
            if not _is_sound(rows, about, container, options.limits):
                raise ValueError("its contents make no sense")
            return Scanned(container, rows, about, False)
        except (OSError, ValueError, MemoryError) as error:
            logger.warning("index %s is ignored and made anew: %s", escaped(name), error)
    return None


def _rules(limits: Limits) -> list[Any]:
    """What decides which images are broken."""
    from PIL import ImageFile

    return [*limits, bool(ImageFile.LOAD_TRUNCATED_IMAGES)]


def _is_of(container: Container, kind: Kind, limits: Limits, about: dict[str, Any], storage: Storage) -> bool:
    """Whether an index is of the container as it is now, and was made by these rules."""
    made_by, (size, stamp), ends = about.pop("kind", None), about.pop("version", (None, None)), about.pop("ends", None)
    if made_by != kind.name or size != container.size or about.pop("limits", None) != _rules(limits):
        return False
    if stamp == container.stamp:
        return True
    if ends is None:
        return False
    with closing(storage.open(container)) as reader:  # a copy, with another time
        return bool(ends == _ends(reader))


def _ends(reader: Reader) -> str:
    """What tells contents apart that were copied, and have another modification time: a digest of both ends."""
    digest = hashlib.blake2b(reader.read(0, _END), digest_size=16)
    digest.update(reader.read(max(0, reader.container.size - _END), _END))
    return digest.hexdigest()


def _is_sound(rows: Rows, about: Mapping[str, Any], container: Container, limits: Limits) -> bool:
    """Whether nothing that `read_rows` cannot know of would do harm: places, sizes, and labels for every image."""
    healthy = rows.array[~rows.array["broken"]]
    sizes, labels = healthy["size"].astype(np.int64), about.get("labels")
    most = BYTES_A_PIXEL * healthy["height"].astype(np.int64) * healthy["width"]
    return (
        not bool((healthy["offset"] > container.size - sizes).any())
        and (limits.bytes is None or not bool((sizes - limits.bytes > most).any()))
        and (labels is None or (isinstance(labels, list) and len(labels) == len(rows)))
        and all(label is None or type(label) in (str, int) for label in labels or ())
        and all(_is_texts(about.get(name, [])) for name in ("twice", CLASSES_KEY) if about.get(name) is not None)
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is str for one in value)


def write_beside(scans: Sequence[Scanned], kind: Kind, storage: Storage, limits: Limits) -> None:
    """Write what was found in each container beside it, for whoever opens it next.

    Raises:
        OSError: it cannot be written.
        StorageError: the storage fails, or refuses to.
    """
    for scan in scans:
        with closing(storage.open(scan.container)) as reader:
            info = info_beside(scan, kind, limits, reader)
        storage.write_beside(scan.container, scan.rows, info)
    logger.info("wrote %d index(es) beside %s", len(scans), escaped(scans[0].container.name))


def _scan_all(
    todo: Sequence[Container],
    kind: Kind,
    storage: Storage,
    options: ScanOptions,
    folder: Any,
    pool: ThreadPoolExecutor,
    stop: threading.Event,
) -> list[Scanned]:
    def patient(reader: Reader) -> Callable[[int, int], bytes]:
        return lambda at, count: patiently(lambda: reader.read(at, count), lambda: reader.container.name)

    def parts_of(container: Container) -> list[Any]:
        with closing(storage.open(container)) as reader:
            return kind.parts(reader)

    def work(item: tuple[int, Any]) -> tuple[int, Found, dict[str, Any]]:
        number, part = item
        with closing(storage.open(todo[number])) as reader:  # not all at once: there may be thousands
            found = Found(patient(reader), reader.container.size, options.limits, stop)
            return number, found, kind.scan(reader, part, found)

    parts = [(number, part) for number, some in enumerate(pool.map(parts_of, todo)) for part in some]
    left = Counter(number for number, _ in parts)
    founds: dict[int, tuple[list[Found], list[dict[str, Any]]]] = {number: ([], []) for number in range(len(todo))}
    result = {n: _finish(todo[n], kind, [], [], options, folder) for n in range(len(todo)) if not left[n]}
    with progress_bar(None, len(parts), "indexing", "part", options.progress) as bar:
        for number, found, about in pool.map(work, parts):
            founds[number][0].append(found)
            founds[number][1].append(about)
            left[number] -= 1
            if not left[number]:
                result[number] = _finish(todo[number], kind, *founds.pop(number), options, folder)
            bar.update(1)
    return [result[number] for number in range(len(todo))]


def _finish(
    container: Container,
    kind: Kind,
    founds: Sequence[Found],
    abouts: Sequence[dict[str, Any]],
    options: ScanOptions,
    folder: Any,
) -> Scanned:
    whole = founds[0] if founds else Found(lambda at, count: b"", 0, options.limits, threading.Event())
    for more in founds[1:]:
        whole.extend(more)
    scanned = Scanned(container, whole.rows, kind.join(abouts), True)
    if folder is not None:
        try:
            save_rows(
                folder / cache_name(kind, container, options.limits),
                scanned.rows,
                saved_info(scanned, kind, options.limits),
            )
        except OSError as error:
            logger.warning("%s cannot be written, the next start reads it all again: %s", escaped(str(folder)), error)
    return scanned


def info_beside(scanned: Scanned, kind: Kind, limits: Limits, reader: Reader) -> dict[str, Any]:
    """What is written with the rows of a container into a file beside it, with which it may be copied."""
    return {**saved_info(scanned, kind, limits), "ends": _ends(reader)}


def saved_info(scanned: Scanned, kind: Kind, limits: Limits) -> dict[str, Any]:
    """What is written with the rows of a container."""
    version = [scanned.container.size, scanned.container.stamp]
    return {**scanned.about, "kind": kind.name, "version": version, "limits": _rules(limits)}
