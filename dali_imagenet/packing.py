"""Any data as WebDataset shards, with their index beside them: the same samples, in the same order, in few files."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dali_imagenet import rng
from dali_imagenet.data.headers import Limits
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.data.progress import progress_bar
from dali_imagenet.data.rows import read_rows, save_rows
from dali_imagenet.data.scan import CLASSES_KEY, INDEX_SUFFIX, Found, LocalStorage, Scanned, info_beside
from dali_imagenet.data.shared import key_of
from dali_imagenet.data.tar import Tar
from dali_imagenet.errors import BadImageError
from dali_imagenet.escape import escaped
from dali_imagenet.formats import MAX_BYTES, MAX_PIXELS
from dali_imagenet.image import decode_and_resize, read_sample
from dali_imagenet.pillow import open_image
from dali_imagenet.plan.plan import Plan
from dali_imagenet.recipe import EvalRecipe
from dali_imagenet.validation import number_of_bytes, whole, wrong

log = logging.getLogger("dali_imagenet")

_KIND = Tar()
_USUAL = Limits(MAX_PIXELS, MAX_BYTES)  # of whoever opens the shards
_NO_LIMITS = Limits(None, None)  # the index of the source has judged already
_COMPARED = 64  # images that are compared with what became of them
_OVERHEAD = 2048  # bytes a sample: two headers, a label, and what fills up blocks
DEFAULT_QUALITY = 90


@dataclass
class Packed:
    """What `pack` did.

    Attributes:
        shards: the files of this part, in order.
        images: how many lie in them.
        written: bytes of the shards that were written now; those that were there already count nothing.
        left_out: {name: why} of what could not be read.
        reencoded: how many images were made smaller.
        size_ratio: bytes of these after / before; None where there are none, as the next two.
        pixel_difference: mean absolute difference that it makes to evaluation's 224 x 224 pixels, in 0..255, over up to
            64 images.
        time_ratio: CPU time to read and decode these after / before.
    """

    shards: list[str] = field(default_factory=list)
    images: int = 0
    written: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    reencoded: int = 0
    size_ratio: float | None = None
    pixel_difference: float | None = None
    time_ratio: float | None = None


class _Smaller(NamedTuple):
    max_side: int
    quality: int


def pack(
    source: Any,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: Any = None,
    shuffle: int | None = None,
    shard_size: int | str = "1GB",
    max_side: int | None = None,
    quality: int | None = None,
    part: tuple[int, int] = (1, 1),
    num_threads: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Packed:
    """Write any data as WebDataset's tar shards, which `SampleIndex.from_webdataset` and other readers take.

    Files are copied as they are, under their relative paths and in the order of the index, with the label as `.cls`
    beside each and an index of each shard, `NAME.tar.dali-index`; so that the shards have the fingerprint of the data,
    and a saved state moves between them. A dot within a name's stem becomes `%2E`, for WebDataset ends the key at the
    first one. What is there already from the same call, of the right size, is left.

    Args:
        source: whatever `SampleIndex.open` takes.
        out: a folder, which is made. Gets `shard-000000.tar` and so on, and `classes.txt`.
        split: as `SampleIndex.open` takes it.
        classes: as `SampleIndex.open` takes it.
        shuffle: a seed of 0..2**64-1: write in a permuted order, for readers that read shards from front to back. The
            fingerprint is another one then. None: in the order of the index.
        shard_size: bytes, or a text such as "1GB" or "512MiB".
        max_side: pixels: JPEGs and others with a longer side are made smaller, to that, and stored as JPEGs. What that
            does is measured and said. None: no image is touched.
        quality: of these JPEGs, 1..95; None for 90.
        part: (i, n): write the i-th of n parts of the shards, i = 1..n, for jobs that run side by side.
        num_threads: shards written at once; None for the cores.
        progress: show a progress bar on standard error where that is a terminal.
        options: as `SampleIndex.open` takes them.

    Returns:
        What was done, as `Packed`.

    Raises:
        FileExistsError: `out` holds shards of something else.
        OSError: a shard cannot be written.
        ValueError: an argument out of range.
    """
    size = number_of_bytes("shard_size", shard_size)
    smaller = _smaller(max_side, quality)
    if not (isinstance(part, tuple) and len(part) == 2):
        raise wrong("part", part, "(i, n): the i-th of n parts")
    n_parts = whole("part", part[1], 1)
    which = whole("part", part[0], 1, n_parts)
    num_threads = whole("num_threads", num_threads or os.cpu_count() or 1, 1)
    index = SampleIndex.open(source, split=split, classes=classes, **options)
    folder = os.path.abspath(os.path.expanduser(os.fspath(out)))
    if os.path.realpath(folder) in _folders_of(index):
        raise ValueError(f"{escaped(folder)} holds the data themselves: give another folder to write to")
    os.makedirs(folder, exist_ok=True)
    order = np.arange(len(index))
    if shuffle is not None:
        order = rng.Permutation(len(index), whole("shuffle", shuffle, 0, 2**64 - 1), 0)(order)
    healthy = order[~index.broken[order]]
    shards = _shards(index, healthy, size)
    mine = list(range(len(shards)))[which - 1 :: n_parts]
    made = key_of(index.fingerprint, shuffle, size, smaller)
    job = _Job(index, folder, made, smaller, threading.Event())
    result = Packed()
    for i in np.flatnonzero(index.broken).tolist():
        result.left_out[index.path(i)] = str(index.reason(i))
    if which == 1:
        _write_whole(os.path.join(folder, "classes.txt"), "".join(f"{name}\n" for name in index.classes).encode())
    with ThreadPoolExecutor(num_threads, "dali_imagenet-pack") as pool:
        try:
            with progress_bar(None, len(mine), "packing", "shard", progress) as bar:
                for done in pool.map(lambda number: job.shard(number, shards[number]), mine):
                    result.shards.append(done.file)
                    result.images += done.images
                    result.written += done.written
                    result.left_out |= done.left_out
                    bar.update(1)
        except BaseException:
            job.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for name, why in result.left_out.items():
        log.warning("left out %s: %s", escaped(name), why)
    job.compare(result)
    return result


def _folders_of(index: SampleIndex) -> set[str]:
    """The folders that it was made of, as far as its names tell."""
    places = [
        index.root,
        *(index.path(i).partition(".tar:")[0] for i in range(0, len(index), max(1, len(index) // 64))),
    ]
    return {os.path.realpath(place) for place in [*places, *map(os.path.dirname, places)]}


def _smaller(max_side: int | None, quality: int | None) -> _Smaller | None:
    if max_side is None:
        if quality is not None:
            raise wrong("quality", quality, "None where max_side is None, which touches no image")
        return None
    quality = DEFAULT_QUALITY if quality is None else whole("quality", quality, 1, 95)
    return _Smaller(whole("max_side", max_side, 16), quality)


def _shards(index: SampleIndex, order: Any, size: int) -> list[Any]:
    """The samples of each shard: as many as fit, one at least."""
    if not len(order):
        raise ValueError(f"{index!r}: no image to pack")
    ends = np.cumsum(index.file_size[order] + _OVERHEAD)
    cuts, start = [], 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + size, "right")))
        cuts.append(order[start:stop])
        start = stop
    return cuts


class _Done(NamedTuple):
    file: str
    images: int
    written: int
    left_out: dict[str, str]


class _Job:
    """One call of `pack`."""

    def __init__(
        self, index: SampleIndex, folder: str, made: str, smaller: _Smaller | None, stop: threading.Event
    ) -> None:
        self.index, self.folder, self.made, self.smaller, self.stop = index, folder, made, smaller, stop
        self._changed: list[tuple[int, bytes]] = []
        self._sizes = [0, 0, 0]  # images made smaller, their bytes before and after
        self._lock = threading.Lock()

    def shard(self, number: int, samples: Any) -> _Done:
        """One shard, written and read again, or found to be there."""
        file = os.path.join(self.folder, f"shard-{number:06d}.tar")
        there = self._there(file)
        if there is not None:
            return there
        temporary = os.path.join(self.folder, f".shard-{number:06d}.tmp")
        left_out: dict[str, str] = {}
        try:
            names, places, digests = self._write(temporary, samples, left_out)
            scanned = self._index(temporary, names, places, digests)
            kept = [int(sample) for sample in samples if self.index.path(int(sample)) not in left_out]
            about = {
                "labels": [int(label) for label in self.index.labels[kept]],
                CLASSES_KEY: list(self.index.classes),
                **{"twice": [], "nested": False, "cut": False},
                **{"made": self.made, "left_out": left_out},
            }
            os.replace(temporary, file)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        container = LocalStorage().identify(file)
        reader = LocalStorage().open(container)
        try:
            info = info_beside(Scanned(container, scanned.rows, about, True), _KIND, _USUAL, reader)
        finally:
            reader.close()
        info["version"] = [container.size, None]  # the same file every time, and wherever it is copied to
        save_rows(file + INDEX_SUFFIX, scanned.rows, info)
        return _Done(file, len(names), container.size, left_out)

    def _there(self, file: str) -> _Done | None:
        """The shard, if this very call has written it before."""
        if not os.path.exists(file):
            return None
        try:
            with open(file + INDEX_SUFFIX, "rb") as beside:
                rows, info = read_rows(beside.read(), None)
        except FileNotFoundError:  # interrupted between the two
            return None
        except ValueError:
            info = {}
        if info.get("made") == self.made and info["version"][0] != os.path.getsize(file):
            return None  # it was damaged
        if info.get("made") != self.made:
            raise FileExistsError(
                f"{escaped(file)} is of other data or options: give another folder, or remove what is in this one"
            )
        return _Done(file, len(rows), 0, dict(info["left_out"]))

    def _write(
        self, temporary: str, samples: Any, left_out: dict[str, str]
    ) -> tuple[list[str], list[tuple[int, int]], list[bytes]]:
        """Names in the index, places in the file, and digests of what was written there."""
        names, places, digests = [], [], []
        keys = set[str]()
        with open(temporary, "wb") as out, _archive(out) as archive:
            for sample in samples.tolist():
                if self.stop.is_set():
                    raise InterruptedError("another shard has failed")
                try:
                    data = self._contents(sample)
                except BadImageError as error:
                    left_out[self.index.path(sample)] = str(error)
                    continue
                name = self.index.relative_path(sample)
                key, extension = _key(name)
                if key in keys:  # x.jpg and x.png
                    key = f"{key}%2E{extension}"
                keys.add(key)
                places.append((_add(archive, f"{key}.{extension}", data), len(data)))
                _add(archive, f"{key}.cls", b"%d" % int(self.index.rows.array["label"][sample]))
                names.append(name)
                digests.append(hashlib.blake2b(data, digest_size=16).digest())
            archive.close()
            out.flush()
            os.fsync(out.fileno())
        return names, places, digests

    def _contents(self, sample: int) -> bytes:
        data = read_sample(self.index, sample)
        if self.smaller is None or max(self.index.height[sample], self.index.width[sample]) <= self.smaller.max_side:
            return data
        with open_image(data) as image:
            if image.mode not in ("L", "RGB"):
                image = image.convert("RGB")
            scale = self.smaller.max_side / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            out = io.BytesIO()
            image.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=self.smaller.quality)
        with self._lock:
            self._sizes = [old + new for old, new in zip(self._sizes, (1, len(data), out.tell()), strict=True)]
            if len(self._changed) < _COMPARED:
                self._changed.append((sample, out.getvalue()))
        return out.getvalue()

    def _index(
        self, file: str, names: Sequence[str], places: Sequence[tuple[int, int]], digests: Sequence[bytes]
    ) -> Found:
        """Read it all again: every image is where it should be, and what it should be."""
        container = LocalStorage().identify(file)
        reader = LocalStorage().open(container)
        try:
            found = Found(reader.read, container.size, _NO_LIMITS, self.stop)
            for name, (offset, size), digest in zip(names, places, digests, strict=True):
                if hashlib.blake2b(reader.read(offset, size), digest_size=16).digest() != digest:
                    raise OSError(f"{escaped(file)}: {escaped(name)} is not what was written: the storage fails")
                found.add(name, offset, size)
        finally:
            reader.close()
        return found

    def compare(self, result: Packed) -> None:
        """What making images smaller did to evaluation's pixels, and to the time to get there."""
        result.reencoded = self._sizes[0]
        if not self._changed:
            return
        recipe = EvalRecipe()
        samples = [sample for sample, _ in self._changed]
        small = _in_memory(self.index, self._changed)
        before, spent_before = _pixels(self.index, samples, recipe)
        after, spent_after = _pixels(small, list(range(len(samples))), recipe)
        result.size_ratio = self._sizes[2] / self._sizes[1]
        result.pixel_difference = float(np.mean([np.abs(a - b).mean() for a, b in zip(before, after, strict=True)]))
        result.time_ratio = spent_after / spent_before


class _Memory:
    """A `Source` of bytes in memory."""

    fork_safe = True

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, sample: int) -> bytes:
        return self._files[sample]

    def read_many(self, samples: Sequence[int]) -> list[bytes | Exception]:
        return [self._files[sample] for sample in samples]

    def will_read(self, samples: Sequence[int]) -> None: ...

    def name(self, sample: int) -> str:
        return f"re-encoded image {sample}"

    def local_path(self, sample: int) -> None: ...

    def close(self) -> None: ...


def _in_memory(index: SampleIndex, changed: Sequence[tuple[int, bytes]]) -> SampleIndex:
    files, at = [data for _, data in changed], 0
    whole_of = b"".join(files)
    found = Found(lambda begin, count: whole_of[begin : begin + count], len(whole_of), _NO_LIMITS, threading.Event())
    for sample, data in changed:
        found.add(index.relative_path(sample), at, len(data))
        at += len(data)
    return SampleIndex(index.root, index.classes, index.scan, _Memory(files), found.rows)


def _pixels(index: SampleIndex, samples: Sequence[int], recipe: EvalRecipe) -> tuple[list[Any], float]:
    """Of each sample, and the CPU time of this thread."""
    plan = Plan(index, recipe, batch_size=1, on_error="skip")
    batches = [plan.batch(0, sample) for sample in samples]
    start = time.thread_time()
    found = [decode_and_resize(index, batch, 0)[0] for batch in batches]
    spent = time.thread_time() - start
    return [image.numpy().astype(np.float32) for image in found], max(spent, 1e-9)


def _key(name: str) -> tuple[str, str]:
    """WebDataset's key and extension of a relative path."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.rpartition(".")
    return folder + slash + stem.replace(".", "%2E"), extension


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Where its contents begin."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    at = archive.offset + len(header)
    archive.addfile(info, io.BytesIO(data))
    return at


def _archive(out: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape")


def _write_whole(file: str, data: bytes) -> None:
    temporary = f"{file}.{os.getpid()}.tmp"
    with open(temporary, "wb") as out:
        out.write(data)
    os.replace(temporary, file)
