"""What must hold on a GPU; and what of it can be asked without one: fake tensors, the benchmark with the CPU graph."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.__main__ import main as bench_main
from bench.core import process
from bench.gpu import paper
from bench.gpu.fake_cuda import Counting, Counts
from bench.gpu.fake_cuda import fake_cuda as fake_cuda_tensors
from dali_imagenet import EvalRecipe, Loader, Plan, SampleIndex, TrainRecipe
from dali_imagenet.dali.stage import DaliBatchError, DaliStage
from dali_imagenet.rng import unit_hash
from dali_imagenet.transforms.fused.program import encode
from dali_imagenet.transforms.postprocess import Postprocess, mix_
from tests import helpers
from tests.helpers import BACKENDS, DTYPES, MEMORY_FORMATS, ROOT, needs_dali, python, saved, script
from torchvision_fallback import ring
from torchvision_fallback.workers import Workers

RECIPES: dict[str, Any] = {
    "classic": TrainRecipe.classic(input_size=48),
    "strong": TrainRecipe.strong(input_size=48),
    "advanced": TrainRecipe.advanced(input_size=48),
    "eval": EvalRecipe(input_size=48),
}
UNIT = 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)  # normalized -> 0..255
# nvJPEG's chroma upsampling and IDCT are not libjpeg's: mean over a batch, of 0..255. RandAugment's posterize, solarize
# and equalize turn a difference of one level into many.
DECODERS = {"classic": 2.0, "eval": 2.0, "strong": 5.0, "advanced": 8.0}
# The GPU's two decoders differ a little, and which of them an image meets may change from run to run; a batch that was
# overwritten, or belongs to another step, differs by tens.
SAME = 1.5


def load(data: Any, recipe: str = "classic", backend: str = "dali", device: str = "cuda", **options: Any) -> Loader:
    same: dict[str, Any] = {"num_workers": 2, "roi_decode": False}
    return helpers.load(data, RECIPES[recipe], backend=backend, device=device, **(same | options))


def take(loader: Any) -> list[tuple[Tensor, Tensor]]:
    return [(images.cpu(), targets.cpu()) for images, targets in loader]


def apart(a: Tensor, b: Tensor) -> float:
    """Mean difference in 0..255 units."""
    return float(((a.cpu().float() - b.cpu().float()) * UNIT).abs().mean())


# ---- without a GPU: the device branch on fake tensors, which refuse mixed devices and every read-back


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    with fake_cuda_tensors():
        try:
            torch.empty(2, device="cuda")[:1]
        except RuntimeError as error:  # with PyTorch 2.9
            pytest.skip(f"indexing a fake tensor needs a driver here: {str(error).splitlines()[0]}")
        yield


@pytest.fixture(scope="module")
def index(folder: Path) -> SampleIndex:
    return SampleIndex.from_folder(folder)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", ["strong", "advanced", "classic"])
def test_the_batch_stage_reads_nothing_back(
    index: SampleIndex,
    fake_cuda: None,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "flags", None)  # which are the whole process', the user's model included
    stage = Postprocess(dtype=dtype, memory_format=memory_format)
    plan = Plan(index, RECIPES[recipe], batch_size=24, seed=0)
    for epoch in range(3):
        drawn = plan.batch(epoch, 0)
        images = stage.finish_batch(torch.empty(24, 3, 48, 48, dtype=torch.uint8, device="cuda"), drawn)
        if drawn.mix is not None:
            mix_(images, drawn.mix)
        assert (images.device.type, images.dtype) == ("cuda", dtype)
        assert images.is_contiguous(memory_format=memory_format)


def test_fake_tensors_do_notice(fake_cuda: None) -> None:
    images = torch.empty(2, 3, 4, 4, device="cuda")
    with pytest.raises(RuntimeError, match="device"):
        images + torch.empty(2, 3, 4, 4)
    with pytest.raises(Exception, match=r"data-dependent|item|_local_scalar_dense"):
        images.sum().item()


@pytest.fixture(scope="module")
def moved() -> dict[str, Any]:
    """The bytes of Triton's kernels for the recipes below."""
    return paper.interpreted(["classic", "strong", "rsb_a1"], 4, 256)


@pytest.mark.parametrize(
    ("recipe", "launches", "gigabytes"), [("classic", 0, 0.0), ("strong", 5, 0.325), ("rsb_a1", 5, 0.257)]
)
def test_what_a_fused_batch_launches(
    index: SampleIndex, moved: dict[str, Any], recipe: str, launches: int, gigabytes: float
) -> None:
    """These counts are in docs/gpu.md, too."""
    images = index.repeat(-(-256 // len(index)))
    for dtype, half in (("float32", 0.0), ("bfloat16", 0.077)):
        kernels = [*moved[recipe]["operations"], moved[recipe]["tail"][dtype]]
        counted = paper.count(images, paper.recipes()[recipe], dtype, 256, 1, kernels)
        assert (counted["launches"], counted["memsets_and_copies"]) == (launches, bool(launches))
        assert (counted["h2d_copies"], counted["syncs"]) == (bool(launches), 0)
        assert counted["bytes"] / 1e9 == pytest.approx(max(0, gigabytes - half), rel=0.01)


@pytest.mark.parametrize("recipe", paper.recipes())
def test_no_recipe_launches_more_than_forty(index: SampleIndex, recipe: str) -> None:
    counted = paper.count(index.repeat(-(-256 // len(index))), paper.recipes()[recipe], "bfloat16", 256, 1, [])
    assert counted["launches"] <= (12 if recipe == "strong" else 40)
    assert counted["syncs"] == 0


@pytest.mark.parametrize(
    ("recipe", "launches", "copies", "h2d", "gigabytes"),
    [("classic", 0, 0, 0, 0.0), ("strong", 290, 6, 3, 5.69), ("advanced", 773, 6, 3, 26.23)],
)
def test_what_torchs_operations_launch(
    index: SampleIndex, recipe: str, launches: int, copies: int, h2d: int, gigabytes: float
) -> None:
    """These counts are in docs/gpu.md: whoever changes a kernel sees here what it costs."""
    counted = paper.count(index.repeat(-(-256 // len(index))), paper.recipes()[recipe], "float32", 256, 1)
    assert (counted["launches"], counted["memsets_and_copies"], counted["h2d_copies"]) == (launches, copies, h2d)
    assert counted["syncs"] == 0
    assert counted["bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.1)  # a copy of an image draws otherwise


def test_counts_are_those_of_the_operations() -> None:
    counts = Counts()
    with fake_cuda_tensors(counts):
        a = torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="cuda")
        rows = torch.empty(2, dtype=torch.int64, device="cuda")
        with Counting(counts):
            b = a.float()  # a kernel that reads a byte and writes four
            b[:2].view(2, -1)  # nothing
            a.clone()  # a copy
            b.index_copy_(0, rows, b.index_select(0, rows))  # two rows are gathered and written
            b.add_(torch.empty(4, 1, 1, 1, device="cuda").expand(4, 3, 8, 8))  # four numbers are read
    n, row = 4 * 3 * 8 * 8, 3 * 8 * 8 * 4
    assert counts.kernels == [5 * n, 4 * row + 16, 4 * row + 16, 8 * n + 16]
    assert (counts.copies, counts.h2d, counts.syncs) == ([2 * n], [], 0)


def test_counting_notices_a_copy_that_waits() -> None:
    counts = Counts()
    host = torch.zeros(16)
    with fake_cuda_tensors(counts), Counting(counts):
        host.to("cuda")
    assert (counts.h2d, counts.syncs) == ([64], 1)


@needs_dali
def test_bench_gpu_paper(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "paper.json"
    words = ["gpu-paper", "--data", str(folder), "--batch-size", "8", "--steps", "1", "--json", str(file)]
    assert bench_main([*words, "--recipes", "trivialaugment"]) == 0
    said = json.loads(file.read_text())
    assert said["gpu"].startswith("none was run")
    rows = said["rows"]
    kinds = [(stage, dtype) for stage in ("fused", "torch") for dtype in ("float32", "bfloat16")]
    assert [(row["recipe"], row["stage"], row["dtype"]) for row in rows] == [
        ("trivialaugment", *kind) for kind in kinds
    ]
    for whole, half in (rows[:2], rows[2:]):
        assert whole["bytes"] > half["bytes"] > 0
        assert 0 < whole["h100_ms"] <= whole["a100_ms"] <= whole["rtx4090_ms"]
        assert whole["share_of_decode_19k"] > whole["share_of_decode_6k"] > 0
        assert whole["feeder_us"] > whole["feeder_measured_us"] > 0
        assert whole["reader_us"] > 0
    assert rows[0]["launches"] < rows[2]["launches"] / 10
    assert rows[0]["bytes"] < rows[2]["bytes"] / 5
    assert str(folder) not in file.read_text()
    assert bench_main([*words, "--recipes", "nothing"]) == 2


def test_bench_gpu_host(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    words = ["gpu-host", "--data", str(folder), "--rounds", "1", "--steps", "2", "--json", str(file)]
    assert bench_main([*words, "--ask", "workers"]) == 0
    said = json.loads(file.read_text())
    assert said["gpu"] == "none was run"
    assert [row["way"] for row in said["rows"]] == ["ring", "shared memory"]
    assert all(row["main_ms_a_batch"] > 0 for row in said["rows"])
    assert str(folder) not in file.read_text()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 16 worker processes")
@pytest.mark.parametrize(
    ("where", "dtype"),
    [
        ("a GPU, uint8 whatever the dtype", None),
        ("the CPU, float16 or bfloat16", torch.bfloat16),
        ("the CPU, float32", torch.float32),
    ],
)
def test_the_ring_in_numbers(index: SampleIndex, where: str, dtype: torch.dtype | None) -> None:
    """The table of docs/gpu.md is counted on the ring itself, whose memory is taken when it is written to."""
    plan = Plan(index.repeat(-(-256 // len(index))), TrainRecipe.strong(), batch_size=256, seed=0)
    stage = None if dtype is None else Postprocess(dtype=dtype)
    workers = Workers(plan, stage, num_workers=16, prefetch=2, ahead=dtype is None)
    nbytes, count = workers.slots[0].numel(), len(workers.slots) - ring._SPARE
    workers.close()
    row = f"| {where} | {nbytes / 1e6:.1f} MB | {count} | {nbytes * count / 1e9:.2f} GB |"
    assert row in (ROOT / "docs" / "gpu.md").read_text()


@needs_dali
@pytest.mark.parametrize("fancy", [True, False])
def test_fancy_upsampling_reaches_the_decoder(folder: Path, fancy: bool) -> None:
    with load(folder, device="cpu", fancy_upsampling=fancy) as loader:
        engine: Any = loader._open_engine()
        assert engine._stage.decoder_args["jpeg_fancy_upsampling"] is fancy


@needs_dali
def test_a_decoder_that_decodes_nothing_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All images are there, and Pillow's: only the speed would tell."""

    def collect(stage: DaliStage) -> list[Tensor]:
        entry = stage._queue.pop()
        stage.drain()
        raise DaliBatchError(entry.plan, entry.paths, [], "Failed to decode sample #0: no decoder")

    with load(folder, device="cpu") as loader:
        wanted, engine = take(loader), cast("Any", loader._open_engine())
        assert engine.refused == 0
    monkeypatch.setattr(DaliStage, "collect", collect)
    with load(folder, device="cpu", batch_size=4) as loader:
        found, engine = take(loader), cast("Any", loader._open_engine())
        assert engine.refused == 24
    both = [torch.cat([images for images, _ in batches]) for batches in (found, wanted)]
    assert apart(*both) < SAME
    [said] = [r.getMessage() for r in caplog.records if "did not decode" in r.getMessage()]
    assert said.startswith("DALI on cpu did not decode 8 of 8 files that Pillow decodes, one by one, on the CPU")
    assert said.endswith("backend='torchvision' is faster")


# ---- without a GPU: the benchmark


def test_a_crash_is_a_result(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("decoding\n")
    assert process.why(-11, log) == "crashed with SIGSEGV: decoding"
    log.write_text("RuntimeError: no nvJPEG\n\nCurrent pipeline object is no longer valid.\n")
    assert process.why(1, log) == "ended with code 1: RuntimeError: no nvJPEG"
    task = json.dumps({"question": "nothing", "settings": {}, "arguments": {}})
    said, error = process.call("gpu.gpu_questions", task, 60, tmp_path)
    assert said == {}
    assert error.startswith("ended with code 1: TypeError")
    assert process.call("gpu.gpu_questions", task, 0.05, tmp_path) == ({}, "no answer within 0 s")


def bench_gpu(folder: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    only = "hardware,agree,roi,decode,stage,sweep,launches"
    asked = ("--quick", "--data", str(folder), "--batch-size", "8", "--only", only)
    return python("-m", "bench", "gpu", *asked, "--out", str(out), *words, cwd=ROOT)


@needs_dali
def test_bench_gpu_with_the_cpu_graph(folder: Path, tmp_path: Path) -> None:
    done = bench_gpu(folder, tmp_path, "--device", "cpu", "--workers", "1", "--seconds", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["error"] for entry in results["asked"]] == [""] * 7, done.stdout
    points = results["points"]
    assert {"hardware", "decode|default", "stage|strong", "ours|strong|cpu_share=0.25"} <= set(points)
    assert points["launches|strong"] == [{"paper": 5}]
    assert points["roi"][0]["worst_image_mean_difference"] < 1
    assert points["ours|strong|cpu_share=0.25"][0]["not_decoded_by_dali"] == 0
    agreement = [runs[0] for name, runs in points.items() if name.startswith("agree|")]
    assert len(agreement) == 6
    assert all(found["mean"] < 2 and found["targets_equal"] for found in agreement)
    report = (tmp_path / "report.md").read_text()
    assert "| strong recipe / decode alone | - | >= 0.95 | open |" in report
    assert str(folder) not in report + json.dumps(results)


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize(("dtype", "memory_format"), [(d, f) for d in DTYPES for f in MEMORY_FORMATS])
@needs_dali
def test_dali_gpu_agrees(folder: Path, recipe: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """The whole loader, against DALI on the CPU and torchvision, for the same plan."""
    options: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format}
    with load(folder, recipe, **options) as loader:
        found, engine = list(loader), cast("Any", loader._open_engine())
        assert engine.refused == 0  # what Pillow has made agrees, too
    for backend in ("dali", "torchvision"):
        with load(folder, recipe, backend, "cpu", num_workers=1, **options) as other:
            for (images, targets), (expected, labels) in zip(found, other, strict=True):
                assert images.device == targets.device == torch.device("cuda", 0)
                assert images.dtype == dtype
                assert images.is_contiguous(memory_format=memory_format)
                assert torch.equal(targets.cpu(), labels)
                assert apart(images, expected) < DECODERS[recipe]


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize(("dtype", "memory_format"), [(d, f) for d in DTYPES for f in MEMORY_FORMATS])
def test_fallback_on_the_gpu_equals_the_cpu(
    folder: Path, recipe: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """The same decoder on both: what is left is the rounding of blends, and of PIL's warps in the advanced recipe."""
    options: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format, "num_workers": 0}
    with load(folder, recipe, "torchvision", **options) as loader:
        found = list(loader)
    with load(folder, recipe, "torchvision", "cpu", **options) as other:
        for (images, targets), (expected, labels) in zip(found, other, strict=True):
            assert images.is_contiguous(memory_format=memory_format)
            assert torch.equal(targets.cpu(), labels)
            if recipe == "advanced":
                assert apart(images, expected) < 0.1
            else:
                close = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
                torch.testing.assert_close(images.cpu().float(), expected.float(), atol=close, rtol=close)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["classic", "strong"])
def test_batches_belong_to_whoever_holds_them(folder: Path, backend: str, recipe: str) -> None:
    """A slow consumer on a stream of its own overwrites what it holds while the next batches are made."""
    options: dict[str, Any] = {"prefetch": 3, "batch_size": 4}
    with load(folder, recipe, backend, **options) as loader:
        expected = []
        for images, _ in loader:
            torch.cuda.synchronize()
            expected.append(images.cpu())
    side = torch.cuda.Stream()
    with load(folder, recipe, backend, **options) as loader, torch.cuda.stream(side):
        for _ in range(3):
            loader.set_epoch(0)
            kept, held = [], []
            for number, (images, _) in enumerate(loader):
                torch.cuda._sleep(20_000_000)  # some 10 ms of queued work, so that the host is far ahead
                kept.append(images.clone())
                images.fill_(number)
                held.append(images)
                if number % 2:
                    del images
                    held.pop()  # its memory may be used again at once
            torch.cuda.synchronize()
            assert len(kept) == len(expected)
            for number, (copy, batch) in enumerate(zip(kept, expected, strict=True)):
                assert apart(copy, batch) < SAME, number
            assert all((batch == 2 * n).all() for n, batch in enumerate(held))


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["strong", "advanced", "classic"])
def test_the_host_never_waits_in_the_batch_stage(folder: Path, recipe: str) -> None:
    stage = Postprocess(dtype=torch.bfloat16, memory_format=torch.channels_last)
    plan = Plan(SampleIndex.from_folder(folder), RECIPES[recipe], batch_size=24, seed=0)
    pixels = torch.randint(0, 256, (24, 3, 48, 48), dtype=torch.uint8, device="cuda")
    stage.normalize(pixels, plan.batch(0, 0))  # its constants are copied once
    try:
        for epoch in range(12):
            drawn = plan.batch(epoch, 0)
            torch.cuda.set_sync_debug_mode("error")
            images = stage.finish_batch(pixels, drawn)
            if drawn.mix is not None:
                mix_(images, drawn.mix)
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_stays_flat(folder: Path, backend: str) -> None:
    """2,000 batches of the strong recipe: neither DALI's memory nor torch's grows."""
    with load(folder, "strong", backend, batch_size=4) as loader:
        taken, before = 0, (0, 0)
        while taken < 2000:
            for _ in loader:
                taken += 1
                if taken in (300, 2000):
                    torch.cuda.synchronize()
                    now = (torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated())
                    if taken == 300:
                        before = now
        assert before[0] - now[0] <= 32 << 20
        assert now[1] - before[1] <= 1 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaving_early_and_starting_again(folder: Path, backend: str) -> None:
    with load(folder, "strong", backend) as loader:
        first, second = take(loader), take(loader)
        for steps in (1, 2):
            loader.set_epoch(0)
            for number, _ in enumerate(loader, 1):
                if number == steps:
                    break
            again = take(loader)  # the next epoch, whole
            assert len(again) == len(second)
            for (images, targets), (expected, labels) in zip(again, second, strict=True):
                assert torch.equal(targets, labels)
                assert apart(images, expected) < SAME
        assert apart(first[0][0], second[0][0]) > SAME
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["classic", "strong"])
def test_exact_resume(folder: Path, backend: str, recipe: str) -> None:
    with load(folder, recipe, backend) as loader:
        whole = take(loader)
        loader.set_epoch(0)
        steps = iter(loader)
        next(steps)
        state = saved(loader)
    with load(folder, recipe, backend) as loader:
        loader.load_state_dict(state)
        rest = take(loader)
    assert len(rest) == len(whole) - 1
    for (images, targets), (expected, labels) in zip(rest, whole[1:], strict=True):
        assert torch.equal(targets, labels)
        assert apart(images, expected) < SAME


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_gives_torchs_memory_back(folder: Path, backend: str) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    loader = load(folder, "strong", backend)
    images, targets = next(iter(loader))
    loader.close()
    assert torch.isfinite(images).all()  # held batches stay valid
    del images, targets, loader
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_other_gpu_is_touched(folder: Path, backend: str) -> None:
    """With cuda:1 asked for while cuda:0 is the current device, cuda:0 gets no context."""
    code = """
        import sys, torch
        from dali_imagenet import TrainRecipe, create_loader
        recipe = TrainRecipe.strong(input_size=48)
        for roi in (False, None):
            loader = create_loader(sys.argv[1], recipe, batch_size=8, backend=sys.argv[2], device="cuda:1",
                                   num_workers=2, roi_decode=roi)
            for images, targets in loader:
                assert images.device == targets.device == torch.device("cuda", 1)
            assert torch.cuda.current_device() == 0
            loader.close()
        assert torch._C._cuda_hasPrimaryContext(1) and not torch._C._cuda_hasPrimaryContext(0)
    """
    done = script(code, str(folder), backend)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@needs_dali
def test_fancy_upsampling_is_a_switch(folder: Path) -> None:
    """On, it shows what the CPU shows; off, something else where chroma is subsampled."""
    found = {}
    for device, fancy in (("cpu", True), ("cuda", True), ("cuda", False)):
        with load(folder, "eval", device=device, fancy_upsampling=fancy) as loader:
            found[device, fancy] = torch.cat([images for images, _ in take(loader)])
    on, off = (apart(found["cuda", fancy], found["cpu", True]) for fancy in (True, False))
    assert on < off
    assert on < DECODERS["eval"]


@pytest.mark.gpu
@needs_dali
def test_regions_are_those_of_whole_images(folder: Path) -> None:
    """Of the crops of three epochs. In a process of its own, which decoding regions may end."""
    code = """
        import sys, torch
        from dali_imagenet import TrainRecipe, create_loader
        found = []
        for roi in (False, True):
            loader = create_loader(sys.argv[1], TrainRecipe.classic(input_size=48), batch_size=8, backend="dali",
                                   device="cuda", num_workers=2, roi_decode=roi)
            try:
                assert loader.roi_decode is roi
            except RuntimeError as error:
                sys.exit(f"the probe refuses: {error}")
            found.append(torch.cat([images.cpu() for _ in range(3) for images, _ in loader]))
            loader.close()
        print(float((found[0] - found[1]).abs().flatten(1).mean(1).max()) * 255 * 0.225)
    """
    done = script(code, str(folder))
    if "the probe refuses" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < SAME


@pytest.mark.gpu
@needs_dali
@pytest.mark.parametrize("recipe", ["classic", "strong"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_cpu_does_its_share(folder: Path, recipe: str, share: float) -> None:
    """Its rows are those of the torchvision backend, the others DALI's; the same after a resume."""
    on_cpu = torch.from_numpy(unit_hash(np.arange(24)) < share)
    options: dict[str, Any] = {"with_index": True, "batch_size": 12}
    found = {}
    kinds: list[tuple[str, str, float | None]] = [
        ("cpu", "torchvision", None), ("dali", "dali", None), ("both", "dali", share)
    ]  # fmt: skip
    for name, backend, part in kinds:
        with load(folder, recipe, backend, cpu_share=part, **options) as loader:
            loader.mixup_enabled = False
            found[name] = [(images.cpu(), samples.cpu()) for images, _, samples in loader]
            loader.set_epoch(0)
            next(iter(loader))
            state = saved(loader)
    for (cpu, samples), (dali, _), (both, _) in zip(*found.values(), strict=True):
        mine = on_cpu[samples]
        torch.testing.assert_close(both[mine], cpu[mine], atol=1e-4, rtol=1e-4)
        if not mine.all():
            assert apart(both[~mine], dali[~mine]) < SAME
    with load(folder, recipe, **options) as loader:
        loader.load_state_dict(state)
        loader.mixup_enabled = False
        assert loader.cpu_share == share
        for (images, _, _), (expected, _) in zip(loader, found["both"][1:], strict=True):
            assert apart(images, expected) < SAME


@pytest.mark.gpu
@needs_dali
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hardware_loses_the_files_that_the_cpu_loses(new_folder: Callable[..., Path], share: float) -> None:
    """Truncated and scribbled files; what is shown of them is what the CPU shows, never black."""
    root = new_folder(24)
    index = SampleIndex.from_folder(root)
    for number in range(0, 24, 3):
        path = Path(index.path(number))
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle:] = bytes(len(data) - middle) if number % 2 else data[middle:][::-1]
        path.write_bytes(data)
    options: dict[str, Any] = {"on_error": "skip", "max_broken": 1.0, "batch_size": 8}
    found: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        options["hw_decoder_load"] = share if device == "cuda" else None
        with load(index, "eval", device=device, **options) as loader:
            found[device] = [(images.cpu(), targets.cpu()) for images, targets in loader], set(loader.failures)
    assert found["cpu"][1] == found["cuda"][1]
    for (images, targets), (expected, labels) in zip(found["cuda"][0], found["cpu"][0], strict=True):
        assert torch.equal(targets, labels)
        for image, wanted in zip(images, expected, strict=True):
            assert apart(image, wanted) < 10


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_busy_gpu_changes_no_pixel(folder: Path, backend: str) -> None:
    """What is read before it is written shows when the GPU is far behind."""
    with load(folder, "strong", backend) as loader:
        idle = take(loader)
        loader.set_epoch(0)
        busy, weights = [], torch.randn(2048, 2048, device="cuda")
        for images, _ in loader:
            for _ in range(50):
                weights = torch.nn.functional.normalize(weights @ weights)
            busy.append(images.clone())
    for (expected, _), images in zip(idle, busy, strict=True):
        assert apart(images, expected) < SAME


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_after_warm_up_no_memory_is_asked_of_cuda(folder: Path, backend: str) -> None:
    """Memory is used again when nobody has it: torch's allocator makes no new segment."""
    with load(folder, "strong", backend, batch_size=4) as loader:
        for _ in range(5):
            for images, _ in loader:
                images.add_(1)
        before = torch.cuda.memory_stats()["segment.all.allocated"]
        for _ in range(5):
            for images, _ in loader:
                images.add_(1)
        assert torch.cuda.memory_stats()["segment.all.allocated"] == before


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_memory_is_no_broken_image(folder: Path, backend: str) -> None:
    """It is raised as it is, no image is lost for it, and with memory the next iteration is what it should be."""
    # whose float32 batch finds no room in what small tensors have been given before
    recipe = TrainRecipe.strong(input_size=512)
    options: dict[str, Any] = {"backend": backend, "device": "cuda", "num_workers": 2}
    with helpers.load(folder, recipe, **options) as loader:
        expected = take(loader)
        torch.cuda.empty_cache()
        try:
            torch.cuda.set_per_process_memory_fraction(0.0)
            with pytest.raises(RuntimeError, match=r"(?i)out of memory"):  # noqa: PT012 - what was made comes first
                for _ in range(3):
                    for _ in loader:
                        torch.cuda.empty_cache()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert loader.failures == {}
        loader.set_epoch(0)
        for (images, _), (wanted, _) in zip(take(loader), expected, strict=True):
            assert apart(images, wanted) < SAME


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["strong", "advanced", "rsb_a1", "deit3", "augmix"])
def test_a_gpu_launches_what_the_paper_says(folder: Path, recipe: str) -> None:
    stage = Postprocess()
    made = RECIPES.get(recipe) or paper.recipes()[recipe].replace(input_size=48)
    plan = Plan(SampleIndex.from_folder(folder), made, batch_size=24, seed=0).batch(0, 0)
    pixels = torch.randint(0, 256, (24, 3, 48, 48), dtype=torch.uint8, device="cuda")
    stage.finish_batch(pixels, plan, mix=True)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        stage.finish_batch(pixels, plan, mix=True)
        torch.cuda.synchronize()
    there = (event for event in profile.events() or () if event.device_type.name == "CUDA")
    names = [event.name for event in there]
    copies = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    kernels = [name for name in names if name in ("slot", "tables", "mix", "tail")]
    assert len(kernels) == len(encode(plan).launches) + 1
    assert len(copies) <= 2


@pytest.mark.gpu
@needs_dali
def test_the_whole_set_of_questions_starts(folder: Path, tmp_path: Path) -> None:
    done = bench_gpu(folder, tmp_path, "--seconds", "0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["points"]["hardware"][0]["gpus"]
