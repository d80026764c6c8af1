"""Sampling token grids from a class-conditional autoregressive prior."""

from collections.abc import Callable

import torch
from torch import Tensor

from cortex_fast.ops.random_stream import sampling_gumbel
from cortex_fast.vqgm.transformer import GPT


def _keep_top(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set every logit outside the top k, and outside the smallest set of probability >= top_p, to -inf."""
    if top_k is not None and top_k < logits.shape[1]:
        threshold = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True)
        probability = ordered.softmax(dim=1)
        outside = probability.cumsum(dim=1) - probability >= top_p  # the first token stays always
        logits = logits.scatter(1, order, ordered.masked_fill(outside, -torch.inf))
    return logits


@torch.no_grad()
def sample_tokens(
    prior: GPT,
    labels: Tensor,
    length: int,
    *,
    seed: int,
    item_ids: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    codebook_size: int | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """Token sequences int64 [B,length] for class labels [B]; the label is the sequence's first token.

    Each token is argmax(logits / temperature + Gumbel), with the noise fixed by (seed, item id, position), so an image
    does not depend on its batch mates. Tokens stay below `codebook_size`. `tick` is called after each position.
    """
    cache = prior.new_cache(len(labels))
    tokens = torch.empty(len(labels), length, dtype=torch.int64, device=labels.device)
    current = labels[:, None].long()
    for position in range(length):
        logits = prior(current, cache)[:, -1, :codebook_size].float() / temperature
        draw = torch.tensor([position], device=labels.device)
        noise = sampling_gumbel(seed, item_ids, draw, logits.shape[1])[:, 0]
        tokens[:, position] = (_keep_top(logits, top_k, top_p) + noise).argmax(dim=1)
        current = tokens[:, position : position + 1]
        tick()
    return tokens
