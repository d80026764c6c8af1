"""The image tokenizers of transformers: Janus, Emu3 and Chameleon (`model.vqmodel` of the whole models).

encode and decode give the same results as the library's.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.ops import nearest_code
from cortex_fast.vqgm.adapters.shared import (
    NO_PRIOR,
    at_least_float32,
    codes_of,
    extent,
    freeze,
    in_dtype_of,
    latents_of,
    pixels_of,
)
from cortex_fast.vqgm.model import Model


def janus(model: Any, *, grid: Grid | None = None) -> Model:
    """A `JanusVQVAE` as a VQGM. Its decoder uses normalised codes; its encoder takes the nearest stored code.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w), see `adapt`. Default None: the configuration's `num_patches`.

    Returns:
        The VQGM.
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
    """An `Emu3VQVAE` as a VQGM of images.

    An image is encoded as `temporal_downsample_factor` equal frames and decoded to the first of them.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w), which the configuration does not state: the images' size / 8 in the published model.

    Returns:
        The VQGM.

    Raises:
        ValueError: `grid` is None.
    """
    if grid is None:
        reduction = model.spatial_scale_factor
        raise ValueError(f"grid: expected a whole number (the images' size / {reduction}) for Emu3VQVAE, got None")
    freeze(model)
    frames = model.config.temporal_downsample_factor
    cast = in_dtype_of(model)

    def latents(images: Tensor) -> Tensor:
        video = cast(images)[:, None].repeat(1, frames, 1, 1, 1)
        return at_least_float32(model.quant_conv(model.encoder(video).transpose(1, 2))[:, :, 0])  # a single time step

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
    """A `ChameleonVQVAE` as a VQGM, which cannot decode.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w), see `adapt`. Default None: that of the configuration's `resolution`.

    Returns:
        The VQGM.
    """
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
