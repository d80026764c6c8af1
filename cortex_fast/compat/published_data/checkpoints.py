"""Checkpoints of ClassificationNet1 to 4 (.pth state dicts) as extractor files, and back."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cortex_fast.compat.published_data.errors import PublishedDataError
from cortex_fast.data.grids import Grid, grid_of, sides
from cortex_fast.data.results import replace_whole
from cortex_fast.extractors.files import filled, load_extractor, save_extractor
from cortex_fast.vqgm.checkpoints import read_state

_PARALLEL = "module."  # DataParallel's prefix of every name


def import_checkpoint(
    path: Path | str, out: Path | str, *, grid: Grid | None = None, tensors_only: bool = False
) -> str:
    """Convert a checkpoint of ClassificationNet1 to 4 into an extractor file. Sizes follow from the weights' shapes.

    Args:
        path: the checkpoint, a state dict.
        out: the extractor file to write.
        grid: m or (h, w). Default a square: shapes tell only the number of tokens.
        tensors_only: read a checkpoint that carries pickled objects, without these; see `read_state`. Default False.
    Returns:
        The extractor's name: "ce", "ce_deep", "re" or "te".
    Raises:
        FileNotFoundError: the checkpoint does not exist.
        CheckpointError: it is damaged.
        PublishedDataError: its weights are those of something else; the message names the file.
    """
    path = Path(path)
    state = read_state(path, tensors_only=tensors_only)
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    try:
        name, sizes = _recognise(state)
        sizes |= {} if grid is None else {"grid": grid_of(sides(grid))}
        extractor = filled(name, sizes, state)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PublishedDataError(f"{path}: not a ClassificationNet1 to 4 of the published code ({error})") from error
    save_extractor(out, extractor, name, sizes, {"made_by": "import-published", "checkpoint": path.name})
    return name


def export_checkpoint(extractor_file: Path | str, out: Path | str) -> None:
    """Write an extractor file's weights as a state dict that the published code loads, whole or not at all.

    Args:
        extractor_file: of `save_extractor`.
        out: the .pth file to write.
    """
    state = {name: value.contiguous() for name, value in load_extractor(extractor_file).state_dict().items()}
    replace_whole(Path(out), lambda file: torch.save(state, file))


def _recognise(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and sizes for `build`. Raises KeyError for a missing weight that all four have."""
    if "cls_token" in state:
        width, channels = state["proj.0.weight"].shape
        grid = isqrt(state["pos_embed"].shape[1] - 1)
        return "te", _sizes(len(state["fc.weight"]), channels, width, grid)
    if "layer1.0.conv1.weight" in state:
        width, channels = state["layer1.0.conv1.weight"].shape[:2]
        return "re", _sizes(len(state["fc2.weight"]), channels, width, 16)  # serves any grid
    width, channels = state["conv1_1.weight"].shape[:2]
    grid = 4 * isqrt(state["fc1.weight"].shape[1] // width)
    name = "ce_deep" if "conv3_1.weight" in state else "ce"
    return name, _sizes(len(state["fc3.weight"]), channels, width, grid)


def _sizes(num_classes: int, in_channels: int, width: int, grid: int) -> dict[str, Any]:
    return {"num_classes": num_classes, "in_channels": in_channels, "width": width, "grid": grid}
