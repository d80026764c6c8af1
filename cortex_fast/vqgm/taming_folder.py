"""Trained models in the folders that taming-transformers writes: configs/*-project.yaml and checkpoints/last.ckpt."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid, grid_of, sides
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.checkpoints import read_state
from cortex_fast.vqgm.configs import read_config
from cortex_fast.vqgm.model import Model
from cortex_fast.vqgm.sampling import SamplingSettings, check_sampling
from cortex_fast.vqgm.taming import taming_model
from cortex_fast.vqgm.taming_configs import (
    PRIOR,
    Part,
    autoencoder_of,
    conditions_of,
    part_of,
    prior_of,
    relevant_settings,
)
from cortex_fast.vqgm.taming_weights import fill, weights_of
from cortex_fast.vqgm.transformer import GPT


def load_taming(
    path: Path | str,
    *,
    grid: Grid | None = None,
    averaged: bool = True,
    tensors_only: bool = False,
    sampling: SamplingSettings | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """Load a VQGAN, or a transformer over one, in float32.

    A transformer samples if its condition is a class label or nothing, and only on the grid that it was trained for.
    Otherwise `sample` raises an error that states the reason. The model's fingerprint covers the tensors that are used
    and `sampling`.

    Args:
        path: the folder. Its newest configs/*-project.yaml is read, or else configs/model.yaml, with references ${...}
            resolved as by OmegaConf.
        grid: m or (h, w), the only grid whose images are encoded. Default None: the configuration's grid, and images
            whose height and width are multiples of a token's.
        averaged: whether to take the moving average of the weights, where the checkpoint has it (latent-diffusion's
            `model_ema`). Default True.
        tensors_only: whether to read a checkpoint that carries pickled Lightning objects, see `read_state`. Default
            False.
        sampling: temperature, top_k, top_p and dtype, see `SamplingSettings`. Default None: the prior's distribution.
        device: where the model is. Default "cpu".

    Returns:
        The model.

    Raises:
        FileNotFoundError: the configuration or the checkpoint does not exist.
        NotADirectoryError: `path` is a file.
        ImportError: PyYAML is not installed.
        CheckpointError: the model is of another kind, or settings or keys are missing or unknown; the message names
            them.
        TypeError or ValueError: `grid` or `sampling` is out of range.
    """
    check_sampling(sampling or {})  # before a large file is read
    size = None if grid is None else sides(grid)
    file = _newest_config(Path(path))
    part = part_of(file, read_config(file), "model")
    checkpoint = Path(path) / "checkpoints" / "last.ckpt"
    state = read_state(checkpoint, tensors_only=tensors_only)
    modules = _modules_of(file, part, size)
    weights = weights_of(state, modules.by_prefix, averaged=averaged)
    fill(checkpoint, modules.by_prefix, weights, device)
    return taming_model(
        modules.autoencoder,
        None if modules.reason else modules.prior,
        grid=size or modules.autoencoder.grid,
        fingerprint=of_state(weights, str(sorted((sampling or {}).items()))),
        cell=modules.autoencoder.cell if size is None else None,
        num_classes=len(modules.conditions),
        first_token=modules.conditions.start,
        sampling=sampling,
        reason=modules.reason,
    )


class _Modules(NamedTuple):
    """The modules of a model, without weights.

    by_prefix: the same modules by the prefix of their names in the checkpoint. conditions: the prior's tokens for them.
    reason: why the model cannot sample, or None.
    """

    autoencoder: VQModel
    prior: GPT | None
    by_prefix: Mapping[str, nn.Module]
    conditions: range
    reason: str | None


def _modules_of(file: Path, part: Part, size: tuple[int, int] | None) -> _Modules:
    """The modules that the configuration's model describes. size: (h, w), the grid that the caller asks for."""
    if part.kind != PRIOR:
        autoencoder = autoencoder_of(file, part)
        return _Modules(autoencoder, None, {"": autoencoder}, range(0), None)
    parameters = relevant_settings(file, part)
    autoencoder = autoencoder_of(file, part_of(file, parameters, "first_stage_config"))
    prior = prior_of(file, parameters, autoencoder)
    conditions, reason = conditions_of(file, parameters, prior)
    if size is not None and size != sides(autoencoder.grid):
        reason = f"the prior samples a grid of {autoencoder.grid}, and grid asks for {grid_of(size)}"
    by_prefix = {"first_stage_model.": autoencoder, "transformer.": prior}
    return _Modules(autoencoder, prior, by_prefix, conditions, reason)


def _newest_config(folder: Path) -> Path:
    if folder.is_file():
        raise NotADirectoryError(f"path: expected the folder of configs and checkpoints, got the file {folder}")
    configs = folder / "configs"
    file = max(configs.glob("*-project.yaml"), default=configs / "model.yaml")  # their names begin with the date
    if not file.is_file():
        raise FileNotFoundError(f"no *-project.yaml or model.yaml in {configs}")
    return file
