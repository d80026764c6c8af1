"""The VQModel of diffusers: latent diffusion, Kandinsky 2 (MoVQ) and aMUSEd."""

from typing import Any

from torch import Tensor

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters.shared import (
    NO_PRIOR,
    codes_of,
    extent,
    freeze,
    in_dtype_of,
    latents_of,
    unit_range,
)
from cortex_fast.vqgm.model import Model


def diffusers_vqmodel(model: Any, *, grid: Grid | None = None, unit_pixels: bool | None = None) -> Model:
    """A `diffusers.VQModel` as a VQGM.

    E is decoded as it is, although the library would quantise it again by default. The codebook is in the space of the
    model's `encode` and `decode`; `scaling_factor`, which diffusion models apply to it, is not used.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w), see `adapt`. Default None: that of the configuration's `sample_size`.
        unit_pixels: whether the model's pixels lie in [0,1] instead of [-1,1]. Default None: if the configuration has
            `lookup_from_codebook`, as aMUSEd's.

    Returns:
        The VQGM.
    """
    freeze(model)
    config = model.config
    cast = in_dtype_of(model.post_quant_conv)

    # As model.decode(E, force_not_quantize=True), which expects tokens instead if the model has lookup_from_codebook.
    def pixels(E: Tensor) -> Tensor:
        quantised = cast(E)
        return model.decoder(model.post_quant_conv(quantised), quantised if config.norm_type == "spatial" else None)

    reduction = 2 ** (len(config.block_out_channels) - 1)
    size, cell = extent(grid, config.sample_size // reduction, reduction)
    adapted = Model(
        codes_of(model.quantize.embedding),
        size,
        of_state(model.state_dict()),
        latents=latents_of(model),
        pixels=pixels,
        reasons={"sampler": NO_PRIOR},
        cell=cell,
    )
    return unit_range(adapted) if (config.lookup_from_codebook if unit_pixels is None else unit_pixels) else adapted
