"""LlamaGen's image tokenizers VQ-16 and VQ-8: taming's autoencoder under other names, over normalised codes.

Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (2024).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters.architecture import filled_autoencoder
from cortex_fast.vqgm.adapters.shared import NO_PRIOR, codes_of, extent, freeze, latents_of, pixels_of
from cortex_fast.vqgm.checkpoints import CheckpointError, read_state
from cortex_fast.vqgm.model import Model

IMAGE_SIZE = 256  # the smallest published size
MIDDLE = ("block_1", "attn_1", "block_2")


def llamagen(model: Any, *, grid: Grid | None = None) -> Model:
    """A `VQModel` of LlamaGen's tokenizer.tokenizer_image.vq_model as a VQGM.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w), see `adapt`. Default None: that of 256 x 256 images.

    Returns:
        The VQGM.
    """
    return _model(model, grid, len(model.config.encoder_ch_mult), normalised=model.quantize.l2_norm)


def load_llamagen(
    path: Path | str,
    *,
    grid: Grid | None = None,
    normalised: bool = True,
    tensors_only: bool = False,
    device: torch.device | str = "cpu",
) -> Model:
    """Load a published checkpoint, such as vq_ds16_c2i.pt, into our own modules.

    Args:
        path: the checkpoint, whose shapes give the model's widths and depth.
        grid: m or (h, w), see `adapt`. Default None: that of 256 x 256 images.
        normalised: whether codes are looked up normalised (`codebook_l2_norm`), which is not in the checkpoint. Default
            True.
        tensors_only: whether to read a checkpoint that carries pickled objects, see `read_state`. Default False.
        device: where the model is. Default "cpu".

    Returns:
        The model.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, carries pickled objects, or is of another model.
    """
    state = read_state(Path(path), under=("ema", "model", "state_dict"), tensors_only=tensors_only)
    if not any(name.startswith("encoder.conv_blocks.") for name in state):
        raise CheckpointError(
            f"{path}: expected LlamaGen's names (encoder.conv_blocks...), got {', '.join(list(state)[:3])}"
        )
    state.pop("quantize.codebook_used", None)  # a statistic of the training
    model = filled_autoencoder(Path(path), taming_names(state), IMAGE_SIZE, device)
    return _model(model, grid, len(model.encoder.down), normalised)


def taming_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LlamaGen's state dict under taming's names.

    The decoder's blocks are numbered from coarse to fine, and taming's `up` from fine to coarse.

    Args:
        state: tensors by LlamaGen's names.

    Returns:
        The same tensors by taming's names.
    """
    numbers = (re.match(r"decoder\.conv_blocks\.(\d+)", name) for name in state)
    last = max((int(number[1]) for number in numbers if number), default=0)

    def renamed(name: str) -> str:
        name = re.sub(r"mid\.(\d)", lambda number: f"mid.{MIDDLE[int(number[1])]}", name)
        name = re.sub(r"decoder\.conv_blocks\.(\d+)", lambda number: f"decoder.up.{last - int(number[1])}", name)
        return name.replace("encoder.conv_blocks.", "encoder.down.").replace(".res.", ".block.")

    return {renamed(name): tensor for name, tensor in state.items()}


def _model(model: Any, grid: Grid | None, levels: int, normalised: bool) -> Model:
    freeze(model)
    reduction = 2 ** (levels - 1)
    size, cell = extent(grid, IMAGE_SIZE // reduction, reduction)
    codes, latents = codes_of(model.quantize.embedding), latents_of(model)
    return Model(
        F.normalize(codes, dim=-1) if normalised else codes,
        size,
        of_state(model.state_dict(), "" if normalised else "codes as they are stored"),
        latents=(lambda images: F.normalize(latents(images), dim=1)) if normalised else latents,
        pixels=pixels_of(model),
        reasons={"sampler": NO_PRIOR},
        cell=cell,
    )
