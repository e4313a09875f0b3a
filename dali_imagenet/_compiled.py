"""The optional compiled modules, and how to do without them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType

ORACLE = os.environ.get("DALI_IMAGENET_ORACLE", "0") not in ("", "0")
"""Whether the compiled modules leave out their shortcuts, which give the same bits: for tests (read at import)."""

HEADER = Path(__file__).with_name("_cpu.h")  # which each of them includes


def compiled(name: str) -> ModuleType | None:
    """The module, or None where it was not built or DALI_IMAGENET_PURE=1 asks for Python alone (read at import)."""
    if os.environ.get("DALI_IMAGENET_PURE", "0") not in ("", "0"):
        return None
    return _built(name)


@functools.cache
def _built(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    source = Path(str(module.__file__)).with_name(f"{name.rpartition('.')[2]}.c")
    # Beside the module in a checkout only; simplejpeg, which is asked for here too, has none.
    if source.exists() and module.__doc__ != hashlib.sha256(source.read_bytes() + HEADER.read_bytes()).hexdigest():
        raise RuntimeError(
            f"{module.__file__} was built from another {source.name} than the one beside it: build it again, with "
            "`pip install -e .` in the checkout, or delete it to do without"
        )
    return module


def compiled_modules() -> list[str]:
    """Those of the package's own modules that were built, by their short names."""
    names = ("decode._jpeg", "transforms._image_kernels", "transforms._pixel_ops")
    return [name.partition("._")[2] for name in names if compiled(f"dali_imagenet.{name}") is not None]
