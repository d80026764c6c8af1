"""Models by the name of the code that wrote them."""

from collections.abc import Callable
from pathlib import Path

import torch
from typing_extensions import TypedDict, Unpack

from cortex_fast import checks
from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters import load_ibq, load_llamagen
from cortex_fast.vqgm.model import Model
from cortex_fast.vqgm.sampling import SamplingSettings
from cortex_fast.vqgm.taming_folder import load_taming

LOADERS: dict[str, Callable[..., Model]] = {"taming": load_taming, "llamagen": load_llamagen, "ibq": load_ibq}


class LoadOptions(TypedDict, total=False):
    """The options of the loaders, see `load`."""

    grid: Grid | None
    device: torch.device | str
    tensors_only: bool
    averaged: bool
    normalised: bool
    sampling: SamplingSettings | None


def load(name: str, path: Path | str, **options: Unpack[LoadOptions]) -> Model:
    """Load a trained model, in eval mode, without gradients of its parameters.

    Args:
        name: the code that wrote it: "taming", "llamagen" or "ibq".
        path: the folder (taming) or the checkpoint (llamagen, ibq).
        grid: m or (h, w), the only grid whose images are encoded. Default None: images whose height and
            width are multiples of a token's.
        device: where the model is. Default "cpu".
        tensors_only: whether to read a checkpoint that carries pickled objects, see `read_state`. Default False.
        averaged: of "taming" and "ibq": whether to take the moving average of the weights, where the checkpoint has it.
            Default True.
        normalised: of "llamagen": whether codes are looked up normalised. Default True.
        sampling: of "taming": temperature, top_k, top_p and dtype, see `SamplingSettings`. Default None.

    Returns:
        The model.

    Raises:
        ValueError: an unknown name, or a device that does not exist.
        TypeError: an option that this loader does not have.
        FileNotFoundError: no such file.
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    checks.one_of("name", name, LOADERS)
    checks.device("device", options.get("device", "cpu"))
    return LOADERS[name](path, **options)
