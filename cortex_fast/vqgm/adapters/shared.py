"""What the adapters have in common: the parts of an autoencoder in taming's manner, dtypes, pixel ranges."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.model import Model

NO_PRIOR = "the model is an autoencoder; its prior is a separate model, whose tokens decode() takes"


def freeze(module: nn.Module) -> None:
    """Into eval mode, without gradients of the parameters."""
    module.eval().requires_grad_(False)


def codes_of(embedding: nn.Embedding) -> Tensor:
    """Its codes [K,d], in float32 where they are of half precision, else shared."""
    weight = embedding.weight.detach()
    return weight.float() if weight.element_size() < 4 else weight


def in_dtype_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """x -> x in the dtype of the module's parameters."""
    dtype = next(module.parameters()).dtype
    return lambda x: x.to(dtype)


def latents_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Images -> latents [B,d,h,w] in at least float32, of a model with `encoder` and `quant_conv`."""
    cast = in_dtype_of(model.quant_conv)

    def latents(images: Tensor) -> Tensor:
        found = model.quant_conv(model.encoder(cast(images)))
        return found.float() if found.element_size() < 4 else found

    return latents


def pixels_of(model: Any) -> Callable[[Tensor], Tensor]:
    """E [B,d,h,w] -> images, of a model with `post_quant_conv` and `decoder`."""
    cast = in_dtype_of(model.post_quant_conv)
    return lambda E: model.decoder(model.post_quant_conv(cast(E)))


def extent(grid: Grid | None, default: Grid, cell: int) -> tuple[Grid, int | None]:
    """`Model`'s grid and cell: a grid that was asked for holds the images to it; by default they may have any size."""
    return (default, cell) if grid is None else (grid, None)


def unit_range(model: Model) -> Model:
    """The same model where its functions take and give pixels in [0,1]; `Model` expects them to use [-1,1]."""
    latents, pixels = model.latents, model.pixels
    return dataclasses.replace(
        model,
        latents=None if latents is None else lambda images: latents((images + 1) / 2),
        pixels=None if pixels is None else lambda E: pixels(E) * 2 - 1,
    )
