"""Memory of batches that is used again: never while anything lies on it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import EvalRecipe, TrainRecipe
from dali_imagenet.transforms.recycled import Recycled
from tests.helpers import DTYPES, MEMORY_FORMATS, load, needs_dali

SHAPE = (4, 3, 5, 6)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", [torch.uint8, *DTYPES])
def test_tensors_are_as_new_ones(dtype: torch.dtype, memory_format: Any) -> None:
    recycled = Recycled()
    for _ in range(2):
        made = recycled.empty(SHAPE, dtype, memory_format)
        assert made.shape == SHAPE
        assert made.dtype == dtype
        assert made.stride() == torch.empty(SHAPE, dtype=dtype, memory_format=memory_format).stride()
        made.fill_(3)
        del made
    assert recycled.empty((0, 3, 5, 6), dtype).numel() == 0


@pytest.mark.parametrize(
    "held",
    [
        lambda images: images[1, 2],
        lambda images: images.numpy(),
        lambda images: images.untyped_storage(),
        lambda images: images.detach().view(-1)[7:],
    ],
)
def test_memory_is_not_used_again_while_a_part_of_it_is_held(held: Any) -> None:
    recycled = Recycled()
    images = recycled.empty(SHAPE, torch.float32)
    place, part = images.data_ptr(), held(images)
    del images
    other = recycled.empty(SHAPE, torch.float32)
    assert other.data_ptr() != place
    del part
    assert recycled.empty(SHAPE, torch.float32).data_ptr() == place


def test_few_blocks_wait_and_none_of_another_size() -> None:
    recycled = Recycled()
    many = [recycled.empty(SHAPE, torch.float32) for _ in range(9)]
    many.clear()
    assert len(recycled._free) == 3
    for _ in range(4):
        assert recycled.empty((8, 3, 50, 60), torch.float32).shape == (8, 3, 50, 60)
    assert [block.numel() for block in recycled._free] == [8 * 3 * 50 * 60 * 4]


@needs_dali
@pytest.mark.parametrize(
    "recipe", [TrainRecipe(input_size=32), TrainRecipe.strong(input_size=32), EvalRecipe(input_size=32)]
)
def test_batches_of_dali_are_the_users(folder: Path, recipe: Any) -> None:
    options: dict[str, Any] = {"backend": "dali", "num_workers": 1, "batch_size": 4}
    with load(folder, recipe, **options) as loader:
        batches = [images for epoch in range(2) for images, _ in loader]
        then = [images.clone() for images in batches]
        assert len({images.data_ptr() for images in batches}) == len(batches)
        for images in batches[::2]:
            images.zero_()
        for _ in loader:
            pass
        assert all(torch.equal(a, b) for a, b in zip(batches[1::2], then[1::2], strict=True))
        assert not any(images.any() for images in batches[::2])
        del images
        batches.clear()
        gc.collect()
        places = [images.data_ptr() for images, _ in loader]
        assert len(set(places)) < len(places)
