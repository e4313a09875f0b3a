"""One plan, any executor: the same batches for any backend, number of workers, ranks and process; no side effects."""

from __future__ import annotations

import functools
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe
from tests import helpers
from tests.helpers import BACKENDS, ENGINES, HERE, Batches, make_folder, needs_dali, start

pytestmark = pytest.mark.usefixtures("one_thread")
STRONG = TrainRecipe.strong(input_size=48, re_prob=0.5, re_mode="pixel")
load = functools.partial(helpers.load, batch_size=24, seed=5)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    """53 images in 4 classes: two global batches of 24, and a rest."""
    return SampleIndex.from_folder(make_folder(tmp_path_factory.mktemp("exact") / "data", 53, seed=1))


def batches_of(index: SampleIndex, recipe: Any = STRONG, epoch: int = 1, **options: Any) -> Batches:
    with load(index, recipe, **options) as loader:
        loader.set_epoch(epoch)
        return list(loader)


def same(a: Batches, b: Batches) -> bool:
    """Equal, and there are any."""
    return len(a) > 0 and helpers.same(a, b)


def levels(a: Tensor, b: Tensor, recipe: Any = STRONG) -> float:
    """Mean difference of normalized images in grey levels (0..255)."""
    return float(((a - b).abs() * torch.tensor(recipe.std)[:, None, None]).mean()) * 255


@pytest.fixture(scope="module")
def reference(index: SampleIndex) -> Batches:
    return batches_of(index)


# ---- workers and threads


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(index: SampleIndex, reference: Batches, workers: int, context: str) -> None:
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    found = batches_of(index, num_workers=workers, multiprocessing_context=context, timeout=300)
    assert same(found, reference)


@needs_dali
def test_threads_of_dali_change_nothing(index: SampleIndex, reference: Batches) -> None:
    one = batches_of(index, backend="dali", num_workers=1)
    assert same(batches_of(index, backend="dali", num_workers=4), one)
    assert same(batches_of(index, backend="dali", num_workers=0, prefetch=3), one)
    for (images, targets), (expected, labels) in zip(one, reference, strict=True):
        assert torch.equal(targets, labels)
        assert levels(images, expected) <= 1


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_order_of_batches_survives_several_epochs(index: SampleIndex, context: str) -> None:
    """Persistent workers, an iteration that is left, and prefetched batches: still those of the plan."""
    with load(index, STRONG, num_workers=2, multiprocessing_context=context, timeout=300) as loader:
        first = list(loader)
        for _ in loader:
            break
        loader.set_epoch(0)
        assert same(list(loader), first)
        assert same(list(loader), batches_of(index, epoch=1))


# ---- recipes on both backends


@pytest.mark.parametrize(
    "recipe",
    [
        TrainRecipe.classic(input_size=48),
        TrainRecipe.strong(input_size=48, mixup_alpha=0.0, cutmix_alpha=0.0),
        TrainRecipe.strong(input_size=48, mixup_mode="elem", re_count=(1, 3), num_aug_repeats=2),
        TrainRecipe(input_size=((0, 48), (1, 64)), color_jitter=(0.4, 0.4, 0.4, 0.1), gaussian_blur_prob=0.5),
        EvalRecipe(input_size=48),
        EvalRecipe(input_size=48, interpolation="bicubic", crop_pct=1.0),
    ],
    ids=["classic", "strong unmixed", "strong elem", "jitter", "eval", "eval bicubic"],
)
@needs_dali
def test_backends_agree(index: SampleIndex, recipe: Any) -> None:
    dali, torchvision = (batches_of(index, recipe, backend=name) for name in ("dali", "torchvision"))
    assert len(dali) == len(torchvision) == (2 if isinstance(recipe, TrainRecipe) else 3)
    for (images, targets), (expected, labels) in zip(dali, torchvision, strict=True):
        assert images.shape == expected.shape
        assert torch.equal(targets, labels)
        assert levels(images, expected, recipe) <= 1


def test_epochs_and_seeds_differ(index: SampleIndex, reference: Batches) -> None:
    for other in (batches_of(index, epoch=2), batches_of(index, seed=6)):
        assert not any(torch.equal(x, u) for (x, _), (u, _) in zip(other, reference, strict=True))
    plans = [load(index, STRONG, seed=seed).plan.batch(epoch, 0) for seed, epoch in ((5, 1), (5, 2), (6, 1))]
    at = [{int(i): plan.crop_box[row].tolist() for row, i in enumerate(plan.source_index)} for plan in plans]
    for other_boxes in at[1:]:
        both = at[0].keys() & other_boxes.keys()
        assert both
        assert sum(at[0][i] == other_boxes[i] for i in both) <= len(both) // 4


# ---- ranks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_ranks_together_see_the_pixels_of_one_process(index: SampleIndex, backend: str, mode: str) -> None:
    """Images, partners and soft targets of the same global batch over 1, 2, 3 and 4 ranks, bit for bit."""
    recipe = STRONG.replace(mixup_mode=mode)
    whole = batches_of(index, recipe, backend=backend)
    for world in (2, 3, 4) if mode == "batch" else (3,):
        parts = []
        for rank in range(world):
            options = {"batch_size": 24 // world, "rank": rank, "world_size": world}
            loader = load(index, recipe, backend=backend, **options)
            loader.set_epoch(1)
            with loader:
                parts.append((loader.plan, list(loader)))
        for step, (images, targets) in enumerate(whole):
            seen = np.concatenate([plan.positions(step) for plan, _ in parts]) - 24 * step
            assert sorted(seen.tolist()) == list(range(24))
            assert torch.equal(torch.cat([batches[step][0] for _, batches in parts]), images[seen])
            assert torch.equal(torch.cat([batches[step][1] for _, batches in parts]), targets[seen])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("samples", "world", "batch"), [(4, 4, 2), (3, 3, 1), (10, 3, 2), (12, 2, 3), (13, 4, 3)])
def test_evaluation_counts_every_sample_once(
    tmp_path: Path, backend: str, samples: int, world: int, batch: int
) -> None:
    data = SampleIndex.from_folder(make_folder(tmp_path / "data", samples), cache=False)
    recipe = EvalRecipe(input_size=32)
    expected = torch.cat([images for images, _ in batches_of(data, recipe, batch_size=samples, backend=backend)])
    seen, steps = [], set()
    for rank in range(world):
        with load(data, recipe, batch_size=batch, rank=rank, world_size=world, backend=backend) as loader:
            rows = 0
            for step, (images, targets) in enumerate(loader):
                index = loader.plan.samples(0, step)
                real = torch.from_numpy(index >= 0)
                assert (targets[~real] == -100).all()
                assert (images[~real] == 0).all()
                assert torch.equal(targets[real], torch.from_numpy(data.labels[index[index >= 0]]))
                assert torch.equal(images[real], expected[index[index >= 0]])
                seen += index[index >= 0].tolist()
                rows += len(targets)
            steps.add((len(loader), rows))
    assert sorted(seen) == list(range(samples))
    assert len(steps) == 1  # as many steps and rows on every rank


# ---- fresh processes


_CHILD = """
import hashlib, json, sys
import numpy as np, torch
from dali_imagenet import SampleIndex, TrainRecipe, create_loader
torch.set_num_threads(1)
if __name__ == "__main__":
    folder, jobs = sys.argv[1], json.loads(sys.argv[2])
    for options in jobs:
        recipe = TrainRecipe.strong(input_size=48, re_prob=0.5, re_mode="pixel")
        with create_loader(folder, recipe, device="cpu", seed=5, **options) as loader:
            loader.set_epoch(1)
            rows = [[i[r].numpy().tobytes() + t[r].numpy().tobytes() for r in range(len(t))] for i, t in loader]
            print(json.dumps([[[int(p), hashlib.sha256(row).hexdigest()] for p, row in zip(loader.plan.positions(s), b)]
                              for s, b in enumerate(rows)]))
            print(json.dumps(loader.state_dict()), file=sys.stderr)
"""


def test_processes_of_their_own(index: SampleIndex, tmp_path: Path) -> None:
    """Two ranks and one process, each a fresh interpreter with its own hash seed, give the same rows and state."""
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    commands = [
        [{"backend": b, "batch_size": 24, "num_workers": 1, "multiprocessing_context": "spawn"} for b in HERE],
        [{"backend": b, "batch_size": 12, "num_workers": 0, "rank": 0, "world_size": 2} for b in HERE],
        [{"backend": b, "batch_size": 12, "num_workers": 2, "rank": 1, "world_size": 2} for b in HERE],
    ]
    running = []
    for number, jobs in enumerate(commands):
        running.append(start(str(script), index.root, json.dumps(jobs), env={"PYTHONHASHSEED": str(number)}))
    lines, states = [], []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        lines.append([json.loads(line) for line in out.splitlines()])
        states.append([json.loads(line) for line in err.splitlines() if line.startswith("{")])
    for number in range(len(HERE)):
        whole, first, second = (line[number] for line in lines)
        for step in range(2):
            assert len(whole[step]) == 24
            assert dict(whole[step]) == dict(first[step]) | dict(second[step])
        assert states[0][number] == states[1][number] == states[2][number]


# ---- no side effects


def _global_states() -> list[Any]:
    numpy_state = np.random.get_state()
    return [random.getstate(), [np.asarray(v).tolist() for v in numpy_state], torch.get_rng_state().tolist()]


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_global_generators_are_left_alone(index: SampleIndex, backend: str, workers: int) -> None:
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = _global_states()
        with load(index, STRONG, backend=backend, num_workers=workers) as loader:
            loader.set_epoch(1)
            batches = list(loader)
            json.dumps(loader.state_dict())
            assert _global_states() == before
            loader.set_epoch(1)
            drawn = []
            for images, targets in loader:  # a user who draws between batches
                drawn.append((images, targets))
                _ = random.random(), np.random.rand(seed), torch.rand(seed)
        assert same(drawn, batches)
        found.append(batches)
    assert same(*found)


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_inference_mode_changes_nothing(index: SampleIndex, backend: str, workers: int) -> None:
    """As evaluation functions use it: the loader made and iterated inside, and iterated again outside."""
    for recipe in (STRONG, EvalRecipe(input_size=48)):
        expected = batches_of(index, recipe, epoch=0, backend=backend)
        with torch.inference_mode():
            loader = load(index, recipe, backend=backend, num_workers=workers)
            found = list(loader)
            assert same(found, expected)
        with loader:
            loader.set_epoch(0)
            found += list(loader)
            assert same(found, expected * 2)
            found[0][0].add_(1)  # still the user's to write


# ---- evaluation is torchvision's


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("short", [64, 73])
def test_evaluation_is_torchvisions_own(index: SampleIndex, backend: str, interpolation: Any, short: int) -> None:
    """Against Resize, CenterCrop, ToTensor, Normalize on PIL images: their own arithmetic rounds once more."""
    recipe = EvalRecipe(input_size=56, resize_size=short, interpolation=interpolation)
    images = torch.cat([part for part, _ in batches_of(index, recipe, backend=backend)])
    reference = transforms.Compose(
        [
            transforms.Resize(short, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )
    expected = torch.stack([reference(Image.open(path).convert("RGB")) for path, _ in index.samples])
    assert levels(images, expected, recipe) <= 0.2
