"""Beyond the paper: how much of the top saliency lies on the object, where the object's mask is known."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cortex_fast.explain.saliency import top_tokens


@dataclass(frozen=True)
class Grounding:
    """The part of an image's top n positions that lies on its object, float32 [B], by our TSV and two baselines."""

    ours: Tensor
    random: Tensor
    frequency: Tensor


def object_cells(masks: Tensor, grid: int) -> Tensor:
    """Alpha masks float [B,H,W] in [0,1] -> bool [B,m,m]: cells that are at least half object."""
    return F.adaptive_avg_pool2d(masks[:, None], grid)[:, 0] >= 0.5


def grounding(tsv: Tensor, tokens: Tensor, labels: Tensor, cells: Tensor, frequency: Tensor, n: int) -> Grounding:
    """tsv, tokens [B,m,m], labels int64 [B], object cells bool [B,m,m], frequency [C,K] of each class's tokens.

    Random positions hit the object with its share of the area, exactly. The frequency baseline takes the n positions
    whose tokens are the most frequent of the class.
    """

    def on_object(score: Tensor) -> Tensor:
        _, positions = top_tokens(score, tokens, n)
        return cells.flatten(1).gather(1, positions).float().mean(dim=1)

    often = frequency.float()[labels[:, None, None], tokens.long()]
    return Grounding(on_object(tsv), cells.flatten(1).float().mean(dim=1), on_object(often))


def token_frequency(tokens: Tensor, labels: Tensor, num_concepts: int, codebook_size: int) -> Tensor:
    """How often each token occurs in each class's images: int64 [C,K]."""
    cells = labels[:, None] * codebook_size + tokens.flatten(1).long()
    return torch.bincount(cells.flatten(), minlength=num_concepts * codebook_size).view(num_concepts, codebook_size)
