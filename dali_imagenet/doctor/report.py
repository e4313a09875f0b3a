"""The report: as data, and as text of 80 columns that can be pasted into a bug report."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib
import logging
import os
import platform
import re
import socket
import textwrap
import time
from typing import Any

from dali_imagenet import __version__, machine, trial
from dali_imagenet._compiled import compiled_modules
from dali_imagenet.cores import worker_count
from dali_imagenet.data.places import public
from dali_imagenet.doctor import verdict
from dali_imagenet.doctor.survey import Survey, survey
from dali_imagenet.escape import printable
from dali_imagenet.machine import known

log = logging.getLogger("dali_imagenet")
_PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12"),
    *("nvidia-nvjpeg-cu12", "nvidia-nvjpeg", "triton", "simplejpeg", "pyarrow", "obstore", "scipy"),
)
_RECIPE = "strong"
SECONDS = 55.0
"""What all of it may take, imports not counted."""


def examine(data: str | None = None, options: dict[str, Any] | None = None, seconds: float = SECONDS) -> dict[str, Any]:
    """Everything that can be found out within about so many seconds. Nothing raises; what cannot be found out is
    {"unknown": why}.

    Args:
        data: what to look at; None: the machine and the installation alone.
        options: what `SampleIndex.open` takes besides.
    """
    clock = _Clock(seconds)
    options = options or {}
    _say("looking at the installation and the machine")
    gpu = known(lambda: trial.trial_of_gpu(limit=min(20.0, clock.left())))
    found: dict[str, Any] = {"installation": _installation(), "machine": _machine(data) | {"gpu": gpu}}
    if data is not None:
        looked = known(lambda: survey(data, options, clock.share(0.15)))
        if isinstance(looked, Survey):
            found["data"] = looked.facts
            found["machine"]["reading"] = known(lambda: machine.read_speed(looked.local, clock.share(0.05)))
            found |= _trial(data, options, looked, gpu, clock)
        else:
            found["data"] = looked
    found["seconds"] = round(clock.spent(), 1)
    cleaned: dict[str, Any] = redacted(found)
    return cleaned


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._whole, self._start = seconds, time.monotonic()

    def spent(self) -> float:
        return time.monotonic() - self._start

    def left(self) -> float:
        return max(1.0, self._whole - self.spent())

    def share(self, part: float) -> float:
        """That part of the whole, or what is left of it."""
        return min(self._whole * part, self.left())


def _say(what: str) -> None:
    log.info("doctor: %s", what)


def _installation() -> dict[str, Any]:
    def decoders() -> list[str]:
        from dali_imagenet.decode.decode import DECODERS

        return list(dict.fromkeys(decoder.name for decoder in DECODERS if decoder.available()))

    def triton() -> str:
        return f"imports, {importlib.import_module('triton').__version__}"

    def dali() -> str:
        there, what = importlib.import_module("dali_imagenet.dali.stage").dali_available()
        if not there:
            raise machine.Unknown(what)
        return f"imports, {what}"

    return {
        "dali_imagenet": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "packages": known(lambda: machine.versions(_PACKAGES)),
        "compiled_modules": known(
            lambda: compiled_modules() or "none: built without a compiler, or DALI_IMAGENET_PURE=1"
        ),
        "vectors": known(machine.instruction_set),
        "decoders": known(decoders),
        "dali": known(dali),
        "triton": known(triton),
    }


def _machine(data: str | None) -> dict[str, Any]:
    found = {
        "processor": known(machine.processor),
        "cores": known(machine.cores),
        "memory": known(machine.memory),
        "shared_memory": known(machine.shared_memory),
        "open_files": known(machine.open_files),
        "numa_nodes": known(machine.numa_nodes),
        "load": known(machine.load),
    }
    if data is not None:
        found["file_system"] = known(lambda: machine.file_system(os.path.expanduser(data)))
    return found


def _trial(data: str, options: dict[str, Any], looked: Survey, gpu: Any, clock: _Clock) -> dict[str, Any]:
    device = "cpu" if "unknown" in gpu else "cuda"
    workers = worker_count()
    loaders: list[dict[str, Any]] = []
    models: dict[str, Any] = {}
    candidates: list[tuple[str, dict[str, Any]]] = [("dali", {}), ("torchvision", {})]
    if device == "cuda":
        candidates.insert(1, ("dali", {"hw_decoder_load": 0.0}))  # the hardware decoder may be the slower one
        _say("compiling the batch stage")
        trial.compile_for_the_first_time(device, _RECIPE, limit=clock.share(0.3))
    for backend, more in candidates:
        last = backend == "torchvision"
        steps = ", then training steps" if last else ""
        _say(f"trying {backend} on {device}{verdict.with_options(more)}{steps}")
        limit = clock.share(0.27)
        found = known(
            functools.partial(
                trial.trial,
                looked.samples,
                data=data,
                options=options,
                backend=backend,
                device=device,
                workers=workers,
                recipe=_RECIPE,
                more=more,
                seconds=clock.share(0.08),
                limit=limit,
                models=clock.share(0.36 if device == "cuda" else 0.2) if last else 0.0,
                models_limit=clock.left() - limit,
            )
        )
        one, speeds = found if isinstance(found, tuple) else (found | {"backend": backend}, {})
        loaders.append(one)
        models |= speeds
    told: dict[str, Any] = {"trial": {"recipe": _RECIPE, "loaders": loaders, "models": models}}
    cores = machine.cores()["usable"]
    remarks = _busy(cores)
    key = known(lambda: trial.key_of(device, workers))
    best = verdict.best_of(loaders)
    earlier: dict[str, Any] | None = None
    if isinstance(key, str) and best is not None:
        trial.remember(key, told["trial"])
    elif isinstance(key, str):
        earlier = trial.remembered(key)
    if earlier is not None:
        best, models = verdict.best_of(earlier.get("loaders", [])), earlier.get("models", {})
        remarks.append("no backend made a batch in time: these are the figures of an earlier trial on this machine")
    if best is None:
        why = "; ".join(["no backend made a batch in time: see the trial", *remarks])
        return told | {"verdict": {"unknown": why}}
    return told | {
        "verdict": {
            "backend": f"{best['backend']} on {best['device']}, num_workers={workers}, prefetch=2: "
            f"{best['images_per_second']:,} images/s of the recipe {_RECIPE}",
            "here": [*remarks, *verdict.here(best, models, cores)],
            "estimates": [] if device == "cuda" else verdict.elsewhere(best, cores),
            "call": verdict.call(public(data), options, best, _RECIPE),
        }
    }


def _busy(cores: float) -> list[str]:
    running = known(machine.load)
    if isinstance(running, dict) or running <= cores + 1:
        return []
    return [f"other processes are running ({running:g} on {cores:g} cores, trials included): these figures are too low"]


def redacted(found: Any) -> Any:
    """Without the home folder, the user's name as part of a path, and the host's name."""
    hidden: list[tuple[str, str]] = []
    home = os.path.expanduser("~")
    if home not in ("~", "/", ""):
        hidden.append((rf"{re.escape(home)}(?![\w.-])", "~"))
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name
        hidden.append((rf"(?<=[/\\]){re.escape(getpass.getuser())}(?=[/\\'\"]|$)", "USER"))
    host = socket.gethostname()
    if host and host != "localhost":
        name = re.escape(host)  # it may be a word of the report, too: as part of a path or an address alone
        hidden.append((rf"(?<=[/\\@]){name}(?![\w-])|(?<![\w.-]){name}(?=:\d)", "HOST"))

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cleaned(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(one) for one in value]
        if isinstance(value, str):
            for pattern, instead in hidden:
                value = re.sub(pattern, instead, value)
        return value

    return cleaned(found)


def text(found: dict[str, Any]) -> str:
    """The report in words, 80 columns wide but for the call."""
    lines = []
    for section in ("installation", "machine", "data", "trial"):
        if section in found:
            lines += ["", section.upper()]
            lines += [line for name, value in _flat(section, found[section]) for line in _wrapped(name, value)]
    if "verdict" in found:
        lines += ["", "VERDICT", *_verdict(found["verdict"])]
    return "\n".join([*lines[1:], "", f"({found['seconds']:g} s)"])


def _wrapped(name: str, value: str) -> list[str]:
    begin = f"  {name.replace('_', ' '):18}"
    return textwrap.wrap(
        begin + printable(value), 80, subsequent_indent=" " * 20, break_on_hyphens=False, drop_whitespace=True
    )


def _verdict(found: dict[str, Any]) -> list[str]:
    if "unknown" in found:
        return _wrapped("unknown", found["unknown"])
    lines = _wrapped("backend", found["backend"])
    for title, name in (("measured here", "here"), ("estimates: others' figures, not measured here", "estimates")):
        if found[name]:
            lines += ["", f"  {title}"]
            for one in found[name]:
                lines += textwrap.wrap(one, 80, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    return [*lines, "", "  the call", *(f"    {line}".rstrip() for line in found["call"].splitlines())]


def _flat(section: str, facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "unknown" in facts:
        return [(section, _shown(section, facts))]
    if section == "trial":
        rows = [(one.get("backend", "loader"), _shown("loader", one)) for one in facts["loaders"]]
        return [*rows, ("models", _shown("models", facts["models"]))]
    return [(name, _shown(name, value)) for name, value in facts.items() if value not in ([], {}, None)]


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict) and "unknown" in value:
        return f"unknown: {value['unknown']}"
    shown = _SHOWN.get(name)
    if shown is not None:
        return str(shown(value))
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown('', one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_shown("", one) for one in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def _cores(value: dict[str, Any]) -> str:
    quota = "no quota" if value["quota"] is None else f"a quota of {value['quota']:g}"
    return f"{value['usable']:g} may be used, of {value['in_the_machine']}; {quota}"


def _reading(value: dict[str, Any]) -> str:
    def one(kind: str) -> str:
        told = value[kind]
        if "unknown" in told:
            return f"{kind} unknown ({told['unknown']})"
        return f"{kind} {told['median_ms']:g} ms a file (95%: {told['p95_ms']:g}), {told['mb_per_second']:g} MB/s"

    return f"{one('cold')}; {one('warm')}; one after the other"


def _spread(value: dict[str, int]) -> str:
    return f"{value['least']:,} to {value['most']:,}, median {value['median']:,}" if value else "none"


def _models(value: dict[str, Any]) -> str:
    told = {name: f"unknown ({one['unknown']})" if isinstance(one, dict) else f"{one:g}" for name, one in value.items()}
    return "; ".join(f"{name} {one}" for name, one in told.items()) + " images/s"


_SHOWN: dict[str, Any] = {
    "memory": lambda value: ", ".join(f"{_gb(count)} {name}" for name, count in value.items()),
    "shared_memory": lambda value: ", ".join(f"{_gb(count)} {name}" for name, count in value.items()),
    "cores": _cores,
    "reading": _reading,
    "complete": lambda value: "all listed" if value else "cut short, there was no time for all",
    "looked_at": lambda value: f"{value:,} images",
    "kind": lambda value: f"SampleIndex.{value}",
    "images_a_class": _spread,
    "width": _spread,
    "height": _spread,
    "bytes": _spread,
    "plausibility": "; ".join,
    "loader": lambda value: (
        f"{value['images_per_second']:,} images/s on {value['device']} with {value['workers']} "
        f"workers, {value['recipe']}; first batch after {value['start_seconds']} s"
    ),
    "models": _models,
    "gpu": lambda value: "; ".join(
        f"{one['name']}, {_gb(one['memory'])}, {_gb(one['free'])} free, capability {one['capability']}, "
        f"{'MIG' if one['mig'] else 'no MIG'}, copies to it at {one['copy_gb_per_second']} GB/s"
        for one in value["gpus"]
    ),
}
