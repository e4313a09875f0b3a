"""A loader in the place of a torch DataLoader that is there already: its data, transforms, mixing, shares, workers."""

from __future__ import annotations

import dataclasses
import dis
import types
from collections.abc import Mapping
from typing import Any

import torch

from dali_imagenet.errors import UntranslatableError
from dali_imagenet.integrations.datasets import Read, read_dataset
from dali_imagenet.integrations.transforms import Row, Translation, flat, name_of, refuse, show, tell, translate
from dali_imagenet.loader import Backend, Loader, create_loader
from dali_imagenet.recipe import EvalRecipe, Recipe, TrainRecipe

_IGNORED = {  # DataLoader's arguments that change nothing here: their defaults, and what there is in their place
    "pin_memory": (False, "batches are handed over on `device`; what goes there from the CPU is pinned"),
    "pin_memory_device": ("", "batches are handed over on `device`"),
    "persistent_workers": (False, "workers stay until the loader is closed"),
    "generator": (None, "seed: every draw is a function of (seed, epoch, sample)"),
    "in_order": (True, "batches come in order"),
}
_MIXERS = ("MixUp", "CutMix", "RandomChoice", "Mixup")
# instructions of a function that hands values from one call to the next, and computes nothing of its own
_CALLING = (
    *(
        "LOAD_",
        "CALL",
        "PRECALL",
        "PUSH_NULL",
        "KW_NAMES",
        "UNPACK_SEQUENCE",
        "STORE_FAST",
        "BUILD_TUPLE",
        "BUILD_LIST",
    ),
    *("LIST_EXTEND", "RETURN_", "RESUME", "COPY_FREE_VARS", "NOP", "CACHE", "POP_TOP", "EXTENDED_ARG"),
)
# what a collate function may name beside what mixes: torch.utils.data.default_collate and the way to it
_COLLATE = {"torch", "utils", "data", "default_collate", "dataloader", "_utils", "collate"}


def from_dataloader(
    dataloader: Any,
    *,
    seed: int = 0,
    backend: Backend = "auto",
    device: torch.device | str | None = None,
    recipe: Recipe | None = None,
    fields: Mapping[str, Any] | None = None,
    report: bool = False,
    **options: Any,
) -> Loader:
    """The loader that a DataLoader stands for: `loader = from_dataloader(dataloader)` in front of the training loop.

    Data come from its dataset (torchvision's ImageFolder and its kin, timm's ImageDataset, a Dataset of Hugging Face, a
    `SampleIndex`, Subsets and ConcatDatasets of these), the recipe from the dataset's transform (see
    `TrainRecipe.from_transforms`), mixing from its collate_fn (v2.MixUp, v2.CutMix, a RandomChoice of them, or timm's
    Mixup and FastCollateMixup), shares from its sampler, and batch size, drop_last and workers from itself. The recipe
    is an `EvalRecipe` where neither a transform nor the mixing is random, shuffled where the order is (as a linear
    probe's), else a `TrainRecipe`, in the data's order where theirs is. A script that calls its own sampler's
    `set_epoch` need not call the loader's. `Loader.translation` says how each was read; what is not exact is
    logged as a warning. docs/scripts.md has the table.

    Args:
        dataloader: a `torch.utils.data.DataLoader`; it is read, and not iterated.
        seed: as in `create_loader`.
        backend: as in `create_loader`.
        device: as in `create_loader`: None is the current CUDA device where there is one, else the CPU.
        recipe: what is done with each image, where the dataset's transform and the collate_fn cannot be read: neither
            is looked at.
        fields: fields of the recipe, in place of what was read.
        report: print how everything was read.
        options: further arguments of `create_loader`, in place of what was read.

    Raises:
        UntranslatableError: for what a loader cannot say.
        TypeError: for what is no DataLoader.
        ValueError: `recipe` and `fields`.
    """
    if not isinstance(dataloader, torch.utils.data.DataLoader):
        raise TypeError(f"dataloader={type(dataloader).__name__}: must be a torch.utils.data.DataLoader")
    if recipe is not None and fields is not None:
        raise ValueError("recipe and fields: give one of them; recipe.replace(...) changes fields")
    if recipe is not None and not isinstance(recipe, TrainRecipe | EvalRecipe):
        raise TypeError(f"recipe={recipe!r}: must be a TrainRecipe or an EvalRecipe, such as TrainRecipe.classic()")
    rows: list[Row] = []
    read = read_dataset(dataloader.dataset)
    rows.append(Row(read.says, repr(read.data), True, ""))
    order, shuffled, repeats = _order(dataloader, rows)
    repeated = {"num_aug_repeats": repeats} if repeats > 1 else {}
    if recipe is None:
        changes = {**mixing_of(dataloader.collate_fn, rows), **repeated, **(fields or {})}
        found = _translated(_transform(read, dataloader.dataset), shuffled, changes)
    else:
        given = Row("transform, collate_fn", "recipe=", True, "not looked at")
        found = Translation(recipe.replace(**repeated), (given,))
    training = isinstance(found.recipe, TrainRecipe)
    if training != shuffled:
        order["shuffle"] = shuffled
        note = "each global batch is yours, shared out otherwise over several ranks"
        if shuffled:
            note = "every sample comes once: rows of target -100 fill up the last batch on several ranks"
        rows.append(Row(show(dataloader.sampler), f"shuffle={shuffled}", True, note))
    settings = {**order, **_settings(dataloader, rows, training), **options}
    loader = create_loader(read.data, found.recipe, seed=seed, backend=backend, device=device, **settings)
    loader.translation = (*found.rows, *rows)
    if hasattr(dataloader.sampler, "set_epoch"):
        loader.follow(dataloader.sampler)
    tell(loader.translation, report)
    return loader


def _transform(read: Read, dataset: Any) -> Any:
    if not read.unreadable:
        return read.transform
    change = "pass recipe=TrainRecipe.from_transforms([...]), or EvalRecipe's, of the transforms that are applied"
    raise UntranslatableError(type(dataset).__name__, read.unreadable, change)


def _translated(transform: Any, shuffled: bool, changes: Mapping[str, Any]) -> Translation:
    """A TrainRecipe where anything is drawn for an image, or fields of one are asked for; else an EvalRecipe."""
    steps = [] if transform is None else transform
    own = {field.name for field in dataclasses.fields(EvalRecipe)}
    if changes.keys() - own or any(_draws(each) for each in flat(steps)):
        return translate(TrainRecipe, steps, **changes)
    try:
        return translate(EvalRecipe, steps, **changes)
    except UntranslatableError:
        if not shuffled:
            raise
        return translate(TrainRecipe, steps, **changes)  # which knows more transforms


def _draws(transform: Any) -> bool:
    name = name_of(transform)
    p = getattr(transform, "p", 1)
    drawn = getattr(transform, "random_scale_prob", 0)
    return bool(drawn) or name in _DRAWING or (name.startswith("Random") and p != 0)


_DRAWING = (
    "ColorJitter",
    "AutoAugment",
    "RandAugment",
    "TrivialAugmentWide",
    "AugMix",
    "AugMixAugment",
    "GaussianBlur",
)


# ---- mixing


def mixing_of(collate: Any, rows: list[Row]) -> dict[str, Any]:
    """The fields of a recipe that say what a collate function mixes."""
    if collate is torch.utils.data.default_collate or getattr(collate, "__name__", "") == "default_convert":
        return {}
    mixer = collate if name_of(collate) == "FastCollateMixup" else _mixer_in(collate)
    fields, note = _mixed(mixer)
    rows.append(Row(show(collate), ", ".join(f"{name}={value!r}" for name, value in fields.items()), True, note))
    return fields


def _mixer_in(collate: Any) -> Any:
    """The one thing that mixes among what a function names; all else has to be default_collate."""
    if not isinstance(collate, types.FunctionType):
        raise refuse(
            collate, "what it does cannot be known", "make it a function of default_collate and one that mixes"
        )
    code = collate.__code__
    cells = dict(zip(code.co_freevars, collate.__closure__ or (), strict=True))
    named = {name: cell.cell_contents for name, cell in cells.items()}
    named |= {name: collate.__globals__[name] for name in code.co_names if name in collate.__globals__}
    mixers = {name: value for name, value in named.items() if name_of(value) in _MIXERS}
    unknown = sorted(set(named) - set(mixers) - {n for n, v in named.items() if v is torch.utils.data.default_collate})
    unknown = [name for name in unknown if name not in _COLLATE]
    computes = any(not step.opname.startswith(_CALLING) for step in dis.get_instructions(collate))
    if len(mixers) != 1 or unknown or computes or set(code.co_names) - set(named) - _COLLATE:
        raise refuse(collate, "what it does cannot be known" + (f": it names {', '.join(unknown)}" if unknown else ""),
                     "let it be `return mix(*default_collate(batch))`, with MixUp, CutMix, a RandomChoice of both or "
                     "timm's Mixup; or pass the fields of mixing to create_loader's recipe")  # fmt: skip
    return next(iter(mixers.values()))


def _mixed(mixer: Any) -> tuple[dict[str, Any], str]:
    name = name_of(mixer)
    if name in ("Mixup", "FastCollateMixup"):
        fields = {"mixup_alpha": mixer.mixup_alpha, "cutmix_alpha": mixer.cutmix_alpha, "mixup_prob": mixer.mix_prob,
                  "mixup_switch_prob": mixer.switch_prob, "mixup_mode": mixer.mode, "correct_lam": mixer.correct_lam,
                  "label_smoothing": mixer.label_smoothing, "num_classes": mixer.num_classes}  # fmt: skip
        minmax = mixer.cutmix_minmax
        return fields | ({} if minmax is None else {"cutmix_minmax": tuple(minmax)}), ""
    note = "a row is mixed with its mirror in the batch, yours with its neighbour"
    if name in ("MixUp", "CutMix"):
        return {f"{name.lower()}_alpha": float(mixer.alpha), "num_classes": mixer.num_classes}, note
    if len(mixer.transforms) == 1:
        return _mixed(mixer.transforms[0])
    parts = {name_of(part): part for part in mixer.transforms}
    if set(parts) != {"MixUp", "CutMix"} or len(mixer.transforms) != 2:
        raise refuse(mixer, "it does not choose between one MixUp and one CutMix", "give it these two")
    chances = dict(zip([name_of(part) for part in mixer.transforms], mixer.p or (0.5, 0.5), strict=True))
    whole = {key: value for part in parts.values() for key, value in _mixed(part)[0].items()}
    return {**whole, "mixup_switch_prob": chances["CutMix"] / sum(chances.values())}, note


# ---- order, shares and workers

_SHARING = ("DistributedSampler", "OrderedDistributedSampler")  # torch's and timm's
_REPEATING = ("RASampler", "RepeatAugSampler")  # of torchvision's and DeiT's scripts, which are in no package; timm's


def _order(dataloader: Any, rows: list[Row]) -> tuple[dict[str, Any], bool, int]:
    """Arguments for the shares, whether the order is drawn, and how often a sample comes in a row."""
    sampler, batches = dataloader.sampler, dataloader.batch_sampler
    if dataloader.batch_size is None or name_of(batches) != "BatchSampler":
        what = "batch_sampler" if batches is not None else "batch_size=None"
        raise UntranslatableError(what, "the loader makes its batches itself", "give the DataLoader a batch_size")
    name = name_of(sampler) or type(sampler).__name__
    if name in _SHARING and not name_of(sampler):
        raise refuse(sampler, "it is no sampler of torch's or timm's", "take DistributedSampler")
    if name in ("SequentialSampler", "RandomSampler"):
        if getattr(sampler, "replacement", False) or getattr(sampler, "_num_samples", None) is not None:
            raise refuse(sampler, "it draws with replacement, or a part", "leave replacement and num_samples out")
        rows.append(Row(name, "", True, "in a process group the ranks share the samples"))
        return {}, name == "RandomSampler", 1
    if name in (*_SHARING, *_REPEATING):
        repeating = name in _REPEATING
        repeats = int(getattr(sampler, "num_repeats", getattr(sampler, "repetitions", 3))) if repeating else 1
        drawn = bool(getattr(sampler, "shuffle", repeating))
        note = "" if drawn else "every sample counts once; what fills up the last batch has target -100"
        shares = {"rank": int(sampler.rank), "world_size": int(sampler.num_replicas)}
        rows.append(Row(name, ", ".join(f"{key}={value}" for key, value in shares.items()), True, note))
        return shares, drawn, repeats
    raise refuse(sampler, "the loader orders the samples itself", "take RandomSampler, DistributedSampler or RASampler")


def _settings(dataloader: Any, rows: list[Row], training: bool) -> dict[str, Any]:
    """What create_loader is given of the DataLoader's own arguments."""
    if dataloader.worker_init_fn is not None:
        rows.append(Row("worker_init_fn", "", False, "is not called: workers draw nothing"))
    for name, (default, instead) in _IGNORED.items():
        if getattr(dataloader, name, default) not in (default, None):
            rows.append(Row(f"{name}={getattr(dataloader, name)!r}", "", True, instead))
    found: dict[str, Any] = {"batch_size": dataloader.batch_size, "drop_last": dataloader.drop_last,
                             "num_workers": dataloader.num_workers}  # fmt: skip
    if training and not dataloader.drop_last and len(dataloader.dataset) % dataloader.batch_size:
        note = "the last batch is filled up, where yours is short"
        rows.append(Row("drop_last=False", "drop_last=False", False, note))
    if dataloader.prefetch_factor is not None:
        found["prefetch"] = dataloader.prefetch_factor
    if dataloader.num_workers and dataloader.timeout:
        found["timeout"] = dataloader.timeout
    context = dataloader.multiprocessing_context
    if dataloader.num_workers and context is not None:
        found["multiprocessing_context"] = context if isinstance(context, str) else context.get_start_method()
    rows.append(Row("DataLoader", ", ".join(f"{name}={value!r}" for name, value in found.items()), True, ""))
    return found
