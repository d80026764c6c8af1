"""How often each token is among the top tokens of a concept's images."""

import torch
from torch import Tensor


def top_positions(tsv: Tensor, n: int) -> Tensor:
    """Flat positions [B,n] of the n largest TSVs of tsv [B,m,m], largest first; ties go to the lower position."""
    return tsv.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :n]


def concept_counts(
    *, tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> Tensor:
    """int64 [num_concepts,K]. "occurrence" counts every position, "image" a token once for each image."""
    chosen = tokens.flatten(1).long().gather(1, top_positions(tsv, top_n))  # [B, n]
    if per == "image":
        chosen = chosen.sort(dim=1).values
        first = torch.ones_like(chosen, dtype=torch.bool)
        first[:, 1:] = chosen[:, 1:] != chosen[:, :-1]
    else:
        first = torch.ones_like(chosen, dtype=torch.bool)
    cells = labels.long()[:, None] * codebook_size + chosen
    counts = torch.bincount(cells[first], minlength=num_concepts * codebook_size)
    return counts.view(num_concepts, codebook_size)
