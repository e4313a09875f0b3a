"""How every plot of a report looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

OURS, PEER, BOUND, BASE = "#0b8f62", "#8aa0b6", "#d9c27a", "#4a6480"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa5b1",
    "figure.dpi": 130,
    "savefig.bbox": "tight",
    "legend.frameon": False,
}


def save(figure: Any, file: Path) -> Path:
    figure.savefig(file)
    plt.close(figure)
    return file
