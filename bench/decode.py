"""Decoding alone, from memory: every decoder that pip has, on whole JPEGs and on the crops of RandomResizedCrop.

Each decoder has a process of its own and one thread. Rounds are interleaved, each with the crops of another epoch, and
CPU time is counted: on a machine with other programs it varies least. Pixels are compared with Pillow's, which are
those of libjpeg-turbo's default, exact arithmetic.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import PROGRAM, images, machine, stats

if TYPE_CHECKING:
    from .decode_contestants import Setting

NAME = "decode"
HELP = "decoding alone: every decoder that pip has"
SCHEMA = "dali-imagenet-decode/1"
WAYS = ("whole", "crop")
LIMIT = 600.0  # seconds for one round of one decoder
Results = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    add("--images", type=int, metavar="N", default=800, help="JPEGs taken of it (800)")
    add("--rounds", type=int, metavar="N", default=5, help="measured rounds; one is made before them (5)")
    add("--minutes", type=float, metavar="N", help="start no round that would end later")
    add("--only", default="", metavar="NAMES", help="decoders to run, separated by commas (see --list)")
    add("--seed", type=int, metavar="N", default=0, help="of the crops (0)")
    add("--out", type=Path, metavar="DIR", help="folder for decode-cpu.json, .md and .png")
    add("--list", action="store_true", help="list the decoders and whether they can take part")


def run(options: argparse.Namespace) -> int:
    from .decode_contestants import BASE, BY_NAME, DECODERS

    if options.list:
        for decoder in DECODERS:
            print(f"{decoder.name:20s} {decoder.title:36s} {_skipped(decoder.missing(), decoder.install) or 'yes'}")
        return 0
    asked = [name.strip() for name in options.only.split(",") if name.strip()] or list(BY_NAME)
    for name in asked:
        if name not in BY_NAME:
            print(f"--only {name!r}: must be among {', '.join(BY_NAME)}", file=sys.stderr)
            return 2
    for option in ("images", "rounds"):
        if getattr(options, option) < 1:
            print(f"--{option} {getattr(options, option)}: must be 1 or more", file=sys.stderr)
            return 2
    names = list(dict.fromkeys([BASE, *asked]))  # what everybody is compared with
    try:
        results = measure(options, names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    text = markdown(results)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "decode-cpu.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "decode-cpu.md").write_text(text)
        plot(results, options.out / "decode-cpu.png")
    return 0


def _skipped(reason: str, install: str) -> str:
    return f"no: {reason}" + (f" ({install})" if install else "") if reason else ""


class Child:
    """A decoder's process."""

    def __init__(self, name: str, setting: Setting) -> None:
        from .decode_contestants import serve

        context = multiprocessing.get_context("spawn")
        self.wire, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, setting, other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, *question: Any) -> dict[str, Any] | str:
        """Its answer, or why there is none."""
        wire: Connection[Any, Any] = self.wire
        try:
            if question:
                wire.send(question)
            if not wire.poll(LIMIT):
                return f"no answer within {LIMIT:.0f} s"
            answer: dict[str, Any] | str = wire.recv()
            return answer
        except (EOFError, OSError):
            self.process.join()
            return f"its process ended with code {self.process.exitcode}"

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def chosen(options: argparse.Namespace, scratch: Path) -> tuple[Setting, dict[str, Any]]:
    """The JPEGs and their crops: those of `TrainRecipe.classic()`, an epoch a round."""
    import numpy as np
    from PIL import Image

    from dali_imagenet import Plan, SampleIndex, TrainRecipe
    from dali_imagenet.formats import FORMATS

    from .decode_contestants import Setting

    root = images.split_roots(options.data or images.default_data(0))[0]
    index = SampleIndex.from_folder(root, progress=False)
    plain = (index.format == FORMATS.index("JPEG")) & np.isin(index.components, (1, 3)) & ~index.broken
    usable = np.flatnonzero(plain)
    if not len(usable):
        raise ValueError(f"--data {root.name}: holds no JPEG of one or three components")
    taken = usable[np.linspace(0, len(usable) - 1, min(options.images, len(usable))).round().astype(int)]
    plan = Plan(index, TrainRecipe.classic(), batch_size=len(index), seed=options.seed, drop_last=False)
    epochs = []
    for epoch in range(options.rounds + 1):
        batch = plan.batch(epoch, 0)
        boxes = dict(zip(batch.source_index.tolist(), map(tuple, batch.crop_box.tolist()), strict=True))
        epochs.append([boxes[sample] for sample in taken.tolist()])
    files = [index.path(sample) for sample in taken.tolist()]
    reference = scratch / "reference"
    with reference.open("wb") as out:
        for file in files:
            out.write(Image.open(file).convert("RGB").tobytes())
    sizes = [(int(index.height[i]), int(index.width[i])) for i in taken]
    setting = Setting(str(root), files, taken.tolist(), sizes, list(zip(*epochs, strict=True)), str(reference), "")
    pixels = [height * width for height, width in sizes]
    shares = [box[2] * box[3] / all_of_it for epoch in epochs for box, all_of_it in zip(epoch, pixels, strict=True)]
    said = {
        "name": "generated images" if options.data is None else options.data.resolve().name,
        "images": len(files),
        "gray": int((index.components[taken] == 1).sum()),
        "mean_kb": round(float(index.file_size[taken].mean()) / 1000, 1),
        "megapixels": round(float(np.mean(pixels)) / 1e6, 3),
        "crop_share": round(float(np.mean(shares)), 3),
    }
    return setting, said


def measure(options: argparse.Namespace, names: list[str]) -> Results:
    """The figures of a run."""
    from .decode_contestants import BY_NAME

    skipped = [
        {"decoder": name, "reason": BY_NAME[name].missing(), "install": BY_NAME[name].install}
        for name in names
        if BY_NAME[name].missing()
    ]
    children: dict[str, Child] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as folder:
        setting, data = chosen(options, Path(folder))
        try:
            for name in names:
                if any(one["decoder"] == name for one in skipped):
                    continue
                scratch = Path(folder) / name
                scratch.mkdir()
                child = children[name] = Child(name, setting._replace(scratch=str(scratch)))
                rows[name] = {"decoder": name, "title": BY_NAME[name].title, "kind": BY_NAME[name].kind}
                ways = child.ask()
                if isinstance(ways, str):
                    skipped.append({"decoder": name, "reason": ways, "install": BY_NAME[name].install})
                    del rows[name]
                    continue
                rows[name] |= {way: {"rounds": []} for way in WAYS if ways[way]}
            deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
            took = 0.0
            for epoch in range(options.rounds + 1):
                started = time.monotonic()
                if epoch > 1 and deadline is not None and started + took > deadline:
                    break
                _round(rows, children, epoch, skipped)
                took = time.monotonic() - started
        finally:
            for child in children.values():
                child.end()
    if names[0] not in rows:
        raise RuntimeError(f"nothing to compare with: {next(s for s in skipped if s['decoder'] == names[0])['reason']}")
    base = rows[names[0]]
    for row in rows.values():
        for way in WAYS:
            if way in row:
                _summary(row[way], base[way]["rounds"])
    return {
        "schema": SCHEMA,
        "data": data,
        "rounds": len(base["crop"]["rounds"]),
        "seed": options.seed,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "load": machine.load(),
        "decoders": list(rows.values()),
        "skipped": skipped,
    }


def _round(rows: dict[str, dict[str, Any]], children: dict[str, Child], epoch: int, skipped: list[Any]) -> None:
    """Everybody once, beginning one further each round; who fails is left out from then on."""
    from .decode_contestants import BY_NAME

    names = list(rows)
    for name in names[epoch % len(names) :] + names[: epoch % len(names)]:
        for way in WAYS:
            if way not in rows[name]:
                continue
            answer = children[name].ask(way, epoch)
            if isinstance(answer, str):
                skipped.append({"decoder": name, "reason": answer, "install": BY_NAME[name].install})
                del rows[name]
                break
            if epoch:
                rows[name][way]["rounds"].append(answer["cpu_us"])
            else:
                rows[name][way] |= answer


def _summary(way: dict[str, Any], base: list[float]) -> None:
    """Median and spread, and the speed against ours of each round."""
    way["cpu_us"] = stats.spread(way["rounds"])
    way["speed"] = stats.spread([a / b for a, b in zip(base, way["rounds"], strict=True)])


def pixels_in_words(way: dict[str, Any]) -> str:
    """How far they are from Pillow's."""
    if way["mean"] is None:
        return "other size"
    words = "exact" if not way["most"] else f"{way['mean']:.2f}, {way['most']}, {100 * way['differing']:.2g}%"
    if way["other_size"]:
        words += f"; {way['other_size']} of other size"
    return words + (f"; {way['failed']} not decoded" if way["failed"] else "")


def cells(row: dict[str, Any], name: str) -> list[str]:
    """CPU time, spread, speed and pixels of one way; what knows no crops decodes the whole image for one."""
    way = row.get(name)
    if way is None:
        return ["-"] * 4
    time, speed = way["cpu_us"], way["speed"]["median"]
    return [f"{time['median']:,.0f}", f"±{50 * time['iqr_relative']:.0f}%", f"{speed:.2f}", pixels_in_words(way)]


def for_a_crop(row: dict[str, Any], base: dict[str, Any]) -> float:
    """Speed where a crop is wanted, against ours: of its whole image, where it knows no crops."""
    if "crop" in row:
        return float(row["crop"]["speed"]["median"])
    return float(base["crop"]["cpu_us"]["median"] / row["whole"]["cpu_us"]["median"])


def ordered(results: Results) -> list[dict[str, Any]]:
    base = results["decoders"][0]
    return sorted(results["decoders"], key=lambda row: for_a_crop(row, base), reverse=True)


def markdown(results: Results) -> str:
    """The page of a run."""
    from .decode_contestants import BY_NAME

    base, data = results["decoders"][0], results["data"]
    lines = [
        "# Decoding alone, from memory",
        "",
        f"`{PROGRAM} {NAME}`: {data['images']} JPEGs of {data['name']} ({data['mean_kb']} KB and {data['megapixels']} "
        f"megapixels on average, {data['gray']} of them gray), one thread each, rounds interleaved: "
        f"{results['rounds']}, each with the crops of another epoch of `TrainRecipe.classic()` (on "
        f"average {100 * data['crop_share']:.0f}% of the image). CPU microseconds an image, median and half the "
        "interquartile range; speed against ours, which is 1.00. Pixels: exact, or mean and largest difference from "
        "Pillow's, which are those of libjpeg-turbo's exact arithmetic, and the share of bytes that differ.",
        "",
        "In the column of crops, a decoder that knows none is in brackets: it decodes the whole image for one. "
        "Upper bounds are in italics.",
        "",
        "![speed](decode-cpu.png)",
        "",
        "| decoder | whole | spread | speed | pixels | crop | spread | speed | pixels |",
        "|---|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for row in ordered(results):
        crop = cells(row, "crop")
        if "crop" not in row:
            crop = [f"({row['whole']['cpu_us']['median']:,.0f})", "", f"({for_a_crop(row, base):.2f})", ""]
        mark = {"ours": "**", "bound": "*"}.get(row["kind"], "")
        lines.append(" | ".join([f"| {mark}{row['title']}{mark}", *cells(row, "whole"), *crop]) + " |")
    notes = [f"- {BY_NAME[r['decoder']].title}: {BY_NAME[r['decoder']].note}" for r in results["decoders"]
             if BY_NAME[r["decoder"]].note]  # fmt: skip
    if notes:
        lines += ["", "## What stands beside a number", "", *notes]
    if results["skipped"]:
        lines += ["", "## Who did not take part", ""]
        lines += [f"- {BY_NAME[s['decoder']].title}: {s['reason']}" + (f" (`{s['install']}`)" if s["install"] else "")
                  for s in results["skipped"]]  # fmt: skip
    lines += ["", f"{results['machine']['processor']}, load {results['load']}; "
              + ", ".join(f"{n} {v}" for n, v in results["versions"].items()) + ".", ""]  # fmt: skip
    return "\n".join(lines)


def plot(results: Results, file: Path) -> Path:
    """Images a second of CPU time: crops, and whole images."""
    from matplotlib import pyplot as plt

    from .core.figures import BOUND, OURS, PEER, STYLE, save

    colours = {"ours": OURS, "bound": BOUND, "peer": PEER}
    with plt.rc_context(STYLE):
        rows = ordered(results)
        figure, axes = plt.subplots(1, 2, figsize=(12, 1.2 + 0.3 * len(rows)), layout="constrained", sharey=True)
        places = range(len(rows))[::-1]
        for ax, way in zip(axes, ("crop", "whole"), strict=True):
            values = [1e6 / row[way]["cpu_us"]["median"] if way in row else 0.0 for row in rows]
            whole = [0.0 if way in row or way == "whole" else 1e6 / row["whole"]["cpu_us"]["median"] for row in rows]
            ax.barh(places, values, color=[colours[row["kind"]] for row in rows], height=0.72)
            ax.barh(places, whole, color="white", edgecolor=PEER, height=0.68)
            top = max(values)
            for place, value in zip(places, (a or b for a, b in zip(values, whole, strict=True)), strict=True):
                ax.text(value + top * 0.01, place, f"{value:,.0f}" if value else "-", va="center", fontsize=8)
            ax.set_xlim(0, top * 1.12)
            ax.set_xlabel("images a second of CPU time, one thread")
            ax.set_title({"crop": "crops (hollow: whole images)", "whole": "whole images"}[way])
            ax.tick_params(axis="y", length=0)
        axes[0].set_yticks(places, [row["title"] for row in rows])
        return save(figure, file)
