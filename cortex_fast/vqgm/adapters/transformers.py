"""The image tokenizers of transformers: Janus, Emu3 and Chameleon (the `model.vqmodel` of their whole models).

Each is put into eval mode, without gradients of its parameters, and does what the library's own encode and decode do.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.ops import nearest_code
from cortex_fast.vqgm.adapters.shared import (
    NO_PRIOR,
    codes_of,
    extent,
    freeze,
    in_dtype_of,
    latents_of,
    pixels_of,
)
from cortex_fast.vqgm.model import Model


def janus(model: Any, *, grid: Grid | None = None) -> Model:
    """A `JanusVQVAE`. Its decoder looks codes up normalised; its encoder takes the nearest code as it is stored.

    grid: m or (h, w), see `adapt`; by default the configuration's `num_patches`.
    """
    freeze(model)
    size, cell = extent(grid, model.config.num_patches, 2 ** (len(model.config.channel_multiplier) - 1))
    stored = codes_of(model.quantize.embedding)
    return Model(
        F.normalize(stored, dim=-1),
        size,
        of_state(model.state_dict()),
        latents=latents_of(model),
        quantise=lambda latents: nearest_code(latents.permute(0, 2, 3, 1), stored),
        pixels=pixels_of(model),
        reasons={"sampler": NO_PRIOR},
        cell=cell,
    )


def emu3(model: Any, *, grid: Grid | None = None) -> Model:
    """An `Emu3VQVAE`, of images: one is encoded as `temporal_downsample_factor` equal frames, and decoded to the first.

    grid: m or (h, w), which the configuration does not say: the images' size / 8 in the published model.
    Raises ValueError without it.
    """
    if grid is None:
        reduction = model.spatial_scale_factor
        raise ValueError(f"grid: expected a whole number (the images' size / {reduction}) for Emu3VQVAE, got None")
    freeze(model)
    frames = model.config.temporal_downsample_factor
    cast = in_dtype_of(model)

    def latents(images: Tensor) -> Tensor:
        video = cast(images)[:, None].repeat(1, frames, 1, 1, 1)
        found = model.quant_conv(model.encoder(video).transpose(1, 2))[:, :, 0]  # the one step of time
        return found.float() if found.element_size() < 4 else found

    def pixels(E: Tensor) -> Tensor:
        quantised = cast(E)[:, :, None]
        video = model.decoder(model.post_quant_conv(quantised).transpose(1, 2), quantised.transpose(1, 2))
        return video.unflatten(0, (-1, frames))[:, 0]

    return Model(
        codes_of(model.quantize.embedding),
        grid,
        of_state(model.state_dict()),
        latents=latents,
        pixels=pixels,
        reasons={"sampler": NO_PRIOR},
    )


def chameleon(model: Any, *, grid: Grid | None = None) -> Model:
    """A `ChameleonVQVAE`, which cannot decode. grid: m or (h, w), see `adapt`; by default that of the configuration's
    `resolution`."""
    freeze(model)
    reduction = 2 ** (len(model.config.channel_multiplier) - 1)
    size, cell = extent(grid, model.config.resolution // reduction, reduction)
    return Model(
        codes_of(model.quantize.embedding),
        size,
        of_state(model.state_dict()),
        latents=latents_of(model),
        reasons={"pixels": "transformers' ChameleonVQVAE has no decoder", "sampler": NO_PRIOR},
        cell=cell,
    )
