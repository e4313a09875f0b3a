"""What pyproject.toml cannot say: that bench/ bears another name where it is installed, and two kinds of builds.

All compiled modules may be missing: without a C compiler Python takes over, with the same results. With
DALI_IMAGENET_ABI3=1, which .ci/wheel sets, none may, and one wheel serves every Python from 3.11 on: its name would
promise what is not in it.
"""

import hashlib
import os
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

ABI3 = os.environ.get("DALI_IMAGENET_ABI3", "0") not in ("", "0")
if ABI3 and sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise SystemExit("DALI_IMAGENET_ABI3=1: a free-threaded Python has no limited API; take another to build with")

WINDOWS = os.name == "nt"
# A product is rounded before it is added, as Microsoft's compiler has it unless /fp:contract or /fp:fast is said.
PIXELS = ["/O2", "/std:c11", "/fp:precise"] if WINDOWS else ["-O3", "-ffp-contract=off", "-fno-trapping-math"]
FLAGS = {
    "decode._jpeg": ["/O2", "/std:c11"] if WINDOWS else ["-O3", "-falign-loops=32"],
    "transforms._image_kernels": PIXELS,
    "transforms._pixel_ops": PIXELS,
}

QUOTE = '\\"' if WINDOWS else '"'
HEADER = "dali_imagenet/_cpu.h"


def macros(source: str) -> list[tuple[str, str]]:
    """The hash by which dali_imagenet/_compiled.py knows a module that is older than its source."""
    text = hashlib.sha256(Path(source).read_bytes() + Path(HEADER).read_bytes()).hexdigest()
    return [("SOURCE", f"{QUOTE}{text}{QUOTE}"), *([("Py_LIMITED_API", "0x030b0000")] if ABI3 else [])]


SOURCES = {name: f"dali_imagenet/{name.replace('.', '/')}.c" for name in FLAGS}
BENCH = find_packages(include=["bench", "bench.*"])

setup(
    packages=[
        *find_packages(include=["dali_imagenet*", "torchvision_fallback*"]),
        *(f"dali_imagenet_{name}" for name in BENCH),
    ],
    package_dir={"dali_imagenet_bench": "bench"},
    ext_modules=[
        Extension(
            f"dali_imagenet.{name}",
            [SOURCES[name]],
            depends=[HEADER],
            libraries=[] if WINDOWS else ["m"],
            extra_compile_args=flags,
            define_macros=macros(SOURCES[name]),
            py_limited_api=ABI3,
            optional=not ABI3,
        )
        for name, flags in FLAGS.items()
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
