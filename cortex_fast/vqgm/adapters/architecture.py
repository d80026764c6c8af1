"""Autoencoders of taming's architecture from their weights alone, without a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.checkpoints import CheckpointError


def filled_autoencoder(path: Path, state: Mapping[str, Tensor], image_size: int, device: torch.device | str) -> VQModel:
    """The float32 model with these weights by taming's names, whose shapes give its widths and depths.

    Raises CheckpointError, naming `path`, if they are the weights of another architecture.
    """
    try:
        with torch.device("meta"):
            model = VQModel(**_config(state, image_size))
        model.to(torch.float32).to_empty(device=device)
        model.load_state_dict(state)
    except KeyError as error:
        raise CheckpointError(f"{path}: not the state of an autoencoder like taming's (no {error})") from error
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not the state of an autoencoder like taming's ({error})") from error
    return model


def _config(state: Mapping[str, Tensor], image_size: int) -> dict[str, Any]:
    """The arguments of `VQModel`. Raises KeyError for a weight that is missing."""

    def count(prefix: str, suffix: str) -> int:
        number = 0
        while f"{prefix}{number}{suffix}" in state:
            number += 1
        return number

    levels = count("encoder.down.", ".block.0.conv1.weight")
    width = len(state["encoder.conv_in.weight"])
    z_channels = state["decoder.conv_in.weight"].shape[1]
    codes, dimension = state["quantize.embedding.weight"].shape
    attends = [level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in state]
    return {
        "n_embed": codes,
        "embed_dim": dimension,
        "ddconfig": {
            "ch": width,
            "ch_mult": [len(state[f"encoder.down.{level}.block.0.conv1.weight"]) // width for level in range(levels)],
            "num_res_blocks": count("encoder.down.0.block.", ".conv1.weight"),
            "attn_resolutions": [image_size >> level for level in attends],
            "resolution": image_size,
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_ch": len(state["decoder.conv_out.weight"]),
            "z_channels": z_channels,
            "double_z": len(state["encoder.conv_out.weight"]) == 2 * z_channels,
        },
    }
