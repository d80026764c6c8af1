"""The backward pass of `gumbel_codebook` fused with a step on P: gumbel_gradient.py has the bound."""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.triton.gumbel_codebook import gumbel_codebook
from cortex_fast.kernels.triton.gumbel_gradient import gradient_tile, launch_along_gradient
from cortex_fast.kernels.triton.gumbel_tiles import Sizes, stream_of, tau_of


class Adam(NamedTuple):
    """Adam's averages and numbers. rest1, rest2: 1 - beta, which a float32 beta would not give."""

    first_moment: Any  # float32, as P
    second_moment: Any
    beta2: Any
    rest1: Any
    rest2: Any
    log_beta1: Any
    log_beta2: Any
    eps: Any


def adam_of(moments: tuple[Tensor, Tensor], betas: tuple[float, float], eps: float) -> Adam:
    log_beta1, log_beta2 = (math.log(beta) if beta else -math.inf for beta in betas)
    return Adam(
        first_moment=moments[0],
        second_moment=moments[1],
        beta2=betas[1],
        rest1=1 - betas[0],
        rest2=1 - betas[1],
        log_beta1=log_beta1,
        log_beta2=log_beta2,
        eps=eps,
    )


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows"])
def descend(
    field,
    source,
    lr,
    tau,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    count,
    rows,
    codes,
    channels,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A tile of P after a step of gradient descent."""
    tau, stream = tau_of(field.schedule, tau), stream_of(field.schedule, key_low, key_high, draw)
    gradient, inside, at = gradient_tile(
        field, stream, Sizes(count, rows, codes, channels), source, tau,
        PRECISION=PRECISION, ROWS=ROWS, CODES=CODES, CHANNELS=CHANNELS,
    )  # fmt: skip
    if field.schedule is not None:
        lr = tl.load(field.schedule + 2).to(tl.float32)
    before = tl.load(field.logits + at, mask=inside)
    tl.store(field.logits + at, before - lr * gradient, mask=inside)


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows", "step_count"])
def adam_step(
    field,
    source,
    adam,
    lr,
    tau,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    step_count,
    count,
    rows,
    codes,
    channels,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A tile of P and of Adam's averages after its step."""
    tau, stream = tau_of(field.schedule, tau), stream_of(field.schedule, key_low, key_high, draw)
    gradient, inside, at = gradient_tile(
        field, stream, Sizes(count, rows, codes, channels), source, tau,
        PRECISION=PRECISION, ROWS=ROWS, CODES=CODES, CHANNELS=CHANNELS,
    )  # fmt: skip
    if field.schedule is not None:
        lr = tl.load(field.schedule + 2).to(tl.float32)
        steps = tl.load(field.schedule + 3)
    else:
        steps = step_count.to(tl.float64)
    before = tl.load(field.logits + at, mask=inside)
    rate = lr / (1.0 - tl.exp(steps * adam.log_beta1)).to(tl.float32)
    correction = (1.0 - tl.exp(steps * adam.log_beta2)).to(tl.float32)
    m = tl.load(adam.first_moment + at, mask=inside)
    v = tl.load(adam.second_moment + at, mask=inside)
    m += (gradient - m) * adam.rest1
    v = v * adam.beta2 + gradient * gradient * adam.rest2
    tl.store(adam.first_moment + at, m, mask=inside)
    tl.store(adam.second_moment + at, v, mask=inside)
    tl.store(field.logits + at, before - rate * m / (tl.sqrt_rn(v / correction) + adam.eps), mask=inside)


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
    selection: dict[str, Any] = {
        "logits": logits,
        "codebook": codebook.contiguous(),
        "tau": tau,
        "seed": seed,
        "draw": draw,
        "item_ids": item_ids.contiguous(),
        "gumbel": None if gumbel is None else gumbel.contiguous(),
        "schedule": schedule,
    }
    if row_stats is None:
        _, _, row_stats = gumbel_codebook(**selection, hard=True, with_row_stats=True)
        assert row_stats is not None
    step: dict[str, Any] = {"lr": lr}
    if moments is not None:
        step |= {"adam": adam_of(moments, betas, eps), "step_count": step_count}
    launch_along_gradient(
        descend if moments is None else adam_step,
        **selection,
        upstream=upstream.float(),
        anchor=anchor,
        stay_penalty=stay_penalty,
        row_stats=row_stats,
        **step,
    )
