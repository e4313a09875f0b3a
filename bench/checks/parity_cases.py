"""How far each backend's pixels are from torchvision on PIL, for the same draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from timm.data import auto_augment
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, create_loader
from dali_imagenet.plan.program import color_matrix, policy_of

Backend = Literal["auto", "dali", "torchvision"]
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
FILTERS = {0: v2.InterpolationMode.NEAREST, 2: v2.InterpolationMode.BILINEAR, 3: v2.InterpolationMode.BICUBIC}


def backends() -> list[Backend]:
    from dali_imagenet.dali.stage import dali_available

    return ["torchvision", "dali"] if dali_available()[0] else ["torchvision"]


def affine(image: Any, aux: int, **changes: Any) -> Any:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "interpolation": FILTERS[aux]}
    return F.affine(image, **(settings | changes))


def tangent(m: float) -> float:
    return math.degrees(math.atan(m))


# torchvision's operations by our names, as its RandAugment calls them; on PIL images or uint8 tensors
OPERATIONS: dict[str, Callable[[Any, float, int], Any]] = {
    "SHEAR_X": lambda i, m, x: affine(i, x, shear=[tangent(m), 0.0], center=[0, 0]),
    "SHEAR_Y": lambda i, m, x: affine(i, x, shear=[0.0, tangent(m)], center=[0, 0]),
    "TRANSLATE_X": lambda i, m, x: affine(i, x, translate=[int(m), 0]),
    "TRANSLATE_Y": lambda i, m, x: affine(i, x, translate=[0, int(m)]),
    "ROTATE": lambda i, m, x: F.rotate(i, angle=m, interpolation=FILTERS[x]),
    "BRIGHTNESS": lambda i, m, x: F.adjust_brightness(i, m),
    "COLOR": lambda i, m, x: F.adjust_saturation(i, m),
    "CONTRAST": lambda i, m, x: F.adjust_contrast(i, m),
    "SHARPNESS": lambda i, m, x: F.adjust_sharpness(i, m),
    "POSTERIZE": lambda i, m, x: F.posterize(i, int(m)),
    "SOLARIZE": lambda i, m, x: F.solarize(i, m),
    "AUTO_CONTRAST": lambda i, m, x: F.autocontrast(i),
    "EQUALIZE": lambda i, m, x: F.equalize(i),
    "INVERT": lambda i, m, x: F.invert(i),
    "HUE": lambda i, m, x: F.adjust_hue(i, m),
    "GAUSSIAN_BLUR": lambda i, m, x: F.gaussian_blur(i, [x, x], [m, m]),
}
# timm's functions on PIL images where they are not called as our operations
TIMM = {"TRANSLATE_X": "translate_x_abs", "TRANSLATE_Y": "translate_y_abs"}
NO_ARGUMENT = ("AUTO_CONTRAST", "EQUALIZE", "INVERT")


def by_timm(image: Any, name: str, arg: float, aux: int, fill: tuple[int, ...]) -> Any:
    """An operation with PIL's semantics; tensors take the way over PIL."""
    if isinstance(image, torch.Tensor):
        return F.pil_to_tensor(by_timm(F.to_pil_image(image), name, arg, aux, fill))
    function = getattr(auto_augment, TIMM.get(name, name.lower()))
    if name in NO_ARGUMENT:
        return function(image)
    if name.startswith(("SHEAR", "TRANSLATE", "ROTATE")):
        return function(image, arg, resample=aux, fillcolor=fill)
    return function(image, int(arg) if name in ("POSTERIZE", "SOLARIZE", "SOLARIZE_ADD") else arg)


def reference(row: dict[str, Any], recipe: TrainRecipe | EvalRecipe, on: str) -> torch.Tensor:
    """One explained row by torchvision, on PIL images ("pil") or uint8 tensors ("tensor"): float [3, H, W] in 0..255.

    Erased boxes hold the mean. color_twist, which torchvision does not have, is its matrix in float64, rounded.
    """
    image: Any = Image.open(row["path"]).convert("RGB")
    if on == "tensor":
        image = F.pil_to_tensor(image)
    mode = v2.InterpolationMode(recipe.interpolation)
    size = row["size"]
    if isinstance(recipe, EvalRecipe):
        image = F.center_crop(F.resize(image, [recipe.scale_size[0]], interpolation=mode, antialias=True), size)
    else:
        image = F.resized_crop(image, *row["box"], size, interpolation=mode, antialias=True)
    if row["hflip"]:
        image = F.horizontal_flip(image)
    if row["color"] is not None:
        image = twisted(image, list(row["color"].values()))
    policy = policy_of(recipe) if isinstance(recipe, TrainRecipe) else None
    for step in (step for part in row["program"] for step in part):
        op, arg, aux = step["op"], step["arg"], step["aux"]
        if op.startswith("PIL_"):
            image = by_timm(image, op.removeprefix("PIL_"), arg, aux, policy.fill if policy else (0, 0, 0))
        else:
            image = OPERATIONS[op](image, arg, aux)
    pixels = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
    result: torch.Tensor = pixels.double()
    for top, left, height, width in row["erase"]:
        result[:, top : top + height, left : left + width] = torch.tensor(recipe.mean).double()[:, None, None] * 255
    return result


def twisted(image: Any, factors: Sequence[float]) -> Any:
    matrix = color_matrix(np.array([factors], np.float32))[0].astype(np.float64)
    pixels = np.asarray(image).transpose(2, 0, 1) if isinstance(image, Image.Image) else image.numpy()
    out = np.einsum("oc,chw->ohw", matrix[:, :3], pixels.astype(np.float64)) + matrix[:, 3:, None]
    out = out.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(out.transpose(1, 2, 0)) if isinstance(image, Image.Image) else torch.from_numpy(out)


def rows_of(
    index: SampleIndex, recipe: TrainRecipe | EvalRecipe, backend: Backend, count: int
) -> Iterator[tuple[dict[str, Any], torch.Tensor, int]]:
    """(explanation, image in 0..255, label as handed out) of the first `count` rows of epoch 0."""
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (recipe.mean, recipe.std))
    rows = min(32, len(index))
    with create_loader(index, recipe, batch_size=rows, backend=backend, device="cpu", num_workers=0) as loader:
        for step, (batch, targets) in enumerate(loader):
            labels = targets.argmax(1) if targets.is_floating_point() else targets
            for row, image, label in zip(loader.explain(step), batch, labels.tolist(), strict=True):
                if count == 0:
                    return
                count -= 1
                yield row, (image.double() * std + mean) * 255, label


def compare(root: Path, count: int, console: Console) -> list[dict[str, Any]]:
    index = SampleIndex.from_folder(root, progress=False)
    labels = dict(ImageFolder(str(root.absolute())).samples)
    results = []
    for case, recipe in CASES.items():
        for backend in backends():
            sums: dict[str, list[tuple[float, float, float]]] = {"pil": [], "tensor": []}
            agreed = 0
            for row, image, label in rows_of(index, recipe, backend, count):
                agreed += labels[row["path"]] == label == row["label"]
                for on, found in sums.items():
                    away = (image - reference(row, recipe, on)).abs()
                    found.append((float(away.mean()), float(away.max()), float((away > 0.5).double().mean())))
            for on, found in sums.items():
                mean, top, share = np.array(found).T
                cell = {
                    "case": case,
                    "backend": backend,
                    "reference": on,
                    "images": len(found),
                    "mean": float(mean.mean()),
                    "max": float(top.max()),
                    "differing": float(share.mean()),
                    "labels_agree": agreed / len(found),
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
