"""Shared by the adapters: the functions of an autoencoder like taming's, dtypes, pixel ranges."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.model import Model

NO_PRIOR = "the model is an autoencoder; its prior is a separate model, whose tokens decode() takes"


def freeze(module: nn.Module) -> None:
    """Put a module into eval mode, without gradients of its parameters."""
    module.eval().requires_grad_(False)


def codes_of(embedding: nn.Embedding) -> Tensor:
    """The codes [K,d], in at least float32; they share memory if their dtype does not change."""
    return at_least_float32(embedding.weight.detach())


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32 if its dtype is of half precision, else x."""
    return x.float() if x.element_size() < 4 else x


def in_dtype_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function that casts to the dtype of the module's parameters."""
    dtype = next(module.parameters()).dtype
    return lambda x: x.to(dtype)


def latents_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Images -> latents [B,d,h,w] in at least float32, by a model's `encoder` and `quant_conv`."""
    cast = in_dtype_of(model.quant_conv)

    def latents(images: Tensor) -> Tensor:
        return at_least_float32(model.quant_conv(model.encoder(cast(images))))

    return latents


def pixels_of(model: Any) -> Callable[[Tensor], Tensor]:
    """E [B,d,h,w] -> images, by a model's `post_quant_conv` and `decoder`."""
    cast = in_dtype_of(model.post_quant_conv)
    return lambda E: model.decoder(model.post_quant_conv(cast(E)))


def extent(grid: Grid | None, default: Grid, cell: int) -> tuple[Grid, int | None]:
    """`Model`'s grid and cell: images of the given grid alone, or by default images of any size."""
    return (default, cell) if grid is None else (grid, None)


def unit_range(model: Model) -> Model:
    """Convert pixel ranges for a model whose functions use [0,1].

    Args:
        model: a model whose `latents` and `pixels` use pixels in [0,1].

    Returns:
        The model with functions that use [-1,1], as `Model` expects.
    """
    latents, pixels = model.latents, model.pixels
    return dataclasses.replace(
        model,
        latents=None if latents is None else lambda images: latents((images + 1) / 2),
        pixels=None if pixels is None else lambda E: pixels(E) * 2 - 1,
    )
