"""The reference: a plan carried out by torchvision's own v2 functional, and by timm's own functions and Mixup.

Serial, in this process, and slow: what the other engines are measured against. `backend="reference"` works on PIL
images, as torchvision's recipes do; `backend="reference-tensor"` on uint8 tensors, whose arithmetic the others have.

Of its own it has three things that neither library has: color_twist (DALI's, here in float64), the parameters, which
both would draw, and the numbers of erasing noise.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dali_imagenet.engine import Batch, EngineOptions
from dali_imagenet.image import decoding, read_sample
from dali_imagenet.ops import AFFINE_PARTS, FILTERS, Op
from dali_imagenet.pillow import open_image
from dali_imagenet.plan.batch_plan import BatchPlan, MixPlan
from dali_imagenet.plan.plan import Plan
from dali_imagenet.policy import AugMixPlan, OpPlan
from dali_imagenet.transforms.normalize_erase import noise

_MODES = {number: InterpolationMode(name) for name, number in FILTERS.items()}
_Fill = tuple[int, int, int] | None


class ReferenceEngine:
    """See `dali_imagenet.engine.Engine`."""

    decoder = "Pillow"
    roi_decode = None
    on_tensors = False

    def __init__(self, plan: Plan, options: EngineOptions) -> None:
        self._plan, self._options = plan, options
        self.mixing = False

    def prepare(self, epoch: int, step: int) -> None:
        """See `dali_imagenet.engine.Engine.prepare`."""

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """See `dali_imagenet.engine.Engine.batches`."""
        options = self._options
        for at in range(step, len(self._plan)):
            plan = self._plan.batch(epoch, at)
            images = [torch.zeros((len(plan), 3, *view.size), dtype=torch.float32, device="cpu") for view in plan.views]

            def make(plan: BatchPlan, row: int, images: Sequence[Tensor] = images) -> None:
                with torch.device("cpu"):  # torchvision makes its grids on the user's default device
                    image = self._decoded(plan, row)
                    for view, out in zip(plan.views, images, strict=True):
                        out[row] = finished(transformed(image, view, row), view, row)

            plan, failures = self._plan.execute_rows(plan, make)
            if self.mixing and plan.mix is not None:
                mix_by_timm_(images[0], plan.mix)
            given: dict[str, Any] = {"device": options.device, "dtype": options.dtype}
            yield plan, [each.to(**given, memory_format=options.memory_format) for each in images], failures

    def _decoded(self, plan: BatchPlan, row: int) -> Any:
        index, sample = self._plan.index, int(plan.source_index[row])
        data = read_sample(index, sample)
        with decoding(index, sample):
            image: Any = open_image(data).convert("RGB")
        return F.pil_to_tensor(image) if self.on_tensors else image

    def for_plan(self, plan: Plan) -> ReferenceEngine:
        """See `dali_imagenet.engine.Engine.for_plan`."""
        return type(self)(plan, dataclasses.replace(self._options))

    def close(self) -> None:
        """Nothing was started."""


class TensorReferenceEngine(ReferenceEngine):
    """The same on uint8 tensors."""

    on_tensors = True


def transformed(image: Any, plan: BatchPlan, row: int) -> Tensor:
    """Crop, resize, window, flips, colour and operations of one row: a PIL image or uint8 tensor -> uint8 [3, H, W]."""
    (top, left), (height, width), (bottom, right) = plan.window[row].tolist(), plan.size, plan.resize[row].tolist()
    beside = [max(0, -left), max(0, -top), max(0, left + width - right), max(0, top + height - bottom)]
    image = F.crop(image, *plan.crop_box[row].tolist())
    image = resized(image, plan.resize[row].tolist(), _MODES[int(plan.interpolation[row])])
    if any(beside):
        fill = list(plan.window_fill) if plan.window_mode == "constant" else 0
        image = F.pad(image, beside, fill=fill, padding_mode=plan.window_mode)
    image = F.crop(image, max(0, top), max(0, left), height, width)
    image = F.horizontal_flip(image) if plan.hflip[row] else image
    image = F.vertical_flip(image) if plan.vflip[row] else image
    if plan.color is not None:
        image = color_twist(image, plan.color[row])
    for part in plan.ops:
        image = operated(image, part, row, plan.fill)
    result: Tensor = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
    return result


def resized(image: Any, size: list[int], mode: InterpolationMode) -> Any:
    """Resized by torchvision. Nearest and Lanczos are PIL's, and tensors take the way over PIL: torchvision has no
    Lanczos for them, and where two pixels are as near its rounding takes another one."""
    if isinstance(image, Tensor) and mode in (InterpolationMode.NEAREST, InterpolationMode.LANCZOS):
        return F.pil_to_tensor(resized(F.to_pil_image(image), size, mode))
    return F.resize(image, size, interpolation=mode, antialias=True)


def finished(pixels: Tensor, plan: BatchPlan, row: int) -> Tensor:
    """Normalized and erased: uint8 [3, H, W] -> float32 [3, H, W]."""
    image: Tensor = F.normalize(F.to_dtype(pixels, torch.float32, scale=True), list(plan.mean), list(plan.std))
    if plan.erase is None or plan.noise_key is None:
        return image
    key = torch.from_numpy(plan.noise_key[row : row + 1].view(np.int64))
    for number, (top, left, height, width) in enumerate(plan.erase[row].tolist()):
        if height:
            values = torch.tensor(plan.erase_value, dtype=torch.float32, device="cpu")[:, None, None]
            values = values.expand(3, height, width)
            if plan.erase_mode != "const":
                pixel = torch.arange(image[0].numel(), device="cpu").view(image.shape[1:])
                pixel = pixel[top : top + height, left : left + width]
                one = torch.zeros_like(pixel) if plan.erase_mode == "rand" else pixel
                values = noise(key, torch.arange(3, device="cpu")[:, None, None] + 3 * number, one)
            image = F.erase(image, top, left, height, width, values)
    return image


def mix_by_timm_(images: Tensor, mix: MixPlan) -> None:
    """timm's Mixup in its mode "elem", in place, with the plan's lambda, choice and boxes in place of its draws.

    The modes "batch" and "pair" are the same with equal parameters. timm draws boxes in a function of its module; here
    its method sees another one, so that neither that module nor numpy's generator is touched.
    """
    from timm.data import mixup as timm_mixup

    boxes = iter(mix.box[mix.use_cutmix & (mix.lam != 1)].tolist())

    def given_box(shape: Any, lam: float, **options: Any) -> tuple[Any, float]:
        return next(boxes), lam

    method: Any = timm_mixup.Mixup._mix_elem
    with_plan = types.FunctionType(method.__code__, {**vars(timm_mixup), "cutmix_bbox_and_lam": given_box})
    mixup: Any = timm_mixup.Mixup(mode="elem")  # type: ignore[no-untyped-call]  # timm does not annotate it
    mixup._params_per_elem = lambda batch_size: (mix.lam.copy(), mix.use_cutmix)
    with_plan(mixup, images)


def color_twist(image: Any, matrix: Any) -> Any:
    """DALI's color_twist, which torchvision does not have: [3, 4] in 0..255 units, in float64, rounded."""
    pixels = np.asarray(image).transpose(2, 0, 1) if isinstance(image, Image.Image) else image.numpy()
    matrix = np.asarray(matrix, np.float64)
    out = np.einsum("oc,chw->ohw", matrix[:, :3], pixels.astype(np.float64)) + matrix[:, 3:, None]
    out = out.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(out.transpose(1, 2, 0)) if isinstance(image, Image.Image) else torch.from_numpy(out)


def operated(image: Any, part: OpPlan | AugMixPlan, row: int, fill: _Fill) -> Any:
    """The operations of one row on a PIL image or uint8 tensor."""
    if isinstance(part, OpPlan):
        return chain(image, part.op[row], part.arg[row], part.aux[row], fill)
    chains = [chain(image, *step, fill) for step in zip(part.op[row], part.arg[row], part.aux[row], strict=True)]
    return augmix(image, chains, part.weights[row].tolist(), float(part.m[row]), part.mode)


def chain(image: Any, op: Any, arg: Any, aux: Any, fill: _Fill) -> Any:
    """Operations one after the other."""
    given: dict[int, float] = {}
    for o, a, x in zip(op.tolist(), arg.tolist(), aux.tolist(), strict=True):
        if o in AFFINE_PARTS:
            given[o] = a
        elif o in (Op.AFFINE, Op.PIL_AFFINE):
            image, given = _one_warp(image, Op(o), a, x, fill, given), {}
        elif o != Op.IDENTITY:
            image = _TORCHVISION[o](image, a, x, fill) if o in _TORCHVISION else _by_timm(image, Op(o), a, x, fill)
    return image


def augmix(image: Any, chains: Sequence[Any], weights: Sequence[float], m: float, mode: str) -> Any:
    """AugMix's chains mixed into the image as v2.AugMix ("torchvision") or timm's two ways do it; see `AugMixPlan`."""
    if mode == "torchvision":
        tensors = [each if isinstance(each, Tensor) else F.pil_to_tensor(each) for each in (image, *chains)]
        mixed = tensors[0].float() * (1 - m)
        for weight, each in zip(weights, tensors[1:], strict=True):
            mixed += weight * m * each
        mixed = mixed.to(torch.uint8)
        return mixed if isinstance(image, Tensor) else F.to_pil_image(mixed)
    if isinstance(image, Tensor):
        return F.pil_to_tensor(augmix(F.to_pil_image(image), [F.to_pil_image(c) for c in chains], weights, m, mode))
    if mode == "timm":
        total = np.zeros((image.height, image.width, 3), np.float32)
        for weight, each in zip(weights, chains, strict=True):
            total += weight * np.asarray(each, np.float32)
        return Image.blend(image, Image.fromarray(total.clip(0, 255).astype(np.uint8)), m)
    for weight, each in zip(weights, chains, strict=True):
        image = Image.blend(image, each, weight)
    return image


def _affine(image: Any, aux: int, fill: _Fill, **changes: Any) -> Any:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "interpolation": _MODES[aux]}
    return F.affine(image, **(settings | changes), fill=_values(fill))


def _one_warp(image: Any, op: Op, degrees: float, aux: int, fill: _Fill, given: dict[int, float]) -> Any:
    """torchvision's affine of all that was given; of PIL's family tensors take the way over PIL."""
    if op == Op.PIL_AFFINE and isinstance(image, Tensor):
        return F.pil_to_tensor(_one_warp(F.to_pil_image(image), op, degrees, aux, fill, given))
    move = [round(given.get(part, 0.0)) for part in (Op.AFFINE_X, Op.AFFINE_Y)]
    shear = [given.get(part, 0.0) for part in (Op.AFFINE_SHEAR_X, Op.AFFINE_SHEAR_Y)]
    scale = given.get(Op.AFFINE_SCALE, 1.0)
    return _affine(image, aux, fill, angle=degrees, translate=move, scale=scale, shear=shear)


def _values(fill: _Fill) -> list[float] | None:
    return None if fill is None else [float(v) for v in fill]


def _degrees(tangent: float) -> float:
    return math.degrees(math.atan(tangent))


def _solarize_add(image: Any, add: int) -> Any:
    """timm's, which torchvision does not have."""
    if isinstance(image, Image.Image):
        return image.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)
    return torch.where(image < 128, (image.int() + add).clamp(max=255), image.int()).to(torch.uint8)


# torchvision's functions as its RandAugment calls them: image, argument, aux, fill
_TORCHVISION: dict[int, Callable[[Any, float, int, _Fill], Any]] = {
    Op.SHEAR_X: lambda i, m, x, f: _affine(i, x, f, shear=[_degrees(m), 0.0], center=[0, 0]),
    Op.SHEAR_Y: lambda i, m, x, f: _affine(i, x, f, shear=[0.0, _degrees(m)], center=[0, 0]),
    Op.TRANSLATE_X: lambda i, m, x, f: _affine(i, x, f, translate=[int(m), 0]),
    Op.TRANSLATE_Y: lambda i, m, x, f: _affine(i, x, f, translate=[0, int(m)]),
    Op.ROTATE: lambda i, m, x, f: F.rotate(i, angle=m, interpolation=_MODES[x], fill=_values(f)),
    Op.BRIGHTNESS: lambda i, m, x, f: F.adjust_brightness(i, m),
    Op.COLOR: lambda i, m, x, f: F.adjust_saturation(i, m),
    Op.CONTRAST: lambda i, m, x, f: F.adjust_contrast(i, m),
    Op.SHARPNESS: lambda i, m, x, f: F.adjust_sharpness(i, m),
    Op.POSTERIZE: lambda i, m, x, f: F.posterize(i, int(m)),
    Op.SOLARIZE: lambda i, m, x, f: F.solarize(i, m),
    Op.AUTO_CONTRAST: lambda i, m, x, f: F.autocontrast(i),
    Op.EQUALIZE: lambda i, m, x, f: F.equalize(i),
    Op.INVERT: lambda i, m, x, f: F.invert(i),
    Op.HUE: lambda i, m, x, f: F.adjust_hue(i, m),
    Op.GRAYSCALE: lambda i, m, x, f: F.rgb_to_grayscale(i, num_output_channels=3),
    Op.GAUSSIAN_BLUR: lambda i, m, x, f: F.gaussian_blur(i, [x, x], [m, m]),
    Op.SOLARIZE_ADD: lambda i, m, x, f: _solarize_add(i, int(m)),
}
# timm's functions that are not called as our operations
_TIMM_NAMES = {"TRANSLATE_X": "translate_x_abs", "TRANSLATE_Y": "translate_y_abs"}


def _by_timm(image: Any, op: Op, arg: float, aux: int, fill: _Fill) -> Any:
    """An operation of PIL's family, by timm's function; tensors take the way over PIL."""
    from timm.data import auto_augment

    if isinstance(image, Tensor):
        return F.pil_to_tensor(_by_timm(F.to_pil_image(image), op, arg, aux, fill))
    name = op.name.removeprefix("PIL_")
    if name == "GRAYSCALE":
        return image.convert("L").convert("RGB")
    if name == "POSTERIZE" and arg < 1:
        return Image.new("RGB", image.size)  # no bits: ImageOps.posterize refuses that
    function = getattr(auto_augment, _TIMM_NAMES.get(name, name.lower()))
    if name in ("AUTO_CONTRAST", "EQUALIZE", "INVERT"):
        return function(image)
    if name.startswith(("SHEAR", "TRANSLATE", "ROTATE")):
        return function(image, arg, resample=aux, fillcolor=fill or (0, 0, 0))
    return function(image, int(arg) if name in ("POSTERIZE", "SOLARIZE", "SOLARIZE_ADD") else arg)
