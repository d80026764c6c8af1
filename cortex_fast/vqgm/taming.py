"""A VQGAN and its class-conditional transformer, under the names of the taming-transformers package, as a VQGM."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from cortex_fast.data.grids import Grid, sides
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.decoding import prepare_decoder
from cortex_fast.vqgm.model import Model, Sampler
from cortex_fast.vqgm.sampling import SamplingSettings, check_sampling, decode_tokens
from cortex_fast.vqgm.transformer import GPT


def taming_model(
    autoencoder: VQModel,
    prior: GPT | None,
    *,
    grid: Grid,
    fingerprint: str,
    cell: int | None = None,
    num_classes: int = 0,
    first_token: int = 0,
    sampling: SamplingSettings | None = None,
    reason: str | None = None,
) -> Model:
    """Build a VQGM of an autoencoder and a prior.

    Both modules are put into eval mode, and their parameters need no gradients any more.

    Args:
        autoencoder: the autoencoder.
        prior: the transformer that samples, or None.
        grid: m or (h, w), which the prior draws row by row.
        fingerprint: identifies the weights.
        cell: a token's pixels along either side, see `Model`. Default None: only images of `grid` are encoded.
        num_classes: number of conditions of the prior. Default 0.
        first_token: the token of condition 0; the others follow it. Default 0.
        sampling: temperature, top_k, top_p and dtype, see `SamplingSettings`. Default None: the prior's distribution.
        reason: why there is no prior, for the error that `sample` raises. Default None: it is an autoencoder only.

    Returns:
        The model.

    Raises:
        ValueError: a prior without classes, or an unknown name or a value out of range in `sampling`.
        TypeError: a value of another type in `sampling`.
    """
    check_sampling(sampling or {})
    if prior is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1 with a prior, got {num_classes}")
    codebook = autoencoder.eval().requires_grad_(False).codebook
    sampler = None
    if prior is not None:
        draw = _draw_of(prior, len(codebook), sides(grid), first_token, sampling or {})
        sampler = Sampler(draw, num_classes)
    return Model(
        codebook,
        grid,
        fingerprint,
        latents=autoencoder.latents,
        pixels=autoencoder.decode,
        sampler=sampler,
        reasons={"sampler": reason or "this model has no prior, only an autoencoder"},
        cell=cell,
    )


def _draw_of(
    prior: GPT, codebook_size: int, grid: tuple[int, int], first_token: int, sampling: Mapping[str, Any]
) -> Callable[[Tensor, Tensor, int, Callable[[], object]], Tensor]:
    """A sampler's `draw` by the prior, which is put into eval mode without gradients."""
    limits = dict(sampling)
    prior.eval().requires_grad_(False)
    decoder = prepare_decoder(prior, codebook_size=codebook_size, dtype=limits.pop("dtype", None))

    def draw(labels: Tensor, items: Tensor, seed: int, tick: Callable[[], object]) -> Tensor:
        first_tokens = labels + first_token
        return decode_tokens(decoder, first_tokens, grid[0] * grid[1], seed=seed, item_ids=items, tick=tick, **limits)

    return draw
