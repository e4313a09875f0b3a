"""What timm's configs say is what is evaluated: against `timm.data.create_transform`, on PIL images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config, resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import get_pretrained_cfg
from torch import Tensor

from dali_imagenet import EvalRecipe, Op, Plan, SampleIndex, TrainRecipe, create_loader, save_preview
from dali_imagenet.dali.stage import dali_available
from dali_imagenet.engine import EngineOptions, make_engine
from dali_imagenet.explain import explain, to_plan
from dali_imagenet.policy import OpPlan, RandAugment

PICTURES = Path(__file__).parent / "data" / "pictures"
ENGINES = [("torchvision", None), *([("dali", False), ("dali", True)] if dali_available()[0] else [])]
FOUND: dict[str, Any] = {name: get_pretrained_cfg(name) for name in timm.list_pretrained()}
CONFIGS: dict[str, dict[str, Any]] = {name: config.to_dict() for name, config in FOUND.items()}


def resolved(config: dict[str, Any], use_test_size: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = resolve_data_config(pretrained_cfg=config, use_test_size=use_test_size)
    return found


def kind(config: dict[str, Any]) -> tuple[Any, ...]:
    """What decides the geometry."""
    return tuple(config[name] for name in ("input_size", "crop_pct", "interpolation", "crop_mode"))


# one resolved config of each kind that the installed timm has
KINDS = {kind(c): c for cfg in CONFIGS.values() for c in (resolved(cfg), resolved(cfg, use_test_size=True))}
SMALL = {  # no model of timm asks for all of these
    f"{mode}, {size}, {crop_pct}": {**resolved({"input_size": (3, *size), "crop_mode": mode}), "crop_pct": crop_pct}
    for mode in ("center", "squash", "border")
    for size in ((48, 48), (36, 56), (61, 33))
    for crop_pct in (0.875, 1.0, 1.15, 2.3)
}


@functools.cache
def index_of() -> SampleIndex:
    return SampleIndex.from_folder(PICTURES, progress=False, cache=False)


def levels(a: Tensor, b: Tensor, std: Sequence[float]) -> Tensor:
    """Difference of normalized images in grey levels."""
    return ((a.double() - b.double()) * torch.tensor(std).view(3, 1, 1) * 255).abs()


def by_timm(config: dict[str, Any], count: int = 9) -> Tensor:
    transform = create_transform(**config, is_training=False)
    return torch.stack([transform(Image.open(index_of().path(i)).convert("RGB")) for i in range(count)])


def made(recipe: Any, engine: str, in_graph: bool | None = None, count: int = 9) -> Tensor:
    """The first pictures of an epoch, as that engine makes them."""
    plan = Plan(index_of(), recipe, batch_size=count, seed=3)
    maker = make_engine(engine, plan, EngineOptions(device=torch.device("cpu"), in_graph=in_graph))
    try:
        _, [images], failures = next(maker.batches(0, 0))
        assert not failures
        return images.clone()
    finally:
        maker.close()


def test_every_config_of_timm_is_taken_as_timm_takes_it() -> None:
    for config in CONFIGS.values():
        for use_test_size in (False, True):
            recipe = EvalRecipe.from_pretrained_cfg(config, use_test_size=use_test_size)
            expected = resolved(config, use_test_size)
            found = {name: getattr(recipe, name) for name in expected} | {"input_size": (3, *recipe.size_at(0))}
            assert found == expected
    assert len(CONFIGS) > 1500


def test_pixels_are_timms() -> None:
    """Some kinds that are small, and one of each with a border, of another shape or above 1."""
    small = sorted(k for k in KINDS if k[0][1] <= 200)[::4]
    special = {(k[3], k[1] > 1, k[0][1] == k[0][2]): k for k in sorted(KINDS, reverse=True)}
    assert {k[0] for k in special} >= {"center", "squash", "border"}
    for config in (KINDS[k] for k in [*small, *special.values()]):
        recipe, expected = EvalRecipe.from_pretrained_cfg(config), by_timm(config, 3)
        assert levels(made(recipe, "reference", count=3), expected, config["std"]).max() < 1e-3, config
        assert levels(made(recipe, "torchvision", count=3), expected, config["std"]).mean() < 0.5, config


@pytest.mark.parametrize("name", SMALL)
def test_every_crop_mode_is_timms(name: str) -> None:
    config = SMALL[name]
    recipe, expected = EvalRecipe.from_pretrained_cfg(config), by_timm(config)
    assert levels(made(recipe, "reference"), expected, config["std"]).max() < 1e-3
    assert levels(made(recipe, "torchvision"), expected, config["std"]).mean() < 0.1


@pytest.mark.parametrize("in_graph", [False, True] if dali_available()[0] else [])
@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith("1.15")])
def test_dali_shows_the_same(name: str, in_graph: bool) -> None:
    config = SMALL[name]
    found = made(EvalRecipe.from_pretrained_cfg(config), "dali", in_graph)
    # DALI resizes its own way; another colour or place would be tens
    assert levels(found, by_timm(config), config["std"]).mean() < (0.3 if in_graph else 0.1)


@pytest.mark.parametrize("difference", range(1, 10))
def test_a_border_lies_where_torchvisions_lies(difference: int) -> None:
    index = SampleIndex.from_arrays([0, 0], 50 - difference, 60)
    recipe = EvalRecipe(input_size=50, crop_pct=50 / (50 - difference + 1e-6))
    batch = Plan(index, recipe, batch_size=2).batch(0, 0)
    assert batch.resize[0].tolist() == [50 - difference, 60]
    assert batch.window[0].tolist() == [-(difference // 2), 5]  # CenterCrop pads by (50 - height) // 2 above


def test_the_colour_of_the_border_is_part_of_the_plan() -> None:
    recipe = EvalRecipe(input_size=(40, 64), crop_mode="border", crop_pct=1.2, mean=(0.1, 0.5, 0.9))
    assert recipe.window_fill == (26, 128, 230)  # round(255 * mean), half to even, as timm
    plan = Plan(index_of(), recipe, batch_size=9)
    rows = explain(plan, 0, 0)
    assert rows[0]["crop_fill"] == [26, 128, 230]
    assert to_plan(rows[0]).window_fill == recipe.window_fill
    del rows[0]["crop_fill"]  # as it was written before
    assert to_plan(rows[0]).window_fill == (0, 0, 0)
    assert EvalRecipe(input_size=4, crop_pct=4).scale_size == (1, 1)
    with pytest.raises(ValueError, match=r"crop_pct=9\.0: must be at most the output's smaller side, 4"):
        EvalRecipe(input_size=(4, 40), crop_pct=9)


def test_a_narrow_image_keeps_a_pixel() -> None:
    index = SampleIndex.from_arrays([0, 0], [1, 2000], [2000, 1])
    batch = Plan(index, EvalRecipe(input_size=32, crop_mode="border"), batch_size=2).batch(0, 0)
    assert batch.resize.tolist() == [[1, 36], [36, 1]]


def test_a_model_its_config_its_name_and_a_hubs_config_mean_the_same() -> None:
    name = "test_convnext.r160_in1k"
    model: Any = timm.create_model(name, pretrained=False)
    expected = EvalRecipe.from_pretrained_cfg(model.pretrained_cfg)
    assert (expected.input_size, expected.interpolation, expected.mean) == (160, "bicubic", (0.5, 0.5, 0.5))
    assert (3, *expected.size_at(0)) == resolve_model_data_config(model)["input_size"]
    flat = {"architecture": "test_convnext", "num_classes": 1000, **model.pretrained_cfg}
    nested = {"architecture": "test_convnext", "pretrained_cfg": model.pretrained_cfg}
    for given in (model, get_pretrained_cfg(name), name, flat, nested):
        assert EvalRecipe.from_pretrained_cfg(given) == expected
    assert EvalRecipe.from_pretrained_cfg({"mean": [0.5] * 3}).interpolation == "bicubic"  # as timm fills up


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "cfg=None has neither mean nor input_size: must be a model"),
        ({}, "cfg=<dict> has neither"),
        ({"architecture": "resnet50", "pretrained_cfg": {"url": ""}}, "cfg=<dict> has neither"),
        (torch.nn.Linear(2, 2), "cfg=<Linear> has neither"),
        (np.zeros(3), "cfg=<ndarray> has neither"),
        ("resnet51", "cfg='resnet51' is no model of timm"),
        ("resnet50.none_such", "is no model of timm"),
        ({"input_size": (1, 28, 28)}, r"pretrained_cfg: input_size=\(1, 28, 28\): must be \(3, height, width\)"),
        ({"input_size": 224}, "pretrained_cfg: input_size=224"),
        (
            {"input_size": (3, 32, 32), "interpolation": "hamming"},
            "pretrained_cfg: interpolation='hamming': must",
        ),
        ({"input_size": (3, 32, 32), "crop_mode": "corner"}, "pretrained_cfg: crop_mode='corner'"),
    ],
)
def test_what_is_no_config_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalRecipe.from_pretrained_cfg(given)


def test_changes_come_in_place_of_the_config() -> None:
    config = {"input_size": (3, 32, 32), "interpolation": "hamming"}
    assert EvalRecipe.from_pretrained_cfg(config, interpolation="bilinear").interpolation == "bilinear"
    with pytest.raises(ValueError, match=r"^crop_pct=0"):
        EvalRecipe.from_pretrained_cfg("resnet50", crop_pct=0)
    with pytest.raises(TypeError, match="no field 'size'"):
        EvalRecipe.from_pretrained_cfg("resnet50", size=3)


@pytest.mark.parametrize(("engine", "in_graph"), ENGINES)
@pytest.mark.parametrize("size", [(40, 64), (64, 40)])
def test_training_swaps_no_sides(size: tuple[int, int], engine: str, in_graph: bool | None) -> None:
    recipe = TrainRecipe(input_size=size, auto_augment="rand-m9", re_prob=1.0)
    images = made(recipe, engine, in_graph)
    assert images.shape[2:] == size
    assert levels(images, made(recipe, "reference-tensor"), recipe.std).mean() < (0.5 if in_graph else 0.1)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40)])
@pytest.mark.parametrize(
    ("policy", "ops", "share"),
    [
        (RandAugment(magnitude=30), (Op.TRANSLATE_X, Op.TRANSLATE_Y), 150 / 331),
        ("rand-m10", (Op.PIL_TRANSLATE_X, Op.PIL_TRANSLATE_Y), 0.45),
    ],
)
def test_draws_know_height_from_width(policy: Any, ops: tuple[Op, Op], share: float, height: int, width: int) -> None:
    """x and left go with the width, y and top with the height, as in torchvision and timm."""
    index = SampleIndex.from_arrays(np.zeros(2000, int), 90, 90)
    recipe = TrainRecipe(input_size=(height, width), auto_augment=policy, re_prob=1.0, cutmix_minmax=(0.5, 0.5),
                         mixup_mode="elem")  # fmt: skip
    batch = Plan(index, recipe, batch_size=2000).batch(0, 0)
    [drawn] = batch.ops
    assert isinstance(drawn, OpPlan)
    for op, side in zip(ops, (width, height), strict=True):
        assert np.abs(drawn.arg[drawn.op == op]).max() == pytest.approx(share * side, abs=1)
    assert batch.erase is not None
    ends = batch.erase[:, 0, :2] + batch.erase[:, 0, 2:]
    assert ends.max(0).tolist() == [height, width]
    assert batch.mix is not None
    top, bottom, left, right = batch.mix.box.T
    assert set((bottom - top).tolist()) == {height // 2}
    assert set((right - left).tolist()) == {width // 2}
    assert [bottom.max(), right.max()] == [height, width]


def test_a_preview_is_as_high_as_its_images(tmp_path: Path) -> None:
    heights = []
    for size in ((40, 64), (64, 40)):
        with create_loader(
            index_of(), EvalRecipe(input_size=size), batch_size=4, device="cpu", num_workers=0
        ) as loader:
            save_preview(loader, tmp_path / "preview.png", count=2)
        heights.append(Image.open(tmp_path / "preview.png").height)
    assert heights[1] - heights[0] == 24


def main() -> None:
    """How far every kind is from timm, on three pictures."""
    greatest: dict[str, tuple[float, float]] = {}
    for config in KINDS.values():
        recipe, expected = EvalRecipe.from_pretrained_cfg(config), by_timm(config, 3)
        for engine in ("reference", "torchvision"):
            delta = levels(made(recipe, engine, count=3), expected, config["std"])
            mean, most = greatest.get(engine, (0.0, 0.0))
            greatest[engine] = max(mean, float(delta.mean())), max(most, float(delta.max()))
    print(f"{len(KINDS)} kinds of {len(CONFIGS)} configs of timm {timm.__version__}; in grey levels of 255:")
    for engine, (mean, most) in greatest.items():
        print(f"{engine}: mean at most {mean:.4f}, single values at most {most:.4f}")


if __name__ == "__main__":
    main()
