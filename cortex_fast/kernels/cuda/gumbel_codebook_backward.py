"""The backward pass of `gumbel_codebook`, by csrc/cuda/gumbel_codebook_backward.cu."""

import torch
from torch import Tensor

from cortex_fast.kernels import cuda
from cortex_fast.kernels.cuda.gumbel_codebook import addresses, contiguous, exact
from cortex_fast.kernels.native.gumbel_codebook import address, contiguous_float32
from cortex_fast.kernels.reference.gumbel_codebook_backward import sum_by_code
from cortex_fast.kernels.row_stats import RowStats

__all__ = ["gumbel_codebook_backward"]


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
    row_stats: RowStats,
    codebook_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d]."""
    codes, channels = codebook.shape
    sizes = (*logits.shape, channels)
    # named, so that copies live as long as the call
    float_logits, float_codebook = contiguous_float32(logits), contiguous_float32(codebook)
    float_gumbel = contiguous_float32(gumbel)
    upstream, item_ids, row_stats = upstream.float().contiguous(), item_ids.contiguous(), contiguous(row_stats)
    grad_logits = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    shape = (codes if codebook_needed else 0, channels)
    grad_codebook = torch.empty(shape, dtype=torch.float32, device=logits.device)
    scratch = cuda.scratch(cuda.LIBRARY.gumbel_codebook_backward_scratch(sizes=sizes), logits)
    cuda.call(
        "gumbel_codebook_backward",
        logits,
        upstream=upstream.data_ptr(),
        logits=address(float_logits),
        codebook=address(float_codebook),
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids.data_ptr(),
        hard=hard,
        gumbel=address(float_gumbel),
        schedule=address(schedule),
        row_stats=addresses(row_stats),
        sizes=sizes,
        grad_logits=grad_logits.data_ptr(),
        grad_codebook=grad_codebook.data_ptr() if codebook_needed and not hard else 0,
        exact=exact(),
        scratch=scratch.data_ptr(),
    )
    if codebook_needed and hard:  # torch sorts by code and adds in order
        grad_codebook.copy_(sum_by_code(upstream.flatten(0, 1), index.flatten(), codes))
    return grad_logits.to(logits.dtype), grad_codebook.to(codebook.dtype)
