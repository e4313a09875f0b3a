"""The progress bar of whatever takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any


def progress_bar(items: Iterator[Any] | None, total: int, what: str, unit: str, progress: bool) -> Any:
    """tqdm's bar, which shows itself on a terminal only."""
    from tqdm import tqdm

    bar: Any = type("Bar", (tqdm,), {"monitor_interval": 0})  # else each class has a thread that outlives the bar
    bar.set_lock(threading.RLock())  # tqdm's own is multiprocessing's, and would fix the start method for the user
    return bar(items, what, total, unit=unit, leave=False, disable=None if progress else True)
