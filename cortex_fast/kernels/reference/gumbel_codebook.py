"""Gumbel-Softmax selection of codebook rows, as the formulas read."""

import torch
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.schedule import scheduled_values


def gumbel_codebook(
    *,
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    with_row_stats: bool,
) -> tuple[Tensor, Tensor, RowStats | None]:
    """logits [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R], no statistics."""
    tau, draw, _, _ = scheduled_values(schedule, tau=tau, draw=draw)
    scores = noisy_scores(logits, noise_of(logits, item_ids, gumbel, seed, draw))
    index = scores.argmax(dim=-1)
    if hard:
        return codebook[index], index, None
    y = softened(scores, tau, codebook)
    return (y @ codebook.to(y.dtype)).to(codebook.dtype), index, None


def gumbel_noise(item_ids: Tensor, rows: int, codes: int, seed: int, draw: int | Tensor) -> Tensor:
    """g float32 [items, R, K] of the shared stream. draw: a number, or a scalar tensor on the items' device."""
    draws = draw.view(1) if isinstance(draw, Tensor) else item_ids.new_full((1,), draw)
    return philox.gumbel(seed, item_ids, draws, rows, codes)[:, 0]


def noise_of(logits: Tensor, item_ids: Tensor, gumbel: Tensor | None, seed: int, draw: int | Tensor) -> Tensor:
    """The g given, or the stream's, for logits [P,R,K]."""
    return gumbel_noise(item_ids, logits.shape[1], logits.shape[2], seed, draw) if gumbel is None else gumbel


def noisy_scores(logits: Tensor, gumbel: Tensor) -> Tensor:
    """P + g, at least in float32."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide) + gumbel.to(wide)


def clamped_tau(tau: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """tau within the normal numbers of dtype.

    Rounded to 0 or infinity it would make NaN of the largest score, or of one of -inf.
    """
    info = torch.finfo(dtype)
    return tau.clamp(info.tiny, info.max) if isinstance(tau, Tensor) else min(max(tau, info.tiny), info.max)


def softened(scores: Tensor, tau: float | Tensor, codebook: Tensor) -> Tensor:
    """y = softmax(scores / tau), at least in the codebook's precision."""
    # the largest score is subtracted first: scores / tau may exceed the largest float
    scores = scores.to(torch.promote_types(scores.dtype, codebook.dtype))
    return ((scores - scores.amax(dim=-1, keepdim=True)) / clamped_tau(tau, scores.dtype)).softmax(dim=-1)
