"""A VQGAN and its class-conditional transformer, in the names of the taming-transformers package, as a VQGM."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cortex_fast.data.grids import Grid, sides
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.decoding import prepare_decoder
from cortex_fast.vqgm.model import Model, Sampler
from cortex_fast.vqgm.sampling import check_sampling, decode_tokens
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
    sampling: dict[str, Any] | None = None,
    reason: str | None = None,
) -> Model:
    """`prior` knows `num_classes` conditions, of the tokens from `first_token` on; it draws a grid m or (h, w) row by
    row. sampling: `sample_tokens`' settings (temperature, top_k, top_p, dtype). reason: why there is no prior. cell: as
    `Model` has it; None holds images to `grid`.

    Puts both modules into eval mode, without gradients of their parameters. Raises ValueError for a prior of no class,
    TypeError or ValueError for other names or values in `sampling`.
    """
    check_sampling(sampling or {})
    if prior is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1 with a prior, got {num_classes}")
    codebook = autoencoder.eval().requires_grad_(False).codebook
    sampler = None
    if prior is not None:
        limits = dict(sampling or {})
        prior.eval().requires_grad_(False)
        height, width = sides(grid)
        decoder = prepare_decoder(prior, codebook_size=len(codebook), dtype=limits.pop("dtype", None))

        def draw(labels: Tensor, items: Tensor, seed: int, tick: Callable[[], object]) -> Tensor:
            firsts = labels + first_token
            return decode_tokens(decoder, firsts, height * width, seed=seed, item_ids=items, tick=tick, **limits)

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
