"""IBQ's tokenizers (SEED-Voken): taming's autoencoder, whose token is the code of largest product with the latent.

Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization" (ICCV 2025).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters.shapes import autoencoder_of
from cortex_fast.vqgm.adapters.shared import NO_PRIOR, codes_of, extent, freeze, latents_of, pixels_of
from cortex_fast.vqgm.averages import averages
from cortex_fast.vqgm.checkpoints import read_state
from cortex_fast.vqgm.model import Model

IMAGE_SIZE = 256
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
ROWS, CODES = 1024, 8192  # of logits that are kept at a time: 64 MiB


def ibq(model: Any, *, grid: Grid | None = None) -> Model:
    """An `IBQ` of SEED-Voken's src.IBQ.models.ibqgan, put into eval mode, its parameters frozen.

    Its weights are taken as they stand: `model.model_ema.copy_to(model)` first gives the averaged ones, which the
    published evaluation uses. grid: m or (h, w), see `adapt`; by default that of the configuration's resolution.
    Raises ValueError for a quantiser that remaps its tokens.
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
    """A published checkpoint, imagenet256_262144.ckpt for instance, by our own modules; sizes are read off it.

    averaged: the moving average of the weights where the checkpoint has it, as in the published evaluation. grid: m or
    (h, w), see `adapt`; by default that of 256 x 256 images.
    tensors_only: for checkpoints that carry pickled objects, see `read_state`.
    Raises FileNotFoundError, and CheckpointError for a file that carries such or the tensors of another model.
    """
    state = read_state(Path(path), tensors_only=tensors_only)
    mine = {name: tensor for name, tensor in state.items() if name.startswith(PARTS)}
    if averaged:
        mine = averages(mine, state)
    model = autoencoder_of(Path(path), mine, IMAGE_SIZE, device)
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
    """Index int64 [...] of the row c of the codebook [K,d] with the largest <z,c>, z [...,d]; the lowest among equals.

    In float64 like `nearest_code`, so that it does not depend on what else is in the batch; some rows and codes at a
    time, since K goes to 262,144.
    """
    found = []
    for rows in z.reshape(-1, z.shape[-1]).double().split(ROWS):
        best = rows.new_full((len(rows),), -torch.inf)
        index = torch.zeros(len(rows), dtype=torch.int64, device=z.device)
        for start in range(0, len(codebook), CODES):
            value, code = (rows @ codebook[start : start + CODES].double().T).max(dim=1)
            index = torch.where(value > best, code + start, index)
            best = torch.maximum(value, best)
        found.append(index)
    return torch.cat(found).view(z.shape[:-1])
