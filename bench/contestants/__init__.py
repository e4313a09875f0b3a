"""Who takes part. A contestant is a function `build(job)` that returns something to iterate epoch by epoch.

Each is written as its own documentation writes it. The modules are imported in the contestant's own process only.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..core.job import Job

TRAIN = ("classic", "strong")
MODES = ("none", "conservative", "moderate", "aggressive")
ALL = (*TRAIN, "eval", *MODES)
OURS = ("classic", "strong", "advanced", "eval", *MODES)

Build = Callable[[Job], Iterable[Any]]


@dataclass(frozen=True)
class Contestant:
    name: str  # short, for tables
    title: str
    build: str  # "module:function" below this package
    recipes: tuple[str, ...]
    needs: tuple[str, ...] = ()  # modules that must be importable
    install: str = ""  # the command that brings them
    note: str = ""  # what it cannot express
    gpu: bool = False  # runs only with CUDA
    libraries: tuple[str, ...] = ()  # shared libraries that must be there
    kind: str = "peer"  # "peer", "ours" or "bound"
    prepare: str = ""  # "module:function" that converts the data set, once and unmeasured
    environment: tuple[tuple[str, str], ...] = ()  # variables of its process, set before anything of it is imported

    def load(self) -> Build:
        build: Build = _function(self.build)
        return build

    def convert(self, job: Job) -> None:
        if self.prepare:
            _function(self.prepare)(job)

    def missing(self) -> str:
        """Why it cannot take part on this machine; empty where it can."""
        for module in self.needs:
            if not importable(module):
                return f"the module {module} is not installed"
        for library in self.libraries:
            if ctypes.util.find_library(library) is None:
                return f"the library {library} is not installed"
        if self.gpu and not has_cuda():
            return "no CUDA GPU"
        return ""


def _function(name: str) -> Any:
    module, function = name.split(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def has_cuda() -> bool:
    if not importable("torch"):
        return False
    import torch

    return torch.cuda.is_available()


NOT_LINUX = "" if sys.platform == "linux" else "DALI exists for Linux only; "
DALI = "pip install nvidia-dali-cuda120"
TWIST = "colour by color_twist (DALI's matrix)"

CONTESTANTS = (
    Contestant("tv-v1-pil", "torchvision v1 on PIL", "torchvision_peers:v1_pil", ALL),
    Contestant("tv-v2-pil", "torchvision v2 on PIL", "torchvision_peers:v2_pil", ALL),
    Contestant("tv-v2-tensor", "torchvision v2 on tensors", "torchvision_peers:v2_tensor", ALL),
    Contestant(
        "tv-v2-gpu",
        "torchvision v2 on the GPU batch",
        "torchvision_peers:v2_gpu",
        TRAIN,
        gpu=True,
        note="one draw a batch: every image gets the same operations",
    ),
    Contestant(
        "timm",
        "timm create_loader",
        "timm_peer:plain",
        (*TRAIN, "eval"),
        ("timm",),
        "pip install timm",
        "strong: timm's own operations; RandAugment rand-m9-n2 in place of torchvision's",
    ),
    Contestant(
        "timm-prefetch",
        "timm create_loader, prefetcher",
        "timm_peer:prefetch",
        (*TRAIN, "eval"),
        ("timm",),
        "pip install timm",
        "as timm; erasing and normalizing after the uint8 collate",
    ),
    Contestant(
        "albumentations",
        "Albumentations",
        "albumentations_peer:build",
        (*TRAIN, "eval"),
        ("albumentations", "cv2"),
        "pip install albumentations",
        "OpenCV resize without antialiasing; strong: RandAugment put together from its own operations",
    ),
    Contestant(
        "kornia",
        "kornia on the CPU batch",
        "batch_peers:kornia_batch",
        TRAIN,
        ("kornia",),
        "pip install kornia",
        "RandAugment draws one operation a batch",
    ),
    Contestant(
        "torchaug",
        "TorchAug on the CPU batch",
        "batch_peers:torchaug_batch",
        TRAIN,
        ("torchaug",),
        "pip install torchaug",
        "RandAugment draws one operation a batch",
    ),
    Contestant(
        "hf-processor",
        "Hugging Face ViT processor, fast",
        "hf_peer:processor",
        ("eval",),
        ("transformers",),
        "pip install transformers",
        "evaluation only: it has no random crop",
    ),
    Contestant(
        "hf-datasets",
        "Hugging Face datasets, set_transform",
        "hf_peer:datasets_transform",
        (*TRAIN, "eval"),
        ("datasets",),
        "pip install datasets",
        "torchvision's transforms behind datasets' Arrow table",
    ),
    Contestant(
        "hf-map",
        "Hugging Face datasets, map(batched)",
        "hf_peer:datasets_map",
        ("eval",),
        ("datasets", "transformers"),
        "pip install datasets transformers",
        "evaluation only; ViT's fast processor behind an iterable data set's map",
    ),
    Contestant(
        "spdl",
        "SPDL",
        "spdl_peer:build",
        (*TRAIN, "eval"),
        ("spdl",),
        "apt install ffmpeg; pip install spdl",
        "FFmpeg decoding; torchvision's tensor transforms",
        libraries=("avutil",),
    ),
    Contestant(
        "webdataset",
        "webdataset tar + torchvision",
        "webdataset_peer:build",
        (*TRAIN, "eval"),
        ("webdataset",),
        "pip install webdataset",
        "data set rewritten as tar; shuffles in a window",
        prepare="webdataset_peer:shards",
    ),
    Contestant(
        "ffcv",
        "FFCV, JPEG beton",
        "ffcv_peer:build",
        ("classic", "eval"),
        ("ffcv",),
        "apt install libopencv-dev libturbojpeg0-dev pkg-config; pip install ffcv",
        "data set rewritten, JPEGs encoded again at quality 90; no RandAugment",
        prepare="ffcv_peer:beton",
    ),
    Contestant(
        "dali-doc-cpu",
        "DALI as documented, CPU",
        "dali_peer:documented_cpu",
        (*TRAIN, "eval"),
        ("nvidia.dali",),
        DALI,
        NOT_LINUX + "strong: its own rand_augment and color_twist; window shuffle, no exact epochs",
    ),
    Contestant(
        "dali-doc-gpu",
        "DALI as documented, GPU",
        "dali_peer:documented_gpu",
        (*TRAIN, "eval"),
        ("nvidia.dali",),
        DALI,
        "as on the CPU",
        gpu=True,
    ),
    Contestant(
        "tf-data",
        "tf.data",
        "tensorflow_peer:build",
        ("classic", "eval"),
        ("tensorflow",),
        "pip install tensorflow-cpu",
        "decode_and_crop_jpeg by its default, the fast and inexact arithmetic; resize without antialiasing; window "
        "shuffle. No RandAugment, jitter of its own",
    ),
    Contestant(
        "datago",
        "datago, torchvision v2",
        "datago_peer:build",
        (*TRAIN, "eval"),
        ("datago",),
        "pip install datago",
        "decodes whole images in Rust; torchvision's tensor transforms in threads",
    ),
    Contestant("ours-torchvision", "ours, torchvision", "ours:torchvision", OURS, kind="ours", note=TWIST),
    Contestant(
        "ours-dali-cpu",
        "ours, DALI on the CPU",
        "ours:dali_cpu",
        OURS,
        ("nvidia.dali",),
        DALI,
        NOT_LINUX + TWIST,
        kind="ours",
    ),
    Contestant(
        "ours-dali-gpu",
        "ours, DALI on the GPU",
        "ours:dali_gpu",
        OURS,
        ("nvidia.dali",),
        DALI,
        TWIST,
        gpu=True,
        kind="ours",
    ),
    Contestant(
        "ours-pure",
        "ours, torchvision, pure Python",
        "ours:torchvision",
        (*TRAIN, "eval"),
        kind="ours",
        note="nothing but torch, torchvision and Pillow: no compiled modules; " + TWIST,
        environment=(("DALI_IMAGENET_PURE", "1"),),
    ),
    Contestant(
        "ours-jitter",
        "ours, auto, color_jitter",
        "ours:auto_jitter",
        ("strong",),
        kind="ours",
        note="colour by color_jitter: torchvision's operation, as the torchvision peers",
    ),
    Contestant(
        "raw-pixels",
        "pre-augmented raw pixels",
        "upper_bounds:raw_pixels",
        ("classic",),
        kind="bound",
        prepare="upper_bounds:crops",
        note="uint8 crops made beforehand: no decoding, no new draws",
    ),
    Contestant(
        "synthetic",
        "synthetic tensors",
        "upper_bounds:synthetic",
        ("classic", "strong"),
        kind="bound",
        note="one batch in memory, handed out again and again",
    ),
    Contestant(
        "decode-only",
        "decode only (torchvision.io)",
        "upper_bounds:decode_only",
        ("classic",),
        kind="bound",
        note="full decode in threads, pixels thrown away",
    ),
    Contestant(
        "decode-crops",
        "decode the crops only (ours)",
        "upper_bounds:decode_crops",
        ("classic",),
        kind="bound",
        note="our decoder on classic's crops in threads, pixels thrown away",
    ),
    Contestant(
        "steps",
        "the steps alone, one core (ours)",
        "upper_bounds:steps",
        ("classic",),
        kind="bound",
        note="reading, decoding, resizing and normalizing classic's crops in a loop, whatever the workers: the limit",
    ),
    Contestant(
        "read-only",
        "read only",
        "upper_bounds:read_only",
        ("classic",),
        kind="bound",
        note="file bytes in threads, thrown away",
    ),
)
BY_NAME = {c.name: c for c in CONTESTANTS}
