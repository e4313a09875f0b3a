"""An ImageNet loader for PyTorch: DALI or pure torchvision, per-sample augmentation, exact epochs.

`for images, targets in create_loader(folder, TrainRecipe.strong(), batch_size=256): ...`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dali_imagenet.data.index import SampleIndex
    from dali_imagenet.data.source import Source
    from dali_imagenet.errors import BadImageError, RankMismatchError, StorageError, UntranslatableError
    from dali_imagenet.failures import read_failures
    from dali_imagenet.integrations.torch_dataloader import from_dataloader
    from dali_imagenet.loader import Loader, create_loader
    from dali_imagenet.metrics import Accuracy
    from dali_imagenet.ops import Op
    from dali_imagenet.packing import Packed, pack
    from dali_imagenet.plan.batch_plan import BatchPlan
    from dali_imagenet.plan.plan import Plan
    from dali_imagenet.preview import save_preview
    from dali_imagenet.recipe import EvalRecipe, TrainRecipe

__version__ = "0.1.0"
__all__ = [
    "Accuracy",
    "BadImageError",
    "BatchPlan",
    "EvalRecipe",
    "Loader",
    "Op",
    "Packed",
    "Plan",
    "RankMismatchError",
    "SampleIndex",
    "Source",
    "StorageError",
    "TrainRecipe",
    "UntranslatableError",
    "create_loader",
    "from_dataloader",
    "pack",
    "read_failures",
    "save_preview",
]

_HOMES = {
    "Accuracy": "metrics",
    "BadImageError": "errors",
    "BatchPlan": "plan.batch_plan",
    "EvalRecipe": "recipe",
    "Loader": "loader",
    "Op": "ops",
    "Packed": "packing",
    "Plan": "plan.plan",
    "RankMismatchError": "errors",
    "SampleIndex": "data.index",
    "Source": "data.source",
    "StorageError": "errors",
    "TrainRecipe": "recipe",
    "UntranslatableError": "errors",
    "create_loader": "loader",
    "from_dataloader": "integrations.torch_dataloader",
    "pack": "packing",
    "read_failures": "failures",
    "save_preview": "preview",
}


def __getattr__(name: str) -> Any:
    """Loads each name's module when it is first used, so that importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
