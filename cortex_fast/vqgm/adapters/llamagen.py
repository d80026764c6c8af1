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
from cortex_fast.vqgm.adapters.shapes import autoencoder_of
from cortex_fast.vqgm.adapters.shared import NO_PRIOR, codes_of, extent, freeze, latents_of, pixels_of
from cortex_fast.vqgm.checkpoints import CheckpointError, read_state
from cortex_fast.vqgm.model import Model

IMAGE_SIZE = 256  # the smallest that it was published for
MIDDLE = ("block_1", "attn_1", "block_2")


def llamagen(model: Any, *, grid: Grid | None = None) -> Model:
    """A `VQModel` of LlamaGen's tokenizer.tokenizer_image.vq_model, put into eval mode, its parameters frozen.

    grid: m or (h, w), see `adapt`; by default that of 256 x 256 images.
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
    """A published checkpoint, vq_ds16_c2i.pt for instance, by our own modules; widths and depth are read off it.

    normalised: whether codes are looked up normalised (`codebook_l2_norm`), which the checkpoint does not say.
    grid: m or (h, w), see `adapt`; by default that of 256 x 256 images.
    tensors_only: for checkpoints that carry pickled objects, see `read_state`.
    Raises FileNotFoundError, and CheckpointError for a file that carries such or the tensors of another model.
    """
    state = read_state(Path(path), under=("ema", "model", "state_dict"), tensors_only=tensors_only)
    if not any(name.startswith("encoder.conv_blocks.") for name in state):
        raise CheckpointError(
            f"{path}: expected LlamaGen's names (encoder.conv_blocks...), got {', '.join(list(state)[:3])}"
        )
    state.pop("quantize.codebook_used", None)  # a statistic of its training
    model = autoencoder_of(Path(path), taming_names(state), IMAGE_SIZE, device)
    return _model(model, grid, len(model.encoder.down), normalised)


def taming_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LlamaGen's state dict under taming's names: its decoder's blocks run from coarse to fine, taming's `up` back."""
    last = max(
        (int(found[1]) for name in state if (found := re.match(r"decoder\.conv_blocks\.(\d+)", name))), default=0
    )

    def renamed(name: str) -> str:
        name = re.sub(r"mid\.(\d)", lambda found: f"mid.{MIDDLE[int(found[1])]}", name)
        name = re.sub(r"decoder\.conv_blocks\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)
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
