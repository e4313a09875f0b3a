"""Several views of each image: what they cost here, and with torchvision v1 on PIL as in SimCLR's and DINO's scripts.

Each loader runs in this process, without workers, in interleaved rounds, and CPU time is counted: on a machine with
other programs it varies least.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..core import PROGRAM, images, machine, page
from ..core.job import MEAN, STD
from ..core.stats import quantile
from .sources import spent

NAME = "views"
HELP = "what do several views of each image cost?"
PEER = "torchvision v1 on PIL"
BLURRED_BY_PIL = "the same with PIL's blur"
RECIPES = {
    "simclr": "two views: RandomResizedCrop(224), flip, ColorJitter(0.8, 0.8, 0.8, 0.2) in 0.8, grayscale in 0.2, "
    "GaussianBlur(23, 0.1 to 2) in 0.5, normalize",
    "dino": "two views of 224 pixels and eight of 96, as main_dino.py of DINO's code makes them",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DATA", help="ImageFolder tree or any other data; default: generated images")
    add("--images", type=int, metavar="N", default=128, help="images a round (128)")
    add("--rounds", type=int, metavar="N", default=5, help="measured rounds; one is made before them (5)")
    add("--recipe", choices=tuple(RECIPES), default="simclr", help="(simclr)")
    add("--batch-size", type=int, metavar="N", default=32, help="images a batch (32)")
    add("--out", type=Path, metavar="FILE", help="a JSON file for the figures, and a page beside it")


def run(options: argparse.Namespace) -> int:
    logging.getLogger("dali_imagenet").setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        results = compare(options, stack)
    page.say(results, markdown(results), options.out)
    return 0


def compare(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)  # as in workers; threads that wait for each other would count as work
    torch.manual_seed(0)
    random.seed(0)
    root = images.linked(options.data or images.default_data() / "train", options.images, 1)
    loaders = {**peers(root, options), **ours(root, options, stack)}
    times: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for number in range(-1, options.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            count, seconds = spent(partial(count_of, loaders[name]))
            if number >= 0:
                times[name].append(1e6 * seconds / count)
    peers_here = [name for name in names if name in (PEER, BLURRED_BY_PIL)]
    rows = [
        {
            "loader": name,
            "cpu_us": statistics.median(times[name]),
            "ratio": {peer: spread_of(times[peer], times[name]) for peer in peers_here},
        }
        for name in names
    ]
    return {
        "data": "generated images" if options.data is None else options.data.resolve().name,
        "images": options.images,
        "batch_size": options.batch_size,
        "recipe": options.recipe,
        "rounds": options.rounds,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "loaders": rows,
    }


def spread_of(peer: list[float], own: list[float]) -> list[float]:
    """How much cheaper than the peer, of the rounds: median, tenth and ninetieth percentile."""
    ratios = [a / b for a, b in zip(peer, own, strict=True)]
    return [quantile(ratios, q) for q in (0.5, 0.1, 0.9)]


def count_of(epoch: Callable[[], Iterable[Any]]) -> int:
    """How many images of the data an epoch has."""
    return sum(len(targets) for _, targets in epoch())


def ours(
    root: Path, options: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Iterable[Any]]]:
    from dali_imagenet import TrainRecipe, create_loader
    from dali_imagenet.dali.stage import dali_available

    views: list[TrainRecipe] = [TrainRecipe.simclr(interpolation="bilinear")] * 2  # torchvision's default, as the peer
    if options.recipe == "dino":
        views = [TrainRecipe.dino_global(), TrainRecipe.dino_global2(), *[TrainRecipe.dino_local()] * 8]
    settings: dict[str, Any] = {"batch_size": options.batch_size, "device": "cpu", "num_workers": 0}
    found = {"ours, torchvision": create_loader(root, views[0], backend="torchvision", views=views, **settings)}
    if dali_available()[0]:
        found["ours, DALI on the CPU"] = create_loader(root, views[0], backend="dali", views=views, **settings)
    found["ours, torchvision, the first view alone"] = create_loader(root, views[0], backend="torchvision", **settings)
    return {name: partial(iter, stack.enter_context(loader)) for name, loader in found.items()}


def peers(root: Path, options: argparse.Namespace) -> dict[str, Callable[[], Iterable[Any]]]:
    """Each transform called for each view, as scripts have it: ImageFolder decodes once a sample."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    made = {PEER: simclr(False), BLURRED_BY_PIL: simclr(True)} if options.recipe == "simclr" else {PEER: dino()}
    return {
        name: partial(
            iter,
            DataLoader(
                ImageFolder(str(root), partial(views_of, transforms)),
                batch_size=options.batch_size,
                shuffle=True,
                drop_last=True,
            ),
        )
        for name, transforms in made.items()
    }


def views_of(transforms: list[Callable[[Any], Any]], image: Any) -> list[Any]:
    return [transform(image) for transform in transforms]


def simclr(blur_by_pil: bool) -> list[Callable[[Any], Any]]:
    from torchvision import transforms as v1

    blur: Any = v1.Lambda(pil_blur) if blur_by_pil else v1.GaussianBlur(23, (0.1, 2.0))
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(224),
            v1.RandomHorizontalFlip(),
            v1.RandomApply([v1.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v1.RandomGrayscale(0.2),
            v1.RandomApply([blur], 0.5),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    )
    return [transform, transform]


def pil_blur(image: Any) -> Any:
    """Of MoCo's and DINO's scripts."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def solarized(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.solarize(image)


def dino() -> list[Callable[[Any], Any]]:
    from torchvision import transforms as v1

    def transform(size: int, scale: tuple[float, float], blur: float, solarize: float) -> Callable[[Any], Any]:
        composed: Callable[[Any], Any] = v1.Compose(
            [
                v1.RandomResizedCrop(size, scale, interpolation=v1.InterpolationMode.BICUBIC),
                v1.RandomHorizontalFlip(),
                v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                v1.RandomGrayscale(0.2),
                v1.RandomApply([v1.Lambda(pil_blur)], blur),
                v1.RandomApply([v1.Lambda(solarized)], solarize),
                v1.ToTensor(),
                v1.Normalize(MEAN, STD),
            ]
        )
        return composed

    local = transform(96, (0.05, 0.4), 0.5, 0.0)
    return [transform(224, (0.4, 1.0), 1.0, 0.0), transform(224, (0.4, 1.0), 0.1, 0.2), *[local] * 8]


def markdown(results: dict[str, Any]) -> str:
    """The page of a run."""
    peers_here = list(results["loaders"][0]["ratio"])
    lines = [
        f"# Views: {results['recipe']}",
        "",
        f"`{PROGRAM} {NAME} --recipe {results['recipe']}`, {results['images']} images of {results['data']}, batch "
        f"{results['batch_size']}, one process, {results['rounds']} interleaved rounds: {RECIPES[results['recipe']]}.",
        "",
        "CPU time an image of the data, all its views together, and how many times cheaper that is: median, and from "
        "the tenth to the ninetieth percentile of the rounds.",
        "",
        f"| loader | us an image | {' | '.join(f'than {peer}' for peer in peers_here)} |",
        f"|---|---:|{'---:|' * len(peers_here)}",
    ]
    for row in results["loaders"]:
        ratios = (f"{middle:.1f} [{low:.1f}, {high:.1f}]" for middle, low, high in row["ratio"].values())
        lines.append(f"| {row['loader']} | {row['cpu_us']:,.0f} | {' | '.join(ratios)} |")
    lines += [
        "",
        f"{results['machine']['processor']}; " + ", ".join(f"{n} {v}" for n, v in results["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)
