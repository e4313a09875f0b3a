"""What only POSIX has is asked for before it is used: everything imports, and a loader runs, without it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers import python, write

# Hides what Windows does not have, of modules and of os, once the libraries that need it here have been imported. What
# is guarded by sys.platform, os.pread and os.pwrite, stays: mypy reads these guards.
HIDE = """
import importlib, multiprocessing, os, pkgutil, sys
import multiprocessing.reduction, multiprocessing.resource_tracker, multiprocessing.popen_spawn_posix
import filelock, numpy, PIL.Image, platformdirs, psutil, timm, torch, torchvision, tqdm

filelock.FileLock = filelock.SoftFileLock  # it has one of its own for Windows
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "posix"):
    sys.modules[name] = None
for name in (
    *("fork", "forkpty", "memfd_create", "sched_getaffinity", "sched_setaffinity", "posix_fadvise"),
    *("getuid", "geteuid", "getgid", "statvfs", "getloadavg", "killpg", "setsid", "register_at_fork", "mkfifo"),
    *("O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "uname", "sysconf", "preadv", "sendfile", "nice", "getpgid", "fchmod"),
):
    if hasattr(os, name):
        delattr(os, name)
multiprocessing.context._concrete_contexts = {"spawn": multiprocessing.context._concrete_contexts["spawn"]}
multiprocessing.get_all_start_methods = lambda: ["spawn"]
multiprocessing.set_start_method("spawn", force=True)
"""

RUN = f"""{HIDE}
if __name__ == "__main__":
    import dali_imagenet, torchvision_fallback
    failed = []
    for package in (dali_imagenet, torchvision_fallback):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            try:
                importlib.import_module(module.name)
            except Exception as error:
                if "is not installed" not in str(error):  # the framework that a module is for
                    failed.append(f"{{module.name}}: {{error!r}}")
    assert not failed, failed
    from dali_imagenet import TrainRecipe, create_loader, pack
    from dali_imagenet.cores import usable_cores, worker_count
    assert usable_cores() >= 1 and worker_count() >= 1
    recipe = TrainRecipe.strong(input_size=32)
    found = []
    for workers in (0, 1):
        with create_loader(sys.argv[1], recipe, batch_size=8, device="cpu", num_workers=workers) as loader:
            found.append([images.clone() for images, _ in loader])
            loader.state_dict()
    assert len(found[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    packed = pack(sys.argv[1], sys.argv[2], progress=False)
    assert packed.images == 24
    with create_loader(sys.argv[2], recipe, batch_size=8, device="cpu", num_workers=0) as loader:
        assert len([*loader]) == 3
    from dali_imagenet.__main__ import main
    assert main(["cache"]) == 0
    print("ran")
"""


def test_everything_imports_and_a_loader_runs(folder: Path, tmp_path: Path) -> None:
    """The loader in-process and with a spawned worker, from a folder and from shards, which are written so, too."""
    file = write(tmp_path / "run.py", RUN.encode())
    # a cache of its own: this kind of lock waits for files that the other has left
    done = python(str(file), str(folder), str(tmp_path / "out"), env={"DALI_IMAGENET_CACHE": str(tmp_path / "cache")})
    assert done.stdout.endswith("ran\n"), done.stderr


@pytest.mark.parametrize("name", ["dali_imagenet", "torchvision_fallback", "bench"])
def test_what_only_posix_has_is_imported_under_a_guard(name: str) -> None:
    root = Path(__file__).resolve().parent.parent / name
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", None)
            assert not {"fcntl", "resource", "pwd", "grp", "termios"} & {*names, module}, path
