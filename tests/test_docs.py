"""The documentation: docs/api.md is what its script makes, and the code that is shown is code that runs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = ("augmentation", "exactness", "scripts", "views")  # pages whose blocks are run
SMALLER = (("batch_size=256", "batch_size=4, device='cpu', num_workers=0"), ("range(90)", "range(1)"))


def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE_API = script()


def blocks(page: Path) -> list[str]:
    """What a page marks as Python."""
    return [textwrap.dedent(code) for code in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.fixture
def imagenet(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples call `imagenet`, in the current folder, and a model for its 4 classes."""
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "imagenet" / split)
    monkeypatch.chdir(tmp_path)


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "<example>", "exec"), names)


def test_api_is_what_its_script_makes() -> None:
    found = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert found == MAKE_API.page(), "docs/api.md is stale: run python docs/make_api.py"


def test_every_exported_name_is_described() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## `(\w+)`$", text, re.MULTILINE)
    assert headings == [name for _, name in MAKE_API.exported()]
    for package, name in MAKE_API.exported():
        made = getattr(importlib.import_module(package), name)
        assert (made.__doc__ or "").strip(), f"{package}.{name} has no docstring"
    assert set(MAKE_API.EXAMPLES) <= set(headings)


@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("name", MAKE_API.EXAMPLES)
def test_examples_of_the_api_run(name: str) -> None:
    run(MAKE_API.examples()[name], {"__name__": __name__})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_docs_compiles(page: Path) -> None:
    for code in blocks(page):
        compile(code, str(page), "exec")


@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/augmentation.md", "docs/exactness.md", "docs/scripts.md", "docs/timm.md", "docs/views.md"],
)
def test_python_in_the_docs_runs(page: str) -> None:
    """Block after block, as one program, with fewer and smaller batches."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 4))
    names: dict[str, Any] = {"__name__": __name__, "torch": torch, "model": model, "epochs": 1}
    for code in blocks(ROOT / page):
        for before, after in SMALLER:
            code = code.replace(before, after)
        run(code, names)


@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("needs", ["accelerate"])
def test_python_about_frameworks_runs(needs: str) -> None:
    pytest.importorskip(needs)
    for code in blocks(ROOT / "docs" / "frameworks.md"):
        if f"from {needs} import" in code:
            run(code.replace("Accelerator(", "Accelerator(cpu=True, "), {"__name__": __name__})


@pytest.mark.usefixtures("imagenet")
def test_the_source_of_the_contributing_page_reads() -> None:
    lmdb = pytest.importorskip("lmdb")
    [code] = [code for code in blocks(ROOT / "CONTRIBUTING.md") if "class LmdbSource" in code]
    names: dict[str, Any] = {"__name__": __name__}
    run(code, names)
    from dali_imagenet import SampleIndex

    plain = SampleIndex.from_folder("imagenet", split="train")
    with lmdb.open("train.lmdb", map_size=1 << 26) as env, env.begin(write=True) as write:
        for i in range(len(plain)):
            write.put(plain.relative_path(i).encode(), plain.source.read(i))
    index = names["indexed"]("train.lmdb")
    assert index.fingerprint == plain.fingerprint
    assert index.source.read_many(range(len(index))) == plain.source.read_many(range(len(plain)))
    assert index.path(0) == f"train.lmdb:{plain.relative_path(0)}"
    index.source.close()
    assert names["indexed"]("train.lmdb").scan.read == 0


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
