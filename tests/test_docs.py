"""The documentation: docs/api.md is what its script makes, and the code that is shown is code that runs.

Every Python block of README.md and docs/ is run, page by page, but for those that a comment before the block marks with
what they need (`<!-- needs: network -->`); NEEDS lists these. CONTRIBUTING.md shows parts of files, which compile.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dali_imagenet import pack
from dali_imagenet.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IMAGES = ROOT / "docs" / "images"
BLOCK = re.compile(r"^(?:<!-- needs: ([\w ]+) -->\n)?```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = {  # a GPU, network, cluster, or a package that need not be there: then it runs where it is
    "docs/frameworks.md": ["accelerate", "transformers", "lightning", "composer"],
    "docs/remote.md": ["network"],
}
SMALLER = (
    ("batch_size=256", "batch_size=4, device='cpu', num_workers=0"),
    ("batch_size=128", "batch_size=4, device=torch.device('cpu'), num_workers=0"),
    ("range(90)", "range(1)"),
    ("{000000..001281}", "000000"),
    ("Accelerator(", "Accelerator(cpu=True, "),
)
LONG = ("dali-imagenet bench", "dali-imagenet doctor")  # a minute and more: the commands of the tour that are not run


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE_API = script("make_api")


def blocks(page: Path, *languages: str) -> list[tuple[str, str, str]]:
    """What a page marks as Python, or as other languages: what it needs, the language, the code."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(needs, of, textwrap.dedent(code)) for needs, of, code in found if of in (languages or ("python",))]


RUN = [page for page in PAGES if blocks(page) and page.name not in ("CONTRIBUTING.md", "api.md", "tour.md")]


def is_there(needs: str) -> bool:
    """Whether a block that needs this can run here."""
    if needs in ("", "GPU"):
        return not needs or torch.cuda.is_available()
    return needs not in ("network", "cluster") and importlib.util.find_spec(needs) is not None


@pytest.fixture
def imagenet(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples call `imagenet`, in the current folder."""
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "imagenet" / split)
    monkeypatch.chdir(tmp_path)


def given() -> dict[str, Any]:
    """The names that the examples take for granted: a model for the 4 classes."""
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 4))
    return {"__name__": __name__, "torch": torch, "model": model, "epochs": 1}


def run(code: str, names: dict[str, Any]) -> None:
    for before, after in SMALLER:
        code = code.replace(before, after)
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
    for _, _, code in blocks(page):
        compile(code, str(page), "exec")


def test_what_is_not_run_is_listed() -> None:
    marked = {str(page.relative_to(ROOT)): [needs for needs, *_ in blocks(page) if needs] for page in PAGES}
    assert {page: needs for page, needs in marked.items() if needs} == NEEDS


@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_python_in_the_docs_runs(page: Path) -> None:
    """Block after block, as one program, with fewer and smaller batches."""
    names = given()
    for needs, _, code in blocks(page):
        if is_there(needs):
            run(code, names)


def test_the_tour_is_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block in order, in an empty folder; commands by the function that the console command calls."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": __name__}
    said = []
    for _, language, code in blocks(ROOT / "docs" / "tour.md", "python", "bash"):
        if language == "python":
            exec(compile(code, "<tour>", "exec"), names)
        elif not code.startswith(LONG):
            assert code.startswith("dali-imagenet ")
            said.append(code.split()[1])
            assert main(shlex.split(code)[1:]) == 0
    assert said == ["index", "preview", "explain"]
    assert Path("preview.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "120 images in 3 classes, 0 broken" in printed
    shares = [float(share) for share in re.findall(r"^\d \S+ \{1: ([\d.]+)\} 30$", printed, re.MULTILINE)]
    assert len(shares) == 5
    assert shares[-1] > 0.8


def after(diff: str) -> str:
    """What a diff leaves."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("heading", ["From a DataLoader", "From timm", "From DALI", "From FFCV", "From webdataset"])
def test_what_another_loader_is_replaced_by_runs(heading: str) -> None:
    if heading == "From webdataset":
        pack("imagenet", "shards", split="train", progress=False)
        [shard] = Path("shards").glob("*.tar")
        shard.rename("shards/train-000000.tar")
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    [part] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    [diff] = re.findall(r"^```diff\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    names = given()
    run(after(diff), names)
    loader = names.get("train") or names["loader"]
    images, _ = next(iter(loader))
    assert images.shape == (4, 3, 224, 224)
    loader.close()


def test_the_first_page_has_the_table_of_the_readme() -> None:
    [table] = re.findall(
        r"^\| images/s.*?\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert table in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_the_pictures_of_the_recipes_are_what_their_script_makes(tmp_path: Path) -> None:
    script("make_pictures").make(tmp_path, ["evaluation", "strong", "dino"])
    for made in tmp_path.glob("*.webp"):
        new, old = (np.asarray(Image.open(path).convert("RGB"), float) for path in (made, IMAGES / made.name))
        assert np.abs(new - old).mean() < 2, f"{made.name} is stale: run python docs/make_pictures.py"
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"images/(\w+)\.webp", text)) == sorted(path.stem for path in IMAGES.glob("*.webp"))
    assert max(path.stat().st_size for path in IMAGES.iterdir()) < 61_000


@pytest.mark.usefixtures("imagenet")
def test_the_source_of_the_contributing_page_reads() -> None:
    lmdb = pytest.importorskip("lmdb")
    [code] = [code for *_, code in blocks(ROOT / "CONTRIBUTING.md") if "class LmdbSource" in code]
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
