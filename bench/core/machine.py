"""What the numbers were measured on: hardware, versions, load. No path and no user or host name."""

from __future__ import annotations

import math
import os
import platform
from typing import Any

from dali_imagenet import machine

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pillow", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12", "simplejpeg",
    "albumentations", "opencv-python-headless", "kornia", "torchaug", "transformers", "datasets", "spdl",
    "webdataset", "ffcv", "tensorflow-cpu", "datago", "torchcodec", "kornia-rs", "imagecodecs", "imageio",
    "scikit-image", "PyTurboJPEG", "jpeg4py", "imgread", "ajpegli", "pyvips", "pyvips-binary", "skia-python",
    "pygame-ce", "av", "pylibjpeg-libjpeg", "dali-imagenet",
)  # fmt: skip


def versions() -> dict[str, str]:
    from dali_imagenet._compiled import compiled_modules
    from dali_imagenet.decode.decode import decoder_name

    found = {"python": platform.python_version()} | machine.versions(PACKAGES)
    found["compiled modules"] = ", ".join(compiled_modules()) or "none"
    found["our JPEG decoder"] = decoder_name()
    return found


def cores() -> int:
    """Cores that this process may use, rounded up."""
    from dali_imagenet.cores import usable_cores

    return math.ceil(usable_cores())


def describe() -> dict[str, Any]:
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "processor": machine.processor(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
    }


def load() -> float | None:
    """Mean number of running processes over the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
