"""The backward pass of `gumbel_codebook`, straight through a hard selection, as the formulas read."""

import torch
from torch import Tensor

from cortex_fast.kernels.reference.gumbel_codebook import clamped_tau, noise_of, noisy_scores, softened
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.schedule import scheduled_values


def gumbel_codebook_backward(
    *,
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    index: Tensor,
    row_stats: RowStats | None,
    codebook_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d].

    A hard selection passes its gradient straight through to y, and to the rows of C that it selected.
    """
    tau, draw, _, _ = scheduled_values(schedule, tau=tau, draw=draw)
    y = softened(noisy_scores(logits, noise_of(logits, item_ids, gumbel, seed, draw)), tau, codebook)
    grad_logits = logits_gradient(y, codebook, upstream, tau)
    wide = upstream.to(y.dtype)
    if not codebook_needed:
        grad_codebook = codebook.new_empty((0, codebook.shape[1]))
    elif hard:
        grad_codebook = sum_by_code(wide.flatten(0, 1), index.flatten(), codebook.shape[0])
    else:
        grad_codebook = y.flatten(0, 1).T @ wide.flatten(0, 1)
    return grad_logits.to(logits.dtype).contiguous(), grad_codebook.to(codebook.dtype).contiguous()


def logits_gradient(
    y: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    tau: float | Tensor,
    anchor: Tensor | None = None,
    stay_penalty: float = 0.0,
) -> Tensor:
    """dP = y (D - <y, D>) / tau [P,R,K] with D = dE C^T, in y's dtype.

    anchor int64 [P,R]: the code of each row from whose D `stay_penalty` is subtracted.
    """
    d = upstream.to(y.dtype) @ codebook.to(y.dtype).T
    if anchor is not None:
        d.scatter_add_(2, anchor[..., None], d.new_full((*anchor.shape, 1), -stay_penalty))
    return y * (d - (y * d).sum(dim=-1, keepdim=True)) / clamped_tau(tau, y.dtype)


def sum_by_code(values: Tensor, index: Tensor, codes: int) -> Tensor:
    """values [n,d] -> [K,d]: the sum over the rows of each index, in a fixed order (index_put_ may add atomically)."""
    counts = torch.bincount(index, minlength=codes)
    return torch.segment_reduce(values[index.argsort(stable=True)], "sum", lengths=counts, axis=0)
