"""The distributions: what is in them, and that an abi3 wheel has its compiled modules or is not made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dali_imagenet
from tests.helpers import ROOT

pytest.importorskip("build")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

COMPILED = {f"dali_imagenet/{name}" for name in ("decode/_jpeg", "transforms/_image_kernels", "transforms/_pixel_ops")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, without what earlier builds left."""
    left = shutil.ignore_patterns(
        "*.so", "*.egg-info", "__pycache__", "build", "dist", "runs", ".*cache", ".git", ".venv"
    )
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "tree", ignore=left))


def build(tree: Path, out: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*words, str(out)], cwd=tree, env={**clean, "PATH": path, **env}, capture_output=True, text=True, timeout=120
    )


def test_one_command_makes_both_distributions(tree: Path, tmp_path: Path) -> None:
    done = build(tree, tmp_path, "bash", ".ci/wheel")
    assert done.returncode == 0, done.stdout + done.stderr
    [source] = tmp_path.glob("*.tar.gz")
    [wheel] = tmp_path.glob("*.whl")
    version = dali_imagenet.__version__
    assert source.name == f"dali_imagenet-{version}.tar.gz"
    assert wheel.name.startswith(f"dali_imagenet-{version}-cp311-abi3-manylinux")
    with tarfile.open(source) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert {f"{name}.c" for name in COMPILED} <= held
    installed = zipfile.ZipFile(wheel).namelist()
    assert {name for name in installed if name.endswith(".so")} == {f"{name}.abi3.so" for name in COMPILED}
    assert {f"{name}.pyi" for name in COMPILED} <= set(installed)
    kinds = {Path(name).suffix for name in installed if ".dist-info/" not in name and not name.endswith("/")}
    assert kinds == {".py", ".pyi", ".so", ".typed"}
    for package in ("dali_imagenet", "torchvision_fallback"):
        modules = {str(path.relative_to(tree)) for path in (tree / package).rglob("*.py")}
        assert modules == {name for name in installed if name.startswith(f"{package}/") and name.endswith(".py")}


def test_no_abi3_wheel_without_its_modules(tree: Path, tmp_path: Path) -> None:
    made = build(tree, tmp_path, "bash", ".ci/wheel", CC="false")
    assert made.returncode != 0
    assert "returned non-zero exit status" in made.stdout + made.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_python_alone_is_installed(tree: Path, tmp_path: Path) -> None:
    words = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir")
    made = build(tree, tmp_path, *words, CC="false")
    assert made.returncode == 0, made.stdout + made.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert "abi3" not in wheel.name
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
