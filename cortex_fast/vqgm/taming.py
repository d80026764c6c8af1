"""A VQGAN and its class-conditional transformer, in the names of the taming-transformers package, as a VQGM."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.model import Model, Sampler
from cortex_fast.vqgm.sampling import sample_tokens
from cortex_fast.vqgm.transformer import GPT


def taming_model(
    autoencoder: VQModel,
    prior: GPT | None,
    *,
    grid: int,
    fingerprint: str,
    num_classes: int = 0,
    sampling: dict[str, Any] | None = None,
) -> Model:
    """`prior` knows `num_classes` labels; `sampling` are `sample_tokens`' settings (temperature, top_k, top_p).

    Puts both modules into eval mode, without gradients of their parameters. Raises ValueError for a prior of no class.
    """
    if prior is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1 with a prior, got {num_classes}")
    codebook = autoencoder.eval().requires_grad_(False).quantize.embedding.weight.detach()
    sampler = None
    if prior is not None:
        known = prior.eval().requires_grad_(False)
        limits = {"codebook_size": len(codebook), **(sampling or {})}

        def draw(labels: Tensor, items: Tensor, seed: int, tick: Callable[[], object]) -> Tensor:
            return sample_tokens(known, labels, grid**2, seed=seed, item_ids=items, tick=tick, **limits)

        sampler = Sampler(draw, num_classes)
    return Model(
        codebook,
        grid,
        fingerprint,
        latents=autoencoder.latents,
        pixels=autoencoder.decode,
        sampler=sampler,
        reasons={"sampler": "this model has no prior, only an autoencoder"},
    )
