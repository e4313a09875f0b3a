"""What loaders do with odd and broken files of every kind: the table of docs/robustness.md."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .inputs import Input, encoded, file_name, inputs

NAME = "broken"
HELP = "what loaders do with odd and broken files"
LOADERS = {
    "imagefolder": "ImageFolder + DataLoader",
    "dali": "plain DALI (CPU)",
    "ours-torchvision": "this loader, torchvision",
    "ours-dali": "this loader, DALI (CPU)",
}
SECONDS = 120.0
"""After which a loader counts as hanging."""
SAME = "same pixels"


def _short(error: object) -> str:
    text = " ".join(str(error).split()).rpartition("encountered: ")[2].partition(" Current pipeline")[0]
    return re.sub(r"'?/\S*/", "", text)[:70].replace("|", "/").strip(" :'")


def _compared(got: Any, case: Input, path: str) -> str:
    """Against what ImageFolder's loader makes of the file; both uint8 [H, W, 3]."""
    try:
        expected = np.asarray(case.expected(path))
    except Exception as error:
        return f"decodes {got.shape[1]} x {got.shape[0]} pixels, where Pillow says {_short(error)!r}"
    if got.shape != expected.shape:
        return f"other size: {got.shape[1]} x {got.shape[0]}"
    difference = np.abs(got.astype(int) - expected).mean()
    return f"other pixels (mean {difference:.1f} of 255)" if difference else SAME


def _imagefolder(root: Path, change: Callable[[], None], case: Input) -> str:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(root), transform=np.asarray)
    change()
    try:
        images = [image for image, _ in DataLoader(data, batch_size=None)]
    except Exception as error:
        return f"stops: {_short(error)}"
    return _compared(np.asarray(images[1]), case, data.samples[1][0])


def _dali(root: Path, change: Callable[[], None], case: Input) -> str:
    from torchvision.datasets import ImageFolder

    dali, fn, types = (importlib.import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    try:
        with pipeline:
            files, _ = fn.readers.file(file_root=str(root), name="reader")
            pipeline.set_outputs(fn.decoders.image(files, output_type=types.RGB))
        pipeline.build()
        change()
        images = [np.array(pipeline.run()[0].at(0)) for _ in range(3)]
    except Exception as error:
        return f"stops: {_short(error)}"
    return _compared(images[1], case, ImageFolder(str(root)).samples[1][0])


def _ours(backend: Any, root: Path, change: Callable[[], None], case: Input) -> str:
    import torch
    from torchvision.transforms import v2

    from dali_imagenet import EvalRecipe, SampleIndex, create_loader

    index = SampleIndex.from_folder(root, progress=False, cache=False)
    recipe = EvalRecipe(input_size=48, resize_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    options: dict[str, Any] = {
        "batch_size": 3,
        "backend": backend,
        "device": "cpu",
        "num_workers": int(backend == "dali"),
    }
    try:
        with create_loader(index, recipe, on_error="skip", max_broken=0.5, **options) as loader:
            change()
            ((images, targets),) = loader
            reasons = list(loader.failures.values())
    except Exception as error:
        return f"stops: {_short(error)}"
    if (targets == -100).tolist() == [False, True, False] and len(reasons) == 1:
        return f"that sample alone: {_short(reasons[0].rpartition('.JPEG: ')[2])}"
    pixels = torch.from_numpy(np.array(case.expected(index.path(1)))).permute(2, 0, 1)
    expected = v2.functional.center_crop(v2.functional.resize(pixels, [64], antialias=True), [48, 48])
    difference = (images[1] * 255 - expected).abs()
    return (
        SAME if difference.max() < 1.01 and difference.mean() < 0.1 else f"other pixels (mean {difference.mean():.1f})"
    )


def examine(loader: str, first: int) -> None:
    """The subprocess: prints what the loader does with each input, from that number on, as lines of JSON."""
    calls: dict[str, Callable[[Path, Callable[[], None], Input], str]] = {
        "imagefolder": _imagefolder,
        "dali": _dali,
        "ours-torchvision": functools.partial(_ours, "torchvision"),
        "ours-dali": functools.partial(_ours, "dali"),
    }
    call = calls[loader]
    for number, (name, case) in enumerate(inputs().items()):
        if number < first:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for part in ("a", "b", "c"):  # the input between two good ones
                (root / part).mkdir()
            for part in ("a", "c"):
                (root / part / "good.JPEG").write_bytes(encoded())
            path = root / "b" / file_name(name)
            case.make(path)

            def change(case: Input = case, path: Path = path) -> None:
                if case.later is not None:
                    case.later(path)

            try:
                outcome = call(root, change, case)
            except Exception as error:
                outcome = f"stops: {_short(error)}"
        print(json.dumps([number, outcome]), flush=True)


def outcomes(loader: str, count: int) -> list[str]:
    """Of every input; a subprocess that dies costs the input that killed it."""
    found: dict[int, str] = {}
    while len(found) < count:
        command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.broken", loader, str(len(found))]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False
            )
            text, end = done.stdout, f"**the process dies** (status {done.returncode})"
        except subprocess.TimeoutExpired as error:
            text, end = error.stdout or b"", f"no answer within {SECONDS:.0f} s"
            if text.count(b"\n"):  # the time went to other inputs as well: once more, from this one on
                end = ""
        found |= dict(json.loads(line) for line in text.decode().splitlines() if line.startswith("["))
        if end and len(found) < count:
            found[len(found)] = end
    return [found[i] for i in range(count)]


def run(options: argparse.Namespace) -> int:
    names = list(inputs())
    columns = {name: outcomes(name, len(names)) for name in LOADERS}
    lines = ["| input | " + " | ".join(LOADERS.values()) + " |", "|---" * (len(LOADERS) + 1) + "|"]
    for number, name in enumerate(names):
        lines.append(f"| {name} | " + " | ".join(columns[loader][number] for loader in LOADERS) + " |")
    text = "\n".join(lines) + "\n"
    if options.out is None:
        print(text)
        return 0
    before = options.out.read_text() if options.out.exists() else f"{BEGIN}\n{END}\n"
    head, rest = before.split(BEGIN)
    options.out.write_text(head + BEGIN + "\n" + text + END + rest.split(END)[1])
    print(f"wrote the table of {len(names)} inputs into {options.out}")
    return 0


BEGIN, END = "<!-- made by python -m bench broken -->", "<!-- end -->"


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=Path, metavar="FILE", help="Markdown file whose table is replaced; default: print it")


if __name__ == "__main__":
    examine(sys.argv[1], int(sys.argv[2]))
