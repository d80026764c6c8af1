"""Beyond the paper: how much of the top saliency lies on the object, where the object's mask is known."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.grids import Grid, sides
from cortex_fast.evaluate.judging import class_of_each


@dataclass(frozen=True)
class Grounding:
    """The part of an image's top n positions that lies on its object, float32 [B], by our TSV and two baselines."""

    ours: Tensor
    random: Tensor
    frequency: Tensor


def object_cells(masks: Tensor, grid: Grid) -> Tensor:
    """Alpha masks float [B,H,W] in [0,1] -> bool [B,h,w]: cells that are at least half object. grid: m or (h, w)."""
    return F.adaptive_avg_pool2d(masks[:, None], sides(grid))[:, 0] >= 0.5


def grounding(
    tsv: Tensor, tokens: Tensor, labels: checks.Integers, cells: Tensor, frequency: Tensor, n: int
) -> Grounding:
    """tsv, tokens [B,h,w], labels int [B], object cells bool [B,h,w], frequency [C,K] of each class's tokens.

    Random positions hit the object with its share of the area, exactly. The frequency baseline takes the n positions
    whose tokens are the most frequent of the class; ties count with their expected share.
    Raises TypeError or ValueError for n outside [1, h * w].
    """
    n = checks.whole("n", n, 1, cells.shape[1] * cells.shape[2])
    counts = checks.reals("frequency", frequency).float().to(tokens.device)
    checks.rank("frequency", counts, "[C, K]")
    labels = class_of_each(labels, len(tokens), len(counts), tokens.device)
    often = counts[labels[:, None, None], tokens.long()]
    return Grounding(hits(tsv, cells, n), cells.flatten(1).float().mean(dim=1), hits(often, cells, n))


def hits(score: Tensor, cells: Tensor, n: int) -> Tensor:
    """Share of the n positions of largest score [B,h,w] that lie on cells bool [B,h,w]: float32 [B].

    Where positions tie for the last places it is the mean over every way to choose among them.
    """
    score, cells = score.flatten(1), cells.flatten(1).float()
    last = score.sort(dim=1, descending=True).values[:, n - 1 : n]
    above, tied = (score > last).float(), (score == last).float()
    from_tied = (n - above.sum(dim=1)) * (cells * tied).sum(dim=1) / tied.sum(dim=1)
    return ((cells * above).sum(dim=1) + from_tied) / n
