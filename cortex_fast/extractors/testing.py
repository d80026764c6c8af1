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
    """Top-k accuracy. Of equal logits the lower class comes first.

    Args:
        extractor: module E [B,d,h,w] -> logits [B,classes], in eval mode, on the codebook's device.
        codebook: float [K,d], C.
        tokens: int [n,h,w], the images' token grids.
        labels: int [n], the images' classes.
        top: the k of each figure. Default (1,).

    Returns:
        For each k the part of the images, in [0,1], whose class is among the k largest logits.

    Raises:
        ValueError: there is no image, or the grid is another than the extractor's.
    """
    if not len(tokens):
        raise ValueError("tokens: expected at least one image, got none")
    hits = dict.fromkeys(top, 0)
    for logits, classes in _logits(extractor, codebook, tokens, labels):
        order = logits.argsort(dim=1, descending=True, stable=True)
        for k in top:
            hits[k] += int((order[:, :k] == classes[:, None]).any(dim=1).sum())
    return {k: count / len(tokens) for k, count in hits.items()}


@torch.no_grad()
def mean_loss(extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy.

    Args:
        extractor: module E [B,d,h,w] -> logits [B,classes], in eval mode, on the codebook's device.
        codebook: float [K,d], C.
        tokens: int [n,h,w], the images' token grids.
        labels: int [n], the images' classes.

    Returns:
        The mean over the images, in nats; 0 without images.

    Raises:
        ValueError: the grid is another than the extractor's.
    """
    total = 0.0
    for logits, classes in _logits(extractor, codebook, tokens, labels):
        total += float(F.cross_entropy(logits, classes, reduction="sum"))
    return total / max(1, len(tokens))


def _logits(extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits float32 [B,classes] and labels int64 [B] on the CPU, batch by batch."""
    check_grid(extractor, tokens.shape)
    for part, classes in zip(tokens.split(_BATCH), labels.split(_BATCH), strict=True):
        yield extractor(gather(part.to(codebook.device), codebook)).float().cpu(), classes.cpu().long()
