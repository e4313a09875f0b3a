"""The one folder in which things are remembered between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path | None:
    """Where to remember what took time: `given`, else `$DALI_IMAGENET_CACHE`, else the user's cache folder.

    `~` is expanded, and an empty variable is as one that is not set. Nothing is made: whoever writes makes the folder.

    Returns:
        None where there is none, as without a home folder: then nothing is remembered, which costs time alone.
    """
    named = given or os.environ.get("DALI_IMAGENET_CACHE")
    if not named:
        import platformdirs

        try:
            named = platformdirs.user_cache_dir("dali-imagenet", False)
        except RuntimeError:  # a user unknown to this machine, and no HOME
            return None
    folder = Path(os.path.expanduser(named))
    # without a home "~" stays as it is: no folder of that name shall appear where the run was started
    return None if str(folder).startswith("~") else folder.absolute()
