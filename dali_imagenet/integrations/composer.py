"""MosaicML's Composer: the loader's place in its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dali_imagenet.integrations.frameworks import framework
from dali_imagenet.loader import Loader

if TYPE_CHECKING:
    from composer import Callback
else:
    Callback = framework("composer", package="mosaicml").Callback


class LoaderState(Callback):  # type: ignore[misc]  # Any where Composer is not looked at
    """`Trainer(train_dataloader=loader, callbacks=[LoaderState(loader)], load_path=...)`: resumed where it was.

    The loader goes to the epoch and batch of Composer's own clock whenever `fit` begins, and decodes nothing of what
    was seen; without this Composer begins every past epoch and makes every past batch of this one again. A checkpoint
    of other data, recipe, seed or batches is refused.

    Args:
        loader: the training loader.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._random: Any = None  # what was saved, of each process

    def state_dict(self) -> dict[str, Any]:
        """The loader's state, and the generators of each process, which Composer restores only where it skips."""
        random = framework("composer.utils").reproducibility.get_rng_state()
        return {"loader": self._loader.state_dict(), "random": random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state of `state_dict`.

        Raises:
            ValueError: it is of another run.
        """
        self._loader.load_state_dict(state["loader"])
        self._random = state["random"]

    def fit_start(self, state: Any, logger: Any) -> None:
        """Go where Composer's clock stands."""
        epoch, step = int(state.timestamp.epoch), int(state.timestamp.batch_in_epoch)
        self._loader.seek(epoch, step)
        state.dataset_resumption["train"] = True  # Composer skips nothing
        if not step:
            self._random = None  # restored by Composer itself

    def before_dataloader(self, state: Any, logger: Any) -> None:
        """Restore the generators in the middle of an epoch."""
        if self._random is not None:
            framework("composer.utils").reproducibility.load_rng_state(self._random)
            self._random = None
