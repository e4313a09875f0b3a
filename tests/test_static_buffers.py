"""static_buffers=n: batches at addresses that stay, each overwritten n batches later and not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dali_imagenet import EvalRecipe, TrainRecipe
from tests.helpers import copied, load, same

STRONG = TrainRecipe.strong(input_size=32)


@pytest.mark.parametrize("ahead", ["0", "1"])
@pytest.mark.parametrize("count", [1, 2])
def test_addresses_come_again_and_no_sooner(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, ahead: str
) -> None:
    monkeypatch.setenv("DALI_IMAGENET_AHEAD", ahead)
    with load(folder, STRONG, batch_size=4) as loader:
        expected = [*copied(loader), *copied(loader)]
    with load(folder, STRONG, batch_size=4, static_buffers=count, with_index=True) as loader:
        held: list[Any] = []
        for images, targets, index in (batch for _ in range(2) for batch in loader):
            held.append((images, targets, index))
            for (x, y, _), (u, v) in zip(held[-count:], expected[max(0, len(held) - count) : len(held)], strict=True):
                assert torch.equal(x, u)
                assert torch.equal(y, v)
    places = [tuple(part.data_ptr() for part in batch) for batch in held]
    assert len(set(places)) == count
    assert places[count:] == places[:-count]


def test_other_shapes_have_other_memory(folder: Path) -> None:
    options: dict[str, Any] = {"batch_size": 7, "padding": "short", "memory_format": torch.channels_last}
    with load(folder, EvalRecipe(input_size=32), **options) as loader:
        expected = copied(loader)
    with load(folder, EvalRecipe(input_size=32), static_buffers=1, **options) as loader:
        for _ in range(2):
            found = copied(loader)
            assert same(found, expected)
            assert found[-1][0].is_contiguous(memory_format=torch.channels_last)


def test_views_and_own_targets(folder: Path) -> None:
    recipe = TrainRecipe.classic(input_size=32)
    with load(folder, recipe, views=2) as loader:
        expected = [[view.clone() for view in images] for images, _ in loader]
    with load(folder, recipe, views=2, static_buffers=1, targets=torch.arange(24)) as loader:
        places = set()
        for (images, targets), wanted in zip(loader, expected, strict=True):
            assert all(map(torch.equal, images, wanted))
            places.add((images[0].data_ptr(), images[1].data_ptr(), targets.data_ptr()))
    assert len(places) == 1


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2"])
def test_what_it_cannot_be(folder: Path, wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="static_buffers"):
        load(folder, STRONG, static_buffers=wrong)
