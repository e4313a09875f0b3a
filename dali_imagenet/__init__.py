"""An ImageNet loader for PyTorch: DALI or pure torchvision, per-sample augmentation, exact epochs.

`for images, targets in create_loader(folder, TrainRecipe.strong(), batch_size=256): ...`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali_imagenet.data.index import SampleIndex
    from dali_imagenet.errors import BadImageError
    from dali_imagenet.loader import Loader, create_loader
    from dali_imagenet.ops import Op
    from dali_imagenet.plan.batch_plan import BatchPlan
    from dali_imagenet.plan.plan import Plan
    from dali_imagenet.recipe import EvalRecipe, TrainRecipe

__version__ = "0.1.0"
__all__ = [
    "BadImageError",
    "BatchPlan",
    "EvalRecipe",
    "Loader",
    "Op",
    "Plan",
    "SampleIndex",
    "TrainRecipe",
    "create_loader",
]

_HOMES = {
    "BadImageError": "errors",
    "BatchPlan": "plan.batch_plan",
    "EvalRecipe": "recipe",
    "Loader": "loader",
    "Op": "ops",
    "Plan": "plan.plan",
    "SampleIndex": "data.index",
    "TrainRecipe": "recipe",
    "create_loader": "loader",
}


def __getattr__(name: str) -> Any:
    """Loads each name's module when it is first used, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
