"""The optional compiled modules, and how to do without them."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def compiled(name: str) -> ModuleType | None:
    """The module, or None where it was not built or DALI_IMAGENET_PURE=1 asks for Python alone (read at import)."""
    if os.environ.get("DALI_IMAGENET_PURE", "0") not in ("", "0"):
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
