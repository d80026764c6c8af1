"""Gumbel-Softmax selection of codebook rows, forward and backward (straight-through), as the formulas read.

draw, tau, lr and count are numbers, or scalar tensors on the logits' device.
"""

import torch
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.reference.descent import descend


def gumbel_noise(item_ids: Tensor, rows: int, codes: int, seed: int, draw: int | Tensor) -> Tensor:
    """g float32 [items, R, K] of the shared stream."""
    draws = draw.view(1) if isinstance(draw, Tensor) else item_ids.new_full((1,), draw)
    return philox.gumbel(seed, item_ids, draws, rows, codes)[:, 0]


def noise_of(logits: Tensor, item_ids: Tensor, gumbel: Tensor | None, seed: int, draw: int | Tensor) -> Tensor:
    """The given g, or the stream's, for logits [P,R,K]."""
    return gumbel_noise(item_ids, logits.shape[1], logits.shape[2], seed, draw) if gumbel is None else gumbel


def _scores(logits: Tensor, gumbel: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide) + gumbel.to(wide)


def _within(tau: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """tau as this dtype can have it: rounded to 0 or infinity it would make NaN of the largest score, or of -inf."""
    info = torch.finfo(dtype)
    return tau.clamp(info.tiny, info.max) if isinstance(tau, Tensor) else min(max(tau, info.tiny), info.max)


def _soften(scores: Tensor, tau: float | Tensor, codebook: Tensor) -> Tensor:
    """y = softmax(scores / tau), at least in the codebook's precision."""
    # the largest score is taken off first: scores / tau may exceed the largest float
    scores = scores.to(torch.promote_types(scores.dtype, codebook.dtype))
    return ((scores - scores.amax(dim=-1, keepdim=True)) / _within(tau, scores.dtype)).softmax(dim=-1)


def sum_by_code(values: Tensor, index: Tensor, codes: int) -> Tensor:
    """values [n,d] -> [K,d]: the sum of those with each index, in a fixed order (index_put_ may add atomically)."""
    counts = torch.bincount(index, minlength=codes)
    return torch.segment_reduce(values[index.argsort(stable=True)], "sum", lengths=counts, axis=0)


def empty_results(logits: Tensor, codebook: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What a forward pass on a GPU fills: embedding [P,R,d] in the codebook's dtype, index int64 [P,R], and what the
    backward pass makes use of, float32 [P,R,3+d] where `keep` is true, else [0]."""
    problems, rows, _ = logits.shape
    channels = codebook.shape[1]
    return (
        codebook.new_empty((problems, rows, channels)),
        logits.new_empty((problems, rows), dtype=torch.int64),
        logits.new_empty((problems, rows, 3 + channels) if keep else (0,), dtype=torch.float32),
    )


def forward(logits: Tensor, codebook: Tensor, gumbel: Tensor, tau: float | Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """logits, gumbel [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R]."""
    scores = _scores(logits, gumbel)
    index = scores.argmax(dim=-1)
    if hard:
        return codebook[index], index
    y = _soften(scores, tau, codebook)
    return (y @ codebook.to(y.dtype)).to(codebook.dtype), index


def backward(
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    gumbel: Tensor,
    index: Tensor,
    tau: float | Tensor,
    hard: bool,
    codebook_needed: bool,
    anchor: Tensor | None = None,
    stay_penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d].

    y = softmax((P + g) / tau), D = dE C^T, dP = y (D - <y, D>) / tau; hard selection passes its gradient straight
    through to y, and to the rows of C that it selected. own int64 [P,R]: the code whose D is less by `stay`.
    """
    y = _soften(_scores(logits, gumbel), tau, codebook)
    wide = upstream.to(y.dtype)
    d = wide @ codebook.to(y.dtype).T
    if anchor is not None:
        d.scatter_add_(2, anchor[..., None], d.new_full((*anchor.shape, 1), -stay_penalty))
    grad_logits = y * (d - (y * d).sum(dim=-1, keepdim=True)) / _within(tau, y.dtype)
    if not codebook_needed:
        grad_codebook = codebook.new_empty((0, codebook.shape[1]))
    elif hard:
        grad_codebook = sum_by_code(wide.flatten(0, 1), index.flatten(), codebook.shape[0])
    else:
        grad_codebook = y.flatten(0, 1).T @ wide.flatten(0, 1)
    return grad_logits.to(logits.dtype).contiguous(), grad_codebook.to(codebook.dtype).contiguous()


def step(
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    gumbel: Tensor,
    tau: float | Tensor,
    moments: tuple[Tensor, Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    count: int | Tensor,
    anchor: Tensor | None = None,
    stay_penalty: float = 0.0,
) -> None:
    """One step along dP, in place: number `count` (from 1) of Adam (Kingma and Ba 2015), or of gradient descent."""
    index = gumbel.new_empty(0, dtype=torch.int64)  # only the codebook's gradient needs it
    gradient, _ = backward(upstream, logits, codebook, gumbel, index, tau, True, False, anchor, stay_penalty)
    descend(logits, moments, gradient, lr, betas, eps, count)
