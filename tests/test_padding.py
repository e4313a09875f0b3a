"""What fills up the last batch, in evaluation and in training, for every number of images and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import EvalRecipe, Plan, SampleIndex, TrainRecipe
from tests.helpers import ENGINES, load, write

PICTURES = Path(__file__).parent / "data" / "pictures"
EVAL = EvalRecipe(input_size=16)


def made_up(n: int) -> SampleIndex:
    return SampleIndex.from_arrays(np.arange(n) % 7, np.full(n, 40), 50)


def ranks_of(n: int, batch: int, world: int, recipe: Any = EVAL, **options: Any) -> list[list[Any]]:
    """The plans of every rank, step by step."""
    plans = [Plan(made_up(n), recipe, batch_size=batch, rank=r, world_size=world, **options) for r in range(world)]
    return [[plan.batch(1, step) for step in range(len(plan))] for plan in plans]


@pytest.mark.parametrize("padding", ["ignore", "short", "repeat"])
@pytest.mark.parametrize(("batch", "world"), [(1, 1), (3, 2), (4, 3), (2, 8), (5, 4)])
def test_evaluation_counts_every_image_once_and_no_rank_is_without(padding: Any, batch: int, world: int) -> None:
    for n in {*range(world, world + 6), *range(max(world, 2 * batch * world - 2), 2 * batch * world + 4)}:
        ranks = ranks_of(n, batch, world, padding=padding)
        assert len({len(steps) for steps in ranks}) == 1
        seen = np.concatenate([plan.source_index for steps in ranks for plan in steps])
        real = np.sort(seen[seen >= 0])
        assert all((~plan.is_padding).any() for steps in ranks for plan in steps)
        assert all(len(plan) <= batch for steps in ranks for plan in steps)
        if padding == "repeat":
            assert len(seen) == len(real)
            counts = np.bincount(real, minlength=n)
            extra = len(real) - n
            assert extra < 2 * world * batch
            assert (counts >= 1).all()
            assert set(np.flatnonzero(counts > 1)) <= set(range(max(extra, 1)))
        else:
            assert real.tolist() == list(range(n))


def test_a_last_step_with_fewer_images_than_ranks_takes_some_from_the_step_before() -> None:
    ranks = ranks_of(17, 2, 8)
    assert [[int((~plan.is_padding).sum()) for plan in steps] for steps in ranks] == [[2, 1]] + [[1, 1]] * 7
    assert [steps[1].source_index.tolist() for steps in ranks] == [[9 + r] for r in range(8)]


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images for 4 ranks"):
        Plan(made_up(3), EVAL, batch_size=2, world_size=4)


@pytest.mark.parametrize("padding", ["repeat", "short"])
def test_padding_is_evaluations(padding: Any) -> None:
    with pytest.raises(ValueError, match=f"padding='{padding}': must be 'ignore' in training"):
        Plan(made_up(8), TrainRecipe(), batch_size=2, padding=padding)
    with pytest.raises(ValueError, match="padding='none'"):
        load(PICTURES, EVAL, padding="none")


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_what_comes_out(backend: str, workers: int) -> None:
    """9 pictures on two ranks, batches of 4: the last step has one, and takes another from the step before."""
    options: dict[str, Any] = {"backend": backend, "num_workers": workers, "batch_size": 4, "world_size": 2}
    with load(PICTURES, EVAL, backend=backend, num_workers=workers) as whole:
        every = torch.cat([images.clone() for images, _ in whole])
    labels = SampleIndex.from_folder(PICTURES).labels
    for padding, shapes in (("ignore", [4, 1]), ("short", [3, 1]), ("repeat", [4, 1])):
        with load(PICTURES, EVAL, rank=1, padding=padding, **options) as loader:
            batches = [(images.clone(), targets) for images, targets in loader]
        assert [len(images) for images, _ in batches] == [len(targets) for _, targets in batches] == shapes
        images, targets = batches[0]
        assert torch.equal(images[:3], every[4:7])
        assert targets[:3].tolist() == labels[4:7].tolist()
        assert torch.equal(batches[1][0], every[8:])
        if padding == "ignore":
            assert targets[3] == -100
            assert not images[3].any()
        if padding == "repeat":
            assert targets[3] == labels[0]
            assert torch.equal(images[3], every[0])
        assert torch.isfinite(torch.nn.functional.cross_entropy(torch.zeros(len(targets), 3), targets))


@pytest.mark.parametrize(("padding", "expected"), [("ignore", [0, -100, 0]), ("short", [0, 0]), ("repeat", [0, 0, 0])])
def test_a_sample_that_is_lost_is_padding(tmp_path: Path, padding: str, expected: list[int]) -> None:
    (tmp_path / "apple").mkdir()
    for picture in (PICTURES / "apple").iterdir():
        (tmp_path / "apple" / picture.name).write_bytes(picture.read_bytes())
    index = SampleIndex.from_folder(tmp_path, cache=False)
    Path(index.path(1)).write_bytes(b"gone")
    with load(index, EVAL, on_error="skip", max_broken=1.0, padding=padding) as loader:
        [(images, targets)] = list(loader)
        assert targets.tolist() == expected
        assert len(images) == len(expected)
        assert list(loader.failures) == [index.path(1)]
        if padding == "repeat":
            assert torch.equal(images[1], images[2])


@pytest.mark.parametrize("known", [True, False], ids=["known to the index", "lost when it is read"])
@pytest.mark.parametrize("padding", ["ignore", "short", "repeat"])
@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_no_batch_is_without_an_image(
    tmp_path: Path, backend: str, workers: int, padding: str, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Samples 0 to 3 of 9 are lost, and with them a batch of rank 0 and half of one of rank 1."""
    for picture in PICTURES.rglob("*.*"):
        if picture.is_file():
            write(tmp_path / picture.relative_to(PICTURES), picture.read_bytes())
    every = SampleIndex.from_folder(tmp_path, cache=False)
    for i in range(4):
        Path(every.path(i)).write_bytes(b"gone")
    index = SampleIndex.from_folder(tmp_path, cache=False) if known else every
    options: dict[str, Any] = {"backend": backend, "num_workers": workers, "on_error": "skip", "max_broken": 0.5}
    with load(PICTURES, EVAL, backend=backend, num_workers=workers) as loader:
        expected = torch.cat([images.clone() for images, _ in loader])
    label, lost = every.labels.tolist(), padding == "ignore"
    for rank, first in ((0, [4] + lost * [-1] * 2), (1, (lost * [-1] + [4, 5]))):
        if padding == "repeat":
            first = [[4, 4, 4], [4, 4, 5]][rank]
        caplog.clear()
        with load(index, EVAL, batch_size=3, rank=rank, world_size=2, padding=padding, **options) as loader:
            batches = [(images.clone(), targets) for images, targets in loader]
            assert len(batches) == len(loader) == 2
            rows = loader.explain(0, 0)
        for images, targets in batches:
            assert torch.isfinite(torch.nn.functional.cross_entropy(torch.zeros(len(targets), 3), targets))
            assert len(images) == len(targets)
        assert [row["index"] for row in rows if row["index"] >= 0 or lost] == first
        assert batches[0][1].tolist() == [-100 if i < 0 else label[i] for i in first]
        for image, i in zip(batches[0][0], first, strict=True):
            assert torch.equal(image, expected[i] if i >= 0 else torch.zeros_like(image))
        warned = [message for message in caplog.messages if "stands in" in message]
        if rank == 1 or padding == "repeat":
            assert not warned
        else:
            assert warned == [
                f"step 0: none of the 3 images of rank 0 can be read (on_error='skip'): {every.path(4)} stands in, so "
                "that the mean loss is a number, and counts twice in this evaluation"
            ]


MIXING = {
    "none": TrainRecipe(input_size=16),
    "batch": TrainRecipe(input_size=16, mixup_alpha=0.8, cutmix_alpha=1.0),
    "pair": TrainRecipe(input_size=16, mixup_alpha=0.8, mixup_mode="pair"),
    "elem": TrainRecipe(input_size=16, cutmix_alpha=1.0, mixup_mode="elem"),
    "repeats": TrainRecipe(input_size=16, num_aug_repeats=3),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize(("batch", "world"), [(2, 1), (4, 3), (2, 5)])
def test_training_without_drop_last_works_for_every_number(name: str, batch: int, world: int) -> None:
    recipe = MIXING[name]
    for n in {*range(1, 6), *range(batch * world - 1, batch * world + 4), 2 * batch * world - 1}:
        ranks = ranks_of(n, batch, world, recipe, drop_last=False)
        assert len({len(plan) for steps in ranks for plan in steps[-1:]}) == 1
        position = np.concatenate([plan.position for steps in ranks for plan in steps])
        filled = -(-n // world) * world if n % (batch * world) else n
        assert np.sort(position).tolist() == list(range(filled))
        sampled = {int(p): (int(s), int(r)) for steps in ranks for plan in steps
                   for p, s, r in zip(plan.position, plan.sampled_index, plan.repeat, strict=True)}  # fmt: skip
        order = Plan(made_up(n), recipe.replace(num_aug_repeats=1), batch_size=2, drop_last=False)._ordered
        for place in range(n, filled):
            first = int(order(1, np.array([(place - n) % n]))[0][0])
            assert sampled[place] == (first, recipe.num_aug_repeats)
        last = ranks[0][-1]
        if last.mix is not None and len(last) % 2:
            middle = len(last) // 2
            assert (float(last.mix.lam[middle]), bool(last.mix.use_cutmix[middle])) == (1.0, False)


@pytest.mark.parametrize(("backend", "workers"), ENGINES)
def test_an_odd_last_batch_leaves_its_middle_row_unmixed(backend: str, workers: int) -> None:
    recipe = TrainRecipe(input_size=16, mixup_alpha=5.0, mixup_mode="elem", scale=(1.0, 1.0), hflip=0.0)
    options: dict[str, Any] = {"backend": backend, "num_workers": workers, "batch_size": 6, "drop_last": False}
    with load(PICTURES, recipe, **options) as mixed, load(PICTURES, recipe, **options) as plain:
        plain.mixup_enabled = False
        (_, last), (_, unmixed) = ([(a.clone(), b) for a, b in each] for each in (mixed, plain))
    assert len(last[0]) == 3
    same = [torch.equal(a, b) for a, b in zip(last[0], unmixed[0], strict=True)]
    assert same == [False, True, False]
    assert float(last[1][1].max()) == 1.0
