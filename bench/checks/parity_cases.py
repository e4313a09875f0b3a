"""How far each backend's pixels are from torchvision on PIL, for the same draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader

Backend = Literal["auto", "dali", "torchvision", "reference", "reference-tensor"]
CROP = TrainRecipe.classic(interpolation="bicubic")
CASES: dict[str, TrainRecipe | EvalRecipe] = {
    "eval, bilinear": EvalRecipe(),
    "eval, bicubic": EvalRecipe(interpolation="bicubic"),
    "classic (crop, bilinear)": TrainRecipe.classic(),
    "crop, bicubic": CROP,
    "crop, bicubic, color_twist": CROP.replace(color_twist=(0.4, 0.4, 0.4, 0.1)),
    "crop, bicubic, color_jitter": CROP.replace(color_jitter=(0.4, 0.4, 0.4, 0.1)),
    "crop, bicubic, RandAugment": CROP.replace(auto_augment="randaugment"),
    "advanced, before mixing": TrainRecipe.advanced(mixup_alpha=0.0, cutmix_alpha=0.0, re_mode="const"),
    "strong, before mixing": TrainRecipe.strong(mixup_alpha=0.0, cutmix_alpha=0.0),
}
REFERENCES: dict[str, Backend] = {"pil": "reference", "tensor": "reference-tensor"}


class Made(NamedTuple):
    """One row of a batch."""

    path: str
    label: int
    pixels: torch.Tensor
    """float64 [3, H, W] in 0..255; erased boxes hold the mean."""


def backends() -> list[Backend]:
    from dali_imagenet.dali.stage import dali_available

    return ["torchvision", "dali"] if dali_available()[0] else ["torchvision"]


def made_by(index: SampleIndex, recipe: TrainRecipe | EvalRecipe, backend: Backend, count: int) -> list[Made]:
    """The first `count` rows of epoch 0."""
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (recipe.mean, recipe.std))
    found: list[Made] = []
    rows = min(32, len(index))
    with create_loader(index, recipe, batch_size=rows, backend=backend, device="cpu", num_workers=0) as loader:
        for step, (batch, targets) in enumerate(loader):
            labels = targets.argmax(1) if targets.is_floating_point() else targets
            for row, image, label in zip(loader.explain(step), batch, labels.tolist(), strict=True):
                found.append(Made(row["path"], label, (image.double() * std + mean) * 255))
                if len(found) == count:
                    return found
    return found


def compare(root: Path, count: int, console: Console) -> list[dict[str, Any]]:
    index = SampleIndex.from_folder(root, progress=False)
    labels = dict(ImageFolder(str(root.absolute())).samples)
    results = []
    for case, recipe in CASES.items():
        references = {name: made_by(index, recipe, backend, count) for name, backend in REFERENCES.items()}
        for backend in backends():
            ours = made_by(index, recipe, backend, count)
            agreed = sum(labels[made.path] == made.label for made in ours)
            for on, theirs in references.items():
                away = [(a.pixels - b.pixels).abs() for a, b in zip(ours, theirs, strict=True)]
                cell = {
                    "case": case,
                    "backend": backend,
                    "reference": on,
                    "images": len(away),
                    "mean": float(np.mean([float(each.mean()) for each in away])),
                    "max": max(float(each.max()) for each in away),
                    "differing": float(np.mean([float((each > 0.5).double().mean()) for each in away])),
                    "labels_agree": agreed / len(away),
                }
                results.append(cell)
                console.print(line(cell), highlight=False)
    return results


def line(cell: dict[str, Any]) -> str:
    return (
        f"{cell['case']:28s} {cell['backend']:12s} against {cell['reference']:7s} mean {cell['mean']:.3f}, "
        f"max {cell['max']:.0f}, differing {cell['differing']:.1%}, labels {cell['labels_agree']:.0%}"
    )


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def agreement(cifar: Path, steps: int, console: Console) -> list[dict[str, Any]]:
    """Top-1 of one small network, evaluated through torchvision on PIL and through each backend; resized to 40."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recipe = TrainRecipe.classic(input_size=32, scale=(0.5, 1.0))
    with create_loader(cifar / "train", recipe, batch_size=256, backend="torchvision", device="cpu") as train:
        for step, (batch, targets) in enumerate(train):
            loss = nn.functional.cross_entropy(model(batch), targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if step + 1 == steps:
                break
    model.eval()
    results = []
    for interpolation in ("bilinear", "bicubic"):
        evaluation = EvalRecipe(input_size=32, resize_size=40, interpolation=interpolation)
        mode = v2.InterpolationMode(interpolation)
        transform = v2.Compose([v2.Resize(40, mode), v2.CenterCrop(32), v2.PILToTensor()])
        transform.transforms += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(evaluation.mean, evaluation.std)]
        data = ImageFolder(str(cifar / "test"), transform)
        predicted = {"torchvision on PIL": predict(model, torch.utils.data.DataLoader(data, 500))}
        for backend in backends():
            with create_loader(cifar / "test", evaluation, batch_size=500, backend=backend, device="cpu") as loader:
                predicted[backend] = predict(model, loader)
        truth = torch.tensor(data.targets)
        for name, classes in predicted.items():
            same = classes == predicted["torchvision on PIL"]
            cell = {
                "interpolation": interpolation,
                "through": name,
                "images": len(truth),
                "top1": float((classes == truth).double().mean()),
                "same_prediction": float(same.double().mean()),
                "differing": int((~same).sum()),
            }
            results.append(cell)
            console.print(
                f"{interpolation:9s} {name:19s} top-1 {cell['top1']:.2%}, other prediction for {cell['differing']} of "
                f"{len(truth)}",
                highlight=False,
            )
    return results


def predict(model: nn.Module, batches: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch).argmax(1) for batch, _ in batches])
