"""timm's create_loader by its own arguments: the same signature, samples and pixels, and what is refused."""

from __future__ import annotations

import inspect
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data.dataset import AugMixDataset, ImageDataset, IterableImageDataset
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader as timms
from timm.data.mixup import FastCollateMixup
from timm.data.real_labels import RealLabelsImagenet
from torch import Tensor

from dali_imagenet import EvalRecipe, TrainRecipe, UntranslatableError
from dali_imagenet.integrations.timm import TimmLoader, create_loader
from dali_imagenet.recipe import IMAGENET_STD
from tests.helpers import encode_small, hf_dataset, make_folder, python, script, write

CPU = torch.device("cpu")
EVAL: dict[str, Any] = {"input_size": (3, 32, 32), "batch_size": 5, "num_workers": 0, "device": CPU}
TRAIN: dict[str, Any] = {**EVAL, "batch_size": 4, "is_training": True, "interpolation": "random"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen images of classes 1, 2, 10, which sort otherwise as text."""
    root = make_folder(tmp_path_factory.mktemp("timm"), 24, 3)
    for folder, name in zip(sorted(root.iterdir()), ("class1", "class10", "class2"), strict=True):
        folder.rename(root / name)
    return root


def made(data: Path, **arguments: Any) -> TimmLoader:
    return create_loader(create_dataset("", str(data)), **arguments)


def recipe_of(data: Path, **arguments: Any) -> Any:
    with made(data, **{**TRAIN, **arguments}) as loader:
        return loader.recipe


def joined(loader: Any) -> tuple[Tensor, Tensor]:
    images, targets = (torch.cat(parts) for parts in zip(*((a.clone(), b.clone()) for a, b in loader), strict=True))
    return images, targets


def test_the_signature_is_timms() -> None:
    theirs, ours = (inspect.signature(function).parameters for function in (timms, create_loader))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


def test_every_argument_is_in_the_documents_table() -> None:
    page = (Path(__file__).parent.parent / "docs" / "timm.md").read_text(encoding="utf-8")
    table = page.partition("## Arguments")[2].partition("\n## ")[0]
    missing = [name for name in inspect.signature(create_loader).parameters if f"`{name}`" not in table]
    assert not missing


@pytest.mark.parametrize(
    "arguments",
    [
        {"interpolation": "bicubic", "crop_pct": 0.9},
        {"input_size": (3, 32, 48), "crop_mode": "border"},
        {"crop_mode": "squash", "crop_pct": 1.0, "use_prefetcher": False},
    ],
)
def test_evaluation_gives_what_timms_gives(data: Path, arguments: dict[str, Any]) -> None:
    given = {**EVAL, **arguments}
    with made(data, **given) as loader:
        assert isinstance(loader.recipe, EvalRecipe)
        images, targets = joined(loader)
        again, _ = joined(loader)
    expected, labels = joined(timms(create_dataset("", str(data)), **given))
    assert torch.equal(targets, labels)  # classes in natural order
    assert torch.equal(images, again)
    assert float(((images - expected) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).abs().mean()) < 0.2


def test_a_tar_has_timms_samples(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(data, "some")
    given = {**EVAL, "interpolation": "bicubic"}
    with create_loader(create_dataset("", str(tmp_path / "some.tar")), **given) as loader:
        images, targets = joined(loader)
    expected, labels = joined(timms(create_dataset("", str(tmp_path / "some.tar")), **given))
    assert torch.equal(targets, labels)
    assert float(((images - expected) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).abs().mean()) < 0.2


def test_torchvisions_folder_is_read_too(data: Path) -> None:
    with create_loader(create_dataset("torch/image_folder", str(data)), **EVAL) as loader:
        assert loader.loader.dataset.classes == ("class1", "class10", "class2")
        assert len(joined(loader)[0]) == 24


def test_a_hub_dataset_has_its_rows_and_labels(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "hub").mkdir()
    hf_dataset(data).to_parquet(str(tmp_path / "hub" / "train.parquet"))
    dataset = create_dataset(f"hfds/{tmp_path / 'hub'}", str(tmp_path / "cache"), split="train")
    expected, labels = joined(timms(dataset, **EVAL))
    with create_loader(dataset, **EVAL) as loader:
        images, targets = joined(loader)
    assert torch.equal(targets, labels)
    assert float(((images - expected) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).abs().mean()) < 0.2


def test_real_labels_go_by_the_datasets_names(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"c{i % 2}" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", encode_small())
    (tmp_path / "real.json").write_text(json.dumps([[0], [1], [0, 1], [], [1], [1]]), encoding="utf-8")
    with made(tmp_path, **EVAL) as loader:
        real = RealLabelsImagenet(
            loader.dataset.filenames(basename=True), real_json=str(tmp_path / "real.json"), topk=(1,)
        )
        for _, targets in loader:
            real.add_result(torch.nn.functional.one_hot(targets, 2).float())
    assert real.get_accuracy(k=1) == pytest.approx(80.0)  # of five with labels; the fifth image is of class 0


def test_training_takes_what_timm_makes_of_its_arguments(data: Path) -> None:
    plain = recipe_of(data)
    assert plain == TrainRecipe(input_size=32, interpolation="random", color_jitter=(0.4, 0.4, 0.4, 0.0), hflip=0.5)
    policy = recipe_of(
        data, auto_augment="rand-m9-mstd0.5", re_prob=0.25, re_mode="pixel", re_count=2, num_aug_repeats=3.0
    )
    assert policy.color_jitter is None  # timm drops it beside a policy
    assert (policy.re_prob, policy.re_mode, policy.re_count, policy.num_aug_repeats) == (0.25, "pixel", (1, 2), 3)
    assert recipe_of(data, auto_augment="3a", color_jitter=0.3).color_jitter == (0.3, 0.3, 0.3, 0.0)
    kept = recipe_of(data, train_crop_mode="rkrr")
    assert (kept.crop, kept.scale, kept.ratio) == ("rkrr", (0.8, 1.0), (0.9, 1 / 0.9))
    none = recipe_of(data, no_aug=True, re_prob=0.5)
    assert (none.crop, none.hflip, none.re_prob, none.interpolation) == ("center", 0.0, 0.0, "bilinear")
    assert recipe_of(data, use_prefetcher=False, re_prob=0.25).re_prob == 0.25


def test_mixing_is_that_of_the_collate_function(data: Path) -> None:
    mixup = FastCollateMixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=7)
    with made(data, **TRAIN, collate_fn=mixup) as loader:
        assert (loader.recipe.mixup_alpha, loader.recipe.label_smoothing, loader.mixup_enabled) == (0.2, 0.1, True)
        _, targets = next(iter(loader))
        assert (targets.shape, targets.dtype) == ((4, 7), torch.float32)
        loader.mixup_enabled = False
        smoothed = next(iter(loader))[1]
        assert not loader.mixup_enabled
        assert torch.allclose(smoothed.amax(1), torch.full((4,), 0.9 + 0.1 / 7))
    with made(data, **TRAIN) as loader:
        assert (loader.mixup_enabled, next(iter(loader))[1].dtype) == (False, torch.int64)


def test_the_prefetchers_consequences(data: Path) -> None:
    for arguments, dtype in (
        ({"fp16": True}, torch.float16),
        ({"img_dtype": torch.bfloat16}, torch.bfloat16),
        ({"fp16": True, "use_prefetcher": False}, torch.float32),
    ):
        with made(data, **EVAL, **arguments) as loader:
            assert next(iter(loader))[0].dtype == dtype


def test_an_epoch_is_set_by_the_sampler_and_the_seed_by_the_environment(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(data, **TRAIN) as loader:
        loader.sampler.set_epoch(1)
        order = list(loader.sampler)
        second, _ = joined(loader)
        loader.sampler.set_epoch(1)
        assert (list(loader.sampler), len(loader), len(loader.sampler)) == (order, 6, 24)
        assert torch.equal(joined(loader)[0], second)
    torch.manual_seed(5)  # timm's scripts seed each rank differently
    with made(data, **TRAIN) as loader:
        loader.set_epoch(1)
        assert torch.equal(joined(loader)[0], second)
    monkeypatch.setenv("DALI_IMAGENET_SEED", "5")
    with made(data, **TRAIN) as loader:
        assert loader.plan.seed == 5
    monkeypatch.setenv("DALI_IMAGENET_SEED", "five")
    with pytest.raises(ValueError, match="DALI_IMAGENET_SEED"):
        made(data, **TRAIN)


def split(data: Path, splits: int, **arguments: Any) -> TimmLoader:
    dataset = AugMixDataset(ImageDataset(str(data)), num_splits=splits)
    given = {**TRAIN, "auto_augment": "rand-m9-n3-mstd0.5", "num_aug_splits": splits, **arguments}
    return create_loader(dataset, **given)


def test_splits_are_clean_then_augmented_of_the_same_crops(data: Path) -> None:
    with split(data, 3, re_prob=1.0, re_split=True) as loader, made(data, **TRAIN, color_jitter=None) as clean:
        images, targets = next(iter(loader))
        expected, labels = next(iter(clean))
        assert images.shape == (12, 3, 32, 32)
        assert torch.equal(targets, labels.repeat(3))
        first, second, third = images.split(4)
        assert torch.equal(first, expected)  # neither augmented nor erased
        assert not torch.equal(second, third)
        loader.set_epoch(0)
        batches = iter(loader)
        next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        second_batch = next(batches)[0].clone()
        loader.load_state_dict(state)
        assert torch.equal(next(iter(loader))[0], second_batch)
    with split(data, 2, re_prob=1.0) as loader:
        assert not torch.equal(next(iter(loader))[0][:4], expected)  # the clean ones are erased, too


def test_erasing_half_of_a_batch(data: Path) -> None:
    with made(data, **TRAIN, re_prob=1.0, re_split=True) as loader:
        erased: Any = loader.plan.batch(0, 0).erase[..., 2].max(1)
        assert (erased > 0).tolist() == [False, False, True, True]
        assert next(iter(loader))[0].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"tf_preprocessing": True}, "tf_preprocessing"),
        ({"crop_border_pixels": 4}, "crop_border_pixels"),
        ({"input_size_choices": [32, 64]}, "input_size_choices"),
        ({"input_size": (1, 32, 32)}, "input_size"),
        ({"num_aug_splits": 2}, "num_aug_splits"),
        ({"num_aug_repeats": 2.5}, "num_aug_repeats"),
        ({"collate_fn": lambda batch: batch}, "cannot be known"),
        ({"interpolation": "hamming"}, "hamming"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(data: Path, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(UntranslatableError, match=name):
        made(data, **{**TRAIN, **arguments})


@pytest.mark.parametrize("arguments", [{"no_aug": True}, {"use_prefetcher": False}, {"num_aug_splits": 0}])
def test_splits_need_what_timm_needs(data: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UntranslatableError, match="num_aug_splits"):
        split(data, 2, **arguments)


def test_datasets_that_cannot_be_read_are_refused(data: Path) -> None:
    with pytest.raises(UntranslatableError, match="stream"):
        create_loader(IterableImageDataset("", reader=object()), **EVAL)
    with pytest.raises(UntranslatableError, match="load_bytes"):
        create_loader(ImageDataset(str(data), load_bytes=True), **EVAL)
    with pytest.raises(UntranslatableError, match="input_img_mode"):
        create_loader(ImageDataset(str(data), input_img_mode="L"), **EVAL)


def test_a_broken_image_is_replaced_as_timm_does(new_folder: Callable[..., Path], caplog: Any) -> None:
    root = new_folder(120)
    victim = sorted(root.rglob("*.*"))[3]
    victim.write_bytes(b"")
    with caplog.at_level(logging.WARNING), made(root, **EVAL) as loader:
        assert len(joined(loader)[0]) == 120
    assert victim.name in caplog.text


SCRIPT = """
import sys
import timm.data
from timm.data import create_dataset, create_loader, create_naflex_loader
import beside
if __name__ == "__main__":
    import torch
    data, *rest = sys.argv[1:]
    try:
        create_naflex_loader()
    except ValueError as error:
        assert "leave out --naflex-loader" in str(error)
    else:
        sys.exit(1)
    loader = create_loader(create_dataset("", data), (3, 32, 32), 4, num_workers=0, device=torch.device("cpu"))
    print(type(loader).__module__, len(loader), rest)
    sys.exit(3)
"""


def test_the_command_runs_a_script_as_it_is(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "beside.py", b"")
    path = str(write(tmp_path / "train.py", SCRIPT.encode()))
    done = python("-m", "dali_imagenet", "timm-train", path, str(data), "--help", "-b", "4")
    assert (done.returncode, done.stdout.strip()) == (3, "dali_imagenet.integrations.timm 6 ['--help', '-b', '4']"), (
        done
    )
    missing = python("-m", "dali_imagenet", "timm-train", str(tmp_path / "none.py"))
    assert (missing.returncode, "does not exist" in missing.stderr) == (2, True)


def test_help_does_not_import_timm() -> None:
    done = script(
        """
import sys
from dali_imagenet.__main__ import main
try:
    main(["timm-train", "--help"])
except SystemExit:
    print("torch" in sys.modules, "timm" in sys.modules)
"""
    )
    assert done.stdout.strip().endswith("False False")
