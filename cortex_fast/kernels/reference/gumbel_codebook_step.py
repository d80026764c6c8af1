"""The backward pass of `gumbel_codebook`, then an optimiser's step on the logits, as the formulas read."""

from torch import Tensor

from cortex_fast.kernels.reference.descent import descend
from cortex_fast.kernels.reference.gumbel_codebook import noise_of, noisy_scores, softened
from cortex_fast.kernels.reference.gumbel_codebook_backward import logits_gradient
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
    """One step of Adam (moments) or gradient descent (None) on logits [P,R,K], in place."""
    tau, draw, lr, step_count = scheduled_values(schedule, tau=tau, draw=draw, lr=lr, step_count=step_count)
    y = softened(noisy_scores(logits, noise_of(logits, item_ids, gumbel, seed, draw)), tau, codebook)
    gradient = logits_gradient(y, codebook, upstream, tau, anchor, stay_penalty).to(logits.dtype).contiguous()
    descend(logits, moments, gradient, lr=lr, betas=betas, eps=eps, step_count=step_count)
