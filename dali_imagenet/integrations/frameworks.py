"""Training frameworks: imported where they are used, with a word on how to get them where they are not."""

from __future__ import annotations

import importlib
from typing import Any


def framework(*modules: str, package: str = "dali-imagenet[frameworks]") -> Any:
    """The first of these modules that is installed.

    Args:
        package: what brings them.

    Raises:
        ImportError: none of them is.
    """
    for name in modules:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and lacks something of its own
    names = " or ".join(name.partition(".")[0] for name in modules)
    raise ImportError(f"{names} is not installed: pip install '{package}'")
