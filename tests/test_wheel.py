"""The distributions: what is in them, and that an abi3 wheel has its compiled modules or is not made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dali_imagenet
from tests.helpers import ROOT, make_folder, python

pytest.importorskip("build")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

COMPILED = {f"dali_imagenet/{name}" for name in ("decode/_jpeg", "transforms/_image_kernels", "transforms/_pixel_ops")}
PACKAGES = {
    "dali_imagenet": "dali_imagenet",
    "torchvision_fallback": "torchvision_fallback",
    "dali_imagenet_bench": "bench",
}


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
        [*words, str(out)], cwd=tree, env={**clean, "PATH": path, **env}, capture_output=True, text=True, timeout=540
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
    assert kinds == {".html", ".py", ".pyi", ".so", ".typed"}
    for package, folder in PACKAGES.items():
        modules = {f"{package}/{path.relative_to(tree / folder)}" for path in (tree / folder).rglob("*.py")}
        assert modules == {name for name in installed if name.startswith(f"{package}/") and name.endswith(".py")}
    compares_without_a_checkout(wheel, tmp_path)


def compares_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    """The command, from shards, with contestants in processes of their own."""
    site, work = tmp_path / "site", tmp_path / "work"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    work.mkdir()
    tar = work / "images.tar"
    with tarfile.open(tar, "w") as made:
        made.add(make_folder(tmp_path / "data", 8), "")
    env = {"PYTHONPATH": str(site), "DALI_IMAGENET_CACHE": str(work / "cache")}
    words = ("--data", tar.name, "--only", "ours-torchvision,tv-v1-pil", "--recipes", "classic", "--device", "cpu",
             "--sections", "loaders", "--rounds", "1", "--seconds", "0.1", "--workers", "0", "--batch-size", "4",
             "--epoch-images", "16", "--quick", "--minutes", "10", "--out", "out")  # fmt: skip
    done = python("-m", "dali_imagenet", "bench", *words, cwd=work, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((work / "out" / "results.json").read_text())
    assert found["data"]["name"] == tar.name
    assert found["data"]["train"]["distinct"] == 8
    assert [cell["error"] for cell in found["cells"]] == ["", ""]
    listed = python("-m", "dali_imagenet", "bench", "--help", cwd=work, env=env, check=True)
    assert listed.stdout.startswith("usage: dali-imagenet bench")


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
