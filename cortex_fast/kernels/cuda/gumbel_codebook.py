"""Gumbel-Softmax selection of codebook rows, by csrc/cuda/gumbel_codebook.cu."""

import torch
from torch import Tensor

from cortex_fast.kernels import cuda
from cortex_fast.kernels.native.gumbel_codebook import address, contiguous_float32
from cortex_fast.kernels.row_stats import RowStats, empty_results

__all__ = ["gumbel_codebook"]


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
    """logits [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R], statistics.

    A soft selection comes with statistics whether they are wanted or not.
    """
    sizes, soft = (*logits.shape, codebook.shape[1]), with_row_stats or not hard
    # named, so that copies live as long as the call
    float_logits, float_codebook = contiguous_float32(logits), contiguous_float32(codebook)
    float_gumbel = contiguous_float32(gumbel)
    item_ids = item_ids.contiguous()
    embedding, index, row_stats = empty_results(logits, codebook.float(), soft)
    scratch = cuda.scratch(cuda.LIBRARY.gumbel_codebook_scratch(sizes=sizes, with_row_stats=soft), logits)
    cuda.call(
        "gumbel_codebook",
        logits,
        logits=address(float_logits),
        codebook=address(float_codebook),
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids.data_ptr(),
        hard=hard,
        gumbel=address(float_gumbel),
        schedule=address(schedule),
        sizes=sizes,
        embedding=embedding.data_ptr(),
        index=index.data_ptr(),
        row_stats=addresses(row_stats),
        exact=exact(),
        scratch=scratch.data_ptr(),
    )
    return embedding.to(codebook.dtype), index, row_stats


def addresses(row_stats: RowStats | None) -> tuple[int, ...]:
    """Where the statistics lie, in RowStats' order; zeros for None."""
    return (0, 0, 0, 0) if row_stats is None else tuple(tensor.data_ptr() for tensor in row_stats)


def contiguous(row_stats: RowStats) -> RowStats:
    return RowStats(*(tensor.contiguous() for tensor in row_stats))


def exact() -> bool:
    """Whether products are as exact as float32's own, as torch is set for its products."""
    return torch.get_float32_matmul_precision() == "highest"
