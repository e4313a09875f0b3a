"""Every open question about a GPU machine in one go, each in its own process with a time limit.

What is said is written to disk at once, and the report after every question: a run that is cut off keeps what it has,
and a question that crashes or hangs is a result like any other. --device cpu asks the same of DALI's CPU graph.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import PROGRAM
from ..core.process import call

NAME = "gpu"
HELP = "every open question about a GPU machine, in one go"
SCHEMA = "dali-imagenet-gpu-1"
NEEDED = ("numpy", "PIL", "torch", "torchvision", "timm", "platformdirs", "tqdm", "nvidia.dali")
OPTIONAL = {
    "psutil": "no CPU use and no memory of processes",
    "matplotlib": "no plot",
    "simplejpeg": "where its own decoder was not built, the fallback decodes with Pillow",
}
FEWEST_SECONDS = 12.0  # left on the clock below which no further question is asked

Points = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Question:
    ask: str  # a function of gpu_questions
    arguments: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0  # seconds, after which it is ended
    core: bool = False  # asked again while there is time
    quick: bool = True  # part of --quick

    @property
    def name(self) -> str:
        return " ".join((self.ask, *(str(v) for v in self.arguments.values())))


def questions(cuda: bool) -> list[Question]:
    """The most valuable first."""
    documented = "dali-doc-gpu" if cuda else "dali-doc-cpu"
    model = "resnet50" if cuda else "small"

    def loader(who: str, recipe: str, core: bool = False, quick: bool = True, **options: Any) -> Question:
        return Question("loader", {"who": who, "recipe": recipe} | options, 75, core, quick)

    def train(model: str, who: str, recipe: str, size: int = 0, core: bool = False, quick: bool = True) -> Question:
        return Question("train", {"model": model, "who": who, "recipe": recipe, "size": size}, 90, core, quick)

    asked = [
        Question("hardware"),
        Question("agree", limit=120),
        Question("probe", limit=150),
        Question("roi", limit=120),
        loader("ours", "classic", core=True),
        loader("ours", "strong", core=True),
        Question("decode", limit=90, core=True),
        loader(documented, "classic", core=True),
        loader("tv-v1-pil", "classic"),
        loader(documented, "strong", core=True, quick=False),
        loader("tv-v1-pil", "strong", quick=False),
        Question("stage", limit=75),
        Question("caller", limit=75, quick=False),
        train(model, "synthetic", "classic", core=True),
        train(model, "ours", "classic", core=True),
        train(model, "ours", "strong", core=True, quick=False),
        train(model, "tv-v1-pil", "classic", quick=False),
        loader("ours", "eval"),
        loader("tv-v2-tensor", "classic", quick=False),
        loader("ours", "advanced", quick=False),
        loader("ours", "strong", jitter=True, quick=False),
        Question("read"),
        loader("fallback", "classic", quick=False),
        loader("fallback", "strong"),
    ]
    if cuda:
        asked += [
            train("resnet18", "synthetic", "classic", 160),
            train("resnet18", "ours", "classic", 160),
            train("resnet18", "ours", "strong", 160),
            Question("nvjpeg"),
        ]
    asked.append(Question("decode_options", limit=90))
    if cuda:
        asked += [
            loader("ours", "strong", quick=False, roi_decode=False),
            loader("ours", "strong", quick=False, prefetch=1),
            loader("ours", "strong", quick=False, prefetch=3),
            loader("ours", "strong", quick=False, num_workers=8),
            loader("ours", "strong", quick=False, hw_decoder_load=0.9),
            loader("tv-v2-gpu", "strong", quick=False),
        ]
    return asked


# ---- what the numbers say


def median(points: Points, key: str, number: str = "images_per_s") -> float | None:
    """The median over the runs to a point; None where it was not measured."""
    values = sorted(v[number] for v in points.get(key, []) if v.get(number) is not None)
    if not values:
        return None
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return float(low + high) / 2


def _best(points: Points, prefix: str) -> float | None:
    rates = [median(points, key) for key in points if key.startswith(prefix)]
    return max((r for r in rates if r is not None), default=None)


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def targets(points: Points, cuda: bool) -> list[dict[str, Any]]:
    """Each target with its value, or None, and "met", "missed" or "open". On a CPU all are open: they are a GPU's."""
    documented, model = ("dali-doc-gpu", "resnet50 224") if cuda else ("dali-doc-cpu", "small 224")
    hardware, kernels = median(points, "decode|hw=1.0"), median(points, "decode|hw=0.0")
    both = None if hardware is None or kernels is None else hardware + kernels
    decoded, synthetic = median(points, "decode|default"), median(points, f"train|{model}|synthetic|classic")
    found: list[tuple[str, float | None, str, float]] = [
        ("strong recipe / decode alone", _ratio(median(points, "ours|strong"), decoded), ">=", 0.95),
        ("tuned mixed decode / (hardware alone + CUDA alone)", _ratio(_best(points, "decode|"), both), ">=", 0.75),
    ]
    for recipe, least in (("classic", 0.98), ("strong", 0.95)):
        value = _ratio(median(points, f"train|{model}|ours|{recipe}"), synthetic)
        found.append((f"training on ours / on synthetic tensors, {recipe}", value, ">=", least))
    for recipe, least in (("classic", 2.0), ("strong", 4.0)):
        peers = [median(points, f"{name}|{recipe}") for name in ("tv-v1-pil", "tv-v2-tensor")]
        best = max((p for p in peers if p is not None), default=None)
        found.append((f"ours / torchvision, {recipe}", _ratio(median(points, f"ours|{recipe}"), best), ">=", least))
    for recipe in ("classic", "strong"):
        value = _ratio(median(points, f"ours|{recipe}"), median(points, f"{documented}|{recipe}"))
        found.append((f"ours / DALI as documented, {recipe}", value, ">=", 1.0))
    for recipe in ("classic", "strong"):
        key = f"ours|{recipe}"
        value = _ratio(median(points, key, "p99_ms"), median(points, key, "p50_ms"))
        found.append((f"p99 / p50 of the time between batches, {recipe}", value, "<=", 1.6))
    used, before = median(points, "ours|strong", "gpu_mb"), median(points, "ours|strong", "gpu_mb_before")
    found.append(("GPU memory in use, strong, GB", None if used is None else used / 1024, "<=", 4.0))
    grown = None if used is None or before is None else used - before
    found.append(("growth of it while measuring, MB", grown, "<=", 32.0))
    rows = []
    for name, value, sign, bound in found:
        word = "open"
        if value is not None and cuda:
            word = "met" if (value >= bound if sign == ">=" else value <= bound) else "missed"
        rows.append({"target": name, "value": value, "bound": f"{sign} {bound:g}", "verdict": word})
    return rows


# ---- the report

Rows = list[list[str]]
RATES = ("", "img/s", "runs", "p50 ms", "p99 ms", "cores", "MB", "GPU MB", "first s")


def _text(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def rate_rows(points: Points, chosen: Callable[[str], bool]) -> Rows:
    rows = []
    for key, runs in points.items():
        if chosen(key) and median(points, key) is not None:
            cells = [("images_per_s", 0), None, ("p50_ms", 1), ("p99_ms", 1), ("cpu_cores", 1), ("memory_mb", 0),
                     ("gpu_mb", 0), ("first_s", 1)]  # fmt: skip
            texts = [str(len(runs)) if c is None else _text(median(points, key, c[0]), c[1]) for c in cells]
            rows.append([key.replace("|", ", "), *texts])
    return rows


def _table(heads: Sequence[str], rows: Rows) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def markdown(results: dict[str, Any], picture: str = "") -> str:
    points: Points = results["points"]
    hardware = points.get("hardware", [{}])[-1]
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    lines = [f"# Answers from {gpus if results['settings']['device'] == 'cuda' else 'DALI on the CPU'}", ""]
    lines += [f"- Command: `{PROGRAM} gpu {results['command']}`", f"- Started: {results['created']}"]
    if hardware:
        lines.append(
            f"- Machine: {gpus}; {hardware.get('processor')}, {hardware.get('cores')} cores, "
            f"{hardware.get('memory_gb', '?')} GB; {hardware.get('system', '')}; CUDA of torch {hardware.get('cuda')}"
        )
        lines += [f"- nvidia-smi: {line}" for line in hardware.get("nvidia_smi", [])]
        if "host_to_gpu_gb_per_s" in hardware:
            lines.append(f"- Pinned memory to the GPU: {hardware['host_to_gpu_gb_per_s']:.1f} GB/s")
        lines.append("- Versions: " + ", ".join(f"{k} {v}" for k, v in hardware.get("versions", {}).items()))
    s = results["settings"]
    lines.append(
        f"- Settings: batches of {s['batch_size']}, {s['workers']} threads or workers, {s['size']} px, "
        f"{s['seconds']:g} s a point; {results['images']}"
    )
    lines += [f"- Missing: {name}: {why}" for name, why in results["missing"].items()]
    unasked = [q["question"] for q in results["asked"] if q["error"] == "not asked: time was up"]
    lines.append(f"- {len(results['asked']) - len(unasked)} questions asked in {results['seconds']:.0f} s" + (
        f"; no time was left for: {', '.join(unasked)}" if unasked else ""))  # fmt: skip
    rows = [[t["target"], _text(t["value"], 2), t["bound"], t["verdict"]] for t in results["targets"]]
    lines += ["", "## Targets", "", *_table(("", "value", "target", ""), rows)]
    if picture:
        lines += [f"![rates]({picture})", ""]
    found = [[k.replace("|", ", ").removeprefix("agree, "), _text(v[-1]["mean"], 3), _text(v[-1]["max"], 0),
              str(v[-1]["targets_equal"])] for k, v in points.items() if k.startswith("agree|")]  # fmt: skip
    if found:
        lines += ["## Pixels against the same plan elsewhere, of 0..255", ""]
        lines += _table(("recipe, against", "mean", "max", "targets equal"), found)
    for key in ("probe", "roi"):
        if key in points:
            lines.append(f"- {key}: {json.dumps(points[key][-1])}")
    lines.append("")
    groups: list[tuple[str, Callable[[str], bool]]] = [
        ("Training", lambda k: k.startswith("train|")),
        ("Decoding and reading alone", lambda k: k.startswith(("decode|", "read|", "torchvision decode"))),
        ("Loaders", lambda k: not k.startswith(("train|", "decode|", "read|", "torchvision decode", "stage|"))),
    ]
    for title, chosen in groups[::-1]:
        rows = rate_rows(points, chosen)
        if rows:
            lines += [f"## {title}", "", *_table(RATES, rows)]
    rows = [[k.removeprefix("stage|"), *(_text(median(points, k, n), d) for n, d in
             (("images_per_s", 0), ("p50_ms", 2), ("p99_ms", 2), ("host_ms", 2), ("draw_ms", 2)))]
            for k in points if k.startswith("stage|")]  # fmt: skip
    if rows:
        heads = ("recipe", "img/s", "p50 ms", "p99 ms", "host ms", "drawing the plan ms")
        lines += ["## The batch stage alone", "", *_table(heads, rows)]
    failed = [q for q in results["asked"] if q["error"] and q not in unasked and "not asked" not in q["error"]]
    if failed:
        lines += ["## What failed", "", *(f"- {q['question']}: {q['error']}" for q in failed), ""]
    return "\n".join(lines)


def draw(points: Points, target: Path) -> bool:
    """Bars of every rate; whether there was anything to draw and something to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rates = {k: median(points, k) for k in points if not k.startswith("stage|")}
    groups = [
        ("loaders", [k for k in rates if not k.startswith(("train|", "decode|", "read|", "torchvision decode"))]),
        ("decoding and reading alone", [k for k in rates if k.startswith(("decode|", "torchvision decode", "read|"))]),
        ("training", [k for k in rates if k.startswith("train|")]),
    ]
    groups = [(title, [k for k in keys if rates[k] is not None]) for title, keys in groups]
    groups = [(title, keys) for title, keys in groups if keys]
    if not groups:
        return False
    most = max(len(keys) for _, keys in groups)
    figure, axes = plt.subplots(1, len(groups), figsize=(6.5 * len(groups), 1.2 + 0.3 * most), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, (title, keys) in zip(axes[0], groups, strict=True):
        values = [rates[k] or 0.0 for k in keys]
        places = range(len(keys))[::-1]
        colours = ["#0b8f62" if "ours" in k or "fallback" in k else "#8aa0b6" for k in keys]
        axis.barh(places, values, color=colours, height=0.7)
        axis.set_yticks(places, [k.removeprefix("train|").replace("|", ", ") for k in keys], fontsize=8)
        axis.set_xlim(0, 1.15 * max(values))
        for place, value in zip(places, values, strict=True):
            axis.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
        axis.set_title(title, loc="left", fontweight="bold")
        axis.set_xlabel("images per second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return True


def write(results: dict[str, Any], folder: Path, picture: bool) -> None:
    """results.json and report.md; the plot only where asked, since it takes a second."""
    results["targets"] = targets(results["points"], results["settings"]["device"] == "cuda")
    for name, text in (("results.json", json.dumps(results, indent=1)), ("report.md", "")):
        if name == "report.md":
            if picture:
                try:
                    draw(results["points"], folder / "rates.png")
                except Exception as error:  # the numbers count, not the picture
                    print(f"no plot: {error}", file=sys.stderr)
            text = markdown(results, "rates.png" if (folder / "rates.png").exists() else "")
        partial = folder / f"{name}.partial"
        partial.write_text(text)
        partial.replace(folder / name)


# ---- asking


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--data", metavar="DATA", help="ImageFolder tree or any other data, or train/ of it; default: generated"
    )
    p.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is a GPU")
    p.add_argument("--quick", action="store_true", help="fewer questions and shorter ones")
    p.add_argument("--minutes", type=float, metavar="N", default=10.0, help="time for everything (10)")
    p.add_argument("--batch-size", type=int, metavar="N", help="images a batch (256; on the CPU 64)")
    p.add_argument("--workers", type=int, metavar="N", help="threads or workers of each loader (the cores, at most 16)")
    p.add_argument("--seconds", type=float, metavar="N", help="measured seconds a point (3; quick: 1)")
    p.add_argument("--only", default="", metavar="NAMES", help="questions to ask, by commas: " + ", ".join(
        dict.fromkeys(q.ask for q in questions(True))))  # fmt: skip
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (runs/gpu-<time>)")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    absent = [name for name in NEEDED if not _importable(name)]
    if absent:
        print(f"Missing here: {', '.join(absent)}. Install them, or put them on PYTHONPATH.", file=sys.stderr)
        return 2
    from .. import contestants
    from ..core import images, machine
    from .gpu_questions import Settings, task

    device = options.device or ("cuda" if contestants.has_cuda() else "cpu")
    if device == "cuda" and not contestants.has_cuda():
        print("--device cuda: torch finds no CUDA GPU here; use --device cpu", file=sys.stderr)
        return 2
    chosen = [q for q in questions(device == "cuda") if q.quick or not options.quick]
    if options.only:
        names = options.only.split(",")
        unknown = set(names) - {q.ask for q in questions(True)}
        if unknown:
            print(f"--only {', '.join(sorted(unknown))}: no such question; see --help", file=sys.stderr)
            return 2
        chosen = [q for q in chosen if q.ask in names]
    cuda = device == "cuda"
    batch_size = options.batch_size or (256 if cuda else 32 if options.quick else 64)
    try:
        data = options.data or images.default_data()
        train, _ = images.split_roots(data)
        # an epoch long enough that its start and end do not count
        root = images.linked(train, 10_000, batch_size * (200 if cuda else 20))
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    files = images.image_files(root)
    settings = Settings(
        device=device,
        root=str(root),
        batch_size=batch_size,
        workers=options.workers or min(16, machine.cores()),
        seconds=options.seconds or (1.0 if options.quick else 3.0),
        size=224,
        sweep=not options.quick,
    )
    folder = options.out or Path("runs") / f"gpu-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    words = [Path(w).name if "/" in w else w for w in options.words]  # a report names no path of the machine it ran on
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(words),
        "settings": {k: v for k, v in vars(settings).items() if k != "root"},
        "images": f"{'generated images' if options.data is None else data.resolve().name}, "
        f"{len(images.distinct(files))} distinct of {len(files)} names an epoch, read once before",
        "missing": {name: effect for name, effect in OPTIONAL.items() if not _importable(name)},
        "points": {},
        "asked": [],
        "targets": [],
        "seconds": 0.0,
    }
    for file in images.distinct(files):
        file.read_bytes()
    deadline = started + 60 * options.minutes
    last_picture = time.monotonic()
    took: dict[str, float] = {}
    rounds = [*chosen, *([] if options.quick else [q for _ in range(9) for q in chosen if q.core])]
    with tempfile.TemporaryDirectory() as scratch:
        for number, question in enumerate(rounds):
            left = deadline - time.monotonic()
            entry: dict[str, Any] = {"question": question.name, "error": "", "seconds": 0.0}
            again = number >= len(chosen)
            if left < max(FEWEST_SECONDS, took.get(question.name, 0.0) + 2 if again else 0):
                if again:
                    break
                entry["error"] = "not asked: time was up"
            else:
                begun = time.monotonic()
                limit = min(question.limit, left - 2)
                asked = task(settings, question.ask, question.arguments)
                said, entry["error"] = call("gpu.gpu_questions", asked, limit, Path(scratch))
                entry["seconds"] = took[question.name] = round(time.monotonic() - begun, 1)
                for name, numbers in said.items():
                    results["points"].setdefault(name, []).append(numbers)
                rates = [f"{n}: {v['images_per_s']:,.0f}" for n, v in said.items() if "images_per_s" in v]
                print(f"{entry['seconds']:6.1f} s  {question.name}: "
                      + (entry["error"] or ("; ".join(rates) + " img/s" if rates else "done")), flush=True)  # fmt: skip
            results["asked"].append(entry)
            results["seconds"] = round(time.monotonic() - started, 1)
            picture = time.monotonic() - last_picture > 60
            last_picture = time.monotonic() if picture else last_picture
            write(results, folder, picture)
    write(results, folder, picture=True)
    for row in results["targets"]:
        print(f"{row['verdict']:7s} {_text(row['value'], 2):>8s} ({row['bound']})  {row['target']}")
    print(folder / "report.md")
    return 0 if results["points"] else 2
