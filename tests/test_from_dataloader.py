"""A loader in the place of a DataLoader: the same images and targets, the same shares, and what is refused."""

from __future__ import annotations

import itertools
import logging
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from timm.data.mixup import FastCollateMixup, Mixup
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)
from torch.utils.data.distributed import DistributedSampler
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder, ImageNet
from torchvision.transforms import v2

from dali_imagenet import EvalRecipe, SampleIndex, TrainRecipe, UntranslatableError, from_dataloader
from dali_imagenet.recipe import IMAGENET_MEAN, IMAGENET_STD

END = [v1.ToTensor(), v1.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
TRAIN = v1.Compose([v1.RandomResizedCrop(32), v1.RandomHorizontalFlip(), v1.RandAugment(), *END])
EVAL = v1.Compose([v1.Resize(40), v1.CenterCrop(32), *END])
OPTIONS: dict[str, Any] = {"device": "cpu"}
cutmix_or_mixup = v2.RandomChoice([v2.CutMix(alpha=1.0, num_classes=4), v2.MixUp(alpha=0.2, num_classes=4)], p=[1, 3])


def collate(batch: Any) -> Any:
    """As torchvision's documentation writes it."""
    return cutmix_or_mixup(*default_collate(batch))


def made(folder: Path, transform: Any = TRAIN, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(ImageFolder(str(folder), transform), **({"batch_size": 4} | arguments))


def test_evaluation_gives_what_the_dataloader_gave(folder: Path) -> None:
    theirs = made(folder, EVAL, batch_size=5)
    with from_dataloader(theirs, **OPTIONS) as loader:
        assert isinstance(loader.recipe, EvalRecipe)
        assert len(loader) == len(theirs)
        images, targets = (torch.cat(parts) for parts in zip(*((a.clone(), b) for a, b in loader), strict=True))
    expected, labels = (torch.cat(parts) for parts in zip(*theirs, strict=True))
    real = targets >= 0
    assert torch.equal(targets[real], labels)
    levels = ((images[real] - expected) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).abs()
    assert float(levels.mean()) < 0.2


def test_training_takes_the_recipe_the_batch_and_the_workers(folder: Path) -> None:
    theirs = made(folder, shuffle=True, drop_last=True, num_workers=2, prefetch_factor=3, batch_size=5, pin_memory=True)
    with from_dataloader(theirs, seed=3, **OPTIONS) as loader:
        assert loader.recipe == TrainRecipe.from_transforms(TRAIN)
        assert (loader.batch_size, loader.drop_last, len(loader), loader.plan.seed) == (5, True, len(theirs), 3)
        assert loader.dataset.classes == tuple(theirs.dataset.classes)  # type: ignore[attr-defined]  # an ImageFolder
        seen = torch.cat([targets for _, targets in loader])
        assert len(seen) == 20
    rows = {row.yours: row for row in loader.translation}
    assert rows["pin_memory=True"].exact
    assert rows["DataLoader"].ours == "batch_size=5, drop_last=True, num_workers=2, prefetch=3"


def test_a_shuffled_pipeline_without_draws_is_a_shuffled_evaluation(folder: Path) -> None:
    theirs = made(folder, EVAL, shuffle=True, batch_size=5)
    with from_dataloader(theirs, with_index=True, **OPTIONS) as loader:
        assert loader.recipe == EvalRecipe.from_transforms(EVAL)
        assert len(loader) == len(theirs) == 5
        epochs = [list(loader) for _ in range(2)]
    orders = [torch.cat([at for _, _, at in epoch]).tolist() for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1] != list(range(24))
    dataset: Any = theirs.dataset
    for images, targets, at in epochs[0]:
        assert targets.tolist() == [dataset.targets[i] for i in at]
        expected = torch.stack([dataset[i][0] for i in at.tolist()])
        assert float(((images - expected) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).abs().mean()) < 0.2


@pytest.mark.parametrize("distributed", [False, True])
def test_an_order_is_kept_where_images_are_augmented(folder: Path, distributed: bool) -> None:
    dataset = ImageFolder(str(folder), TRAIN)
    sampler: Any = DistributedSampler(dataset, 2, 0, shuffle=False) if distributed else None
    theirs = DataLoader(dataset, 4, sampler=sampler, drop_last=True)
    with from_dataloader(theirs, **OPTIONS) as loader:
        assert loader.recipe == TrainRecipe.from_transforms(TRAIN)
        first, second = ([loader.plan.samples(epoch, step).tolist() for step in range(len(theirs))] for epoch in (0, 1))
        assert first == second
        if not distributed:
            assert list(itertools.chain(*first)) == list(range(24))
            assert [targets.tolist() for _, targets in loader] == [targets.tolist() for _, targets in theirs]
            return
        assert [samples[0] for samples in first] == [0, 8, 16]
    assert any(row.ours == "shuffle=False" and row.exact for row in loader.translation)


def test_what_only_training_can_say_makes_one(folder: Path) -> None:
    """Also of a pipeline that draws nothing, and where no EvalRecipe crops as it does."""
    with from_dataloader(made(folder, EVAL, collate_fn=collate), **OPTIONS) as loader:
        assert isinstance(loader.recipe, TrainRecipe)
        assert (loader.recipe.crop, loader.plan.shuffle) == ("center", False)
    cropped = v1.Compose([v1.CenterCrop(32), *END])
    with from_dataloader(made(folder, cropped, shuffle=True), **OPTIONS) as loader:
        assert isinstance(loader.recipe, TrainRecipe)
        assert loader.plan.shuffle
    with pytest.raises(UntranslatableError, match="an EvalRecipe always does"):
        from_dataloader(made(folder, cropped), **OPTIONS)


def _over(folder: Path) -> DataLoader[Any]:
    index: Any = SampleIndex.from_folder(folder)
    return DataLoader(index, 4)


DATASETS: dict[str, Callable[[str], Any]] = {
    "files left out": lambda f: ImageFolder(f, EVAL, is_valid_file=lambda path: not path.endswith("00.JPEG")),
    "an empty class": lambda f: ImageFolder(
        f, EVAL, is_valid_file=lambda path: Path(path).parent.name != "class_001", allow_empty=True
    ),
    "labels of its own": lambda f: ImageFolder(f, EVAL, target_transform=lambda label: (3 - label) // 2),
    "classes of its own": lambda f: _Two(f, EVAL),
    "a subset": lambda f: Subset(ImageFolder(f, EVAL), [7, 3, 3, 20]),
    "a part of a part": lambda f: random_split(Subset(ImageFolder(f, EVAL), range(4, 20)), [5, 11])[0],
    "one after the other": lambda f: ConcatDataset([ImageFolder(f, EVAL), Subset(ImageFolder(f, EVAL), [9, 1])]),
    "timm's": lambda f: _timms(f),
    "timm's tar": lambda f: _timms_tar(f),
}


def _timms(folder: str) -> Any:
    dataset = create_dataset("", folder)
    dataset.transform = EVAL
    return dataset


def _timms_tar(folder: str) -> Any:
    archive = f"{folder}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, ".")
    return _timms(archive)


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_s_samples_are_in_its_order(folder: Path, tmp_path: Path, name: str) -> None:
    copied = shutil.copytree(folder, tmp_path / "data")
    dataset = DATASETS[name](str(copied))
    with from_dataloader(DataLoader(dataset, 5), with_index=True, **OPTIONS) as loader:
        images, targets, at = (
            torch.cat(parts) for parts in zip(*((a.clone(), b, c) for a, b, c in loader), strict=True)
        )
    real = at >= 0
    assert at[real].tolist() == list(range(len(dataset)))
    assert targets[real].tolist() == [dataset[i][1] for i in range(len(dataset))]
    expected = torch.stack([dataset[i][0] for i in range(len(dataset))])
    assert float(((images[real] - expected) * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255).abs().mean()) < 0.2
    assert loader.num_classes == len(loader.dataset.classes) >= int(targets.max()) + 1


def test_classes_that_become_one_have_their_names(folder: Path) -> None:
    relabelled = ImageFolder(str(folder), EVAL, target_transform=lambda label: (3 - label) // 2)
    with from_dataloader(DataLoader(relabelled, 5), **OPTIONS) as loader:
        assert loader.dataset.classes == ("class_002+class_003", "class_000+class_001")


def test_a_recipe_stands_for_what_cannot_be_read(folder: Path) -> None:
    wanted = EvalRecipe.from_transforms(EVAL)
    theirs = made(folder, lambda image: EVAL(image), collate_fn=lambda items: items, shuffle=True)
    with from_dataloader(theirs, recipe=wanted, **OPTIONS) as loader:
        assert loader.recipe == wanted
        assert not loader.drop_last
    with pytest.raises(ValueError, match="recipe and fields: give one of them"):
        from_dataloader(theirs, recipe=wanted, fields={"input_size": 32}, **OPTIONS)
    with pytest.raises(TypeError, match="recipe='strong': must be a TrainRecipe or an EvalRecipe"):
        from_dataloader(theirs, recipe="strong", **OPTIONS)  # type: ignore[arg-type]  # what is tested
    with from_dataloader(_over(folder), recipe=wanted, **OPTIONS) as loader:
        assert len(loader) == 6


def test_a_dataset_of_hugging_face_needs_a_recipe(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = ImageFolder(str(folder))
    images = [{"bytes": Path(path).read_bytes(), "path": None} for path, _ in files.samples]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=files.classes)})
    datasets.Dataset.from_dict({"image": images, "label": files.targets}, features).save_to_disk(tmp_path / "arrow")
    data = datasets.load_from_disk(tmp_path / "arrow").with_transform(lambda examples: examples)
    theirs = DataLoader(data.select(range(3, 9)), 2, shuffle=True)
    with pytest.raises(UntranslatableError, match="a function of a whole batch"):
        from_dataloader(theirs, **OPTIONS)
    recipe = TrainRecipe.from_transforms(TRAIN)
    with from_dataloader(theirs, recipe=recipe, output="dict", **OPTIONS) as loader:
        assert loader.dataset.labels.tolist() == files.targets[3:9]
        assert next(iter(loader))["pixel_values"].shape == (2, 3, 32, 32)


def test_torchvisions_imagenet_is_read(folder: Path) -> None:
    """Without its archives: what an instance holds."""
    plain = ImageFolder(str(folder), TRAIN)
    dataset: Any = ImageNet.__new__(ImageNet)
    dataset.__dict__ |= {**vars(plain), "root": str(folder.parent), "split": folder.name, "wnids": plain.classes}
    names = [(f"name of {wnid}", "another") for wnid in plain.classes]
    dataset.classes, dataset.class_to_idx = names, {name: i for i, both in enumerate(names) for name in both[:1]}
    with from_dataloader(DataLoader(dataset, 4, shuffle=True), **OPTIONS) as loader:
        assert loader.dataset.classes == tuple(plain.classes)
        assert loader.dataset.targets == plain.targets


# ---- mixing


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        (collate, {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "mixup_switch_prob": 0.25, "num_classes": 4}),
        (
            FastCollateMixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7, switch_prob=0.3, mode="pair", num_classes=4),
            {
                "mixup_alpha": 0.8,
                "cutmix_alpha": 1.0,
                "mixup_prob": 0.7,
                "mixup_switch_prob": 0.3,
                "mixup_mode": "pair",
                "label_smoothing": 0.1,
            },
        ),
    ],
)
def test_mixing_comes_from_the_collate_function(folder: Path, function: Any, fields: dict[str, Any]) -> None:
    with from_dataloader(made(folder, shuffle=True, collate_fn=function), **OPTIONS) as loader:
        assert {name: getattr(loader.recipe, name) for name in fields} == fields
        _, targets = next(iter(loader))
        assert targets.shape == (4, 4)
        assert torch.allclose(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("mixer", "fields"),
    [
        (v2.MixUp(alpha=0.4, num_classes=4), {"mixup_alpha": 0.4, "cutmix_alpha": 0.0}),
        (v2.CutMix(num_classes=4), {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}),
        (v2.RandomChoice([v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)]), {"mixup_switch_prob": 0.5}),
        (v2.RandomChoice([v2.CutMix(alpha=0.5, num_classes=4)]), {"mixup_alpha": 0.0, "cutmix_alpha": 0.5}),
        (Mixup(cutmix_minmax=(0.2, 0.8), num_classes=4), {"cutmix_minmax": (0.2, 0.8)}),
    ],
)
def test_mixing_comes_from_a_closure(folder: Path, mixer: Any, fields: dict[str, Any]) -> None:
    def within(batch: Any) -> Any:
        images, targets = torch.utils.data.default_collate(batch)
        return mixer(images, targets)

    for function in (within, lambda batch: mixer(*default_collate(batch))):
        with from_dataloader(made(folder, shuffle=True, collate_fn=function), **OPTIONS) as loader:
            assert {name: getattr(loader.recipe, name) for name in fields} == fields


# ---- shares and epochs


@pytest.mark.parametrize("rank", [0, 1])
def test_shares_come_from_the_sampler(folder: Path, rank: int) -> None:
    dataset = ImageFolder(str(folder), TRAIN)
    sampler: Any = DistributedSampler(dataset, num_replicas=2, rank=rank)
    with from_dataloader(DataLoader(dataset, 4, sampler=sampler, drop_last=True), **OPTIONS) as loader:
        assert (loader.plan.rank, loader.plan.world_size, len(loader)) == (rank, 2, 3)
    with from_dataloader(DataLoader(dataset, 4, sampler=RepeatAugSampler(dataset, 2, rank)), **OPTIONS) as loader:
        assert loader.recipe.fingerprint["num_aug_repeats"] == 3
    evaluated = ImageFolder(str(folder), EVAL)
    samplers: list[Any] = [
        OrderedDistributedSampler(evaluated, 2, rank),
        DistributedSampler(evaluated, 2, rank, shuffle=False),
    ]
    for ordered in samplers:
        with from_dataloader(DataLoader(evaluated, 4, sampler=ordered), **OPTIONS) as loader:
            assert isinstance(loader.recipe, EvalRecipe)
            assert loader.plan.world_size == 2


class RASampler(torch.utils.data.Sampler[int]):
    """The attributes of the one in torchvision's scripts."""

    def __init__(self) -> None:
        self.num_replicas, self.rank, self.epoch, self.shuffle, self.repetitions = 2, 1, 0, True, 4

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 24

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_a_script_s_own_sampler_sets_the_epoch(folder: Path) -> None:
    sampler = RASampler()
    with from_dataloader(made(folder, sampler=sampler), backend="torchvision", **OPTIONS) as loader:
        assert loader.recipe.fingerprint["num_aug_repeats"] == 4
        ran = []
        for epoch in (None, None, 5, 6, 6, None, 2):
            if epoch is not None:
                sampler.set_epoch(epoch)
            list(loader)
            ran.append(loader.epoch - 1)
        assert ran == [0, 1, 5, 6, 7, 8, 2]
        loader.set_epoch(9)  # and the loader's own
        list(loader)
        assert loader.epoch == 10


def test_without_a_distributed_sampler_the_process_group_shares(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dali_imagenet.loader.resolve_ranks",
        lambda rank, world: (1, 2) if (rank, world) == (None,) * 2 else (rank, world),
    )
    with from_dataloader(made(folder, shuffle=True), **OPTIONS) as loader:
        assert (loader.plan.rank, loader.plan.world_size) == (1, 2)


def test_fields_and_options_come_in_place_of_what_was_read(folder: Path) -> None:
    bytes_alone = v1.Compose([v1.RandomResizedCrop(32), v1.PILToTensor()])
    fields = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "label_smoothing": 0.1}
    with from_dataloader(made(folder, bytes_alone, shuffle=True), fields=fields, batch_size=6, **OPTIONS) as loader:
        assert (loader.recipe.mean, loader.batch_size) == ((0.5,) * 3, 6)
        assert next(iter(loader))[1].shape == (6, 4)


# ---- rows and refusals


def test_what_is_not_exact_is_said(folder: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    with caplog.at_level(logging.WARNING):
        theirs = made(
            folder, batch_size=5, worker_init_fn=print, persistent_workers=True, num_workers=1, generator=None
        )
        from_dataloader(theirs, report=True, num_workers=0, **OPTIONS).close()
    for part in ("worker_init_fn", "the last batch is filled up"):
        assert part in caplog.text
    assert "persistent_workers=True" in capsys.readouterr().out


def _with(folder: Path, **attributes: Any) -> DataLoader[Any]:
    return DataLoader(ImageFolder(str(folder), TRAIN, **attributes), batch_size=4, shuffle=True)


def _other(batch: Any) -> Any:
    return cutmix_or_mixup(*default_collate(sorted(batch)))


def _global(batch: Any) -> Any:
    return cutmix_or_mixup(*default_collate(batch[: len(OPTIONS)]))


def _half(batch: Any) -> Any:
    return cutmix_or_mixup(*default_collate(batch[::2]))


def _darker(batch: Any) -> Any:
    images, targets = default_collate(batch)
    return cutmix_or_mixup(images / 2, targets)


class _Own(ImageFolder):
    """Does what it likes with an image."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)


class _Two(ImageFolder):
    """Numbers two of the classes, the other way round."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = sorted(super().find_classes(directory)[0])[1::-1]
        return names, {name: number for number, name in enumerate(names)}


class _Stream(IterableDataset[Any]):
    """Has no samples to list."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Counting:
    """Another number each time."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, label: int) -> int:
        self.count += 1
        return self.count


class _Collate:
    def __call__(self, batch: Any) -> Any:
        return default_collate(batch)


@pytest.mark.parametrize(
    ("change", "what", "message"),
    [
        (lambda f: made(f, batch_size=None), "batch_size=None", "give the DataLoader a batch_size"),
        (lambda f: DataLoader(_with(f).dataset, batch_sampler=[[0, 1]]), "batch_sampler", "makes its batches itself"),
        (lambda f: _with(f, target_transform=float), "ImageFolder", "no function of a label's number"),
        (lambda f: _with(f, target_transform=lambda label: label - 1), "ImageFolder", "other numbers than 0, 1"),
        (lambda f: _with(f, target_transform=itertools.count().__next__), "ImageFolder", "no function of a label"),
        (lambda f: _with(f, target_transform=_Counting()), "ImageFolder", "the same each time"),
        (lambda f: DataLoader(_Own(str(f), TRAIN), 2), "_Own", "what its __getitem__ does cannot be known"),
        (lambda f: DataLoader(_Stream(), 2), "_Stream", "a stream lists no samples"),
        (lambda f: _over(f), "SampleIndex", "an index has no transform"),
        (
            lambda f: DataLoader(ConcatDataset([ImageFolder(str(f), TRAIN), ImageFolder(str(f), EVAL)]), 2),
            "ConcatDataset",
            "different transforms",
        ),
        (
            lambda f: DataLoader(ConcatDataset([ImageFolder(str(f), TRAIN), _Two(str(f), TRAIN)]), 2),
            "ConcatDataset",
            "number the classes differently",
        ),
        (lambda f: DataLoader(create_dataset("", f, input_img_mode="L"), 2), "ImageDataset", "no RGB images"),
        (lambda f: _with(f, loader=Image.open), "ImageFolder", "a loader of its own"),
        (lambda f: made(f, collate_fn=_Collate()), "_Collate", "cannot be known"),
        (lambda f: made(f, collate_fn=_other), "_other", "cannot be known"),
        (lambda f: made(f, collate_fn=_half), "_half", "cannot be known"),
        (lambda f: made(f, collate_fn=_darker), "_darker", "cannot be known"),
        (lambda f: made(f, collate_fn=_global), "_global", "it names OPTIONS"),
        (lambda f: made(f, collate_fn=lambda batch: batch), "lambda", "cannot be known"),
        (lambda f: made(f, sampler=WeightedRandomSampler([1.0] * 24, 24)), "Weighted", "orders the samples itself"),
        (lambda f: made(f, sampler=RandomSampler(range(24), replacement=True)), "RandomSampler", "leave replacement"),
        (lambda f: made(f, sampler=RandomSampler(range(24), num_samples=8)), "RandomSampler", "leave replacement"),
        (
            lambda f: made(f, sampler=type("DistributedSampler", (SequentialSampler,), {})(range(24))),
            "Distributed",
            "no sampler",
        ),
        (lambda f: made(f, [v1.RandomResizedCrop(9), v1.Lambda(len), *END]), "Lambda", "no counterpart"),
    ],
)
def test_what_a_loader_cannot_say_is_refused(folder: Path, change: Any, what: str, message: str) -> None:
    with pytest.raises(UntranslatableError, match=message) as caught:
        from_dataloader(change(folder), **OPTIONS)
    assert what in caught.value.what


def test_what_is_no_dataloader_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dataloader=list: must be a torch\.utils\.data\.DataLoader"):
        from_dataloader([])
