"""The data below a torch DataLoader: which samples somebody's dataset has, and what it does with an image."""

from __future__ import annotations

import copy
import operator
from typing import Any, NamedTuple

import numpy as np
import torch

from dali_imagenet.data.algebra import positions
from dali_imagenet.data.index import SampleIndex
from dali_imagenet.errors import UntranslatableError
from dali_imagenet.integrations.transforms import name_of

_LIBRARIES = ("torch", "torchvision", "timm", "datasets", "dali_imagenet")
_LABELS = 1_000_000  # classes that a target_transform may number
_DIRECT = "give create_loader the data as SampleIndex reads it (docs/data.md), and the recipe of from_transforms"


class Read(NamedTuple):
    """What was read of a dataset.

    Attributes:
        data: its samples, in its order, with its labels.
        transform: what it does with an image.
        says: what it is, for the table.
        unreadable: why its transform cannot be read; empty where it can.
    """

    data: SampleIndex
    transform: Any
    says: str
    unreadable: str = ""


def read_dataset(dataset: Any) -> Read:
    """The samples of a dataset of torchvision's, timm's or Hugging Face's, of ours, or of parts and sums of them.

    Raises:
        UntranslatableError: a dataset that computes something of its own, or lists no files.
    """
    if isinstance(dataset, torch.utils.data.IterableDataset):
        raise _refuse(dataset, "a stream lists no samples", _DIRECT)
    if isinstance(dataset, SampleIndex):
        return Read(dataset, None, "SampleIndex", "an index has no transform")
    _refuse_own(dataset)
    if isinstance(dataset, torch.utils.data.Subset):
        whole = read_dataset(dataset.dataset)
        at = positions(dataset.indices, len(whole.data))
        return whole._replace(data=whole.data.subset(at), says=f"Subset of {whole.says}")
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        return _joined(dataset)
    if type(dataset).__module__.partition(".")[0] == "datasets":
        return _of_huggingface(dataset)
    return _of_files(dataset)


def _refuse(dataset: Any, why: str, change: str) -> UntranslatableError:
    return UntranslatableError(type(dataset).__name__, why, change)


def _refuse_own(dataset: Any) -> None:
    """A class that computes its items itself may do anything with them."""
    for method in ("__getitem__", "__getitems__"):
        owner = next((kind for kind in type(dataset).__mro__ if method in vars(kind)), None)
        if owner is not None and owner.__module__.partition(".")[0] not in _LIBRARIES:
            raise _refuse(dataset, f"what its {method} does cannot be known", _DIRECT)


def _joined(dataset: Any) -> Read:
    """Datasets one after the other, which have to do the same with an image and to number the classes alike."""
    parts = [read_dataset(part) for part in dataset.datasets]
    first = parts[0]
    for part in parts[1:]:
        if part.transform is not first.transform and repr(part.transform) != repr(first.transform):
            raise _refuse(dataset, "its parts have different transforms", "give all parts one transform")
        if part.data.classes != first.data.classes:
            raise _refuse(
                dataset, "its parts number the classes differently", f"{_DIRECT}: SampleIndex.concat joins them by name"
            )
    index = SampleIndex.concat([part.data for part in parts])
    return first._replace(data=index, says=" + ".join(part.says for part in parts))


def _of_huggingface(dataset: Any) -> Read:
    try:
        index = SampleIndex.from_huggingface(dataset.with_format(None))
    except (TypeError, ValueError) as error:
        raise _refuse(dataset, str(error), _DIRECT) from error
    return Read(index, None, "Dataset of Hugging Face", "the transform of a Dataset is a function of a whole batch")


def _of_files(dataset: Any) -> Read:
    """A dataset that lists its files: torchvision's DatasetFolder and its heirs, timm's ImageDataset."""
    loader = getattr(dataset, "loader", None)
    if loader is not None and getattr(loader, "__module__", "").partition(".")[0] != "torchvision":
        raise _refuse(dataset, "it has a loader of its own", "leave loader out: images are decoded as Pillow does")
    if getattr(dataset, "input_img_mode", "RGB") not in ("RGB", None) or getattr(dataset, "load_bytes", False):
        raise _refuse(dataset, "its items are no RGB images", "leave input_img_mode and load_bytes out")
    if getattr(dataset, "additional_features", None) is not None:
        raise _refuse(dataset, "its items have additional_features", "leave them out")
    plain = copy.copy(dataset)
    plain.target_transform = None
    try:
        index = _of_reader(dataset.reader) if hasattr(dataset, "reader") else SampleIndex.from_samples(plain)
    except TypeError as error:
        raise _refuse(dataset, str(error), _DIRECT) from error
    relabel = getattr(dataset, "target_transform", None)
    root = getattr(dataset, "root", None) or getattr(getattr(dataset, "reader", None), "root", None)
    says = f"{name_of(dataset) or type(dataset).__name__}({str(root)!r})"
    return Read(index if relabel is None else _relabelled(dataset, index), dataset.transform, says)


def _of_reader(reader: Any) -> SampleIndex:
    """What a reader of timm's lists."""
    if name_of(reader) == "ReaderHfds":
        if reader.remap_class or reader.target_keys or reader.dense_target:
            change = "leave class_map, target_format and several target_keys out"
            raise _refuse(reader, "its targets are not a column of classes as it is", change)
        keys = {"image_key": reader.image_key, "label_key": reader.label_key}
        return SampleIndex.from_huggingface(reader.dataset, split=".", **keys)
    return SampleIndex.from_samples(_Reads(reader))


class _Reads(NamedTuple):
    """A dataset of a reader, without what it does with an image."""

    reader: Any


def _relabelled(dataset: Any, index: SampleIndex) -> SampleIndex:
    """The labels that a target_transform makes of the numbers of the classes."""
    function, names = dataset.target_transform, index.classes
    change = "let it give one whole number for each label, or leave it out and use SampleIndex.relabel"
    try:
        new = [operator.index(function(label)) for label in range(len(names))]
        again = [operator.index(function(label)) for label in range(len(names))]
    except Exception as error:
        raise _refuse(dataset, f"its target_transform is no function of a label's number ({error})", change) from error
    if new != again or not all(0 <= label < _LABELS for label in new):
        raise _refuse(dataset, "its target_transform gives other numbers than 0, 1, ..., the same each time", change)
    merged: list[list[str]] = [[] for _ in range(max(new) + 1)]
    for name, label in zip(names, new, strict=True):
        merged[label].append(name)
    called = ["+".join(olds) or f"({number})" for number, olds in enumerate(merged)]
    return index.relabel(np.asarray(new)[index.labels], classes=called)
