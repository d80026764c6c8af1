"""Beyond the paper: how much of the top saliency lies on the object, where the object's mask is known."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.grids import Grid, sides
from cortex_fast.evaluate.judging import image_labels


@dataclass(frozen=True)
class Grounding:
    """The share of an image's top n positions that lies on its object.

    Args:
        ours: float32 [B], of the positions of largest TSV.
        random: float32 [B], of random positions, exactly: the object's share of the area.
        frequency: float32 [B], of the positions whose tokens are the most frequent of the class.
    """

    ours: Tensor
    random: Tensor
    frequency: Tensor


def object_cells(masks: Tensor, grid: Grid) -> Tensor:
    """The cells of the token grid that are at least half object.

    Args:
        masks: float [B,H,W] in [0,1], the objects' alpha masks.
        grid: m or (h, w).

    Returns:
        bool [B,h,w].

    Raises:
        TypeError, ValueError: anything else as a grid.
    """
    return F.adaptive_avg_pool2d(masks[:, None], sides(grid))[:, 0] >= 0.5


def grounding(
    tsv: Tensor, tokens: Tensor, labels: checks.Integers, cells: Tensor, frequency: Tensor, n: int
) -> Grounding:
    """How much of the top saliency lies on the object, where the object's mask is known.

    Positions that tie for the last of the n places count with their expected share.

    Args:
        tsv: float [B,h,w].
        tokens: int [B,h,w] in [0, K).
        labels: int [B] in [0, C).
        cells: bool [B,h,w], the object, as `object_cells` returns it.
        frequency: [C,K], how often each token occurs in each class.
        n: number of positions, from 1 to h * w.

    Returns:
        Shares [B] by the TSV and by two baselines.

    Raises:
        TypeError, ValueError: n outside its bounds, labels or a frequency of another type or shape.
    """
    n = checks.whole("n", n, 1, cells.shape[1] * cells.shape[2])
    counts = checks.reals("frequency", frequency).float().to(tokens.device)
    checks.rank("frequency", counts, "[C, K]")
    labels = image_labels(labels, len(tokens), len(counts), tokens.device)
    token_counts = counts[labels[:, None, None], tokens.long()]
    return Grounding(hits(tsv, cells, n), cells.flatten(1).float().mean(dim=1), hits(token_counts, cells, n))


def hits(score: Tensor, cells: Tensor, n: int) -> Tensor:
    """The share of the n positions of largest score that lie on the object.

    Where positions tie for the last places it is the mean over every choice among them.

    Args:
        score: [B,h,w].
        cells: bool [B,h,w], the object.
        n: number of positions.

    Returns:
        float32 [B].
    """
    score, cells = score.flatten(1), cells.flatten(1).float()
    last = score.sort(dim=1, descending=True).values[:, n - 1 : n]
    above, tied = (score > last).float(), (score == last).float()
    from_tied = (n - above.sum(dim=1)) * (cells * tied).sum(dim=1) / tied.sum(dim=1)
    return ((cells * above).sum(dim=1) + from_tied) / n
