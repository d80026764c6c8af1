"""The backward pass of `gumbel_codebook` fused with a step on the logits, by csrc/cpu/gumbel_codebook_backward.cpp."""

from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native
from cortex_fast.kernels.native.gumbel_codebook import address, contiguous_float32
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.schedule import scheduled_values


def gumbel_codebook_step(
    *,
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    lr: float,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    step_count: int,
    betas: tuple[float, float],
    eps: float,
    gumbel: Tensor | None,
    anchor: Tensor | None,
    stay_penalty: float,
    schedule: Tensor | None,
    row_stats: RowStats | None,
) -> None:
    """One step of Adam (moments) or gradient descent (None) on contiguous float32 logits [P,R,K], in place."""
    tau, draw, lr, step_count = scheduled_values(schedule, tau=tau, draw=draw, lr=lr, step_count=step_count)
    # named, so that copies live as long as the call
    float_codebook, float_upstream = contiguous_float32(codebook), contiguous_float32(upstream)
    float_gumbel = contiguous_float32(gumbel)
    item_ids, anchor = item_ids.contiguous(), None if anchor is None else anchor.contiguous()
    _native.gumbel_codebook_step(
        logits=logits.data_ptr(),
        codebook=address(float_codebook),
        upstream=address(float_upstream),
        lr=lr,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids.data_ptr(),
        moments=(0, 0) if moments is None else (moments[0].data_ptr(), moments[1].data_ptr()),
        step_count=step_count,
        betas=betas,
        eps=eps,
        gumbel=address(float_gumbel),
        anchor=address(anchor),
        stay_penalty=stay_penalty,
        sizes=(*logits.shape, codebook.shape[1]),
        **native.run(),
    )
