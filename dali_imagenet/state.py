"""What a saved position says, and whether it belongs to this run."""

from __future__ import annotations

import logging
from typing import Any

from dali_imagenet.plan.plan import EPOCHS, Plan
from dali_imagenet.recipe import Recipe

log = logging.getLogger("dali_imagenet")

STATE_VERSION = 2
"""Of the states that are written. Version 1 held a hash in place of the recipe."""

_LEFT_OUT = dict.fromkeys(  # where not given
    ("weights", "epoch_size", "shuffle", "steps_per_epoch", "accumulate", "views", "share_geometry")
)


def state_of(plan: Plan, epoch: int, step: int) -> dict[str, Any]:
    """A position in a plan, as plain JSON."""
    return {"version": STATE_VERSION, **plan.fingerprint, "epoch": epoch, "step": step}


def position_in(plan: Plan, state: dict[str, Any]) -> tuple[int, int]:
    """The epoch, and the steps handed out in it, that a state stands for.

    Raises:
        ValueError: for a state of another run; names every field that differs, with both values.
    """
    version = state.get("version")
    wrong = [] if version in (1, STATE_VERSION) else [f"version: saved {version!r}, here {STATE_VERSION}"]
    for name, here in (_LEFT_OUT | plan.fingerprint).items():
        saved = state.get(name)
        if name == "views" and isinstance(saved, list) and isinstance(here, list) and len(saved) == len(here):
            for view, (before, recipe) in enumerate(zip(saved, plan.recipes[1:], strict=True), 1):
                wrong += [f"view {view}: {other}" for other in _other_fields(before, recipe)]
        elif name != "recipe":
            wrong += [f"{name}: saved {saved!r}, here {here!r}"] if saved != here else []
        elif version != 1:
            wrong += _other_fields(saved, plan.recipe)
    epoch, step = state.get("epoch"), state.get("step")
    if not (_is_in(epoch, EPOCHS - 1) and _is_in(step, len(plan))):
        wrong.append(f"epoch {epoch!r}, step {step!r}: must be whole numbers, the step in [0, {len(plan)}]")
    if wrong:
        raise ValueError(
            f"this state belongs to another run: {'; '.join(wrong)}. To go on with other settings from the start of an "
            "epoch, leave the state alone and call set_epoch(n)"
        )
    if version == 1:
        log.warning("this state is of version 1: whether it was saved with this recipe could not be compared")
    return int(epoch), int(step)  # type: ignore[arg-type]  # checked above


def _other_fields(saved: Any, recipe: Recipe) -> list[str]:
    """The fields in which a saved recipe differs; what a state leaves out has its default."""
    here = recipe.fingerprint
    if not isinstance(saved, dict) or saved.get("kind") != here["kind"]:
        return [f"recipe: saved {saved!r}, here {here!r}"]
    defaults = recipe.defaults
    found = []
    for name in sorted(saved.keys() | here.keys()):
        before, now = (some.get(name, defaults.get(name)) for some in (saved, here))
        if before != now:
            found.append(f"recipe: {name}: saved {before!r}, here {now!r}")
    return found


def _is_in(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
