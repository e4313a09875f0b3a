"""Which module may import which: read from the imports themselves, those inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from dali_imagenet.cli.common import BACKENDS
from dali_imagenet.engine import ENGINES
from dali_imagenet.loader import Backend

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; each may import from the lines above it.
LAYERS = (
    ("_compiled", "cache", "cores", "errors", "escape", "formats", "validation"),
    ("failures", "jpeg_markers", "machine", "ops", "rng", "storage"),
    ("pillow",),
    ("policy",),
    ("presets",),
    ("recipe",),
    ("data",),
    ("plan",),
    ("transforms",),
    ("decode",),
    ("image",),
    ("plain_rows",),
    ("engine",),
    ("dali", "torchvision_fallback"),
    ("ahead", "output", "ranks", "samplers", "state"),
    ("explain",),
    ("loader",),
    ("metrics", "packing", "preview", "trial"),
    ("doctor", "explore"),
    ("integrations",),
    ("train",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Ways back up: each is taken when it is asked for, never on import. (importer, imported)
FORWARDED = {
    ("dali_imagenet.engine", "dali"),  # is DALI there?
    ("dali_imagenet.engine", "trial"),  # which backend was the faster one?
    ("dali_imagenet.loader", "integrations"),  # as_dataloader
    ("dali_imagenet.recipe", "integrations"),  # from_transforms
}


def modules() -> dict[str, Path]:
    """Every module of the packages, by its dotted name."""
    found = {}
    for package in ("dali_imagenet", "torchvision_fallback"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The file or folder below the package that a module lies in."""
    first, *rest = module.split(".")
    return first if first == "torchvision_fallback" else rest[0] if rest else ""


def imports(path: Path) -> Iterator[str]:
    """The modules of ours, or of others, that a file names in an import, or for `importlib.import_module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            yield from (
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)
            elif isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
                yield str(argument.values[0].value)


def ours(module: str) -> bool:
    return module.split(".")[0] in ("dali_imagenet", "torchvision_fallback")


def test_every_room_has_a_place() -> None:
    assert {room(module) for module in MODULES} - {""} == set(LEVEL)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m)))
def test_imports_point_down(module: str) -> None:
    for imported in imports(MODULES[module]):
        if ours(imported) and room(imported) and (module, room(imported)) not in FORWARDED:
            here, there = room(module), room(imported)
            lower = LEVEL[there] < LEVEL[here]
            assert lower or here == there, (
                f"{module} ({here}) imports {imported} ({there}), which lies above or beside it"
            )


def test_listed_exceptions_exist() -> None:
    for module, there in FORWARDED:
        assert any(ours(imported) and room(imported) == there for imported in imports(MODULES[module])), module


def test_no_module_is_in_a_circle() -> None:
    graph = {m: {i for i in imports(path) if i in MODULES and i != m} for m, path in MODULES.items()}
    forwarded = {m for m, _ in FORWARDED}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in sorted(graph[module]) if module not in forwarded else ():
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_dali_is_imported_in_its_room_alone() -> None:
    for module, path in MODULES.items():
        named = [name for name in imports(path) if name.split(".")[0] == "nvidia"]
        assert not named or room(module) == "dali", (module, named)


def test_bench_imports_itself_relatively() -> None:
    for path in (ROOT / "bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [n for n in names if n.split(".")[0] == "bench"], path


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").glob("*.py"):
        others = ("tests.test_", "test_", "tests.conftest", "conftest")
        named = [name for name in imports(path) if name.startswith(others)]
        assert not named, (path, named)


@pytest.mark.parametrize("folder", ["bench", "examples", "tests"])
def test_private_names_of_the_package_are_not_imported(folder: str) -> None:
    """Tests may reach into a module by its name; nobody imports what begins with an underscore, but the compiled."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and ours(node.module):
                private = [a.name for a in node.names if a.name.startswith("_") and a.name != "_compiled"]
                assert not private, (path, private)


def test_every_list_of_backends_is_that_of_the_engines() -> None:
    names = {"auto", *ENGINES}
    assert set(get_args(Backend)) == set(BACKENDS) == names


def test_exported_names_are_there_and_light() -> None:
    code = """if True:
        import sys, dali_imagenet
        heavy = {"torch", "torchvision", "timm", "numpy", "PIL", "nvidia", "scipy", "tqdm", "platformdirs"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert dir(dali_imagenet) == sorted(dali_imagenet.__all__)
        assert all(getattr(dali_imagenet, name) is not None for name in dali_imagenet.__all__)
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_all_log_under_one_name() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger"):
                assert ast.unparse(node.args[0]) == "'dali_imagenet'", module
