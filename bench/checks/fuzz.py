"""Mutated images, index caches and what is remembered of rows, through both CPU backends, in subprocesses.

A round indexes a folder of mutated JPEGs, evaluates it with on_error="skip" and trains on it with "replace"; then the
files are mutated once more, behind the index's back, and the same loaders run again. A sample is accounted for where it
is either delivered with its label or counted as padding and named in Loader.failures. A crash, a hang, an account that
does not add up, or a sample that one backend loses or shows otherwise than the other is a finding. So is a crop that is
another one from its first row than from the top, whatever has become of the file and of the record (`fuzzers.rows`).
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dali_imagenet.data.progress import progress_bar

from ..core import PROGRAM
from ..core.machine import describe, versions
from .fuzzers.rows import attack_rows, write_files
from .inputs import encoded, with_segment

NAME = "fuzz"
HELP = "damaged images, caches and records, on both CPU backends"
SCHEMA = "dali_imagenet fuzz 3"
PER_ROUND = 500
"""Images of a round, at most; each is mutated twice."""
CACHES = 500
"""Mutated index caches a round."""
SECONDS = 300.0
"""After which a subprocess counts as hanging."""
CLASSES = 7
ALIKE = 1.0
"""Mean difference, 0..255, up to which two backends show the same image."""
_MARKERS = bytes([0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE])
_TAGS = b"II*\0\x08\0\0\0\3\0\x1a\1\5\0\1\0\0\0\x32\0\0\0\x28\1\3\0\1\0\0\0\2\0\0\0\x12\1\3\0\1\0\0\0\6\0\0\0"
_SEGMENTS = (
    (0xE1, b"Exif\0\0" + _TAGS + b"\0\0\0\0\x48\0\0\0\1\0\0\0"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
    (0xE2, b"ICC_PROFILE\0\1\1ab"),
    (0xE2, b"MPF\0" + _TAGS),
    (0xE2, b"FPXR\0\0"),
    (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\2ab"),
    (0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\x10" + bytes(16) + b"8BIM\4\4\0\0\0\0\0\2ab"),
    (0xFE, b"a comment"),
)
"""What Pillow has parsers for."""
_VALUES = bytes([0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF])


def mutate(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """One to four changes: bits, bytes, cuts, repeats, zeros, markers, other lengths and sizes, parts of another file.

    Half of them hit the first 700 bytes, where headers are.
    """
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if len(out) < 4:
            break
        top = min(len(out), 700) if rng.random() < 0.5 else len(out)
        at, count = int(rng.integers(0, top)), int(rng.integers(1, 64))
        kind = int(rng.integers(0, 10))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = _VALUES[int(rng.integers(0, len(_VALUES)))]
        elif kind == 2:
            del out[at : at + count]
        elif kind == 3:
            out[at:at] = out[at : at + count]
        elif kind == 4:
            out[at : at + count] = bytes(len(out[at : at + count]))
        elif kind == 5:
            out[at : at + count] = rng.integers(0, 256, len(out[at : at + count]), np.uint8).tobytes()
        elif kind == 6:
            out[at : at + 2] = bytes([0xFF, _MARKERS[int(rng.integers(0, len(_MARKERS)))]])
        elif kind == 7:
            del out[at:]
        elif kind == 8:
            out[at : at + count] = other[at : at + count]
        else:  # a field of the frame header, wherever it is
            frame = max(out.find(b"\xff\xc0"), out.find(b"\xff\xc2"), 0)
            place = min(frame + int(rng.integers(2, 20)), len(out) - 1)
            out[place] = int(rng.integers(0, 256))
    return bytes(out)


def mutate_metadata(data: bytes, rng: np.random.Generator) -> bytes:
    """A JPEG with one to four segments of metadata before its tables, cut or damaged; nothing happens to its pixels.

    Anything but a JPEG is returned as it is.
    """
    if not data.startswith(b"\xff\xd8\xff") or b"\xff\xdb" not in data:
        return data
    for _ in range(int(rng.integers(1, 5))):
        marker, body = _SEGMENTS[int(rng.integers(0, len(_SEGMENTS)))]
        cut = len(body) if rng.random() < 0.3 else max(0, len(body) - int(rng.integers(1, 12)))
        damaged = bytearray(body[:cut])
        for _ in range(int(rng.integers(0, 4)) if damaged else 0):
            damaged[int(rng.integers(0, cut))] = _VALUES[int(rng.integers(0, len(_VALUES)))]
        data = with_segment(marker, bytes(damaged), data)
    return data


def seeds(folder: Path | None, rng: np.random.Generator) -> list[bytes]:
    """Generated JPEGs of several kinds, and up to 50 real ones of at most 200 kB."""
    made = [
        encoded(seed=1),
        encoded(seed=2, subsampling=0),
        encoded(seed=3, progressive=True),
        encoded("L", seed=4),
        encoded("CMYK", seed=5),
        encoded(seed=6, restart_marker_rows=1),
        encoded(format="PNG", seed=7),
        encoded(format="WEBP", seed=8),
    ]
    if folder is None:
        return made
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = rng.permutation(len(files))[:50]
    return made + [data for i in chosen if len(data := files[i].read_bytes()) <= 200_000]


def images(root: Path, backend: str) -> None:
    """The subprocess: evaluation and training before and after another mutation, and their account.

    What the backends must agree on goes to `seen.npz`: of each run the samples that are lost (bool) and the images.
    """
    import torch

    from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader

    torch.set_num_threads(1)
    index = SampleIndex.from_folder(root / "data", progress=False, cache=False, max_pixels=10**7)
    account: dict[str, Any] = {"wrong": [], "samples": len(index), "broken at first": int(index.broken.sum())}
    options: dict[str, Any] = {"batch_size": 16, "backend": backend, "device": "cpu", "max_broken": 1.0}
    options["num_workers"] = int(backend == "dali")
    plain: dict[str, Any] = {"input_size": 32, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    labels = torch.from_numpy(index.labels)
    seen: dict[str, Any] = {}
    for state in ("as indexed", "changed"):
        if state == "changed":
            shutil.copytree(root / "later", root / "data", dirs_exist_ok=True)
        # in one batch: of a batch that is lost as a whole another image would stand in for the first row
        whole = options | {"batch_size": len(index)}
        with create_loader(index, EvalRecipe(**plain), on_error="skip", **whole) as loader:
            pixels, targets = (torch.cat(parts)[: len(index)] for parts in zip(*loader, strict=True))
            lost = targets == -100
            if len(targets) != len(index) or (targets != labels)[~lost].any():
                account["wrong"].append(f"{state}: samples are missing or have other labels")
            if not {index.path(int(i)) for i in lost.nonzero()} <= set(loader.failures):
                account["wrong"].append(f"{state}: lost, but not in failures")
        account[f"delivered {state}"] = int((~lost).sum())
        seen[f"evaluation, {state}"], seen[f"evaluation, {state}: lost"] = pixels.numpy(), lost.numpy()
        with create_loader(index, TrainRecipe.classic(**plain), on_error="replace", **options) as loader:
            seen[f"training, {state}"] = torch.cat([batch for batch, _ in loader]).numpy()
            named = set(loader.failures)
            seen[f"training, {state}: lost"] = np.array([index.path(i) in named for i in range(len(index))])
    np.savez(root / "seen.npz", **seen)
    print(json.dumps(account))


def disagreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The account of what two backends have seen; what one alone has lost, or shows otherwise, is wrong."""
    wrong = []
    counts = {"images compared": 0, "samples lost by one backend alone": 0, "images that look different": 0}
    for name in ours:
        if name.endswith("lost"):
            samples = (ours[name] != theirs[name]).nonzero()[0].tolist()
            counts["samples lost by one backend alone"] += len(samples)
            wrong += [f"{name} by one backend alone: samples {samples}"] if samples else []
        else:
            difference = 255 * np.abs(ours[name] - theirs[name]).mean((1, 2, 3))
            places = (difference > ALIKE).nonzero()[0].tolist()
            counts["images compared"] += len(difference)
            counts["images that look different"] += len(places)
            wrong += [f"{name}: different images at places {places} of the epoch"] if places else []
    return {"wrong": wrong} | counts


def index_cache(root: Path, backend: str) -> None:
    """The subprocess: every mutated cache gives the same index as none."""
    from dali_imagenet import SampleIndex

    few = root / "few"
    (few / "c").mkdir(parents=True)
    for path in sorted((root / "data").rglob("*.JPEG"))[:12]:
        shutil.copy(path, few / "c")
    expected = SampleIndex.from_folder(few, progress=False, cache=False)
    wrong = list[str]()
    cache = root / "cache"
    SampleIndex.from_folder(few, progress=False, cache_dir=cache)
    (file,) = cache.glob("index-*.bin")
    whole = file.read_bytes()
    rng = np.random.default_rng(int(backend))
    for _ in range(CACHES):
        damaged = mutate(whole, rng, whole[::-1])
        file.write_bytes(damaged)
        found = SampleIndex.from_folder(few, progress=False, cache_dir=cache)
        if found.fingerprint != expected.fingerprint or (found.scan.read == 0 and damaged != whole):
            wrong.append("a damaged cache was believed")
    print(json.dumps({"wrong": wrong, "samples": CACHES}))


def jpeg_index(root: Path, seed: str) -> None:
    """The subprocess: crops from rows that are remembered."""
    print(json.dumps(attack_rows(root / "rows", int(seed))))


def _ask(what: str, root: Path, argument: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"{__package__}.fuzz", what, str(root), argument]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"wrong": [f"no end after {SECONDS:.0f} s"]}
    if done.returncode:
        return {"wrong": [f"status {done.returncode}: {done.stderr.strip()[-400:]}"]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fill(root: Path, rng: np.random.Generator, count: int, sources: list[bytes]) -> None:
    """`data`: mutated files of several classes. `later`: what becomes of them, every other time of the same length."""
    for part in ("data", "later"):
        shutil.rmtree(root / part, ignore_errors=True)
    for i in range(count):
        data, other = (sources[int(k)] for k in rng.integers(0, len(sources), 2))
        change = mutate_metadata if i % 5 == 4 else functools.partial(mutate, other=other)
        now, later = change(data, rng), change(data, rng)
        if i % 2:
            later = later[: len(now)] + now[len(later) :]
        for part, content in (("data", now), ("later", later)):
            file = root / part / f"{i % CLASSES}" / f"{i:04d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def one_round(
    seed: int, number: int, count: int, sources: list[bytes], root: Path, only: str | None = None
) -> dict[str, dict[str, Any]]:
    """The accounts of both backends, of what they agree on, of the index cache and the index of rows. Leaves `root`."""
    accounts: dict[str, dict[str, Any]] = {}
    write_files(root / "rows", sources)
    accounts["jpeg index"] = _ask("rows", root, str(1000 * seed + number))
    if only == "jpeg-index" or accounts["jpeg index"]["wrong"]:
        return accounts
    seen = []
    for backend in ("torchvision", "dali"):
        rng = np.random.default_rng((seed, number))
        fill(root, rng, count, sources)
        accounts[backend] = _ask("images", root, backend)
        if accounts[backend]["wrong"]:
            return accounts
        with np.load(root / "seen.npz") as arrays:
            seen.append(dict(arrays))
    accounts["agreement"] = disagreement(*seen)
    accounts["index cache"] = _ask("cache", root, str(rng.integers(2**31)))
    return accounts


def run(options: argparse.Namespace) -> int:
    """0 where nothing was found, 1 otherwise: then the folder of the offending round stays."""
    sources = seeds(options.data, np.random.default_rng(options.seed))
    totals: dict[str, Counter[str]] = {}
    findings, number, start = [], 0, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="dali-imagenet-fuzz-"))
    each = max(1, min(PER_ROUND, options.count // 2))
    with progress_bar(None, options.count, "fuzzing", "image", True) as bar:
        while number * 2 * each < options.count and time.monotonic() - start < options.minutes * 60:
            root = folder / f"round-{number}"
            accounts = one_round(options.seed, number, each, sources, root, options.only)
            for name, account in accounts.items():
                wrong = account.pop("wrong")
                findings += [{"round": number, "where": name, "what": what} for what in wrong]
                totals.setdefault(name, Counter()).update(account)
                for what in wrong:
                    print(f"round {number}, {name}: {what}", file=sys.stderr)
            if not any(finding["round"] == number for finding in findings):
                shutil.rmtree(root)
            number += 1
            bar.update(2 * each)
    results = {
        "schema": SCHEMA,
        "command": f"{PROGRAM} fuzz --seed {options.seed} --count {options.count}"
        + (f" --only {options.only}" if options.only else "")
        + (" --data FOLDER" if options.data else ""),
        "machine": describe(),
        "versions": versions(),
        "seed": options.seed,
        "sources": len(sources),
        "mutated images": number * 2 * each * (options.only is None),
        "mutated caches": number * CACHES * (options.only is None),
        "seconds": round(time.monotonic() - start),
        "findings": findings,
        "totals": {name: dict(total) for name, total in totals.items()},
    }
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if findings:
        print(f"what was found lies in {folder}", file=sys.stderr)
    else:
        folder.rmdir()
    return int(bool(findings))


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=int, metavar="N", default=0, help="of the mutations (0)")
    p.add_argument("--count", type=int, metavar="N", default=10_000, help="mutated images, each through both (10000)")
    p.add_argument("--minutes", type=float, metavar="N", default=60, help="stop after this time (60)")
    p.add_argument("--only", choices=["jpeg-index"], help="crops from remembered rows alone, round after round")
    p.add_argument("--data", type=Path, metavar="DIR", help="folder of real JPEGs to mutate besides the generated ones")
    p.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the outcome")


if __name__ == "__main__":
    {"images": images, "cache": index_cache, "rows": jpeg_index}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
