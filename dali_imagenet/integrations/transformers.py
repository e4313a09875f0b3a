"""Hugging Face's Trainer on loaders of this package: `class MyTrainer(DaliTrainerMixin, Trainer)`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from dali_imagenet.data.index import SampleIndex
from dali_imagenet.integrations.as_dataloader import Samples, Ticket, TorchDataLoader
from dali_imagenet.integrations.frameworks import framework
from dali_imagenet.loader import Loader, create_loader
from dali_imagenet.plan.batch_plan import PADDING
from dali_imagenet.recipe import EvalRecipe, Recipe, TrainRecipe
from dali_imagenet.state import position_in

if TYPE_CHECKING:
    from transformers import Trainer as Base
    from transformers import TrainerCallback
else:
    TrainerCallback = framework("transformers").TrainerCallback
    Base = object

log = logging.getLogger("dali_imagenet")

STATE_FILE = "dali_imagenet.json"
"""In the folder of a checkpoint: where the training loader was."""

_BESIDE = ("index", "path")  # what a loader hands out that no model takes


class DaliTrainerMixin(Base):  # type: ignore[misc]  # Any where transformers is not looked at
    """`class MyTrainer(DaliTrainerMixin, Trainer)`: a Trainer whose batches come from `create_loader`.

    Of the data sets those become loaders that a recipe is given for, and `Loader`s are taken as they are; without both,
    the Trainer does what it always does. A loader that is made here takes from TrainingArguments the batch sizes per
    device, `dataloader_drop_last` (of training), `data_seed` or else `seed`, the device, `dataloader_prefetch_factor`,
    and `dataloader_num_workers` where it is not 0, the Trainer's default, which here means a worker for each core.

    Evaluation and prediction count every sample once, over any number of processes, `compute_metrics` and the loss
    included. The soft labels of mixing and smoothing get the cross-entropy of soft labels, unless the model's
    `config.problem_type` says "multi_label_classification" or "regression", or a `compute_loss_func` is given.

    A checkpoint holds the loader's state (dali_imagenet.json). `train(resume_from_checkpoint=...)` goes to the step
    where it was saved without decoding what was seen, and refuses a checkpoint of other data, recipe, seed or batches.

    Args:
        train_recipe: `TrainRecipe` for what train_dataset names: a path, a `SampleIndex`, or anything else that
            `create_loader` takes.
        eval_recipe: `EvalRecipe` for eval_dataset, for each of its values where that is a dictionary, and for
            `predict`.
        loader_options: further arguments of `create_loader` for every loader that is made here; they come before those
            of TrainingArguments. For what training and evaluation shall have differently, give `Loader`s.
    """

    def __init__(
        self,
        *args: Any,
        train_recipe: TrainRecipe | None = None,
        eval_recipe: EvalRecipe | None = None,
        loader_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.train_recipe, self.eval_recipe = train_recipe, eval_recipe
        self.loader_options = dict(loader_options or {})
        self._made: dict[tuple[bool, Any], tuple[Any, Loader]] = {}  # data are held, so that an id stays theirs
        self._training: _Training | None = None
        self._saved: Path | None = None
        self._rows: _Rows | None = None  # the evaluation that runs
        self._loss_is_next = False
        for name in ("train_dataset", "eval_dataset"):
            if isinstance(kwargs.get(name), os.PathLike):
                kwargs[name] = os.fspath(kwargs[name])  # the Trainer asks for a length
        super().__init__(*args, **kwargs)
        if self.args.accelerator_config.split_batches:
            raise ValueError("split_batches=True: must be False, batch sizes of a loader are those of one process")
        self.add_callback(_SavesPosition(self))

    # ---- loaders

    def _loader_for(self, data: Any, *, training: bool) -> Loader | None:
        """The loader of these data; None where they are the Trainer's own matter."""
        name, recipe = ("train", self.train_recipe) if training else ("eval", self.eval_recipe)
        rows = self._train_batch_size if training else self.args.eval_batch_size
        if isinstance(data, Loader):
            if data.batch_size != rows:
                log.warning(
                    "the loader given as %s_dataset has batch_size=%d, TrainingArguments say %d: the loader's holds, "
                    "say per_device_%s_batch_size=%d for rates that are right",
                    *(name, data.batch_size, rows, name, data.batch_size),
                )
            return data
        if recipe is None:
            if isinstance(data, SampleIndex | str):
                kind = "TrainRecipe.classic()" if training else "EvalRecipe()"
                raise ValueError(f"{name}_dataset={data!r} without {name}_recipe=: give one, such as {kind}")
            return None
        key = training, data if isinstance(data, str) else id(data)
        if key in self._made:
            _, made = self._made[key]
            if made.batch_size == rows and made.recipe == recipe:
                return made
            made.close()
        made = create_loader(data, recipe, **self._options(recipe, rows) | self.loader_options)
        self._made[key] = data, made
        return made

    def _options(self, recipe: Recipe, rows: int) -> dict[str, Any]:
        """Arguments of `create_loader`."""
        args = self.args
        names = (getattr(self.model, "main_input_name", "pixel_values"), self._label)
        options = {
            "batch_size": rows,
            "device": args.device,
            "num_workers": args.dataloader_num_workers or None,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "output": "dict",
            "output_names": names,
        }
        if args.dataloader_prefetch_factor is not None:
            options["prefetch"] = args.dataloader_prefetch_factor
        if isinstance(recipe, TrainRecipe):
            return options | {"drop_last": args.dataloader_drop_last}
        return options | {"padding": "short"}

    @property
    def _label(self) -> str:
        return str(self.label_names[0]) if self.label_names else "labels"

    def get_train_dataloader(self) -> Any:
        """A DataLoader of the training loader's batches."""
        loader = None if self.train_dataset is None else self._loader_for(self.train_dataset, training=True)
        if loader is None:
            self._training = None
            return super().get_train_dataloader()
        self._train_batch_size = loader.batch_size
        self._training = _Training(loader)
        if self._saved is not None:
            epoch, step = position_in(loader.plan, json.loads(self._saved.read_text(encoding="utf-8")))
            if not self.args.ignore_data_skip:
                self._training.resume_at = (epoch + 1, 0) if step == len(loader) else (epoch, step)
        return TorchDataLoader(self._training)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader of `eval_dataset`: data, or a name where the Trainer's eval_dataset is a dictionary."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(given, str) and isinstance(self.eval_dataset, Mapping) and given in self.eval_dataset:
            given = self.eval_dataset[given]
        loader = None if given is None else self._loader_for(given, training=False)
        return super().get_eval_dataloader(eval_dataset) if loader is None else loader

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As `get_eval_dataloader`."""
        loader = self._loader_for(test_dataset, training=False)
        return super().get_test_dataloader(test_dataset) if loader is None else loader

    # ---- training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. Where the checkpoint has no loader state, its counters alone say where to go on."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = framework("transformers.trainer_utils").get_last_checkpoint(self.args.output_dir)
        file = Path(folder) / STATE_FILE if folder else None
        if file is not None and not file.exists():
            log.warning("%s has no %s: whether it is of these data and this recipe is not checked", folder, STATE_FILE)
        self._saved = file if file is not None and file.exists() else None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._saved = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer's, which leaves out, with a warning, what a checkpoint has under the names of the model's
        publication (transformers 5.24: ViT, DeiT, Swin, BEiT)."""
        net = self.model if model is None else model
        file = Path(resume_from_checkpoint, "model.safetensors")
        if (
            hasattr(net, "from_pretrained")
            and file.exists()
            and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        ):
            with framework("safetensors").safe_open(file, "pt") as saved:
                renamed = set(saved.keys()) - set(net.state_dict())
            if renamed:
                found = type(net).from_pretrained(resume_from_checkpoint, config=net.config)
                net.load_state_dict(found.state_dict())
                return
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of an update and their items, which are images also where labels are soft."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if items is not None and batches and _is_soft(labels := batches[0].get(self._label)):
            items = items / labels.shape[1]
        return batches, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the Trainer's, and the cross-entropy of soft labels (float [B, classes])."""
        inputs = {name: value for name, value in inputs.items() if name not in _BESIDE}
        if self._rows is not None:
            num_items_in_batch = None  # processes may have different numbers of rows: each takes the mean of its own
        labels = inputs.get(self._label)
        kind = getattr(getattr(self.model, "config", None), "problem_type", None)
        if not _is_soft(labels) or self.compute_loss_func or kind in ("multi_label_classification", "regression"):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        del inputs[self._label]
        outputs = model(**inputs)
        logits = (outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]).float()
        smoothing = self.args.label_smoothing_factor
        if num_items_in_batch is None or not self.model_accepts_loss_kwargs:
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        else:  # over all batches of the update, and where the Trainer has counted them all, over all processes
            loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
            loss = loss / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    # ---- evaluation

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, over the rows that are no padding."""
        if not isinstance(dataloader, Loader):
            return super().evaluation_loop(dataloader, *args, **kwargs)
        self._rows = _Rows(dataloader, self._label)
        self.gather_function = self._gathered
        try:
            return super().evaluation_loop(self._rows, *args, **kwargs)
        finally:
            self._rows, self._loss_is_next = None, False
            self.gather_function = self.accelerator.gather_for_metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        found = super().prediction_step(*args, **kwargs)
        self._loss_is_next = self._rows is not None and found[0] is not None
        return found

    def _gathered(self, data: Any) -> Any:
        """The rows of all processes, in the order of the processes."""
        assert self._rows is not None
        count = self._rows.count
        if self._loss_is_next:  # the mean over this batch, which the Trainer repeats as often as a full one has rows
            self._loss_is_next = False
            data = data[:1].repeat(count)
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return data
        counts = accelerator.gather(torch.tensor([count], device=accelerator.device)).tolist()
        gathered = accelerator.gather(accelerator.pad_across_processes(data, dim=0))
        most = max(counts)
        rows = [at * most + row for at, found in enumerate(counts) for row in range(found)]

        def real(part: Tensor) -> Tensor:
            return part[torch.tensor(rows, device=part.device)]

        return framework("accelerate.utils").recursively_apply(real, gathered)


class _Training(Samples):
    """The batches of the training loader, as dictionaries.

    Args:
        loader: whose they are.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self.resume_at: tuple[int, int] | None = None  # where the first batch must be

    def __len__(self) -> int:
        """Samples of an epoch over all processes."""
        return self.loader.plan.rows(0) * self.loader.plan.world_size

    def __getitems__(self, ticket: list[int]) -> dict[str, Any]:
        wanted, self.resume_at = self.resume_at, None
        if wanted is not None and isinstance(ticket, Ticket) and wanted != ticket.at:
            raise ValueError(
                f"the checkpoint was saved at epoch {wanted[0]}, step {wanted[1]} of the loader, and the Trainer goes "
                f"on at epoch {ticket.at[0]}, step {ticket.at[1]}: resume with the gradient_accumulation_steps of that "
                "run, or give ignore_data_skip=True to begin the epoch again"
            )
        return _as_dict(self.loader, super().__getitems__(ticket))


class _Rows:
    """An evaluation loader without its padding rows."""

    def __init__(self, loader: Loader, label: str) -> None:
        self._loader, self._label = loader, label
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        self.count = 0  # rows of this process in the batch that was yielded last
        self.gradient_state = framework("accelerate.state").GradientState()
        self.end_of_dataloader, self.remainder = False, -1  # what GradientState asks for

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.gradient_state._add_dataloader(self)
        try:
            for step, batch in enumerate(self._loader, 1):
                self.end_of_dataloader = step == len(self)
                found = _without_padding(_as_dict(self._loader, batch), self._label)
                self.count = len(next(iter(found.values())))
                yield found
        finally:
            self.gradient_state._remove_dataloader(self)


class _SavesPosition(TrainerCallback):  # type: ignore[misc]  # Any where transformers is not looked at
    """Puts the loader's state beside each checkpoint."""

    def __init__(self, trainer: DaliTrainerMixin) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        training = self._trainer._training
        if training is None or not args.should_save:
            return
        folder = Path(self._trainer._get_output_dir(None), f"checkpoint-{state.global_step}")
        if folder.exists():  # a search for hyperparameters saves elsewhere, and does not resume
            (folder / STATE_FILE).write_text(json.dumps(training.loader.state_dict()), encoding="utf-8")


def _as_dict(loader: Loader, batch: Any) -> dict[str, Any]:
    if isinstance(batch, dict):
        return batch
    return dict(zip(loader.output_names, batch, strict=False))  # index and path, behind them, are not the model's


def _without_padding(batch: dict[str, Any], label: str) -> dict[str, Any]:
    labels = batch.get(label)
    if "index" in batch:
        real = batch["index"] >= 0
    elif isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1:
        real = labels != PADDING
    else:
        return batch
    if bool(real.all()):
        return batch
    rows = real.nonzero()[:, 0]
    return {
        name: value[rows] if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]
        for name, value in batch.items()
    }


def _is_soft(labels: Any) -> TypeGuard[Tensor]:
    return isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == 2 and labels.shape[1] > 1
