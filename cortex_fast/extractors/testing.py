"""How well an extractor classifies: the accuracy table and the mean loss."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.data.token_store import gather
from cortex_fast.extractors.build import check_grid

TOP = (1, 3, 5, 10)  # the paper's table
_BATCH = 256


@torch.no_grad()
def accuracy(
    extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor, *, top: tuple[int, ...] = (1,)
) -> dict[int, float]:
    """Top-k accuracy in [0,1] for each k in `top`, on token grids int [n,h,w] with labels int [n].

    Of equal logits the lower class comes first. Raises ValueError where there is no image.
    """
    if not len(tokens):
        raise ValueError("tokens: expected at least one image, got none")
    hits = dict.fromkeys(top, 0)
    for logits, truth in _logits(extractor, codebook, tokens, labels):
        order = logits.argsort(dim=1, descending=True, stable=True)
        for k in top:
            hits[k] += int((order[:, :k] == truth[:, None]).any(dim=1).sum())
    return {k: count / len(tokens) for k, count in hits.items()}


@torch.no_grad()
def mean_loss(extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy on token grids int [n,h,w] with labels int [n]."""
    total = 0.0
    for logits, truth in _logits(extractor, codebook, tokens, labels):
        total += float(F.cross_entropy(logits, truth, reduction="sum"))
    return total / max(1, len(tokens))


def _logits(extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels int64, both on the CPU, a batch at a time."""
    check_grid(extractor, tokens.shape)
    for part, truth in zip(tokens.split(_BATCH), labels.split(_BATCH), strict=True):
        yield extractor(gather(part.to(codebook.device), codebook)).float().cpu(), truth.cpu().long()
