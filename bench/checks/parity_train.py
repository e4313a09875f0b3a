"""Does a network learn the same from each backend as from torchvision's own DataLoader?

The same network, initial weights, schedule and evaluation, trained on CIFAR-10's JPEGs through each loader with several
seeds. Each run is a JSON file of its own; what is there is not run again. A loader agrees where the two-sided 90%
interval of the difference of the mean accuracies lies within a margin of zero (two one-sided tests at 5%).
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dali_imagenet import Accuracy, EvalRecipe, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.train import small

from ..core import machine
from .parity_cases import Backend, backends

OWN = "torchvision's DataLoader"
WRONG = "a wrong resize"
MARGIN = 1.0  # points of top-1
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)  # of CIFAR-10's training images, in 0..1
# Half of CIFAR-10's size, so that each crop is made smaller, as ImageNet's are; and mild crops: an object of 32 pixels
# does not survive 8% of its area.
SIDE = 16
RECIPES = {
    name: getattr(TrainRecipe, name)(input_size=SIDE, scale=(0.4, 1.0), mean=MEAN, std=STD)
    for name in ("classic", "strong")
}
EVALUATION = EvalRecipe(input_size=SIDE, crop_pct=1.0, mean=MEAN, std=STD)
BATCH, RATE, DECAY = 128, 0.2, 5e-4


class Run(NamedTuple):
    recipe: str
    through: str
    seed: int

    def file(self, folder: Path) -> Path:
        return folder / f"{self.recipe}-{self.through.replace(' ', '-').replace(chr(39), '')}-{self.seed}.json"


class Mix:
    """timm's Mixup in the collate function."""

    def __init__(self, recipe: TrainRecipe) -> None:
        from timm.data.mixup import Mixup

        self.mixup = Mixup(  # type: ignore[no-untyped-call]  # timm has no types
            mixup_alpha=recipe.mixup_alpha,
            cutmix_alpha=recipe.cutmix_alpha,
            label_smoothing=recipe.label_smoothing,
            num_classes=10,
        )

    def __call__(self, samples: list[Any]) -> Any:
        return self.mixup(*default_collate(samples))


def own_loader(folder: Path, recipe: TrainRecipe, images: int, workers: int) -> DataLoader[Any]:
    """The recipe as torchvision's users write it: transforms of PIL images, image by image, in its DataLoader."""
    mode = v2.InterpolationMode(str(recipe.interpolation))
    steps: list[Any] = [v2.RandomResizedCrop(SIDE, recipe.scale, interpolation=mode), v2.RandomHorizontalFlip()]
    if recipe.color_twist:
        steps.append(v2.ColorJitter(*recipe.color_twist))
    if recipe.auto_augment:
        steps.append(v2.RandAugment())
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(recipe.mean, recipe.std)]
    if recipe.re_prob:
        steps.append(v2.RandomErasing(recipe.re_prob, recipe.re_scale, recipe.re_ratio))
    data = ImageFolder(str(folder), v2.Compose(steps))
    return DataLoader(
        Subset(data, chosen(len(data), images)),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=Mix(recipe) if recipe.mixing else None,
    )


def chosen(have: int, images: int) -> list[int]:
    """So many of the samples, which lie class by class, at even distances: of each class as many."""
    return [i * have // images for i in range(images)] if images < have else list(range(have))


@contextlib.contextmanager
def loader_of(run: Run, cifar: Path, images: int, workers: int) -> Iterator[Any]:
    recipe = RECIPES[run.recipe]
    if run.through == OWN:
        yield own_loader(cifar / "train", recipe, images, workers)
        return
    backend: Backend = "torchvision"
    if run.through == WRONG:
        recipe = recipe.replace(interpolation="nearest")
    else:
        backend = next(name for name in backends() if name == run.through)
    index = SampleIndex.from_folder(cifar / "train", progress=False)
    with create_loader(
        index.subset(chosen(len(index), images)), recipe, batch_size=BATCH, backend=backend, device="cpu",
        num_workers=workers, seed=run.seed,
    ) as loader:  # fmt: skip
        yield loader


def train(run: Run, cifar: Path, images: int, epochs: int, workers: int) -> dict[str, Any]:
    """One run: what it was, how the loss fell, and the top-1 in percent."""
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    model = small(10).to(memory_format=torch.channels_last)
    losses = []
    with loader_of(run, cifar, images, workers) as loader:
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
        schedule = OneCycleLR(optimizer, RATE, total_steps=epochs * len(loader), pct_start=0.25, cycle_momentum=False)
        for _ in range(epochs):
            total = 0.0
            for batch, targets in loader:
                loss = nn.functional.cross_entropy(model(batch), targets)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
            losses.append(total / len(loader))
    model.eval()
    accuracy = Accuracy()
    with (
        torch.inference_mode(),
        create_loader(
            cifar / "test", EVALUATION, batch_size=500, backend="torchvision", device="cpu", num_workers=0
        ) as test,
    ):
        for batch, targets in test:
            accuracy.update(model(batch), targets)
    shares, tested = accuracy.compute()
    return {
        **run._asdict(),
        "images": images,
        "epochs": epochs,
        "losses": losses,
        "top1": 100 * shares[1],
        "tested": tested,
        "seconds": time.perf_counter() - start,
        "processor": machine.describe()["processor"],
    }


def compare(first: Sequence[float], second: Sequence[float], margin: float) -> dict[str, Any]:
    """Whether two samples of top-1 have the same mean, to the margin: Welch's 90% interval of the difference."""
    from scipy import stats  # a second to import

    found = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.90)
    low, high = float(found.low), float(found.high)
    return {
        "difference": statistics.fmean(second) - statistics.fmean(first),
        "low": low,
        "high": high,
        "agrees": -margin < low and high < margin,
    }


def runs(recipes: Sequence[str], seeds: int) -> list[Run]:
    """Seed by seed, so that what there is of a run that was stopped can be compared; the wrong one with `classic`."""
    ways = [OWN, *backends()]
    return [
        Run(recipe, way, seed)
        for seed in range(seeds)
        for recipe in recipes
        for way in (*ways, *((WRONG,) if recipe == "classic" else ()))
    ]


def run_all(
    cifar: Path, out: Path, recipes: Sequence[str], seeds: int, images: int, epochs: int, workers: int, console: Console
) -> list[dict[str, Any]]:
    """What is not there yet is run; all of it is returned.

    Raises:
        ValueError: the files in `out` are of other numbers of images or epochs.
    """
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for run in runs(recipes, seeds):
        file = run.file(folder)
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_text(json.dumps(train(run, cifar, images, epochs, workers), indent=1))
            part.replace(file)
        made = json.loads(file.read_text())
        if (made["images"], made["epochs"]) != (images, epochs):
            raise ValueError(
                f"{file} is of {made['images']} images and {made['epochs']} epochs, and this run of {images} and "
                f"{epochs}: give the same, or another --out"
            )
        found.append(made)
        console.print(
            f"{run.recipe:8s} {run.through:24s} seed {run.seed}: top-1 {made['top1']:.2f}%, {made['seconds']:.0f} s",
            highlight=False,
        )
    return found


def verdicts(made: Sequence[dict[str, Any]], margin: float = MARGIN) -> list[dict[str, Any]]:
    """Each loader beside torchvision's own."""
    found = []
    for recipe in dict.fromkeys(run["recipe"] for run in made):
        tops = {
            way: [run["top1"] for run in made if (run["recipe"], run["through"]) == (recipe, way)]
            for way in dict.fromkeys(run["through"] for run in made if run["recipe"] == recipe)
        }
        for way, values in tops.items():
            row = {"recipe": recipe, "through": way, "mean": statistics.fmean(values), "top1": values}
            row["deviation"] = statistics.stdev(values)
            if way != OWN:
                row |= compare(tops[OWN], values, margin)
            found.append(row)
    return found


def passed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether all agree that should, and the wrong one is found out."""
    return all(row["agrees"] != (row["through"] == WRONG) for row in rows if row["through"] != OWN)


def _agrees(row: dict[str, Any]) -> str:
    """An interval that holds zero, and more than the margin, shows neither."""
    return "yes" if row["agrees"] else "undecided: more seeds" if row["low"] < 0 < row["high"] else "no"


def markdown(rows: Sequence[dict[str, Any]], made: Sequence[dict[str, Any]], words: str) -> list[str]:
    one, seeds = made[0], len({run["seed"] for run in made})
    lines = [
        "# The same accuracy",
        "",
        f"`{words}`: a residual net of 91,930 parameters, trained on {one['images']:,} of CIFAR-10's JPEGs for "
        f"{one['epochs']} epochs (SGD, one cycle) with {seeds} seeds, through each loader; equal seeds have equal "
        f"initial weights, and all are evaluated on the {one['tested']:,} test images by one reader. Crops and test "
        f"images are brought to {SIDE} pixels, half of their size, as ImageNet's are made smaller. The interval is "
        f"that of the difference of the means (Welch, 90%, two-sided); it agrees where all of it lies within {MARGIN} "
        f"point of zero. '{WRONG}' is the torchvision backend with nearest-neighbour crops, which has to fail.",
        "",
        "| recipe | through | top-1, mean (deviation) | difference, 90% interval | agrees |",
        "|---|---|---:|---:|---|",
    ]
    for row in rows:
        mean = f"{row['mean']:.2f}% ({row['deviation']:.2f})"
        if row["through"] == OWN:
            lines.append(f"| {row['recipe']} | {OWN} | {mean} | | |")
            continue
        interval = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        lines.append(f"| {row['recipe']} | {row['through']} | {mean} | {interval} | {_agrees(row)} |")
    return [*lines, ""]
