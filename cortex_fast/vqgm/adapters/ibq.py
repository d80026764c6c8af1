"""IBQ's tokenizers (SEED-Voken): taming's autoencoder; the token is the code of the largest product with the latent.

Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization" (ICCV 2025).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters.architecture import filled_autoencoder
from cortex_fast.vqgm.adapters.shared import NO_PRIOR, codes_of, extent, freeze, latents_of, pixels_of
from cortex_fast.vqgm.averages import averages
from cortex_fast.vqgm.checkpoints import read_state
from cortex_fast.vqgm.model import Model

IMAGE_SIZE = 256
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
ROWS, CODES = 1024, 8192  # latents and codes multiplied at a time: 64 MiB of products


def ibq(model: Any, *, grid: Grid | None = None) -> Model:
    """An `IBQ` of SEED-Voken's src.IBQ.models.ibqgan as a VQGM.

    The weights are not replaced by their averages. Call `model.model_ema.copy_to(model)` first for the averaged ones,
    which the published evaluation uses.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w), see `adapt`. Default None: that of the configuration's resolution.

    Returns:
        The VQGM.

    Raises:
        ValueError: the quantiser remaps its tokens.
    """
    if model.quantize.remap is not None:
        raise ValueError(f"model: expected a quantiser without remap, got {model.quantize.remap!r}")
    return _model(model, grid, model.encoder.resolution, model.encoder.num_resolutions)


def load_ibq(
    path: Path | str,
    *,
    grid: Grid | None = None,
    averaged: bool = True,
    tensors_only: bool = False,
    device: torch.device | str = "cpu",
) -> Model:
    """Load a published checkpoint, such as imagenet256_262144.ckpt, into our own modules.

    Args:
        path: the checkpoint, whose shapes give the model's sizes.
        grid: m or (h, w), see `adapt`. Default None: that of 256 x 256 images.
        averaged: whether to take the moving average of the weights, as the published evaluation does, where the
            checkpoint has it. Default True.
        tensors_only: whether to read a checkpoint that carries pickled objects, see `read_state`. Default False.
        device: where the model is. Default "cpu".

    Returns:
        The model.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, carries pickled objects, or is of another model.
    """
    state = read_state(Path(path), tensors_only=tensors_only)
    weights = {name: tensor for name, tensor in state.items() if name.startswith(PARTS)}
    if averaged:
        weights = averages(weights, state)
    model = filled_autoencoder(Path(path), weights, IMAGE_SIZE, device)
    return _model(model, grid, IMAGE_SIZE, len(model.encoder.down))


def _model(model: Any, grid: Grid | None, resolution: int, levels: int) -> Model:
    freeze(model)
    codes, reduction = codes_of(model.quantize.embedding), 2 ** (levels - 1)
    size, cell = extent(grid, resolution // reduction, reduction)
    return Model(
        codes,
        size,
        of_state(model.state_dict()),
        latents=latents_of(model),
        quantise=lambda latents: largest_product(latents.permute(0, 2, 3, 1), codes),
        pixels=pixels_of(model),
        reasons={"sampler": NO_PRIOR},
        cell=cell,
    )


def largest_product(z: Tensor, codebook: Tensor) -> Tensor:
    """The index of the code c with the largest product <z,c>, the lowest one among equals.

    The products are float64, as in `nearest_code`, so that an index does not depend on the rest of the batch. Some rows
    and codes are multiplied at a time, because K goes up to 262,144.

    Args:
        z: float [...,d].
        codebook: float [K,d].

    Returns:
        int64 [...].
    """
    indices = []
    for rows in z.reshape(-1, z.shape[-1]).double().split(ROWS):
        best = rows.new_full((len(rows),), -torch.inf)
        index = torch.zeros(len(rows), dtype=torch.int64, device=z.device)
        for start in range(0, len(codebook), CODES):
            value, code = (rows @ codebook[start : start + CODES].double().T).max(dim=1)
            index = torch.where(value > best, code + start, index)
            best = torch.maximum(value, best)
        indices.append(index)
    return torch.cat(indices).view(z.shape[:-1])
