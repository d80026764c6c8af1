"""What the stages of token selection share: recipes from settings, and one file a problem."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cortex_fast.explain import Recipe, TokenSelection
from cortex_fast.studies.settings import OptimisationSettings
from cortex_fast.studies.tasks import ENTRY

KIND = "TokenSelection"
_RECIPE = ("steps", "lr", "tau", "optimizer", "regularisation", "judge_every", "restarts", "start")


def recipe_of(settings: OptimisationSettings, stay_penalty: float = 0.0) -> Recipe:
    """The recipe that a table of settings describes.

    Args:
        settings: [selection] or [edits].
        stay_penalty: price of a changed position, in logits. Default 0.
    Returns:
        The recipe.
    """
    return Recipe(**{name: getattr(settings, name) for name in _RECIPE}, stay_penalty=stay_penalty)


def save(selection: TokenSelection, path: Path, inputs: dict[str, Any]) -> None:
    """Write a selection with the inputs that it was computed from."""
    replace(selection, fingerprint={**selection.fingerprint, ENTRY: inputs}).save(path)
