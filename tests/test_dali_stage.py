from __future__ import annotations

import contextlib
import gc
import io
import itertools
import json
import os
import pickle
import re
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from dali_imagenet import TrainRecipe
from dali_imagenet.dali import roi_probe
from dali_imagenet.dali.roi_probe import probe_roi_decode
from dali_imagenet.dali.stage import DaliBatchError, DaliStage, blames_a_file, dali_available
from dali_imagenet.ops import FILTERS
from tests import helpers
from tests.helpers import DTYPES, MEMORY_FORMATS, encode, needs_dali, photo, script

SIZE = 48
NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of odd sizes and kinds."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    sizes = [(61, 97), (200, 133), (75, 75), (48, 48), (31, 190), (300, 221), (99, 64), (50, 47), (83, 159), (150, 149)]
    for n, (height, width) in enumerate(sizes):
        mode = "L" if n == 2 else "CMYK" if n == 4 else "RGB"
        options: dict[str, Any] = {} if mode == "L" else {"subsampling": n % 3}
        if n == 5:  # an EXIF rotation that nobody applies
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        file = encode(photo(rng, height, width, mode), quality=92, progressive=n == 6, **options)
        (root / f"{n:02}.jpg").write_bytes(file)
    (root / "10.png").write_bytes(encode(photo(rng, 90, 71), "PNG"))
    (root / "11.jpg").write_bytes(encode(photo(rng, 1, 9)))
    return root


def make_plan(
    paths: list[Path],
    *,
    train: bool,
    rows: int | None = None,
    seed: int = 0,
    size: int = SIZE,
    interpolation: str = "bilinear",
    color: bool = False,
) -> Any:
    """A BatchPlan's fields that the stage reads, drawn here."""
    rng = np.random.default_rng(seed)
    rows = len(paths) if rows is None else rows
    source = np.full((rows, 2), size, np.int32)
    for n, path in enumerate(paths):
        source[n] = Image.open(path).size[::-1]
    resize = np.full((rows, 2), size, np.int32)
    box = np.concatenate([np.zeros_like(source), source], axis=1)
    if train:
        shape = rng.integers(np.maximum(source // 3, 1), source + 1)
        box = np.concatenate([rng.integers(0, source - shape + 1), shape], axis=1).astype(np.int32)
    else:
        resize = (56 * source // source.min(axis=1, keepdims=True)).astype(np.int32)
    identity = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    plan = SimpleNamespace(
        epoch=2,
        step=seed,
        size=(size, size),
        is_padding=np.arange(rows) >= len(paths),
        interpolation=np.full(rows, FILTERS[interpolation]),
        source_size=source,
        crop_box=box,
        resize=resize,
        window=np.round((resize - size) / 2).astype(np.int32) if not train else np.zeros((rows, 2), np.int32),
        window_fill=(0, 0, 0),
        window_mode="constant",
        hflip=rng.random(rows) < 0.5 if train else np.zeros(rows, bool),
        vflip=rng.random(rows) < 0.5 if train else np.zeros(rows, bool),
        color=(identity + rng.normal(size=(rows, 3, 4)) * [0.2, 0.2, 0.2, 20]).astype(np.float32) if color else None,
    )
    plan.views = (plan,)
    return plan


def image_paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def run(stage: DaliStage, plan: Any, paths: list[Path]) -> torch.Tensor:
    stage.submit(plan, [str(p) for p in paths])
    return stage.collect()[0]


def with_pil(plan: Any, paths: list[Path], *, vflip: bool = False) -> torch.Tensor:
    out = []
    for n, path in enumerate(paths):
        top, left, height, width = plan.crop_box[n].tolist()
        image = Image.open(path).convert("RGB").crop((left, top, left + width, top + height))
        image = image.resize(tuple(plan.resize[n].tolist()[::-1]), Image.Resampling(int(plan.interpolation[n])))
        top, left = plan.window[n].tolist()
        pixels = np.asarray(image)[top : top + plan.size[0], left : left + plan.size[1]]
        pixels = pixels[:, ::-1] if plan.hflip[n] else pixels
        pixels = pixels[::-1] if vflip and plan.vflip[n] else pixels
        out.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return torch.stack(out)


def difference(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    delta = (a.double() - b.double()).abs()
    return delta.mean().item(), delta.max().item()


@needs_dali
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("in_graph", "bound"), [(False, 0.06), (True, 0.3)])
@pytest.mark.parametrize("roi_decode", [True, False])
def test_training_equals_pil(folder: Path, interpolation: Any, in_graph: bool, bound: float, roi_decode: bool) -> None:
    paths = image_paths(folder)
    plan = make_plan(paths, train=True, interpolation=interpolation)
    stage = DaliStage(batch_size=16, train=True, in_graph=in_graph, roi_decode=roi_decode, vflip=True)
    got = run(stage, plan, paths)
    assert got.dtype == torch.uint8
    assert got.shape == (12, 3, SIZE, SIZE)
    assert got.is_contiguous()
    mean, most = difference(got, with_pil(plan, paths, vflip=True))
    assert mean < bound
    assert most <= 24


@needs_dali
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("in_graph", "bound"), [(False, 0.02), (True, 0.3)])
def test_evaluation_equals_torchvision(folder: Path, interpolation: Any, in_graph: bool, bound: float) -> None:
    paths = [p for p in image_paths(folder) if p.name != "11.jpg"]  # 1 x 9 pixels is below the window's 56
    plan = make_plan(paths, train=False, interpolation=interpolation)
    got = run(DaliStage(batch_size=16, train=False, in_graph=in_graph), plan, paths)
    expected = []
    for path in paths:
        image = tv.resize(Image.open(path).convert("RGB"), 56, InterpolationMode(interpolation))
        expected.append(tv.pil_to_tensor(tv.center_crop(image, SIZE)))
    mean, most = difference(got, torch.stack(expected))
    assert mean < bound
    assert most <= 24


@needs_dali
@pytest.mark.parametrize("in_graph", [False, True])
def test_window_larger_than_the_image_is_padded(folder: Path, in_graph: bool) -> None:
    paths = image_paths(folder)[:3]
    plan = make_plan(paths, train=False)
    plan.resize = np.array([[40, 60], [60, 30], [20, 21]], np.int32)
    plan.window = np.array([[-4, 6], [6, -9], [-14, -13]], np.int32)
    got = run(DaliStage(batch_size=4, train=False, in_graph=in_graph), plan, paths)
    for row, path in zip(got, paths, strict=True):
        n = paths.index(path)
        image = Image.open(path).convert("RGB").resize(plan.resize[n].tolist()[::-1], Image.Resampling.BILINEAR)
        top, left = plan.window[n].tolist()
        expected = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
        assert difference(row, torch.from_numpy(expected.copy()).permute(2, 0, 1))[0] < 0.3
    assert (got[0, :, :4] == 0).all()


@needs_dali
@pytest.mark.parametrize("in_graph", [False, True])
def test_colour_matrix(folder: Path, in_graph: bool) -> None:
    paths = image_paths(folder)
    plan = make_plan(paths, train=True, color=True)
    plain = run(DaliStage(batch_size=16, train=True, in_graph=in_graph), make_plan(paths, train=True), paths)
    got = run(DaliStage(batch_size=16, train=True, in_graph=in_graph, color=True), plan, paths)
    matrix = torch.from_numpy(plan.color).double()
    exact = torch.einsum("bij,bjhw->bihw", matrix[:, :, :3], plain.double()) + matrix[:, :, 3, None, None]
    mean, most = difference(got, exact.round().clamp(0, 255))
    assert most <= 1
    assert mean < 1e-3
    assert difference(got, plain)[0] > 5


@needs_dali
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised(folder: Path, in_graph: bool, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    paths = image_paths(folder)
    plan = make_plan(paths, train=True, color=True)
    same: dict[str, Any] = {"batch_size": 16, "train": True, "in_graph": in_graph, "color": True}
    pixels = run(DaliStage(**same, memory_format=memory_format), plan, paths)
    got = run(DaliStage(**same, memory_format=memory_format, normalize=NORMALIZE, dtype=dtype), plan, paths)
    assert got.dtype == dtype
    for batch in (pixels, got):
        assert batch.is_contiguous(memory_format=memory_format)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALIZE)
    expected = (pixels.double() / 255 - mean) / std
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(got.double(), expected, atol=rounding, rtol=rounding)


@needs_dali
@pytest.mark.parametrize("in_graph", [False, True])
def test_rows_and_sizes_vary(folder: Path, in_graph: bool) -> None:
    paths = image_paths(folder)[:5]
    stage = DaliStage(batch_size=8, train=False, in_graph=in_graph, normalize=NORMALIZE, dtype=torch.float32)
    full = run(stage, make_plan(paths, train=False), paths)
    padded = run(stage, make_plan(paths, train=False, rows=8), paths)
    assert torch.equal(padded[:5], full)
    assert run(stage, make_plan([], train=False, rows=8), []).shape == (8, 3, SIZE, SIZE)
    assert run(stage, make_plan(paths, train=False, size=32), paths).shape == (5, 3, 32, 32)


@needs_dali
def test_batches_keep_their_order_and_stay_untouched(folder: Path) -> None:
    paths = image_paths(folder)
    plans = [make_plan(paths, train=True, seed=n) for n in range(6)]
    alone = [run(DaliStage(batch_size=12, train=True), plan, paths) for plan in plans]
    stage = DaliStage(batch_size=12, train=True, prefetch=2)
    for plan in plans:
        stage.submit(plan, [os.fsencode(p) for p in paths])
    assert stage.pending == 6
    held = []
    for n in range(6):
        held.append(stage.collect()[0])
        if n == 0:
            held[0].fill_(7)
    assert stage.pending == 0
    assert (held[0] == 7).all()
    stage.close()
    assert all(torch.equal(a, b) for a, b in zip(held[1:], alone[1:], strict=True))
    with pytest.raises(IndexError, match="submit"):
        stage.collect()


@needs_dali
def test_encoded_bytes_instead_of_paths(folder: Path) -> None:
    paths = image_paths(folder)
    plan = make_plan(paths, train=True)
    stage = DaliStage(batch_size=12, train=True, encoded=True)
    stage.submit(plan, [p.read_bytes() for p in paths])
    reading = DaliStage(batch_size=12, train=True)
    assert torch.equal(stage.collect()[0], run(reading, plan, paths))
    for each in (stage, reading):
        assert [bytes(each.file(row)) for row in range(12)] == [p.read_bytes() for p in paths]


class Poisoned(bytearray):
    """A file whose memory holds no image any more once nobody holds it."""

    gone = 0

    def __del__(self) -> None:
        self[:] = b"\xff" * len(self)
        Poisoned.gone += 1


@needs_dali
@pytest.mark.parametrize("in_graph", [False, True])
def test_files_live_until_dali_is_done_with_them(folder: Path, in_graph: bool) -> None:
    paths = image_paths(folder)
    plan = make_plan(paths, train=True)
    options: dict[str, Any] = {"batch_size": 12, "train": True, "in_graph": in_graph}
    expected = run(DaliStage(**options), plan, paths)
    stage = DaliStage(**options, encoded=True, prefetch=2)

    def submit(stage: DaliStage, bad: int | None = None) -> None:
        files: Any = [Poisoned(b"text" if n == bad else p.read_bytes()) for n, p in enumerate(paths)]
        stage.submit(plan, files)

    Poisoned.gone = 0
    submit(stage)
    submit(stage, bad=3)
    for _ in range(3):
        submit(stage)
    gc.collect()
    assert not Poisoned.gone
    with contextlib.closing(stage):
        first = stage.collect()[0]
        with pytest.raises(DaliBatchError):
            stage.collect()
        submit(stage)
        second = stage.collect()[0]
        stage.drain()
        submit(stage)
        assert torch.equal(stage.collect()[0], expected)
        assert Poisoned.gone >= 24
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
    del stage
    gc.collect()
    assert Poisoned.gone == 7 * len(paths)


@needs_dali
def test_closing_after_an_error_of_the_device_lets_go_of_all(folder: Path) -> None:
    class Broken:
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stage = DaliStage(batch_size=12, train=True)
    copies: Any = stage._pending_copies
    copies += [(Broken(), None), (Broken(), None)]
    stage.close()
    assert stage._pipe is None
    assert not copies


@needs_dali
def test_drain(folder: Path) -> None:
    paths = image_paths(folder)
    stage = DaliStage(batch_size=12, train=True, prefetch=2)
    for n in range(4):
        stage.submit(make_plan(paths, train=True, seed=n), [str(p) for p in paths])
    stage.drain()
    assert stage.pending == 0
    plan = make_plan(paths, train=True, seed=9)
    assert torch.equal(run(stage, plan, paths), run(DaliStage(batch_size=12, train=True), plan, paths))


def test_bad_arguments() -> None:
    good: dict[str, Any] = {"batch_size": 4, "train": True}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"dtype": torch.float32}, "normalize"),
        ({"dtype": torch.uint8, "normalize": NORMALIZE}, "float32"),
        ({"memory_format": torch.channels_last_3d}, "memory_format"),
        ({"device": "meta"}, "device='meta'"),
    ]
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            DaliStage(**good | wrong)


@needs_dali
def test_bad_plans(folder: Path) -> None:
    paths = image_paths(folder)
    plan = make_plan(paths, train=True, color=True)
    names = [str(p) for p in paths]
    with pytest.raises(ValueError, match="at most 4"):
        DaliStage(batch_size=4, train=True).submit(plan, names)
    stage = DaliStage(batch_size=16, train=True, color=True)
    with pytest.raises(ValueError, match="11 paths for 12"):
        stage.submit(plan, names[1:])
    plan.is_padding[0] = True
    with pytest.raises(ValueError, match="last"):
        stage.submit(plan, names[1:])
    plan.is_padding[0], plan.color = False, None
    with pytest.raises(ValueError, match="colour"):
        stage.submit(plan, names)
    stage.close()
    stage.close()
    with pytest.raises(RuntimeError, match="closed"):
        stage.submit(make_plan(paths, train=True, color=True), names)


BROKEN = """
import pickle, sys
import torch
from dali_imagenet.dali.stage import DaliBatchError, DaliStage
bad, in_graph = sys.argv[2], sys.argv[3] == "True"
with open(sys.argv[1], "rb") as file:
    names, plans = pickle.load(file)
stage = DaliStage(batch_size=64, train=True, prefetch=3, in_graph=in_graph)
alone = []
for plan in plans:
    stage.submit(plan, names)
    alone.append(stage.collect()[0])
for repeat in range(4):
    for n, plan in enumerate(plans):
        stage.submit(plan, names[:9] + [bad] + names[10:] if n == 1 else names)
    assert torch.equal(stage.collect()[0], alone[0])
    try:
        stage.collect()
    except DaliBatchError as error:
        assert error.plan is plans[1] and error.paths[9] == bad and set(error.rows) <= {9}, error
        print("reason:", error.reason, error.rows)
    else:
        raise SystemExit("nothing raised")
    assert stage.pending == 1 and torch.equal(stage.collect()[0], alone[2])
print("survived")
"""


@needs_dali
@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("kind", ["body", "header", "zero", "text", "missing", "other size", "folder", "pipe"])
def test_a_broken_file_costs_its_batch_only(folder: Path, tmp_path: Path, kind: str, in_graph: bool) -> None:
    """In a subprocess: without the guard in the graph, DALI crashes the process in most of these cases."""
    good = (folder / "09.jpg").read_bytes()  # at row 9 the plan expects its size
    contents = {"body": good[: len(good) // 3], "header": good[:60], "zero": b"", "text": b"hello " * 99}
    bad = tmp_path / f"{kind}.JPEG"
    if kind == "other size":
        bad.write_bytes(encode(photo(np.random.default_rng(0), 30, 40)))
    elif kind == "folder":
        bad.mkdir()
    elif kind == "pipe":
        os.mkfifo(bad)
    elif kind != "missing":
        bad.write_bytes(contents[kind])
    paths = (image_paths(folder) * 6)[:64]
    plans = [make_plan(paths, train=True, seed=n) for n in range(3)]
    (tmp_path / "plans").write_bytes(pickle.dumps(([str(p) for p in paths], plans)))
    done = script(BROKEN, str(tmp_path / "plans"), str(bad), str(in_graph))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "survived"
    assert all(line != "reason:" for line in done.stdout.splitlines())
    if kind == "missing":
        assert bad.name in done.stdout
    if kind == "other size":
        assert "has changed since it was indexed" in done.stdout


def _dalis_message(operator: str, said: str) -> str:
    """As DALI 2.4 words it."""
    return (
        f"Critical error in pipeline:\nError in MIXED operator `nvidia.dali.fn.{operator}`,\nwhich was used in the "
        'pipeline definition with the following traceback:\n\n  File "stage.py", line 1, in _build\n    sample\n\n'
        f"encountered:\n\n{said}\nCurrent pipeline object is no longer valid."
    )


@pytest.mark.parametrize(
    ("operator", "said", "file"),
    [
        ("decoders.image", "Failed to decode sample #1 : ", True),
        ("decoders.image_slice", "Invalid sample_type: -1", True),
        ("peek_image_shape", "nvImageCodec failure: '#3'", True),
        ("io.file.read", 'Assert on "fp_ != nullptr" failed: Could not open file /a', True),
        ("slice", "Slice can't be placed out of bounds with current policy.", True),
        ("decoders.image", "Can't allocate 155000000 bytes on device 0.", False),
        ("decoders.image", "Failed to decode sample #1 : CUDA Runtime API error cudaErrorMemoryAllocation (2)", False),
        ("decoders.image", "CUDA runtime API error cudaErrorIllegalAddress (700): an illegal memory access", False),
        ("decoders.image", "nvImageCodec failure: '#8'", False),
        ("peek_image_shape", "nvImageCodec failure: '#5'", False),
        ("resize", "Failed for sample #3", False),
        ("slice", "std::bad_alloc", False),
    ],
)
def test_only_a_file_s_own_fault_is_a_file_s(operator: str, said: str, file: bool) -> None:
    assert blames_a_file(_dalis_message(operator, said)) is file
    assert not blames_a_file(said)


@needs_dali
def test_no_memory_is_no_bad_image(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a batch made one by one, nor a sample held to be odd; the stage goes on where that is wanted."""
    paths = image_paths(folder)[:4]
    plan = make_plan(paths, train=True)
    tree = helpers.make_folder(tmp_path / "tree", 8)
    stage = DaliStage(batch_size=4, train=True)
    expected, real = run(stage, plan, paths), DaliStage._take

    def take(self: DaliStage) -> Any:
        real(self)
        raise RuntimeError(_dalis_message("decoders.image", "Can't allocate 155000000 bytes on device 0."))

    monkeypatch.setattr(DaliStage, "_take", take)
    with pytest.raises(RuntimeError, match="none of its files is the reason: Can't allocate 155000000 bytes") as caught:
        run(stage, plan, paths)
    assert not isinstance(caught.value, DaliBatchError)
    with helpers.load(tree, TrainRecipe.classic(input_size=32), backend="dali", batch_size=4) as loader:
        with pytest.raises(RuntimeError, match="Can't allocate 155000000 bytes"):
            next(iter(loader))
        monkeypatch.undo()
        assert loader.failures == {}
        assert next(iter(loader))[0].shape[0] == 4
    assert torch.equal(run(stage, plan, paths), expected)
    stage.close()


def test_the_stream_is_asked_for_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's default stream is number 0 on every device, and DALI takes it for that of the current one."""
    current = [0]

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: (device.index, "stream"))
    asked = []

    class Pipe:
        def share_outputs(self, cuda_stream: Any) -> list[str]:
            asked.append((current[0], cuda_stream))
            return ["images"]

        def release_outputs(self) -> None:
            asked.append((current[0], "released"))

    stage = object.__new__(DaliStage)
    stage.device, stage._pipe = torch.device("cuda:1"), Pipe()
    assert stage._take() == ["images"]
    assert asked == [(1, (1, "stream")), (1, "released")]
    assert current == [0]


@needs_dali
def test_a_closed_stage_holds_no_batch(folder: Path) -> None:
    stage = DaliStage(batch_size=4, train=True)
    waited = []
    event: Any = SimpleNamespace(synchronize=lambda: waited.append(1))
    stage._pending_copies.extend([(event, "a batch of DALI's"), (event, "another")])
    stage.close()
    assert (len(waited), len(stage._pending_copies)) == (2, 0)


@needs_dali
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_a_dropped_stage_leaves_no_thread(folder: Path) -> None:
    paths = image_paths(folder)
    run(DaliStage(batch_size=12, train=True), make_plan(paths, train=True), paths)  # what stays for good is there
    before = len(os.listdir("/proc/self/task"))
    gc.disable()  # reference counting alone must do
    try:
        for n in range(4):
            stage = DaliStage(batch_size=12, train=True, prefetch=2)
            stage.submit(make_plan(paths, train=True), [str(p) for p in paths])
            if n % 2:
                stage.submit(make_plan(paths[:1], train=True), ["/no/such/file"])
                stage.collect()
                with pytest.raises(DaliBatchError):
                    stage.collect()
            gone = weakref.ref(stage)
            del stage
            assert gone() is None
    finally:
        gc.enable()
    gc.collect()  # pytest.raises holds the last error
    for _ in range(1000):
        if len(os.listdir("/proc/self/task")) <= before:
            break
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/task")) <= before


@needs_dali
def test_torch_keeps_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    DaliStage(batch_size=2, train=True, num_threads=3)
    assert torch.get_num_threads() == before


def test_without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    ok, reason = dali_available()
    assert not ok
    assert "cannot be imported" in reason
    with pytest.raises(RuntimeError, match="torchvision backend"):
        DaliStage(batch_size=2, train=True)


def test_importing_the_module_does_not_import_dali() -> None:
    code = "import sys, dali_imagenet.dali.stage; assert not any(m.startswith('nvidia.dali') for m in sys.modules)"
    done = script(code)
    assert done.returncode == 0, done.stderr


def test_probe_without_a_gpu_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe_roi_decode(0, cache_dir=tmp_path) is False
    assert list(tmp_path.iterdir()) == []


@needs_dali
@pytest.mark.parametrize("answer", [True, False, None])
def test_probe_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | None) -> None:
    asked = []

    def ask(*arguments: Any) -> bool | None:
        asked.append(arguments)
        return answer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(roi_probe, "nvidia_driver", lambda: "550.1")
    monkeypatch.setattr(roi_probe, "_probe_in_subprocess", ask)
    cache = tmp_path / "deep" / "roi_decode.json"
    for _ in range(2):
        assert probe_roi_decode(0, cache_dir=cache.parent) is bool(answer)
    assert len(asked) == (2 if answer is None else 1)
    if answer is not None:
        ((key, value),) = json.loads(cache.read_text()).items()
        assert value is answer
        assert key.startswith("Some GPU | driver 550.1 | nvidia-dali")
        assert re.search(r"nvidia-nvimgcodec-cu\d\d [\d.]+ \| nvidia-nvjpeg(-cu\d\d)? [\d.]+$", key)
        cache.write_text("[broken")
        assert probe_roi_decode(0, cache_dir=cache.parent) is answer


@needs_dali
def test_probe_survives_what_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the subprocess fails before it decodes; with one it answers."""
    answer = roi_probe._probe_in_subprocess(0, 120)
    assert (answer is None) != torch.cuda.is_available()
    assert roi_probe._probe_in_subprocess(0, 0.01) is None


def test_probe_pictures_are_what_they_should_be() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for kind in roi_probe._KINDS:
        image: Any = Image.open(io.BytesIO(roi_probe._jpeg(rng, 33, 57, kind)))
        assert (image.size, image.mode) == ((57, 33), "L" if kind.gray else "RGB")
        seen.add((image.mode, JpegImagePlugin.get_sampling(image), bool(image.info.get("progressive"))))
    assert {("RGB", 0, False), ("RGB", 0, True), ("L", -1, False), ("L", -1, True), ("RGB", 2, True)} <= seen


@needs_dali
def test_a_probe_compares_pictures_and_times(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(roi_probe, "_BATCHES", 1)
    small = [roi_probe._batch(np.random.default_rng(1))]
    monkeypatch.setattr(roi_probe, "_batch", lambda rng: small[0])
    clock = itertools.count()
    monkeypatch.setattr(roi_probe, "perf_counter", lambda: next(clock))
    roi_probe._probe("cpu")
    assert capsys.readouterr().out.split() == ["decoding", "passed"]
    slow = iter([0, 2, 0, 1] * 6)
    monkeypatch.setattr(roi_probe, "perf_counter", lambda: next(slow))
    with pytest.raises(SystemExit, match=r"regions take 2\.00 of the time of whole images on cpu"):
        roi_probe._probe("cpu")
    wrong = list(roi_probe._run(roi_probe._stage("cpu"), small))
    answers = iter([wrong, [255 - wrong[0]]] * 9)
    monkeypatch.setattr(roi_probe, "_run", lambda stage, batches: iter(next(answers) * len(batches)))
    with pytest.raises(SystemExit, match="a region decoded on cpu is not that of the CPU"):
        roi_probe._probe("cpu")


@needs_dali
@pytest.mark.parametrize("train", [True, False])
def test_real_images_equal_pil(sample: Path, train: bool) -> None:
    paths = sorted(sample.rglob("*.JPEG"))[:48]
    plan = make_plan(paths, train=train)
    got = run(DaliStage(batch_size=48, train=train, vflip=True), plan, paths)
    assert difference(got, with_pil(plan, paths, vflip=True))[0] < 0.06


# ---- GPU

gpu = [pytest.mark.gpu, needs_dali, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


SAME = 1.5  # of 0..255: which of the GPU's decoders an image meets may change from run to run


class TestGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
    def test_equals_the_cpu(
        self, folder: Path, train: bool, memory_format: torch.memory_format, dtype: torch.dtype
    ) -> None:
        paths = [p for p in image_paths(folder) if train or p.name != "11.jpg"]
        plan = make_plan(paths, train=train, color=train, rows=14)
        same: dict[str, Any] = {"batch_size": 16, "train": train, "color": train, "vflip": train, "roi_decode": False}
        if dtype != torch.uint8:
            same |= {"normalize": NORMALIZE, "dtype": dtype}
        got = run(DaliStage(**same, device="cuda", memory_format=memory_format), plan, paths)
        expected = run(DaliStage(**same), plan, paths)[: len(paths)]  # padding holds anything
        assert got.device.type == "cuda"
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=memory_format)
        unit = 1.0 if dtype == torch.uint8 else 1 / 57
        assert difference(got[: len(paths)].cpu(), expected)[0] < 1.5 * unit  # another chroma upsampling and IDCT

    def test_batches_on_side_streams_stay_untouched(self, folder: Path) -> None:
        paths = image_paths(folder)
        stage = DaliStage(batch_size=12, train=True, device="cuda", roi_decode=False, prefetch=3)
        plans = [make_plan(paths, train=True, seed=n) for n in range(12)]
        alone = [run(stage, plan, paths).cpu() for plan in plans]
        for plan in plans:
            stage.submit(plan, [str(p) for p in paths])
        held = []
        for n in range(12):
            with torch.cuda.stream(torch.cuda.Stream()):
                batch = stage.collect()[0]
                held.append(batch.clone())
                batch.fill_(n)
        torch.cuda.synchronize()
        assert max(difference(a.cpu(), b)[0] for a, b in zip(held, alone, strict=True)) < SAME

    def test_a_broken_file_costs_its_batch_only(self, folder: Path, tmp_path: Path) -> None:
        paths = image_paths(folder)
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"text")
        stage = DaliStage(batch_size=12, train=True, device="cuda", roi_decode=False, prefetch=3)
        plan = make_plan(paths, train=True)
        expected = run(stage, plan, paths)
        for name in (paths[0], bad, paths[0]):
            stage.submit(plan, [str(name), *map(str, paths[1:])])
        assert difference(stage.collect()[0], expected)[0] < SAME
        with pytest.raises(DaliBatchError):
            stage.collect()
        assert difference(stage.collect()[0], expected)[0] < SAME

    def test_the_probe_answers(self, tmp_path: Path) -> None:
        assert probe_roi_decode(0, cache_dir=tmp_path) in (True, False)
