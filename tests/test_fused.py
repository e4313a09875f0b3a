"""The fused batch stage: in Triton's interpreter against torch's operations, and what a compiler makes of it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dali_imagenet.transforms.fused import codes, stage
from tests.helpers import ROOT, python

triton = pytest.importorskip("triton", reason="Triton comes with PyTorch on Linux")
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found() -> Found:
    """What `fused_cases` found. One process: the interpreter is chosen when Triton is imported."""
    run = python(str(ROOT / "tests" / "fused_cases.py"), env={"TRITON_INTERPRET": "1"})
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

TYPES = {
    **dict.fromkeys(("images", "pool", "tables", "made", "fill"), "*u8"),
    **dict.fromkeys(("wide", "weights", "shares", "constants", "mixing", "value"), "*fp32"),
    **dict.fromkeys(("jobs", "whole", "places", "boxes"), "*i32"),
    **{"numbers": "*fp64", "keys": "*i64", "out": "*bf16"},
}
KERNELS: dict[str, tuple[str, dict[str, Any]]] = {
    "slot": ("slot", {"BLOCK": stage.BLOCK, "LANES": stage.LANES, "WIDE": False}),
    "tables": ("tables", {"BLOCK": 8 * stage.BLOCK, "WIDE": False}),
    "mix": ("mix", {"BLOCK": stage.BLOCK}),
    "tail": ("tail", {"BLOCK": stage.BLOCK, "NOISE": codes.NO_NOISE, "LAST": False}),
    "tail with noise": ("tail", {"BLOCK": stage.BLOCK, "NOISE": codes.NOISE_PIXEL, "LAST": True}),
}


def ptx(name: str, architecture: int, constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel as the stage launches it, compiled without a GPU; what assembles it is left out."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend

    add_stages = CUDABackend.add_stages

    def without_assembler(self: Any, stages: dict[str, Any], *rest: Any) -> None:
        add_stages(self, stages, *rest)
        stages["cubin"] = lambda *_: b""

    monkeypatch.setattr(CUDABackend, "add_stages", without_assembler)
    kernel = getattr(importlib.import_module("dali_imagenet.transforms.fused.kernels"), name)
    signature = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in kernel.arg_names}
    made = triton.compile(
        triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", architecture, 32),
        options=stage.OPTIONS,
    )
    return str(made.asm["ptx"])


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100])
def test_the_compiler_keeps_the_arithmetic(architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    lines = (ROOT / "dali_imagenet" / "transforms" / "fused" / "kernels.py").read_text().splitlines()
    asked = next(i for i, line in enumerate(lines, 1) if "tl.fma(" in line)
    fused = {}
    for label, (name, constants) in KERNELS.items():
        text = ptx(name, architecture, constants, monkeypatch)
        assert f".target sm_{architecture}" in text
        assert re.findall(r"\S*(?:\.approx|\.full|\.ftz)\S*", text) == [], label
        line, fused[label] = 0, 0
        for instruction in text.splitlines():
            if found := re.match(r"\s*\.loc\s+\d+\s+(\d+)", instruction):
                line = int(found[1])
            elif re.search(r"\b(?:fma|mad)\.(?:rn\.)?(?:f|bf)", instruction):
                assert line == asked, f"{label}: {lines[line - 1]}"
                fused[label] += 1
        assert ("cvt.rn.bf16" in text) == name.startswith("tail")  # rounded, to even
    assert fused["slot"] > 0
    assert fused["tables"] > 0
    assert fused["mix"] == fused["tail"] == fused["tail with noise"] == 0
