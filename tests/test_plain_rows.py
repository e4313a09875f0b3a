"""Rows that one call of C makes: the bits of the steps, which make what is not plain, and say what is wrong."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dali_imagenet import BadImageError, EvalRecipe, SampleIndex, TrainRecipe, create_loader, plain_rows
from dali_imagenet.decode import decode as decoding
from dali_imagenet.decode import seek_index
from dali_imagenet.image import decode_and_resize
from dali_imagenet.plain_rows import PlainRows, Target
from dali_imagenet.transforms import normalize_erase
from tests.helpers import DTYPES, MEMORY_FORMATS, Batches, copied, encode, load, photo, same, write

kernels: Any = plain_rows._kernels
pytestmark = pytest.mark.skipif(
    not hasattr(kernels, "row") or decoding._jpeg is None,
    reason="the C modules were not built, or not for x86-64",
)
FORMS: list[dict[str, Any]] = [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"mode": "L"}]
JITTER = (0.4, 0.4, 0.4, 0.1)
SIZES = [(48, 64), (33, 47), (150, 9), (9, 150), (3, 3), (1, 1), (201, 173)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain ones of all kinds and sizes, and three that are not."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (form, (height, width)) in enumerate((form, size) for form in FORMS for size in SIZES):
        options = {"quality": 90, "restart_marker_blocks": 3 * (number % 2)} | form
        data = encode(photo(rng, height, width, options.pop("mode", "RGB")), **options)
        write(root / f"{number % 3}" / f"{number:02d}.JPEG", data)
    write(root / "0" / "progressive.JPEG", encode(photo(rng, 50, 60), progressive=True))
    write(root / "1" / "four.JPEG", encode(photo(rng, 50, 60, "CMYK")))
    write(root / "2" / "a.png", encode(photo(rng, 50, 60), "PNG"))
    return root


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each row that was tried in one call was made in it."""
    found: list[bool] = []

    def row(*arguments: Any) -> Any:
        made = kernels.row(*arguments)
        found.append(made is not None)
        return made

    for module in (decoding, seek_index, normalize_erase):
        monkeypatch.setattr(module, "ORACLE", False)
    monkeypatch.setattr(plain_rows, "_kernels", SimpleNamespace(row=row, float16=kernels.float16))
    return found


def epochs(data: Any, recipe: Any, count: int = 2, **options: Any) -> tuple[Batches, dict[str, str]]:
    """The batches and what failed."""
    with load(data, recipe, **options) as loader:
        return [batch for _ in range(count) for batch in copied(loader)], dict(loader.failures)


def stepwise(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> tuple[Batches, dict[str, str]]:
    with monkeypatch.context() as patch:
        patch.setattr(plain_rows, "region_decoder", lambda: None)
        return epochs(*arguments, **options)


RECIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "classic": (TrainRecipe(input_size=48, vflip=0.5), {}),
    "bicubic, colour": (
        TrainRecipe(input_size=(40, 23), interpolation="bicubic", color_jitter=(0.4, 0.4, 0.4, 0.1)),
        {},
    ),
    "strong": (TrainRecipe.strong(input_size=32), {"dtype": torch.bfloat16}),
    "erasing alone": (TrainRecipe(input_size=32, re_prob=0.7, re_mode="pixel"), {"memory_format": torch.channels_last}),
    "any filter": (TrainRecipe(input_size=32, interpolation="random"), {}),
    "padded": (TrainRecipe(input_size=32, crop="random", resize_size=36, crop_padding=4), {}),
    "eval": (EvalRecipe(input_size=40), {}),
    "eval, bicubic, beyond the border": (EvalRecipe(input_size=40, interpolation="bicubic", crop_mode="border"), {}),
    "eval, squashed": (EvalRecipe(input_size=40, crop_mode="squash", crop_pct=1.0), {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_batches_are_those_of_the_steps(
    pictures: Path, calls: list[bool], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe, options = RECIPES[name]
    expected = stepwise(monkeypatch, pictures, recipe, **options)
    assert not calls
    found = epochs(pictures, recipe, **options)
    assert same(found[0], expected[0])
    assert sum(calls) > 5


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_batch(
    pictures: Path, calls: list[bool], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, memory_format: Any
) -> None:
    arguments: Any = (pictures, EvalRecipe(input_size=17, crop_pct=1.0, interpolation="bicubic"))
    options: Any = {"dtype": dtype, "memory_format": memory_format}
    expected, _ = stepwise(monkeypatch, *arguments, **options)
    found, _ = epochs(*arguments, **options)
    assert same(found, expected)
    assert all(images.is_contiguous(memory_format=memory_format) for images, _ in found)
    assert any(calls) == (dtype != torch.float16 or kernels.float16)


def test_a_row_without_postprocess_is_its_pixels(pictures: Path, calls: list[bool]) -> None:
    index = SampleIndex.from_folder(pictures, progress=False)
    recipe = TrainRecipe(input_size=32, color_jitter=JITTER)
    made, rows = Target.of(torch.zeros((8, 3, 32, 32), dtype=torch.uint8)), PlainRows(index, None, None)
    with create_loader(index, recipe, batch_size=8, backend="torchvision", device="cpu", num_workers=0) as loader:
        plan = loader.plan.batch(0, 0)
        for row in range(8):
            if rows.make(plan, row, made)[0]:
                assert torch.equal(made.images[row], decode_and_resize(index, plan, row)[0])
    assert sum(calls) > 4


def test_what_is_not_plain_is_tried_once_and_read_once(tmp_path: Path, pictures: Path, calls: list[bool]) -> None:
    file = tmp_path / "pictures.tar"
    with tarfile.open(file, "w") as tar:
        tar.add(pictures, "pictures")
    index = SampleIndex.open(file, progress=False)
    read: list[int] = []
    source, plain_read = index.source, index.source.read
    # a method is replaced by one that notes what it is asked for, and append returns nothing
    source.read = lambda sample: read.append(sample) or plain_read(sample)  # type: ignore[method-assign, func-returns-value]
    found, _ = epochs(index, EvalRecipe(input_size=40))
    assert sorted(read) == sorted(2 * list(range(len(index))))
    tried = calls.count(False)
    assert 0 < tried < 10
    assert same(found, epochs(pictures, EvalRecipe(input_size=40))[0])
    assert calls.count(False) == 2 * tried


def test_failures_are_named_as_by_the_steps(tmp_path: Path, calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    files = [write(tmp_path / "data" / "c" / f"{i}.JPEG", encode(photo(rng, 60, 70))) for i in range(12)]
    index = SampleIndex.from_folder(tmp_path / "data", progress=False)
    files[1].unlink()
    data = files[2].read_bytes()
    files[2].write_bytes(data[:-20])
    files[3].write_bytes(data[:300] + bytes(len(data) - 300))
    files[4].write_bytes(encode(photo(rng, 30, 30)).ljust(index.file_size[4], b"\0"))
    options: dict[str, Any] = {"on_error": "replace", "max_broken": 1.0, "count": 1}
    for recipe in (TrainRecipe(input_size=32), EvalRecipe(input_size=32)):
        expected, why = stepwise(monkeypatch, index, recipe, **options)
        found, failures = epochs(index, recipe, **options)
        assert same(found, expected)
        assert failures == why
        assert len(failures) >= 3
    with pytest.raises(BadImageError, match=r"1\.JPEG: FileNotFoundError"):
        epochs(index, EvalRecipe(input_size=32))
    assert True in calls
    assert False in calls


def test_several_views_share_a_box_that_is_decoded_once(pictures: Path, calls: list[bool]) -> None:
    with load(pictures, TrainRecipe(input_size=24), views=2) as loader:
        next(iter(loader))
    assert not calls


def test_other_decoders_come_first(pictures: Path, calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    own = decoding.Decoder("my own", lambda: True, lambda *arguments, **options: None)
    monkeypatch.setattr(decoding, "DECODERS", (own, *decoding.DECODERS))
    epochs(pictures, EvalRecipe(input_size=40), 1)
    assert not calls


def arguments(**changes: Any) -> list[Any]:
    """Of a call that is right, but for the changes."""
    given = {
        "decoder": getattr(decoding._jpeg, "decoder", None),
        "file": (encode(photo(np.random.default_rng(0), 20, 30)), -1),
        "size": (20, 30),
        "box": (2, 3, 10, 12),
        "resize": ((8, 9), (0.0, 0.0), False),
        "window": (1, 1, 7, 8),
        "flips": (False, True),
        "matrix": np.eye(3, 4, dtype=np.float32),
        "numbers": np.ones(6, np.float32),
        "memory": bytearray(3 * (10 * 12 + 2 * 7 * 8)),
        "out": (np.zeros((2, 3, 7, 8), np.float32), 1, 0, False),
        "slot": None,
    }
    return list((given | changes).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": bytearray(3 * (10 * 12 + 2 * 7 * 8) - 1)},
        {"file": (b"x.JPEG", 2**62)},
        {"window": (2, 1, 7, 8)},
        {"resize": ((8, 2**40), (0.0, 0.0), False)},
        {"box": (2, 3, 0, 12)},
        {"numbers": np.ones(3, np.float32)},
        {"numbers": None},
        {"matrix": np.eye(3, 4)},
        {"out": (np.zeros((2, 3, 7, 8), np.float32), 2, 0, False)},
        {"out": (np.zeros((2, 3, 7, 8), np.float32), -1, 0, False)},
        {"out": (np.zeros((2, 3, 7, 8), np.float32), 1, 3, False)},
        {"out": (np.zeros((2, 3, 7, 8), np.float32), 1, 4, False)},
    ],
)
def test_what_the_call_refuses(changes: dict[str, Any]) -> None:
    assert kernels.row(*arguments()) == (0, b"")
    with pytest.raises(ValueError, match="wants a file, sizes"):
        kernels.row(*arguments(**changes))


@pytest.mark.parametrize("box", [(2, 3, 10, 28), (-1, 3, 10, 12), (11, 0, 10, 12)])
def test_a_box_beside_the_image_is_not_made(box: tuple[int, ...]) -> None:
    assert kernels.row(*arguments(box=box, memory=bytearray(10_000))) is None


def test_a_file_of_another_length_is_not_made(tmp_path: Path) -> None:
    data = arguments()[1][0]
    file, room = bytes(write(tmp_path / "x.JPEG", data)), bytearray(10_000)
    for length, made in ((len(data), True), (len(data) - 1, False), (len(data) + 1, False), (0, False)):
        assert (kernels.row(*arguments(file=(file, length), memory=room)) is not None) == made
    assert kernels.row(*arguments(file=(b"/no/such/file", 5), memory=room)) is None
    with pytest.raises(ValueError, match="null byte"):
        kernels.row(*arguments(file=(b"a\0b", 5), memory=room))
    with pytest.raises(TypeError):
        kernels.row(*arguments(file=("text", -1), memory=room))
    with pytest.raises(ValueError, match=r"decode_box|invalid PyCapsule"):
        kernels.row(*arguments(decoder=object(), memory=room))
