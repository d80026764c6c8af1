"""Gumbel-Softmax selection of codebook rows, by csrc/cpu/gumbel_codebook.cpp. In float32."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native
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
    problems, rows, codes = logits.shape
    channels = codebook.shape[1]
    embedding = native.empty((problems, rows, channels))
    index = native.empty((problems, rows), torch.int64)
    # named, so that copies live as long as the call
    float_logits, float_codebook = contiguous_float32(logits), contiguous_float32(codebook)
    float_gumbel = contiguous_float32(gumbel)
    item_ids = item_ids.contiguous()
    _native.gumbel_codebook(
        logits=address(float_logits),
        codebook=address(float_codebook),
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids.data_ptr(),
        hard=hard,
        gumbel=address(float_gumbel),
        sizes=(problems, rows, codes, channels),
        embedding=embedding.data_ptr(),
        index=index.data_ptr(),
        **native.run(),
    )
    return embedding.to(codebook.dtype), index, None


def contiguous_float32(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where it is contiguous float32 already."""
    return None if tensor is None else tensor.float().contiguous()


def address(tensor: Tensor | None) -> int:
    """Where its memory begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
