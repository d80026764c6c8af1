"""The backward pass of `gumbel_codebook` fused with a step on the logits, by csrc/cuda/gumbel_codebook_backward.cu."""

from torch import Tensor

from cortex_fast.kernels import cuda
from cortex_fast.kernels.cuda.gumbel_codebook import addresses, contiguous, exact, gumbel_codebook
from cortex_fast.kernels.native.gumbel_codebook import address, contiguous_float32
from cortex_fast.kernels.row_stats import RowStats

__all__ = ["gumbel_codebook_step"]


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
    if row_stats is None:
        _, _, row_stats = gumbel_codebook(
            logits=logits,
            codebook=codebook,
            tau=tau,
            seed=seed,
            draw=draw,
            item_ids=item_ids,
            hard=True,
            gumbel=gumbel,
            schedule=schedule,
            with_row_stats=True,
        )
        assert row_stats is not None
    sizes = (*logits.shape, codebook.shape[1])
    # named, so that copies live as long as the call
    float_codebook, float_upstream = contiguous_float32(codebook), contiguous_float32(upstream)
    float_gumbel = contiguous_float32(gumbel)
    item_ids, anchor = item_ids.contiguous(), None if anchor is None else anchor.contiguous()
    row_stats = contiguous(row_stats)
    scratch = cuda.scratch(cuda.LIBRARY.gumbel_codebook_backward_scratch(sizes=sizes), logits)
    cuda.call(
        "gumbel_codebook_step",
        logits,
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
        schedule=address(schedule),
        row_stats=addresses(row_stats),
        sizes=sizes,
        exact=exact(),
        scratch=scratch.data_ptr(),
    )
