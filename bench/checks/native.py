"""The C code under sanitizers: libFuzzer on the JPEG decoder, random shapes on the pixel kernels and on whole rows.

The fuzzer (clang, with AddressSanitizer and UndefinedBehaviorSanitizer) starts from generated JPEGs and keeps whatever
reaches new code; each file that it kept is then decoded by the built decoder and by Pillow, whose pixels must be the
same. The kernels are compiled with AddressSanitizer and called with memory of the exact size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .fuzz import mutate_metadata
from .inputs import encoded, exif

NAME = "native"
HELP = "the C code under libFuzzer and AddressSanitizer"
HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "dali_imagenet"
INCLUDE = f"-I{sysconfig.get_paths()['include']}"
FLAGS = ("-g", "-O1", "-fno-omit-frame-pointer", "-ffp-contract=off")
LONGEST = 20_000
"""Bytes of a file that the fuzzer makes."""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def missing_fuzzer() -> str:
    """Why the decoder cannot be fuzzed here; "" where it can."""
    if shutil.which("clang") is None:
        return "clang is not installed (Debian: clang and libclang-rt-14-dev)"
    library = _output(["clang", "-print-file-name=libclang_rt.fuzzer-x86_64.a"])
    return "" if os.path.isabs(library) and os.path.exists(library) else "clang has no libFuzzer for this machine"


def missing_sanitizer() -> str:
    """Why the kernels cannot be run under AddressSanitizer here; "" where they can."""
    library = _output(["gcc", "-print-file-name=libasan.so"])
    return "" if os.path.isabs(library) else "gcc or its libasan is not installed"


def write_seeds(folder: Path) -> None:
    """Small JPEGs of every kind that the decoder knows, and of some that it refuses."""
    rng = np.random.default_rng(0)
    kinds: list[dict[str, Any]] = [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"restart_marker_rows": 1},
        {"quality": 20},
    ]
    made = [
        encoded(mode, seed=seed, size=size, **options)
        for seed, size in enumerate([(90, 70), (16, 16), (17, 33), (1, 1), (3, 50), (64, 9)])
        for mode in ("RGB", "L")
        for options in kinds
    ]
    made += [encoded(optimize=True), encoded(progressive=True), encoded("CMYK"), exif(6)]
    made += [mutate_metadata(made[0], rng) for _ in range(20)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(made):
        (folder / f"seed-{number:03d}.jpg").write_bytes(data)


def fuzz_decoder(corpus: Path, seconds: int, jobs: int, seed: int) -> list[str]:
    """Runs the fuzzer on a corpus, which grows; what it has found."""
    with tempfile.TemporaryDirectory() as build:
        binary = str(Path(build) / "jpeg_fuzzer")
        source = str(HERE / "fuzzers" / "jpeg_fuzzer.c")
        sanitizers = "-fsanitize=fuzzer,address,undefined"
        command = ["clang", *FLAGS, sanitizers, "-fno-sanitize-recover=undefined", source, "-o", binary]
        subprocess.run(command, check=True)
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            f"-seed={seed}",
            f"-artifact_prefix={corpus.parent}{os.sep}",
        ]
        options += [f"-fork={jobs}"] if jobs > 1 else []
        done = subprocess.run([binary, *options, str(corpus)], capture_output=True, text=True, errors="replace")
        print("\n".join(line for line in done.stderr.splitlines() if "DONE" in line or "cov:" in line)[-200:])
        return [] if done.returncode == 0 else [f"the fuzzer ended with {done.returncode}: {done.stderr[-3000:]}"]


def compare_with_pillow(corpus: Path) -> tuple[int, list[str]]:
    """How many files of the corpus the built decoder delivers, and those that Pillow shows otherwise or refuses."""
    from dali_imagenet.decode import decode as module
    from dali_imagenet.jpeg_markers import FRAMES, frame_of, segments_in

    wrong, count = list[str](), 0
    for path in sorted(corpus.iterdir()):
        data = path.read_bytes()
        found = next((each for each in segments_in(data) if each.marker in FRAMES and each.end <= len(data)), None)
        if found is None or len(data) < found.at + 10:
            continue
        _, height, width, _ = frame_of(data, found)
        if not 0 < height * width < 10**6:
            continue
        rng = np.random.default_rng(len(data))
        top, left = int(rng.integers(height)), int(rng.integers(width))
        for box in ((0, 0, height, width), (top, left, height - top, width - left)):
            made: Any = module._region(data, (height, width), box, None)
            if made is None:
                continue
            count += 1
            try:
                if not np.array_equal(made, module._pillow(data, (height, width), box)):
                    wrong.append(f"{path}: other pixels than Pillow's in {box}")
            except Exception as error:
                wrong.append(f"{path}: Pillow refuses what the decoder delivers in {box}: {error}")
    return count, wrong


def run_kernels(seconds: float, seed: int) -> list[str]:
    """Random calls of the kernels under AddressSanitizer; what it has found."""
    with tempfile.TemporaryDirectory() as build:
        for source in (*sorted((PACKAGE / "transforms").glob("_*.c")), PACKAGE / "decode" / "_jpeg.c"):
            target = str(Path(build) / f"{source.stem}.so")
            command = ["gcc", *FLAGS, INCLUDE, "-fsanitize=address", "-shared", "-fPIC"]
            subprocess.run([*command, str(source), "-lm", "-o", target], check=True)
        write_seeds(Path(build) / "jpegs")
        environment = os.environ | {
            "LD_PRELOAD": _output(["gcc", "-print-file-name=libasan.so"]),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
            "PYTHONMALLOC": "malloc",  # else the memory of small objects is cut from larger pieces
        }
        command = [sys.executable, "-S", str(HERE / "fuzzers" / "kernels.py"), build, str(seed), str(seconds)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        print(done.stdout.strip())
        return [] if done.returncode == 0 else [f"the kernels ended with {done.returncode}: {done.stderr[-3000:]}"]


def run(options: argparse.Namespace) -> int:
    """0 where nothing was found, 1 otherwise."""
    if not (PACKAGE / "decode" / "_jpeg.c").exists():
        print("The C sources are not installed: run it in a checkout.", file=sys.stderr)
        return 2
    findings = list[str]()
    for reason in (missing_fuzzer(), missing_sanitizer()):
        if reason:
            print(f"left out: {reason}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder) / "corpus"
        if not missing_fuzzer():
            write_seeds(corpus)
            findings += fuzz_decoder(corpus, options.seconds, options.jobs, options.seed)
            count, wrong = compare_with_pillow(corpus)
            findings += wrong
            print(f"{len(list(corpus.iterdir()))} files in the corpus, {count} regions as Pillow shows them")
        if not missing_sanitizer():
            findings += run_kernels(options.seconds, options.seed)
    for finding in findings:
        print(finding, file=sys.stderr)
    return int(bool(findings))


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seconds", type=int, metavar="N", default=60, help="for the decoder, and for the kernels (60)")
    p.add_argument("--jobs", type=int, metavar="N", default=1, help="processes of the fuzzer (1)")
    p.add_argument("--seed", type=int, metavar="N", default=1, help="of both (1)")
    p.add_argument("--corpus", type=Path, metavar="DIR", help="kept, and gone on with; default: one of its own")
