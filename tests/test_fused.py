"""The fused batch stage: in Triton's interpreter against torch's operations, what a compiler makes of it, and who takes
over."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.gpu import paper
from dali_imagenet import Plan, SampleIndex, TrainRecipe
from dali_imagenet.plan.batch_plan import BatchPlan
from dali_imagenet.transforms import pixel_ops
from dali_imagenet.transforms.fused import program, stage
from dali_imagenet.transforms.normalize_erase import normalize_constants
from tests.helpers import PACKAGES, ROOT, python

triton = pytest.importorskip("triton", reason="Triton comes with PyTorch on Linux")
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def found(request: pytest.FixtureRequest) -> Found:
    """What `fused_cases` found. One process: the interpreter is chosen when Triton is imported."""
    interpret = "1" if request.param == "interpreter" else "0"
    run = python(str(ROOT / "tests" / "fused_cases.py"), env={"TRITON_INTERPRET": interpret})
    assert run.returncode == 0, run.stderr
    said: Found = json.loads(run.stdout)
    return said


def test_the_bytes_are_those_of_torchs_operations(found: Found) -> None:
    asked = {name: case for name, case in found.items() if "differ" in case and name != "ties, not looked at"}
    assert {name: case["where"] for name, case in asked.items() if case["differ"]} == {}
    idle = {"IDENTITY", "AFFINE_X", "AFFINE_Y", "AFFINE_SCALE", "AFFINE_SHEAR_X", "AFFINE_SHEAR_Y"}
    idle |= {"SHARPNESS, tiny", "PIL_SHARPNESS, tiny", "recipe classic"}
    assert {name for name, case in asked.items() if case["changed"] < 0.05} <= idle | {"EQUALIZE, tiny"}
    assert sum(name.startswith("recipe ") for name in asked) >= 18


def test_a_blur_near_a_half_is_summed_again(found: Found) -> None:
    assert (found["ties"]["rows"], found["ties"]["differ"]) == (4, 0)
    assert found["ties, not looked at"]["differ"] == 12  # the bright pixel of each


def test_the_tail(found: Found) -> None:
    tails = {name: case for name, case in found.items() if name.startswith("tail ")}
    assert len(tails) == 5
    for name, case in tails.items():
        assert case["apart"] <= 5e-7, name
        assert case["noise"] <= 1e-5, name
        assert case["values"] > 0.5
        assert (case["noisy"] > 500) == (name in ("tail rand", "tail pixel"))
        assert case["torch.float16"] <= 0.51
        assert case["torch.bfloat16"] <= 1.01


# ---- what a compiler makes of it ----

KERNELS = ("slot", "tables", "mix", "tail")
Compiled = dict[tuple[str, int], Any]


class FakeDriver:
    """As much of a GPU's driver as compiling takes."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Compiled]]:
    """Makes the stage compile what it would launch, for an architecture, without a GPU and without the assembler; gives
    what was compiled, by kernel and variant, to which later launches add."""
    from triton.backends.nvidia.compiler import CUDABackend

    kernels = importlib.import_module("dali_imagenet.transforms.fused.kernels")
    add_stages, compiled = CUDABackend.add_stages, Compiled()

    def without_assembler(self: Any, stages: dict[str, Any], *rest: Any) -> None:
        add_stages(self, stages, *rest)
        stages["cubin"] = lambda *_: b""

    def launch(name: str, grid: Any, *arguments: Any, **constants: Any) -> None:
        made = getattr(kernels, name).warmup(*arguments, grid=grid, **constants, **stage.OPTIONS)
        if all(made is not known for known in compiled.values()):
            compiled[name, len(compiled)] = made

    def forget() -> None:
        for name in KERNELS:
            getattr(kernels, name).device_caches.clear()

    def choose(architecture: int) -> Compiled:
        triton.runtime.driver.set_active(FakeDriver(architecture))
        return compiled

    before = triton.runtime.driver._active
    monkeypatch.setattr(CUDABackend, "add_stages", without_assembler)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(stage, "_launch", launch)
    forget()
    yield choose
    forget()
    triton.runtime.driver._active = before


CPU = torch.device("cpu")


SLOW = [pytest.param(architecture, marks=pytest.mark.slow) for architecture in (86, 89, 100)]


@pytest.mark.parametrize("architecture", [80, 90, *SLOW])
def test_the_compiler_keeps_the_arithmetic(architecture: int, compiling: Callable[[int], Compiled]) -> None:
    compiled = compiling(architecture)
    stage._compile(CPU, torch.bfloat16, torch.contiguous_format, "const", True)
    stage._compile(CPU, torch.bfloat16, torch.channels_last, "pixel", False)
    assert [name for name, _ in compiled] == ["tables", "slot", "mix", "tail", "tail"]
    lines = (PACKAGES / "dali_imagenet" / "transforms" / "fused" / "kernels.py").read_text().splitlines()
    asked = next(i for i, line in enumerate(lines, 1) if "tl.fma(" in line)
    fused = dict.fromkeys(KERNELS, 0)
    for (name, _), made in compiled.items():
        text = made.asm["ptx"]
        assert f".target sm_{architecture}" in text
        assert re.findall(r"\S*(?:\.approx|\.full|\.ftz)\S*", text) == [], name
        line = 0
        for instruction in text.splitlines():
            if found := re.match(r"\s*\.loc\s+\d+\s+(\d+)", instruction):
                line = int(found[1])
            elif re.search(r"\b(?:fma|mad)\.(?:rn\.)?(?:f|bf)", instruction):
                assert line == asked, f"{name}: {lines[line - 1]}"
                fused[name] += 1
        assert ("cvt.rn.bf16" in text) == (name == "tail")  # rounded, to even
    assert fused["slot"] > 0
    assert fused["tables"] > 0
    assert fused["mix"] == fused["tail"] == 0


def test_nothing_is_compiled_in_mid_epoch(compiling: Callable[[int], Compiled]) -> None:
    """Other sizes, batches and programs are the kernels that were there before."""
    compiled = compiling(90)
    stage._compile(CPU, torch.float32, torch.contiguous_format, "pixel", True)
    assert [name for name, _ in compiled] == ["tables", "slot", "mix", "tail"]
    for rows, size in ((2, 16), (16, 33), (6, 224)):
        for name in ("advanced", "rsb_a1", "augmix"):
            recipe = paper.recipes()[name].replace(input_size=size, re_mode="pixel")
            index = SampleIndex.from_arrays(np.zeros(32, np.int64), 300, 400)
            plan = Plan(index, recipe, batch_size=rows, seed=0).batch(0, 0)
            images = torch.zeros((rows, 3, size, size), dtype=torch.uint8)
            constants = normalize_constants(plan.mean, plan.std)
            stage.finish(images, plan, constants, dtype=torch.float32, mix=True)
    assert len(compiled) == 4


# ---- where it cannot ----


@pytest.fixture
def _asked_anew() -> Iterator[None]:
    stage._ready.cache_clear()
    stage._refused.clear()
    yield
    stage._ready.cache_clear()
    stage._refused.clear()


def plan_of(recipe: TrainRecipe) -> BatchPlan:
    return Plan(SampleIndex.from_arrays(np.zeros(4, np.int64), 300, 400), recipe, batch_size=4, seed=0).batch(0, 0)


@pytest.mark.usefixtures("_asked_anew")
def test_one_warning_where_triton_cannot(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def compile_(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nand more")

    monkeypatch.setattr(stage, "_compile", compile_)
    plan, cuda = plan_of(TrainRecipe.strong(input_size=24)), torch.device("cuda", 0)
    for dtype in (torch.float32, torch.bfloat16):
        assert not stage.takes(plan, cuda, dtype, torch.contiguous_format)
    [said] = caplog.messages
    assert said.endswith("cannot be compiled here (RuntimeError: Failed to find C compiler. Please specify via CC "
                         "environment variable.)")  # fmt: skip


@pytest.mark.usefixtures("_asked_anew")
def test_what_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Any]()
    monkeypatch.setattr(stage, "_compile", lambda *rest: asked.append(rest))
    plan, cuda = plan_of(TrainRecipe.strong(input_size=24)), torch.device("cuda", 0)
    assert stage.takes(plan, cuda, torch.float32, torch.contiguous_format)
    assert stage.takes(plan, cuda, torch.float32, torch.contiguous_format)
    assert asked == [(cuda, torch.float32, torch.contiguous_format, "const", True)]
    assert not stage.takes(plan, CPU, torch.float32, torch.contiguous_format)
    wide = plan_of(TrainRecipe(input_size=24, gaussian_blur_prob=1.0, gaussian_blur_kernel=49))
    assert not stage.takes(wide, cuda, torch.float32, torch.contiguous_format)  # reflects more than there is
    monkeypatch.setattr(stage, "ORACLE", True)
    assert not stage.takes(plan, cuda, torch.float32, torch.contiguous_format)

    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage, "ORACLE", False)
    monkeypatch.setattr(stage, "_compile", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):  # no reason to be slow from then on
        stage.takes(plan, cuda, torch.float16, torch.contiguous_format)


def test_more_rows_than_a_grid_has_are_torchs() -> None:
    index = SampleIndex.from_arrays(np.zeros(1 << 16, int), 300, 300)
    recipe = TrainRecipe.classic(input_size=8)
    assert program.fits(Plan(index, recipe, batch_size=(1 << 16) - 1).batch(0, 0))
    assert not program.fits(Plan(index, recipe, batch_size=1 << 16).batch(0, 0))


def test_images_of_another_plan_are_refused() -> None:
    plan = plan_of(TrainRecipe.strong(input_size=24))
    for images in (torch.zeros(4, 3, 24, 23, dtype=torch.uint8), torch.zeros(4, 3, 24, 24)):
        with pytest.raises(ValueError, match=r"must be uint8 \[4, 3, 24, 24\]"):
            stage.finish(images, plan, normalize_constants(plan.mean, plan.std), dtype=torch.float32)


@pytest.mark.parametrize(("sigma", "size"), [(0.1, 3), (1.3, 23), (2.0, 23), (9.0, 7), (0.5, 1)])
def test_the_bounds_of_a_blur_are_those_of_c(sigma: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if pixel_ops._pixel_ops is None:
        pytest.skip("the compiled module was not built")
    line, kernel = (t.numpy() for t in pixel_ops.gaussian(sigma, size))
    expected = program.blur_bounds(line, kernel)
    monkeypatch.setattr(pixel_ops, "_pixel_ops", None)
    np.testing.assert_allclose(program.blur_bounds(line, kernel), expected, rtol=1e-6)
