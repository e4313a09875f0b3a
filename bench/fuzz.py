"""`python -m bench fuzz`: mutated images and index caches through both CPU backends, in subprocesses.

A round indexes a folder of mutated JPEGs and evaluates it with on_error="skip"; then mutates the files once more,
behind the index's back, and evaluates again. A sample is accounted for where it is either delivered with its label or
counted as padding and named in Loader.failures. A crash, a hang or an account that does not add up is a finding.
"""

from __future__ import annotations

import argparse
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

SCHEMA = "dali_imagenet fuzz 1"
PER_ROUND = 250
"""Images of a round, at most; each is mutated twice."""
CACHES = 400
"""Mutated index caches a round."""
SECONDS = 120.0
"""After which a subprocess counts as hanging."""
_MARKERS = bytes([0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE])
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


def seeds(folder: Path | None, rng: np.random.Generator) -> list[bytes]:
    """Generated JPEGs of several kinds, and up to 50 real ones of at most 200 kB."""
    from bench.broken_table import encoded

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


def evaluate(root: Path, backend: str) -> None:
    """The subprocess: two epochs over a folder, with another mutation in between, and the account of them."""
    import torch

    from dali_imagenet import EvalRecipe, SampleIndex, create_loader

    torch.set_num_threads(1)
    index = SampleIndex.from_folder(root / "data", progress=False, cache=False, max_pixels=10**7)
    n, wrong = len(index), list[str]()
    account: dict[str, Any] = {"broken at first": int(index.broken.sum())}
    loader = create_loader(
        index,
        EvalRecipe(input_size=32),
        batch_size=16,
        backend=backend,  # type: ignore[arg-type]  # a str; create_loader checks it
        device="cpu",
        num_workers=1 if backend == "dali" else 0,
        on_error="skip",
        max_broken=1.0,
    )
    for epoch in range(2):
        targets = torch.cat([t for _, t in loader])[:n]
        skipped = {index.path(i) for i in (targets == -100).nonzero().flatten().tolist()}
        if len(targets) != n or (targets[targets != -100] != torch.from_numpy(index.labels)[targets != -100]).any():
            wrong.append(f"epoch {epoch}: samples are missing or have other labels")
        if not skipped <= set(loader.failures):
            wrong.append(f"epoch {epoch}: {len(skipped - set(loader.failures))} skipped, but not in failures")
        account[f"epoch {epoch} delivered"] = int((targets != -100).sum())
        if epoch == 0:
            for path in (root / "later").iterdir():
                target = root / "data" / "c" / path.name
                target.write_bytes(path.read_bytes())
    loader.close()
    print(json.dumps({"wrong": wrong, "samples": n, **account}))


def index_cache(root: Path, backend: str) -> None:
    """The subprocess: every mutated cache gives the same index as none."""
    from dali_imagenet import SampleIndex

    few = root / "few"
    (few / "c").mkdir(parents=True)
    for path in sorted((root / "data" / "c").iterdir())[:12]:
        shutil.copy(path, few / "c")
    expected = SampleIndex.from_folder(few, progress=False, cache=False)
    wrong = list[str]()
    cache = root / "cache"
    SampleIndex.from_folder(few, progress=False, cache_dir=cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(int(backend))
    for _ in range(CACHES):
        damaged = mutate(whole, rng, whole[::-1])
        file.write_bytes(damaged)
        found = SampleIndex.from_folder(few, progress=False, cache_dir=cache)
        if found.fingerprint != expected.fingerprint or (found.scan.read == 0 and damaged != whole):
            wrong.append("a damaged cache was believed")
    print(json.dumps({"wrong": wrong, "samples": CACHES}))


def _ask(what: str, root: Path, argument: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.fuzz", what, str(root), argument]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"wrong": [f"no end after {SECONDS:.0f} s"]}
    if done.returncode:
        return {"wrong": [f"status {done.returncode}: {done.stderr.strip()[-400:]}"]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def one_round(seed: int, number: int, count: int, sources: list[bytes], root: Path) -> dict[str, dict[str, Any]]:
    """The accounts of both backends and of the index cache. `root` is left behind where something is wrong."""
    rng = np.random.default_rng((seed, number))
    accounts = {}
    for backend in ("torchvision", "dali"):
        shutil.rmtree(root, ignore_errors=True)
        for part in ("data/c", "later"):
            (root / part).mkdir(parents=True)
        rng = np.random.default_rng((seed, number))
        for i in range(count):
            data, other = (sources[int(k)] for k in rng.integers(0, len(sources), 2))
            (root / "data" / "c" / f"{i:04d}.JPEG").write_bytes(mutate(data, rng, other))
            (root / "later" / f"{i:04d}.JPEG").write_bytes(mutate(data, rng, other))
        accounts[backend] = _ask("images", root, backend)
        if accounts[backend]["wrong"]:
            return accounts
    accounts["index cache"] = _ask("cache", root, str(rng.integers(2**31)))
    differences = {
        key for key in accounts["dali"] if key != "wrong" and accounts["dali"][key] != accounts["torchvision"][key]
    }
    accounts["agreement"] = {"wrong": [], "counts that differ between the backends": len(differences)}
    return accounts


def run(options: argparse.Namespace) -> int:
    """0 where nothing was found, 1 otherwise: then the folder of the offending round stays."""
    sources = seeds(options.data, np.random.default_rng(options.seed))
    totals: dict[str, Counter[str]] = {}
    findings, number, start = [], 0, time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="dali-imagenet-fuzz-"))
    each = max(1, min(PER_ROUND, options.count // 2))
    while number * 2 * each < options.count and time.monotonic() - start < options.minutes * 60:
        root = folder / f"round-{number}"
        accounts = one_round(options.seed, number, each, sources, root)
        for name, account in accounts.items():
            wrong = account.pop("wrong")
            findings += [{"round": number, "where": name, "what": what} for what in wrong]
            totals.setdefault(name, Counter()).update(account)
            for what in wrong:
                print(f"round {number}, {name}: {what}", file=sys.stderr)
        if not any(finding["round"] == number for finding in findings):
            shutil.rmtree(root)
        number += 1
    results = {
        "schema": SCHEMA,
        "seed": options.seed,
        "sources": len(sources),
        "mutated images": number * 2 * each,
        "mutated caches": number * CACHES,
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m bench fuzz", description="Mutated images through both CPU backends.")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--count", type=int, default=10_000, help="mutated images, each through both backends (10000)")
    p.add_argument("--minutes", type=float, default=60, help="stop after this time (60)")
    p.add_argument("--data", type=Path, help="folder of real JPEGs to mutate besides the generated ones")
    p.add_argument("--out", type=Path, help="JSON file of the outcome")
    return p


if __name__ == "__main__":
    {"images": evaluate, "cache": index_cache}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
