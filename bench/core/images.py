"""Images for the comparison: realistic JPEGs made on the spot, and the folder every contestant reads.

A generated image is a "dead leaves" picture (opaque shapes whose sizes follow a power law, which gives the edges and
the spectrum of photographs) with a 1/f texture on every leaf. Sizes, file sizes, chroma subsampling and the share of
gray images follow 800 training images of ImageNet: mean 468x400 pixels, 110 KB, 4.7 bits a pixel, 77% in 4:4:4.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dali_imagenet.cache import cache_folder

if TYPE_CHECKING:
    from dali_imagenet import SampleIndex

VERSION = 1  # of the generator: part of the cached folder's name
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's ImageFolder
# (width, height): share, counted over 800 ImageNet images; the rest is log-normal with tails.
COMMON_SIZES = (((500, 375), 0.215), ((500, 333), 0.15), ((375, 500), 0.065), ((333, 500), 0.045), ((640, 480), 0.015))
TILE = 512

Progress = Callable[[int, int], None]
Array = npt.NDArray[np.float32]


def cache_dir() -> Path:
    """Where generated images and converted data sets stay: the cache folder of the package."""
    folder = cache_folder()
    if folder is None:
        raise RuntimeError("there is no home folder for generated images: set DALI_IMAGENET_CACHE to a folder")
    return folder


@lru_cache(maxsize=1)
def _tiles() -> Array:
    """Eight periodic 1/f textures [8, TILE, TILE], zero mean, unit deviation."""
    rng = np.random.Generator(np.random.Philox(key=1))
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / TILE)
    tiles = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TILE, TILE))) / radius**1.05) for _ in range(8)]
    return np.stack([(t - t.mean()) / t.std() for t in tiles]).astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Array:
    tile = _tiles()[rng.integers(8)]
    rows = (rng.integers(TILE) + np.arange(height)) % TILE
    columns = (rng.integers(TILE) + np.arange(width)) % TILE
    return np.asarray(tile[rows][:, columns])


def _size(rng: np.random.Generator) -> tuple[int, int]:
    pick = rng.random()
    for size, share in COMMON_SIZES:
        if pick < share:
            return size
        pick -= share
    area = float(np.exp(rng.normal(np.log(150_000), 0.8)))
    ratio = float(np.exp(rng.normal(0.16, 0.28)))
    width, height = (area * ratio) ** 0.5, (area / ratio) ** 0.5
    return int(np.clip(width, 80, 2000)), int(np.clip(height, 80, 2000))


def _leaves(rng: np.random.Generator, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Opaque shapes, large ones first, in colour, and the amount of texture of each as a gray image."""
    # Photographs differ in lightness far more than in hue: six colours of one cast.
    cast = rng.uniform(50, 200) + rng.normal(0, 16, 3)
    palette = np.clip(cast + rng.normal(0, 50, (6, 1)) + rng.normal(0, 20, (6, 3)), 0, 255)
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in palette[0]))
    amount = Image.new("L", (width, height), int(rng.integers(20, 200)))
    draw, weight = ImageDraw.Draw(picture), ImageDraw.Draw(amount)
    count = int(rng.integers(60, 260))
    span = min(width, height)
    radii = np.sort(span * 0.5 / np.sqrt(rng.uniform(0.6, 300, count)))[::-1]  # density ~ r**-3, scale-invariant
    for radius in radii:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        colour = np.clip(palette[rng.integers(6)] + rng.normal(0, 12, 3), 0, 255)
        fill = (int(colour[0]), int(colour[1]), int(colour[2]))
        level = int(rng.choice([0, 10, 60, 120, 200, 255]))
        corners = int(rng.integers(2, 7))
        if corners == 2:
            stretch = rng.uniform(0.4, 1.0)
            bounds = (x - radius, y - radius * stretch, x + radius, y + radius * stretch)
            draw.ellipse(bounds, fill=fill)
            weight.ellipse(bounds, fill=level)
            continue
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners + 1))
        points = [(x + radius * float(np.cos(a)), y + radius * float(np.sin(a))) for a in angles]
        draw.polygon(points, fill=fill)
        weight.polygon(points, fill=level)
    return picture, amount


def make_jpeg(seed: int, index: int) -> bytes:
    """The encoded JPEG number `index` of `seed`: a pure function of both (and of Pillow's encoder)."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    width, height = _size(rng)
    picture, amount = _leaves(rng, width, height)
    pixels: Array = np.asarray(picture, np.float32)
    weight = np.asarray(amount, np.float32)[..., None] / 255
    light = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * np.float32(rng.normal(0, 15))
    # Lens blur and texture: these two set how many bits the photograph costs.
    gray = _texture(rng, height, width)[..., None] * np.float32(np.exp(rng.normal(2.55, 0.6)))
    tint = _texture(rng, height, width)[..., None] * rng.normal(0, 2, 3).astype(np.float32)
    pixels = (pixels + light + (gray + tint) * (0.25 + weight)).astype(np.float32)
    grain = _grain(rng, height, width) * np.float32(rng.uniform(0.2, 1.9))
    image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    if rng.random() < 0.02:
        image = image.convert("L")
    pick = rng.random()
    subsampling = "4:4:4" if pick < 0.77 else "4:2:0" if pick < 0.98 else "4:2:2"
    quality = 96 if rng.random() < 0.7 else int(rng.integers(82, 96))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def _grain(rng: np.random.Generator, height: int, width: int) -> Array:
    """White sensor noise, unit deviation, from a small table: drawing every pixel would dominate the time."""
    table = rng.standard_normal(4096 + width).astype(np.float32)
    starts = rng.integers(0, 4096, height)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(table, width)[starts][..., None])


def _write(job: tuple[int, int, str]) -> int:
    seed, index, path = job
    data = make_jpeg(seed, index)
    Path(path).write_bytes(data)
    return len(data)


def generate(
    root: Path, train: int = 800, val: int = 200, classes: int = 10, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Make an ImageFolder tree `root/{train,val}/<class>/<number>.JPEG` and return `root`.

    Images are dealt to the classes in turn. An existing complete tree is returned as it is; the tree appears in one
    step, so an interrupted run leaves none behind.
    """
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=root.name + ".", dir=root.parent))
    try:
        jobs = []
        for index in range(train + val):
            part, number = ("train", index) if index < train else ("val", index - train)
            folder = partial / part / f"class{number % classes:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            jobs.append((seed, index, str(folder / f"{index:05d}.JPEG")))
        _tiles()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # encoding and numpy release the interpreter lock
            for done, _ in enumerate(pool.map(_write, jobs), 1):
                if progress:
                    progress(done, len(jobs))
        try:
            partial.rename(root)
        except OSError:  # another process was faster
            if not root.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def default_data(seed: int = 0, progress: Progress | None = None) -> Path:
    """The generated default: 800 training and 200 validation images, kept in the user's cache folder."""
    return generate(cache_dir() / f"images-v{VERSION}-seed{seed}", seed=seed, progress=progress)


def image_files(root: Path) -> list[Path]:
    """Images below the class folders of `root`, in torchvision's ImageFolder order.

    Raises FileNotFoundError where there is no folder, or no class folder with an image in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: give --data the root of an ImageFolder tree")
    found = []
    for group in sorted(p for p in root.iterdir() if p.is_dir()):
        for folder, _, names in sorted(os.walk(group, followlinks=True)):
            found += [Path(folder) / name for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
    if not found:
        raise FileNotFoundError(f"{root} holds no class folder with images: expected {root.name}/<class>/<image>")
    return found


def split_roots(data: Path) -> tuple[Path, Path]:
    """(training root, evaluation root): `data/train` and `data/val` where they exist, else `data` for both."""
    train = data / "train" if (data / "train").is_dir() else data
    val = data / "val" if (data / "val").is_dir() else train
    return train, val


def as_folder(data: str, most: int = 10_000) -> Path:
    """The ImageFolder tree of whatever `SampleIndex.open` reads, as not every contestant reads all of it.

    A folder that is one, or holds train/ of one, is returned as it is. Of anything else (the training part, where there
    are parts) a tree is made in the cache folder once: links where images are local files, else copies.

    Args:
        data: as `SampleIndex.open` takes it.
        most: images, evenly chosen among the healthy ones that torchvision's ImageFolder would list.

    Raises:
        OSError, ValueError, ImportError: as `SampleIndex.open`, or nothing usable in it.
    """
    if Path(data).is_dir() and _is_tree(split_roots(Path(data))[0]):
        return Path(data)
    from dali_imagenet import SampleIndex
    from dali_imagenet.data.places import public
    from dali_imagenet.formats import FORMATS

    index = SampleIndex.open(data, default_split="train")
    listed = [number for number, name in enumerate(FORMATS) if f".{name.lower()}" in EXTENSIONS]
    usable = np.flatnonzero(~index.broken & np.isin(index.format, listed))
    if not len(usable):
        raise ValueError(f"{public(data)} holds no image that can be compared")
    name = re.sub(r"[^\w.-]+", "_", Path(public(data)).name) or "data"  # reports show it
    key = json.dumps([index.fingerprint, index.root, most])
    target = cache_dir() / "unpacked" / hashlib.sha256(key.encode()).hexdigest()[:16] / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial.", dir=target.parent))
    try:
        chosen = usable[np.linspace(0, len(usable) - 1, min(most, len(usable))).round().astype(int)]
        for some in np.array_split(chosen, -(-len(chosen) // 64)):
            _write_out(index, some.tolist(), partial, FORMATS)
        partial.rename(target)
    except OSError:  # another process was faster
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        index.source.close()
    return target


def _write_out(index: SampleIndex, samples: list[int], root: Path, formats: Sequence[str]) -> None:
    files = [root / f"{index.labels[i]:05d}" / f"{i:08d}.{formats[index.format[i]].lower()}" for i in samples]
    for folder in {file.parent for file in files}:
        folder.mkdir(exist_ok=True)
    places = [index.source.local_path(i) for i in samples]
    if places[0] is not None:  # either every sample has one, or none
        for file, place in zip(files, places, strict=True):
            try:
                os.symlink(os.path.abspath(str(place)), file)
            except (OSError, NotImplementedError):  # links are not allowed everywhere
                shutil.copyfile(str(place), file)
        return
    for file, data in zip(files, index.source.read_many(samples), strict=True):
        if isinstance(data, Exception):
            raise data
        file.write_bytes(data)


def _is_tree(root: Path) -> bool:
    """Whether one of its folders has an image."""
    folders = (entry for entry in os.scandir(root) if entry.is_dir())
    return any(entry.name.lower().endswith(EXTENSIONS) for folder in folders for entry in os.scandir(folder))


def linked(root: Path, limit: int, at_least: int) -> Path:
    """The folder the contestants read: at most `limit` images of `root`, evenly chosen, each present under as many
    names as it takes to make an epoch of `at_least` images.

    A small sample would otherwise measure how a loader starts an epoch. The names are links, so every contestant
    reads the same bytes. Where links are not allowed, `root` itself is returned.
    """
    files = image_files(root)
    chosen = files if len(files) <= limit else [files[int(i)] for i in np.linspace(0, len(files) - 1, limit).round()]
    copies = -(-at_least // len(chosen))
    if copies <= 1 and len(chosen) == len(files):
        return root
    key = json.dumps([str(root.resolve()), limit, at_least, [(str(f), f.stat().st_mtime_ns) for f in chosen]])
    target = cache_dir() / "links" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial.", dir=target.parent))
    try:
        for file in chosen:
            relative = file.relative_to(root)
            folder = partial / relative.parent
            folder.mkdir(parents=True, exist_ok=True)
            for copy in range(copies):
                os.symlink(file.resolve(), folder / f"{relative.stem}_{copy}{relative.suffix}")
        partial.rename(target)
    except OSError:
        return target if target.is_dir() else root
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def mixed(root: Path) -> tuple[list[str], list[int]]:
    """Files below the class folders of `root`, and their classes, in a fixed order in which the names that one image
    has in a tree of links do not lie side by side: a batch of one image is no batch that anybody trains on."""
    files = image_files(root)
    classes = {name: number for number, name in enumerate(sorted({f.relative_to(root).parts[0] for f in files}))}
    order = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    return [str(f) for f in order], [classes[f.relative_to(root).parts[0]] for f in order]


def distinct(files: list[Path]) -> list[Path]:
    """The files behind the links, each once."""
    return sorted({file.resolve() for file in files})


def distinct_samples(samples: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], int]:
    """ImageFolder's (path, label) with every file once, and how often each was there: converted data sets hold a file
    once and repeat it."""
    found = {os.path.realpath(path): (path, label) for path, label in reversed(samples)}
    return sorted(found.values()), max(1, len(samples) // len(found))
