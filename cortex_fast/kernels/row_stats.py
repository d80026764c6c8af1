"""What a Gumbel-Softmax selection knows of each row of scores, beyond the selected code."""

from typing import NamedTuple

import torch
from torch import Tensor


class RowStats(NamedTuple):
    """The softmax of each row of scores s = P + g, as far as a backward pass needs it.

    y = exp((s - largest_score) / tau - log_denominator). The leading dimensions are the logits'.
    `selected` is what the operators return as `index`, which is the name of a method of every tuple.
    """

    largest_score: Tensor  # float32 [..., R]
    log_denominator: Tensor  # float32 [..., R], the logarithm of y's denominator relative to the largest score
    selected: Tensor  # int64 [..., R], the code of the largest score
    soft_embedding: Tensor  # float32 [..., R, d], y C


def empty_results(logits: Tensor, codebook: Tensor, with_row_stats: bool) -> tuple[Tensor, Tensor, RowStats | None]:
    """Memory for a forward pass on a GPU: embedding [P,R,d] in the codebook's dtype, index int64 [P,R], row statistics.

    The index is also the statistics' field `selected`.
    """
    (problems, rows, _), channels = logits.shape, codebook.shape[1]
    embedding = codebook.new_empty((problems, rows, channels))
    index = logits.new_empty((problems, rows), dtype=torch.int64)
    if not with_row_stats:
        return embedding, index, None

    def empty(*shape: int) -> Tensor:
        return logits.new_empty(shape, dtype=torch.float32)

    stats = RowStats(empty(problems, rows), empty(problems, rows), index, empty(problems, rows, channels))
    return embedding, index, stats
