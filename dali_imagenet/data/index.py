"""Where the encoded images are, their labels, sizes and health.

A folder tree is listed at every start, with torchvision's ``ImageFolder`` rules; the header and the end marker of each
image are read once and remembered in a cache outside the data folder, keyed by path, size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import repeat
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

logger = logging.getLogger("dali_imagenet")

# torchvision.datasets.folder.IMG_EXTENSIONS
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What a file may hold whatever its name says; SampleIndex.format counts in this tuple. Pillow reads more, but some of
# those formats start other programs (EPS runs Ghostscript), which a file in a data set must not be able to do.
FORMATS = ("unknown", "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
# Twice Pillow's Image.MAX_IMAGE_PIXELS, where Image.open refuses an image as a decompression bomb.
MAX_PIXELS = 178_956_970

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}

_HEAD = 4096  # bytes read first; most JPEG headers end within it
_TAIL = 64  # bytes searched for the end marker
_MAX_SEGMENTS = 4096  # real headers hold below 300: 255 ICC blocks and a few more
_CHUNK = 128  # files a thread takes at a time
_MAGIC = b"dali_imagenet index 1\n"  # the number is the version of the cache's layout
_CACHE_DTYPES = {
    "file_size": "<i8",
    "stamp": "<i8",
    "height": "<i4",
    "width": "<i4",
    "components": "u1",
    "format": "u1",
    "broken": "?",
}
# Values of `stamp` (modification time, ns) that match no file: it is read again at the next start.
_UNREAD, _NO_STAT = -1, -2

Array = npt.NDArray[Any]


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


class Samples(Sequence[tuple[str, int]]):
    """``ImageFolder.samples``: (path, label) pairs, made when asked for."""

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
        height, width: int32 [N], pixels as stored (EXIF orientation is not applied); 0 where broken.
        components: uint8 [N], colour components of a JPEG (1, 3 or 4); 0 for other formats and where broken.
        format: uint8 [N], position in `FORMATS`; 0 where broken.
        broken: bool [N], True where the image cannot be decoded; `reason(i)` says why.
        file_size: int64 [N], bytes; -1 where there is no regular file.
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
    # Relative paths, '/'-separated, in the file system's encoding, each followed by a NUL, which no file name holds.
    _paths: bytes
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
        num_threads: int | None = None,
        progress: bool = True,
        cache: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        max_pixels: int | None = MAX_PIXELS,
    ) -> SampleIndex:
        """Index an ImageFolder tree: ``root/<class>/**/<image>``, in the order of torchvision's ``ImageFolder``.

        Args:
            root: the folder. Links are followed; one that leads back to a folder it lies in is left out.
            split: "train" descends into ``train/``, "val" into ``val/``, ``validation/`` or ``test/`` where root holds
                one with class folders in it; otherwise root itself is the tree.
            num_threads: threads that list and read; None for four a core, 32 at most.
            progress: show a progress bar on standard error where that is a terminal.
            cache: remember what was read. A cache that cannot be read or written costs time, never the run.
            cache_dir: where; None for ``$DALI_IMAGENET_CACHE``, else the user's cache folder.
            max_pixels: height * width above which an image counts as broken and is never decoded, None for no limit.
                Beyond the default, Pillow's own ``Image.MAX_IMAGE_PIXELS`` must be raised too.

        Raises:
            FileNotFoundError: no such root, no class folder in it, or class folders without an image.
            NotADirectoryError: root is a file.
            ValueError: an argument out of range, or root holds both splits and `split` is None.
        """
        if num_threads is None:
            num_threads = min(32, 4 * (os.cpu_count() or 1))
        if num_threads < 1:
            raise ValueError(f"num_threads={num_threads}: must be 1 or more, or None")
        if max_pixels is not None and max_pixels < 1:
            raise ValueError(f"max_pixels={max_pixels}: must be 1 or more, or None for no limit")
        start = time.perf_counter()
        folder = _resolve_split(os.path.abspath(os.path.expanduser(os.fspath(root))), split)
        classes = _find_classes(folder)
        found = _list_tree(folder, classes, num_threads, progress)
        cache_file = _cache_file(folder, max_pixels, cache_dir) if cache else None
        old = _load_cache(cache_file, max_pixels) if cache_file else None
        table, todo = _reuse(found, old)
        if len(todo):
            try:
                _read_headers(folder, table, todo, num_threads, progress, max_pixels)
            finally:  # also when interrupted: what was read is kept, the rest is marked as unread
                if cache_file:
                    _save_cache(cache_file, table, old)
        elif cache_file and old is not None and old.paths != table.paths:
            _save_cache(cache_file, table, old)
        n = len(found.labels)
        scan = Scan(n, len(todo), n - len(todo), time.perf_counter() - start)
        index = cls(
            root=folder,
            classes=classes,
            labels=found.labels,
            **{name: table.columns[name] for name in _CACHE_DTYPES if name != "stamp"},
            scan=scan,
            _paths=table.paths,
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
            labels, height, width: [N] or scalars that are spread over the others, integers.
            root: folder that `paths` are relative to.
            paths: N paths; None makes up ``0000000000.JPEG``, ``0000000001.JPEG``, ...
            classes: names; None makes up "0", "1", ... up to the largest label.
            components, format, file_size: as the attributes; None for 3, JPEG and 0.
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
        return cls(
            root=os.path.abspath(root),
            classes=names,
            labels=column(labels, np.int64),
            height=column(height, np.int32),
            width=column(width, np.int32),
            components=np.where(broken, 0, column(3 if components is None else components, np.uint8)).astype(np.uint8),
            format=np.where(broken, 0, column(1 if format is None else format, np.uint8)).astype(np.uint8),
            broken=broken,
            file_size=column(0 if file_size is None else file_size, np.int64),
            scan=Scan(n, 0, 0, 0.0),
            _paths=blob,
            _reasons=reasons,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        n, bad = len(self), int(self.broken.sum())
        return f"SampleIndex({self.root!r}, {n} images, {len(self.classes)} classes, {bad} broken)"

    def __getstate__(self) -> dict[str, Any]:
        # What can be made again is not worth sending to every worker.
        return {k: v for k, v in self.__dict__.items() if k not in ("targets", "_ends")}

    def path(self, i: int) -> str:
        """The absolute path of image i; bytes that are not valid text are surrogate-escaped, as os.fsdecode does."""
        return os.path.join(self.root, self.relative_path(i))

    def relative_path(self, i: int) -> str:
        """The path of image i below `root`, '/'-separated."""
        i = self._position(i)
        begin = int(self._ends[i - 1]) + 1 if i else 0
        return os.fsdecode(self._paths[begin : int(self._ends[i])])

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
        """(path, label) pairs, as ``ImageFolder.samples``."""
        return Samples(self)

    @property
    def imgs(self) -> Samples:
        """The older name of `samples`."""
        return Samples(self)

    @cached_property
    def targets(self) -> list[int]:
        """The labels as a list, as ``ImageFolder.targets``."""
        return list(self.labels.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over classes, relative paths, labels, file sizes, image sizes and health.

        The same for a copy of the data elsewhere: neither `root` nor modification times count.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([len(self), self.classes]).encode())
        digest.update(self._paths)
        for array, dtype in (
            (self.labels, "<i8"),
            (self.file_size, "<i8"),
            (self.height, "<i4"),
            (self.width, "<i4"),
            (self.broken, "?"),
        ):
            digest.update(np.ascontiguousarray(array, dtype).data)
        return digest.hexdigest()

    @cached_property
    def _ends(self) -> npt.NDArray[np.intp]:
        return _path_ends(self._paths)


def _path_ends(paths: bytes) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.frombuffer(paths, np.uint8) == 0)


def _numbered_paths(n: int) -> bytes:
    out = np.empty((n, 16), np.uint8)
    out[:, 10:] = np.frombuffer(b".JPEG\0", np.uint8)
    i = np.arange(n)
    for k in range(10):
        out[:, 9 - k] = i // 10**k % 10 + ord("0")
    return out.tobytes()


# Listing the tree ------------------------------------------------------------------------------------------------


def _holds_folders(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() for entry in entries)
    except OSError:
        return False


def _resolve_split(root: str, split: str | None) -> str:
    """The folder whose subfolders are the classes. A class may be called "train": a split holds folders itself."""
    if split not in (None, *SPLIT_FOLDERS):
        raise ValueError(f"split={split!r}: must be 'train', 'val' or None")
    if not os.path.lexists(root):
        raise FileNotFoundError(f"data folder {root!r} does not exist; give the folder that holds one folder a class")
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{root!r} is not a folder; give the folder that holds one folder a class")
    there = {
        name: next((f for f in folders if _holds_folders(os.path.join(root, f))), None)
        for name, folders in SPLIT_FOLDERS.items()
    }
    if split is None:
        if all(there.values()):
            raise ValueError(
                f"{root!r} holds both {there['train']}/ and {there['val']}/; say split='train' or split='val', "
                f"or give {os.path.join(root, 'train')!r}"
            )
        return root
    if there[split]:
        return os.path.join(root, str(there[split]))
    other = next((f for f in there.values() if f), None)
    if other:
        wanted = " or ".join(f"{f}/" for f in SPLIT_FOLDERS[split])
        raise FileNotFoundError(
            f"split={split!r}: {root!r} holds {other}/ but no {wanted} with class folders in it; "
            "add it, or give the folder of the classes itself"
        )
    return root


def _find_classes(root: str) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        classes = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    if not classes:
        raise FileNotFoundError(f"no class folders in {root!r}; images must lie in one folder a class: {root}/<class>/")
    return classes


class _Found(NamedTuple):
    """The tree as it is now; see SampleIndex._paths for `paths`."""

    paths: bytes
    labels: npt.NDArray[np.int64]
    file_size: npt.NDArray[np.int64]
    stamp: npt.NDArray[np.int64]


def _list_class(root: str, name: str, root_key: tuple[int, int]) -> tuple[str, list[int], list[int]]:
    """Paths (NUL after each), sizes and modification times of one class: ``sorted(os.walk(followlinks=True))``."""
    folders: list[tuple[str, list[tuple[str, int, int]]]] = []
    stack: list[tuple[str, tuple[tuple[int, int], ...]]] = [(name, (root_key,))]
    while stack:
        relative, above = stack.pop()
        full = os.path.join(root, relative)
        files: list[tuple[str, int, int]] = []
        try:
            info = os.stat(full)
            key = (info.st_dev, info.st_ino)
            if key in above:
                logger.warning("%s: left out, it is a link to a folder that it lies in", full)
                continue
            with os.scandir(full) as entries:
                for entry in entries:
                    file = entry.name
                    if _is_dir(entry):
                        stack.append((f"{relative}/{file}", (*above, key)))
                    elif file.lower().endswith(IMG_EXTENSIONS):
                        try:
                            st = entry.stat()
                        except OSError:
                            files.append((file, -1, _NO_STAT))
                            continue
                        if stat.S_ISREG(st.st_mode):
                            files.append((file, st.st_size, st.st_mtime_ns))
                        else:
                            files.append((file, -1, _NO_STAT))
        except OSError as error:
            logger.warning("%s: left out, it cannot be listed: %s", full, error.strerror)
        files.sort()
        folders.append((relative, files))
    folders.sort()
    paths = "".join(f"{relative}/{f[0]}\0" for relative, files in folders for f in files)
    return paths, [f[1] for _, files in folders for f in files], [f[2] for _, files in folders for f in files]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _list_tree(root: str, classes: Sequence[str], num_threads: int, progress: bool) -> _Found:
    info = os.stat(root)
    paths, sizes, stamps, counts = [], [], [], []
    # Folders on a network answer slowly, one by one.
    with ThreadPoolExecutor(num_threads, "dali_imagenet-list") as pool:
        listed = pool.map(_list_class, repeat(root), classes, repeat((info.st_dev, info.st_ino)))
        try:
            for blob, size, stamp in _bar(listed, len(classes), "listing", "folder", progress):
                paths.append(os.fsencode(blob))
                sizes.append(np.array(size, np.int64))
                stamps.append(np.array(stamp, np.int64))
                counts.append(len(size))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(empty[:10]) + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
        raise FileNotFoundError(
            f"no image in {len(empty)} of the {len(classes)} class folders of {root!r}: {shown}; "
            f"remove these folders, or fill them with files named {', '.join(IMG_EXTENSIONS)}"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return _Found(b"".join(paths), labels, np.concatenate(sizes), np.concatenate(stamps))


def _bar(items: Iterator[Any] | None, total: int, what: str, unit: str, progress: bool) -> Any:
    """tqdm's bar, which shows itself on a terminal only."""
    from tqdm import tqdm

    bar: Any = type("Bar", (tqdm,), {})
    bar.set_lock(threading.RLock())  # tqdm's own is multiprocessing's, and would fix the start method for the user
    return bar(items, what, total, unit=unit, leave=False, disable=None if progress else True)


# Reading headers --------------------------------------------------------------------------------------------------


class _Image(NamedTuple):
    height: int
    width: int
    components: int
    format: int


class _Broken(Exception):
    """The image cannot be decoded, whatever is done; the message says why."""


def _pread(fd: int, count: int, offset: int) -> bytes:
    if sys.platform != "win32":
        return os.pread(fd, count, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, count)


@cache
def _pillow_formats() -> list[str]:
    """Those of FORMATS that the installed Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _probe(path: bytes, size: int, max_pixels: int | None) -> _Image:
    """Header and end marker of one file. Raises _Broken, or OSError where it cannot be read."""
    if size < 0:
        os.stat(path)  # says what is wrong, if that is still so
        raise OSError("not a regular file when it was listed")
    # Not blocking: a pipe may have taken the file's place.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        head = _pread(fd, _HEAD, 0)
        if not head:
            raise _Broken("empty file")
        doubt = ""
        if head[:3] == b"\xff\xd8\xff":
            image, doubt = _parse_jpeg(fd, head, size)
            _check_pixels(image.height, image.width, max_pixels)
            if not doubt:
                return image
        return _confirm(fd, head, doubt, max_pixels)
    finally:
        os.close(fd)


def _check_pixels(height: int, width: int, max_pixels: int | None) -> None:
    if max_pixels is not None and height * width > max_pixels:
        raise _Broken(f"{width} x {height} pixels, above the limit of {max_pixels} (max_pixels)")


def _parse_jpeg(fd: int, head: bytes, size: int) -> tuple[_Image, str]:
    """Walk the segments up to the first scan and look for the end marker (ITU-T T.81, annex B).

    Returns the frame header (zeros where none was found) and what is doubtful about the file, "" for nothing.
    """
    buffer, base, at = head, 0, 2
    image = _Image(0, 0, 0, 1)
    doubt, tables = "", 0
    for _ in range(_MAX_SEGMENTS):
        i = at - base
        if i + 20 > len(buffer):
            buffer, base, i = _pread(fd, _HEAD, at), at, 0
        if len(buffer) < i + 10 or buffer[i] != 0xFF:
            return image, f"header damaged or cut short at byte {at}"
        marker = buffer[i + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:  # start of scan
            break
        length = buffer[i + 2] << 8 | buffer[i + 3]
        if length < 2 or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            return image, f"header damaged at byte {at}"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            bits, height, width, components = struct.unpack_from(">BHHB", buffer, i + 4)
            if image.height:
                doubt = "two frame headers"
            elif marker > 0xC2 or bits != 8:
                doubt = f"frame type {marker - 0xC0} with {bits} bits a sample"
            elif components not in (1, 3, 4) or length != 8 + 3 * components:
                doubt = f"frame header of {length} bytes with {components} components"
            elif not height or not width:
                doubt = f"{width} x {height} pixels"
            image = _Image(height, width, components, 1)
        elif marker == 0xDB:  # quantization tables
            tables |= 1
        elif marker == 0xC4:  # Huffman tables
            tables |= 2
        at += 2 + length
    else:
        raise _Broken(f"more than {_MAX_SEGMENTS} segments before the image")
    if not doubt and (not image.height or tables != 3):
        doubt = "no frame header, quantization or Huffman tables before the image"
    if not doubt:
        tail = head if size <= len(head) else _pread(fd, _TAIL, size - _TAIL)
        if not tail.rstrip(b"\0\xff \t\r\n").endswith(b"\xff\xd9"):
            doubt = "no end marker at the end of the file"
    return image, doubt


def _confirm(fd: int, head: bytes, doubt: str, max_pixels: int | None) -> _Image:
    """Load an unusual file with Pillow, as torchvision's ImageFolder would; what fails there is broken."""
    from PIL import Image, UnidentifiedImageError

    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with open(fd, "rb", closefd=False) as file, Image.open(file, formats=_pillow_formats()) as image:
            width, height = image.size
            _check_pixels(height, width, max_pixels)
            name = "JPEG" if image.format == "MPO" else str(image.format)
            components = int(getattr(image, "layers", 0)) if name == "JPEG" else 0
            image.convert("RGB")
            return _Image(height, width, components, FORMATS.index(name))
    except _Broken:
        raise
    except UnidentifiedImageError:
        kind = f"a JPEG that Pillow cannot open ({doubt})" if doubt else f"no known image: it starts with {head[:16]!r}"
        raise _Broken(kind) from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        if isinstance(error, OSError) and error.errno:
            raise
        raise _Broken(f"{error} ({doubt})" if doubt else f"{error or type(error).__name__}") from None


def _read_headers(
    root: str, table: _Table, todo: npt.NDArray[np.intp], num_threads: int, progress: bool, max_pixels: int | None
) -> None:
    """Fill the rows `todo` of the table. A row that is not reached keeps the stamp _UNREAD."""
    prefix = os.fsencode(os.path.join(root, ""))
    ends = _path_ends(table.paths)
    columns = table.columns
    stop = threading.Event()

    def read(rows: npt.NDArray[np.intp]) -> int:
        for i in rows.tolist():
            if stop.is_set():
                break
            path = prefix + table.paths[ends[i - 1] + 1 if i else 0 : ends[i]]
            image, reason, stamp = _Image(0, 0, 0, 0), "", table.found_stamp[i]
            try:
                image = _probe(path, int(columns["file_size"][i]), max_pixels)
            except _Broken as error:
                reason = str(error)
            except OSError as error:
                reason, stamp = f"cannot be read: {error.strerror or error}", _UNREAD
            columns["height"][i], columns["width"][i], columns["components"][i], columns["format"][i] = image
            columns["broken"][i] = bool(reason)
            if reason:
                table.reasons[i] = reason
            else:
                table.reasons.pop(i, None)
            columns["stamp"][i] = stamp
        return len(rows)

    chunks = [todo[k : k + _CHUNK] for k in range(0, len(todo), _CHUNK)]
    with ThreadPoolExecutor(num_threads, "dali_imagenet-index") as pool:
        try:
            with _bar(None, len(todo), "indexing", "file", progress) as bar:
                for count in pool.map(read, chunks):
                    bar.update(count)
        finally:
            stop.set()


# The cache: what was read, by path, size and modification time -----------------------------------------------------


@dataclass(slots=True)
class _Table:
    """The columns of _CACHE_DTYPES for the files `paths`; `found_stamp` are the times just listed."""

    paths: bytes
    columns: dict[str, Array]
    reasons: dict[int, str]
    found_stamp: npt.NDArray[np.int64]


def _reuse(found: _Found, old: _Table | None) -> tuple[_Table, npt.NDArray[np.intp]]:
    """A table for the files found, filled from the old one where nothing changed, and the rows left to read."""
    n = len(found.labels)
    if old is not None and old.paths == found.paths:  # the usual case costs no Python per file
        source = np.arange(n)
    elif old is not None:
        row = {path: i for i, path in enumerate(old.paths.split(b"\0")[:-1])}
        source = np.fromiter((row.get(path, -1) for path in found.paths.split(b"\0")[:-1]), np.intp, n)
    else:
        source = np.full(n, -1)
    columns = {name: np.zeros(n, dtype) for name, dtype in _CACHE_DTYPES.items()}
    reasons: dict[int, str] = {}
    known = source >= 0
    if old is not None:
        for name, now in (("file_size", found.file_size), ("stamp", found.stamp)):
            known[known] = old.columns[name][source[known]] == now[known]
        for name, column in columns.items():
            column[known] = old.columns[name][source[known]]
        reasons = {i: old.reasons[int(source[i])] for i in np.flatnonzero(columns["broken"]).tolist()}
    columns["file_size"][:] = found.file_size
    columns["stamp"][~known] = _UNREAD
    return _Table(found.paths, columns, reasons, found.stamp), np.flatnonzero(~known)


def _cache_file(root: str, max_pixels: int | None, cache_dir: str | os.PathLike[str] | None) -> str:
    import platformdirs
    from PIL import ImageFile

    folder = cache_dir or os.environ.get("DALI_IMAGENET_CACHE") or platformdirs.user_cache_dir("dali-imagenet", False)
    # Everything that decides what counts as broken is part of the name.
    key = [os.fsencode(os.path.realpath(root)).hex(), max_pixels, bool(ImageFile.LOAD_TRUNCATED_IMAGES)]
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
    return os.path.join(os.path.expanduser(folder), f"index-{digest}.bin")


def _pack(table: _Table) -> list[bytes]:
    """Counts (rows, bytes of paths, bytes of reasons), the columns, the paths, the reasons as JSON."""
    reasons = json.dumps(list(table.reasons.items())).encode()
    counts = struct.pack("<qqq", len(table.found_stamp), len(table.paths), len(reasons))
    columns = [table.columns[name].astype(dtype).tobytes() for name, dtype in _CACHE_DTYPES.items()]
    return [counts, *columns, table.paths, reasons]


def _digest(parts: Sequence[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _unpack(data: bytes, max_pixels: int | None) -> _Table:
    """The inverse of _pack, magic and digest in front. Raises ValueError for anything that _save_cache did not write.

    The digest catches accidents, the checks after it everything that could do harm later.
    """
    body = memoryview(data)[len(_MAGIC) + 16 :]
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is of another version")
    if len(body) < 24 or _digest([body]) != data[len(_MAGIC) : len(_MAGIC) + 16]:
        raise ValueError("it is damaged or cut short")
    n, path_bytes, reason_bytes = struct.unpack_from("<qqq", body)
    width = sum(np.dtype(dtype).itemsize for dtype in _CACHE_DTYPES.values())
    if min(n, path_bytes, reason_bytes) < 0 or 24 + n * width + path_bytes + reason_bytes != len(body):
        raise ValueError("its lengths do not fit")
    columns, at = {}, 24
    for name, dtype in _CACHE_DTYPES.items():
        columns[name] = np.frombuffer(body, "u1" if dtype == "?" else dtype, n, at)
        at += columns[name].nbytes
    paths = bytes(body[at : at + path_bytes])
    reasons = json.loads(bytes(body[at + path_bytes :]))
    ok = columns["broken"] == 0
    height, image_width = columns["height"].astype(np.int64), columns["width"].astype(np.int64)
    pixels = height * image_width
    sound = (
        len(_path_ends(paths)) == n
        and (not n or paths.endswith(b"\0"))
        and bool((columns["broken"] <= 1).all())
        and bool((columns["format"] < len(FORMATS)).all())
        and bool((columns["components"] <= 4).all())
        and bool(((height >= 0) & (image_width >= 0)).all())
        and bool((ok == (pixels > 0))[columns["stamp"] != _UNREAD].all())
        and (max_pixels is None or int(pixels.max(initial=0)) <= max_pixels)
        and isinstance(reasons, list)
        and all(isinstance(r, list) and [type(v) for v in r] == [int, str] for r in reasons)
        and {r[0] for r in reasons} == set(np.flatnonzero(~ok).tolist())
    )
    if not sound:
        raise ValueError("its contents make no sense")
    columns["broken"] = columns["broken"].astype(np.bool_)
    return _Table(paths, columns, dict(reasons), columns["stamp"])


def _load_cache(file: str, max_pixels: int | None) -> _Table | None:
    try:
        with open(file, "rb") as f:
            return _unpack(f.read(), max_pixels)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        logger.warning("index cache %s is ignored and made anew: %s", file, error)
        return None


def _save_cache(file: str, table: _Table, old: _Table | None) -> None:
    """Write beside the file and rename over it, so that readers and other writers see a whole cache or none."""
    temporary = None
    try:
        parts = _pack(table)
        if old is not None and parts == _pack(old):  # what could not be read still cannot
            return
        os.makedirs(os.path.dirname(file), exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=os.path.basename(file) + ".", dir=os.path.dirname(file))
        with open(fd, "wb") as f:
            f.writelines([_MAGIC, _digest(parts), *parts])
        os.replace(temporary, file)
    except OSError as error:
        logger.warning("index cache %s cannot be written, the next start reads every header again: %s", file, error)
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
