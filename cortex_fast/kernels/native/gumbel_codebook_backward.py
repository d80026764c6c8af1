"""The backward pass of `gumbel_codebook`, by csrc/cpu/gumbel_codebook_backward.cpp. In float32."""

from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native
from cortex_fast.kernels.native.gumbel_codebook import address, contiguous_float32
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
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d]."""
    tau, draw, _, _ = scheduled_values(schedule, tau=tau, draw=draw)
    codes, channels = codebook.shape
    grad_logits = native.empty(logits.shape)
    grad_codebook = native.empty((codes if codebook_needed else 0, channels))
    # named, so that copies live as long as the call
    float_upstream, float_logits = contiguous_float32(upstream), contiguous_float32(logits)
    float_codebook, float_gumbel = contiguous_float32(codebook), contiguous_float32(gumbel)
    item_ids, index = item_ids.contiguous(), index.contiguous()
    _native.gumbel_codebook_backward(
        upstream=address(float_upstream),
        logits=address(float_logits),
        codebook=address(float_codebook),
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids.data_ptr(),
        hard=hard,
        gumbel=address(float_gumbel),
        index=index.data_ptr(),
        sizes=(*logits.shape, channels),
        grad_logits=grad_logits.data_ptr(),
        grad_codebook=grad_codebook.data_ptr() if codebook_needed else 0,
        **native.run(),
    )
    return grad_logits.to(logits.dtype), grad_codebook.to(codebook.dtype)
