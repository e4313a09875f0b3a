"""What `explain` tells is all there is to an image: rendering from it gives the batch's row again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dali_imagenet import EvalRecipe, TrainRecipe
from tests.helpers import BACKENDS, load

RECIPES = {
    "classic": TrainRecipe.classic(input_size=32, vflip=0.5),
    "strong": TrainRecipe.strong(input_size=32, re_prob=0.7, re_mode="pixel", re_count=(1, 3)),
    "augmix": TrainRecipe(input_size=32, auto_augment="augmix", grayscale_prob=0.3, gaussian_blur_prob=0.3),
    "timm": TrainRecipe(input_size=32, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=(0.4, 0.4, 0.4, 0.1)),
    "eval": EvalRecipe(input_size=32),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_row_is_rendered_again_from_its_explanation(folder: Path, backend: str, name: str) -> None:
    with load(folder, RECIPES[name], seed=4, backend=backend) as loader:
        loader.mixup_enabled = False
        loader.set_epoch(3)
        for step, (images, _) in enumerate(loader):
            rows = json.loads(json.dumps(loader.explain(step)))
            assert rows == loader.explain(step, 3)
            assert len(rows) == len(images)
            if step == 1:
                for row, image in zip(rows, images, strict=True):
                    assert torch.equal(loader.render(row), image)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_explanations_say_what_was_mixed(folder: Path, mode: str) -> None:
    recipe = RECIPES["strong"].replace(label_smoothing=0.0, mixup_mode=mode)
    kinds = set()
    with load(folder, recipe, seed=4) as plain, load(folder, recipe, seed=4) as mixed:
        plain.mixup_enabled = False
        for step, ((images, _), (found, targets)) in enumerate(zip(plain, mixed, strict=True)):
            for row in mixed.explain(step):
                expected, target = images[row["row"]].clone(), torch.zeros(4)
                mix = row["mix"]
                if mix is None:  # a lambda of 1
                    assert torch.equal(found[row["row"]], expected)
                    continue
                other = images[mix["partner"]["row"]]
                if mix["kind"] == "cutmix":
                    top, bottom, left, right = mix["box"]
                    expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
                else:
                    expected = expected * mix["lam"] + other * (1 - mix["lam"])
                target[row["label"]] += mix["lam"]
                target[mix["partner"]["label"]] += 1 - mix["lam"]
                kinds.add(mix["kind"])
                assert torch.allclose(found[row["row"]], expected, atol=1e-5)
                assert torch.allclose(targets[row["row"]], target, atol=1e-5)
    assert kinds == {"cutmix", "mixup"} if mode == "elem" else kinds


def test_rows_name_the_file_and_the_draws(folder: Path) -> None:
    with load(folder, RECIPES["strong"], seed=4) as loader:
        rows = [row for step in range(len(loader)) for row in loader.explain(step, 0)]
        assert sorted(row["index"] for row in rows) == list(range(24))
        for row in rows:
            path, label = loader.dataset.samples[row["index"]]
            assert (row["path"], row["label"], row["class"]) == (path, label, loader.dataset.classes[label])
            top, left, height, width = row["box"]
            assert 0 <= top <= top + height <= row["source_size"][0]
            assert 0 <= left <= left + width <= row["source_size"][1]
            assert 0.6 <= row["color"]["brightness"] <= 1.4
            assert all(operation["op"].isupper() for operation in row["program"][0])


def test_padding_and_other_data_are_refused(folder: Path) -> None:
    with load(folder, EvalRecipe(input_size=32), seed=4, world_size=5, rank=4) as loader:
        row = loader.explain(0)[-1]
        assert (row["index"], row["label"], row["path"]) == (-1, -100, None)
        with pytest.raises(ValueError, match="padding"):
            loader.render(row)
        with pytest.raises(ValueError, match="other data"):
            loader.render(row | {"index": 99})
