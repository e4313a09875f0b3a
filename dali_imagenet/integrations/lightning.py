"""A LightningDataModule of loaders of this package, for `lightning` and for `pytorch_lightning`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dali_imagenet.integrations.frameworks import framework
from dali_imagenet.loader import Loader, create_loader
from dali_imagenet.recipe import EvalRecipe, Recipe, TrainRecipe

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule as Base
else:

    def _base() -> type:
        """A Trainer takes data modules of its own package only: of both where both are installed."""
        found = [framework("lightning.pytorch", "pytorch_lightning").LightningDataModule]
        with contextlib.suppress(ImportError):
            found.append(framework("pytorch_lightning").LightningDataModule)
        return type("Base", tuple(dict.fromkeys(found)), {})

    Base = _base()


class ImageNetDataModule(Base):  # type: ignore[misc]  # Any where Lightning is not looked at
    """`trainer.fit(model, ImageNetDataModule(folder, train_recipe=TrainRecipe.strong(), batch_size=256))`.

    Loaders are made in each process when Lightning first asks for them, on the device of its strategy, and stay: with
    `reload_dataloaders_every_n_epochs`, too. Evaluation gives every sample once, over any number of processes, and no
    padding (padding="short"). A checkpoint holds where the training loader was; `fit(ckpt_path=...)` goes on there, in
    the middle of an epoch too, and refuses a checkpoint of other data, recipe, seed or batches.

    Args:
        data: as `create_loader` takes it; of a folder that holds train/ and val/, training takes the one, all else the
            other.
        batch_size: rows per process.
        train_recipe: `TrainRecipe`, for `fit`.
        val_recipe: `EvalRecipe`, for validation (in `fit`, too), test and prediction. None: `fit` does not validate.
        val_data: other data for validation; test_data and predict_data where these shall differ from them.
        val_batch_size: rows per process in evaluation; None: `batch_size`.
        train_options: further arguments of `create_loader` for training.
        val_options: further arguments of `create_loader` for evaluation.
        **options: further arguments of `create_loader` for both, such as seed and num_workers.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int,
        train_recipe: TrainRecipe | None = None,
        val_recipe: EvalRecipe | None = None,
        val_data: Any = None,
        test_data: Any = None,
        predict_data: Any = None,
        val_batch_size: int | None = None,
        train_options: Mapping[str, Any] | None = None,
        val_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.train_recipe, self.val_recipe = train_recipe, val_recipe
        val_data = data if val_data is None else val_data
        test_data = val_data if test_data is None else test_data
        predict_data = test_data if predict_data is None else predict_data
        self._data = {"train": data, "val": val_data, "test": test_data, "predict": predict_data}
        self._options = {"train": {**options, **(train_options or {})}}
        self._options["eval"] = {"padding": "short", **options, **(val_options or {})}
        self._made: dict[str, Loader] = {}
        self._state: dict[str, Any] | None = None  # loaded, for a training loader that is still to be made

    def _loader(self, part: str) -> Loader:
        training = part == "train"
        recipe: Recipe | None = self.train_recipe if training else self.val_recipe
        if recipe is None:
            kind = "train_recipe=TrainRecipe.classic()" if training else "val_recipe=EvalRecipe()"
            raise ValueError(f"ImageNetDataModule needs a recipe for this: give {kind}, or another one")
        rows = self.batch_size if training or self.val_batch_size is None else self.val_batch_size
        options = {"batch_size": rows, **self._options["train" if training else "eval"]}
        if self.trainer is not None:
            options.setdefault("device", self.trainer.strategy.root_device)
        made = self._made.get(part)
        if made is not None and made.batch_size != rows:  # a Tuner looks for the largest batch
            made.close()
            made = None
        if made is None:
            made = self._made[part] = create_loader(self._data[part], recipe, **options)
        return made

    def train_dataloader(self) -> Loader:
        """The training loader, at the loaded position where there is one."""
        loader, (state, self._state) = self._loader("train"), (self._state, None)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    def val_dataloader(self) -> Any:
        """The validation loader; none without `val_recipe`."""
        return [] if self.val_recipe is None else self._loader("val")

    def test_dataloader(self) -> Loader:
        """The loader of `test_data`."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """The loader of `predict_data`."""
        return self._loader("predict")

    def set_epoch(self, epoch: int) -> None:
        """Which epoch training runs next; Lightning says it by itself."""
        self.train_dataloader().set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the training loader is; Lightning saves it with its checkpoints."""
        made = self._made.get("train")
        return {} if made is None else {"train": made.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there when training begins.

        Raises:
            ValueError: for a state of other data, recipe, seed or batches; where the loader is not made yet, when it
                is.
        """
        self._state = state_dict.get("train")
        if "train" in self._made:
            self.train_dataloader()

    def teardown(self, stage: str) -> None:
        """Forget a position that an evaluation of a checkpoint has loaded; the loaders stay."""
        self._state = None

    def __getstate__(self) -> dict[str, Any]:
        """For processes that Lightning spawns: they make their own loaders."""
        return {**self.__dict__, "_made": {}}
