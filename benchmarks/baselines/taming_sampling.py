"""taming-transformers' procedure of sampling, implemented anew from its description.

At each step the whole sequence so far goes through the transformer, logits of every position come out, those of the
last are divided by the temperature and limited to the top k, and a token is drawn from their softmax.
"""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    logits_of: Callable[[Tensor], Tensor], first: Tensor, steps: int, temperature: float, top_k: int | None
) -> Tensor:
    """logits_of: ids [B,T] -> [B,T,V]. first: int64 [B]. Tokens int64 [B,steps]."""
    ids = first[:, None]
    for _ in range(steps):
        logits = logits_of(ids)[:, -1] / temperature
        if top_k is not None:
            least = logits.topk(top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        ids = torch.cat([ids, torch.multinomial(logits.softmax(dim=1), num_samples=1)], dim=1)
    return ids[:, 1:]
