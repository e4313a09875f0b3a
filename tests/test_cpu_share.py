"""`cpu_share`: the CPU decodes some of the samples beside DALI, the same ones always; each half is what it is alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.checks.inputs import inputs
from dali_imagenet import BadImageError, EvalRecipe, Loader, SampleIndex, TrainRecipe
from dali_imagenet.rng import unit_hash
from tests import helpers
from tests.helpers import make_folder, needs_dali, saved, workers_of

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_dali]
CLASSIC = TrainRecipe.classic(input_size=32)
RECIPES = {
    "classic": CLASSIC,  # which the graph normalizes
    "policy": TrainRecipe.classic(input_size=32, auto_augment="randaugment", re_prob=0.5, re_mode="pixel"),
    "eval": EvalRecipe(input_size=32),
}
COUNT, SHARE = 42, 0.4
ON_CPU = unit_hash(np.arange(COUNT)) < SHARE
Images = dict[tuple[int, int, int], Tensor]
"""By epoch, sample and view."""


def load(data: Any, recipe: Any, backend: str = "dali", **options: Any) -> Loader:
    """With DALI's graph in the form that it has on a GPU, whose pixels differ from the CPU's."""
    options = {"num_workers": 2, "drop_last": False, "seed": 5, "with_index": True} | options
    loader = helpers.load(data, recipe, backend=backend, **options)
    if backend == "dali":
        loader._options = dataclasses.replace(loader._options, in_graph=True)
    return loader


def images_of(loader: Loader, epochs: int = 1) -> Images:
    found: Images = {}
    for epoch in range(epochs):
        for images, _, samples in loader:
            for view, batch in enumerate(images if isinstance(images, list) else [images]):
                found |= {(epoch, sample, view): batch[row].clone() for row, sample in enumerate(samples.tolist())}
    return {at: image for at, image in found.items() if at[1] >= 0}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return SampleIndex.from_folder(make_folder(tmp_path_factory.mktemp("share") / "data", COUNT, seed=4))


@functools.cache
def alone(index: SampleIndex, recipe: str, backend: str, views: int) -> Images:
    with load(index, RECIPES[recipe], backend, num_workers=1, views=views) as loader:
        return images_of(loader, 2)


def assert_shared(found: Images, index: SampleIndex, recipe: str, views: int = 1) -> None:
    """Each image is that of the backend whose it is, to the bit; the two differ, or this would say nothing."""
    cpu, dali = alone(index, recipe, "torchvision", views), alone(index, recipe, "dali", views)
    for at, image in found.items():
        mine, other = (cpu, dali) if ON_CPU[at[1]] else (dali, cpu)
        assert torch.equal(image, mine[at]), at
        assert not torch.equal(image, other[at]), at


# ---- who decodes what


def test_the_hash_is_splitmix64() -> None:
    """Its first outputs with seed 0, as its authors' own C code and Java's SplittableRandom give them."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert unit_hash(np.arange(3)).tolist() == [(number >> 11) / 2**53 for number in known]
    many = unit_hash(np.arange(1 << 20))
    assert 0 <= many.min() < many.max() < 1
    for start in range(0, 1 << 20, 1 << 16):  # a class, say: its samples lie side by side
        assert abs((many[start : start + (1 << 16)] < 0.3).mean() - 0.3) < 0.01


@pytest.mark.parametrize(("recipe", "views"), [("classic", 1), ("policy", 1), ("eval", 1), ("policy", 2)])
def test_each_half_has_the_pixels_of_its_backend(index: SampleIndex, recipe: str, views: int) -> None:
    assert 10 < ON_CPU.sum() < COUNT - 10
    with load(index, RECIPES[recipe], cpu_share=SHARE, views=views) as loader:
        found = images_of(loader, 2)
    assert len(found) == 2 * COUNT * views
    assert_shared(found, index, recipe, views)


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (5, 2), (64, 1)])
@pytest.mark.parametrize("recipe", ["classic", "eval"])
def test_neither_batch_nor_rank_decides(index: SampleIndex, recipe: str, batch_size: int, world_size: int) -> None:
    found: Images = {}
    for rank in range(world_size):
        options: dict[str, Any] = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        with load(index, RECIPES[recipe], cpu_share=SHARE, **options) as loader:
            found |= images_of(loader)
    assert len(found) == COUNT
    assert_shared(found, index, recipe)


@pytest.mark.parametrize(("share", "backend"), [(0, "dali"), (1, "torchvision")])
def test_all_of_it_is_one_of_the_backends(index: SampleIndex, share: float, backend: str) -> None:
    with load(index, CLASSIC, cpu_share=share) as loader:
        found = images_of(loader, 2)
    expected = alone(index, "classic", backend, 1)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[at], expected[at]) for at in found)


def test_mixing_comes_after_it(index: SampleIndex) -> None:
    """Targets are the same; the images of pairs that are both of one half are, too."""
    recipe = TrainRecipe.strong(input_size=32, color_twist=None)
    found = {}
    for backend, share in (("torchvision", None), ("dali", None), ("dali", SHARE)):
        with load(index, recipe, backend, cpu_share=share) as loader:
            found[backend, share] = [[part.clone() for part in batch] for batch in loader]
    pairs = 0
    for cpu, dali, shared in zip(*found.values(), strict=True):
        assert torch.equal(shared[1], cpu[1])
        of_cpu = torch.from_numpy(ON_CPU)[shared[2]]
        for row in (of_cpu == of_cpu.flip(0)).nonzero()[:, 0].tolist():
            assert torch.equal(shared[0][row], (cpu if of_cpu[row] else dali)[0][row])
            pairs += 1
    assert pairs > 10


def test_what_dali_does_not_know_comes_first_and_counts(new_folder: Callable[..., Path]) -> None:
    """A quarter is PNG: of a share of 40% of all, a fifth of the others is left."""
    root = new_folder(40)
    index = SampleIndex.from_folder(root)
    for sample in range(0, 40, 4):
        path = Path(index.path(sample))
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    index = SampleIndex.from_folder(root)
    png = np.array([index.path(sample).endswith(".png") for sample in range(40)])
    with load(index, CLASSIC, cpu_share=0.1) as little, load(index, CLASSIC, cpu_share=0.4) as more:
        engines: list[Any] = [little._open_engine(), more._open_engine()]
        chosen = [engine._needs_cpu_decode for engine in engines]
        assert len(images_of(more)) == 40
    assert chosen[0].tolist() == png.tolist()
    assert chosen[1].tolist() == (png | (unit_hash(np.arange(40)) < (0.4 - 0.25) / 0.75)).tolist()


def test_rows_of_jpegs_are_remembered(index: SampleIndex) -> None:
    """By the CPU's half alone, as the torchvision backend does; the pixels are the same."""
    own = index[:]
    with load(own, CLASSIC, cpu_share=SHARE, jpeg_index=True) as loader:
        images_of(loader, 2)
        told = loader.jpeg_index
        assert told is not None
        assert told["from the top"] + told["from a row"] >= 2 * ON_CPU.sum()
        assert told["from a row"] > 0
    with load(index, CLASSIC, jpeg_index=True) as loader:
        assert loader.jpeg_index is None


# ---- what is saved


@pytest.mark.parametrize("asked", [None, SHARE])
def test_a_resume_keeps_the_share(index: SampleIndex, asked: float | None, caplog: pytest.LogCaptureFixture) -> None:
    with load(index, RECIPES["policy"], cpu_share=SHARE) as loader:
        batches = iter(loader)
        next(batches)
        state = saved(loader)
        rest = [images.clone() for images, *_ in batches]
    assert state["cpu_share"] == SHARE
    with load(index, RECIPES["policy"], cpu_share=asked) as loader, caplog.at_level(logging.WARNING):
        next(iter(loader))  # with another engine, where no share was asked for
        loader.load_state_dict(state)
        assert (loader.cpu_share, loader.state_dict()["cpu_share"]) == (SHARE, SHARE)
        again = [images.clone() for images, *_ in loader]
    assert len(again) == len(rest)
    assert all(map(torch.equal, again, rest))
    assert not caplog.text


@pytest.mark.parametrize(("before", "here"), [(SHARE, 0), (SHARE, 0.5), (None, 0.5)])
def test_another_share_than_the_saved_one_is_not_silent(
    index: SampleIndex, before: float | None, here: float, caplog: pytest.LogCaptureFixture
) -> None:
    with load(index, CLASSIC, cpu_share=before) as loader:
        state = saved(loader)
    assert ("cpu_share" in state) == bool(before)
    with load(index, CLASSIC, cpu_share=here) as loader, caplog.at_level(logging.WARNING):
        loader.load_state_dict(state)
        assert loader.cpu_share == here
        assert f"saved with cpu_share={before or 0:g} goes on with {here:g}: pixels differ" in caplog.text


def test_auto_goes_on_with_backend_and_share(index: SampleIndex) -> None:
    with load(index, CLASSIC, cpu_share=SHARE) as loader:
        state = saved(loader)
    with load(index, CLASSIC, backend="auto") as loader:
        assert (loader.backend, loader.cpu_share) == ("torchvision", 0)
        loader.load_state_dict(state)
        assert (loader.backend, loader.cpu_share) == ("dali", SHARE)
        with pytest.raises(ValueError, match=r"cpu_share='all': must be a number in \[0, 1\]"):
            loader.load_state_dict(state | {"cpu_share": "all"})


def test_an_image_is_made_again(index: SampleIndex) -> None:
    with load(index, RECIPES["policy"], cpu_share=SHARE) as loader:
        images, _, samples = next(iter(loader))
        rows = loader.explain(0)
        for row in (int(ON_CPU[samples].argmax()), int((~ON_CPU[samples]).argmax())):
            assert torch.equal(loader.render(rows[row]), images[row])


# ---- trouble


def test_what_is_refused(index: SampleIndex, caplog: pytest.LogCaptureFixture) -> None:
    for share in (-0.1, 1.01, float("nan"), "half", True):
        with pytest.raises(ValueError, match=r"cpu_share=.*: must be a number in \[0, 1\]"):
            load(index, CLASSIC, cpu_share=share)
    for backend in ("torchvision", "reference"):
        with pytest.raises(ValueError, match=f"0 or left out: backend='{backend}' decodes everything on the CPU"):
            load(index, CLASSIC, backend, cpu_share=0.5)
        load(index, CLASSIC, backend, cpu_share=0).close()
    with caplog.at_level(logging.WARNING), load(index, CLASSIC, "auto", cpu_share=0.5) as loader:
        assert (loader.cpu_share, "cpu_share" in loader.state_dict()) == (0, False)
    assert "cpu_share=0.5 has no effect: the torchvision backend on cpu does not use it" in caplog.text


@pytest.mark.parametrize(("recipe", "policy"), [("classic", "replace"), ("eval", "skip")])
def test_broken_files_of_either_half(new_folder: Callable[..., Path], recipe: str, policy: Any) -> None:
    """Lost, replaced and reported as without a share; a substitute is its own half's."""
    index = SampleIndex.from_folder(new_folder(COUNT))
    damage = ("cut in the body", "zero bytes", "a link loop")
    halves = [np.flatnonzero(half)[:3] for half in (ON_CPU, ~ON_CPU)]
    for sample, name in itertools.chain(*(zip(half, damage, strict=True) for half in halves)):
        path = Path(index.path(int(sample)))
        path.unlink()
        inputs()[name].make(path)
    found = {}
    for backend, share in (("torchvision", None), ("dali", SHARE)):
        options: dict[str, Any] = {"on_error": policy, "max_broken": 1.0, "cpu_share": share}
        with load(index, RECIPES[recipe], backend, **options) as loader:
            batches = [(targets.clone(), samples) for _, targets, samples in loader]
            found[backend] = batches, loader.failures, images_of(loader)
    assert set(found["dali"][1]) == set(found["torchvision"][1])
    assert {index.path(int(sample)) for sample in itertools.chain(*halves)} == set(found["dali"][1])
    for ours, theirs in zip(found["dali"][0], found["torchvision"][0], strict=True):
        assert all(map(torch.equal, ours, theirs))
    same = [torch.equal(image, found["torchvision"][2][at]) for at, image in found["dali"][2].items()]
    assert same == [bool(ON_CPU[sample]) for _, sample, _ in found["dali"][2]]


def test_a_broken_file_stops_the_run(new_folder: Callable[..., Path]) -> None:
    index = SampleIndex.from_folder(new_folder(COUNT))
    path = Path(index.path(int(ON_CPU.argmax())))
    path.write_bytes(path.read_bytes()[:200])
    with load(index, CLASSIC, cpu_share=SHARE) as loader, pytest.raises(BadImageError, match=path.name):
        images_of(loader)


def test_leaving_early_leaves_nothing(index: SampleIndex) -> None:
    """And the next epoch is what it is after a whole one."""
    before = set(workers_of())
    with load(index, CLASSIC, cpu_share=SHARE, prefetch=4) as loader:
        for _ in loader:
            break
        assert_shared({(1, sample, 0): image for (_, sample, _), image in images_of(loader).items()}, index, "classic")
    assert not set(workers_of()) - before
