"""The backward pass of `gumbel_codebook`, dP = y (D - <y, D>) / tau with D = dE C^T, and it fused with a step on P.

Bound: an Adam step reads and writes P, m and v, with the read for the forward pass 28 bytes an element; D costs 2 d
operations an element, which at d = 256 in float32's own precision take longer than the bytes.

One pass: the row's term <y, D> is dE . (y C), which the forward pass has kept (or makes here), so that a tile of dE C^T
is all that a tile of dP needs. y comes from P, the noise drawn again, and the kept largest score and denominator.
Nothing of size R x K is written but dP, in a step not even that.

Both D and its mean are taken relative to the selected code w: D_k - D_w, 0 for w itself, and dE . (y C - C_w). Where a
row has settled on w its gradient is then 0, as it is in the formula; the difference of two large sums would leave
their rounding, which Adam makes a step of full length from. (With tf32 y C is rounded too roughly for that.)
A price `stay` for leaving a row's own code comes off D there, and off the mean.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import gumbel_codebook as reference
from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.gumbel_codebook import forward
from cortex_fast.kernels.triton.gumbel_tiles import (
    as_float32,
    draw_of,
    power_of_two,
    precision,
    score_of,
    score_tile,
    softened,
    tau_of,
)
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.tiles import Choice, block_of, choice
from cortex_fast.kernels.triton.transforms import exp_of


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "rows"])
def row_terms(
    logits,
    gumbel,
    item_ids,
    codebook,
    upstream,
    kept,
    anchor,
    schedule,
    terms_out,
    tau,
    stay_penalty,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    rows,
    codes,
    channels,
    by_problem,
    by_row,
    by_code,
    GIVEN: tl.constexpr,
    SCHEDULED: tl.constexpr,
    ANCHOR: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Of a row D_w = dE . C_w, and <y, D> - D_w = dE . (y C - C_w), less stay y[own]."""
    tau, draw = tau_of(schedule, tau, SCHEDULED), draw_of(schedule, draw, SCHEDULED)
    row = tl.program_id(0).to(tl.int64)
    kept += row * (3 + channels)
    selected = codebook + tl.load(kept + 2).to(tl.int32, bitcast=True).to(tl.int64) * channels
    highest = tl.zeros((CHANNELS,), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = channel < channels
        code = tl.load(selected + channel, mask=inside, other=0.0).to(tl.float32)
        left = tl.load(upstream + row * channels + channel, mask=inside, other=0.0)
        highest += left * code
        total += left * (tl.load(kept + 3 + channel, mask=inside, other=0.0) - code)
    term = tl.sum(total, axis=0)
    if ANCHOR:
        score = score_of(
            logits, gumbel, item_ids, row, tl.load(anchor + row), rows, codes, by_problem, by_row, by_code,
            key_low, key_high, draw, GIVEN,
        )  # fmt: skip
        term -= stay_penalty * exp_of((score - tl.load(kept)) / tau - tl.load(kept + 1))
    tl.store(terms_out + 2 * row, tl.sum(highest, axis=0))
    tl.store(terms_out + 2 * row + 1, term)


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows", "number"])
def update(
    logits,
    gumbel,
    item_ids,
    codebook,
    upstream,
    kept,
    terms,
    anchor,
    schedule,
    out,
    first_moment,
    second_moment,
    tau,
    stay_penalty,
    lr,
    number,
    beta2,
    rest1,
    rest2,
    log_beta1,
    log_beta2,
    eps,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    count,
    rows,
    codes,
    channels,
    by_problem,
    by_row,
    by_code,
    GIVEN: tl.constexpr,
    SCHEDULED: tl.constexpr,
    ANCHOR: tl.constexpr,
    RULE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A tile of dP, written (RULE "gradient") or followed: by "sgd" or "adam". out: dP, or P itself. rest1, rest2:
    1 - beta, which a float32 beta would not give."""
    tau, draw = tau_of(schedule, tau, SCHEDULED), draw_of(schedule, draw, SCHEDULED)
    blocks = tl.cdiv(count, ROWS)  # of rows, which come first, so that programs side by side share the codes
    block, first = tl.program_id(0) % blocks, tl.program_id(0) // blocks * CODES
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    code = first + tl.arange(0, CODES)[None, :]
    d = tl.zeros((ROWS, CODES), tl.float32)
    for at_channel in range(0, channels, CHANNELS):
        channel = at_channel + tl.arange(0, CHANNELS)
        left = tl.load(
            upstream + row * channels + channel[None, :],
            mask=(row < count) & (channel < channels)[None, :],
            other=0.0,
        )
        right = tl.load(
            codebook + code.to(tl.int64) * channels + channel[:, None],
            mask=(code < codes) & (channel < channels)[:, None],
            other=0.0,
        ).to(tl.float32)
        d = tl.dot(left, right, d, input_precision=PRECISION)
    scores, inside, at = score_tile(
        logits, gumbel, item_ids, block, first, count, rows, codes, by_problem, by_row, by_code,
        key_low, key_high, draw, GIVEN, ROWS, CODES,
    )  # fmt: skip
    there = row < count
    y = softened(scores, kept, row, there, channels, tau)
    selected = tl.load(kept + row * (3 + channels) + 2, mask=there, other=0.0).to(tl.int32, bitcast=True)
    d = tl.where(code == selected, 0.0, d - tl.load(terms + 2 * row, mask=there, other=0.0))
    if ANCHOR:
        d -= tl.where(code == tl.load(anchor + row, mask=there, other=0), stay_penalty, 0.0)
    gradient = y * (d - tl.load(terms + 2 * row + 1, mask=there, other=0.0)) / tau
    if RULE == "gradient":
        tl.store(out + at, gradient.to(out.dtype.element_ty), mask=inside)
    else:
        if SCHEDULED:
            lr = tl.load(schedule + 2).to(tl.float32)
            steps = tl.load(schedule + 3)
        else:
            steps = number.to(tl.float64)
        before = tl.load(out + at, mask=inside)
        if RULE == "sgd":
            tl.store(out + at, before - lr * gradient, mask=inside)
        else:
            rate = lr / (1.0 - tl.exp(steps * log_beta1)).to(tl.float32)
            correction = (1.0 - tl.exp(steps * log_beta2)).to(tl.float32)
            m = tl.load(first_moment + at, mask=inside)
            v = tl.load(second_moment + at, mask=inside)
            m += (gradient - m) * rest1
            v = v * beta2 + gradient * gradient * rest2
            tl.store(first_moment + at, m, mask=inside)
            tl.store(second_moment + at, v, mask=inside)
            tl.store(out + at, before - rate * m / (tl.sqrt_rn(v / correction) + eps), mask=inside)


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows"])
def outer(
    logits,
    gumbel,
    item_ids,
    upstream,
    kept,
    schedule,
    out,
    tau,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    count,
    rows,
    codes,
    channels,
    by_problem,
    by_row,
    by_code,
    GIVEN: tl.constexpr,
    SCHEDULED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A tile of dC = y^T dE, the codebook's gradient of a soft selection; the rows in their order."""
    tau, draw = tau_of(schedule, tau, SCHEDULED), draw_of(schedule, draw, SCHEDULED)
    first, column = tl.program_id(0) * CODES, tl.program_id(1)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total = tl.zeros((CODES, CHANNELS), tl.float32)
    for block in range(0, tl.cdiv(count, ROWS)):
        block = tl.cast(block, tl.int64)
        scores, _, _ = score_tile(
            logits, gumbel, item_ids, block, first, count, rows, codes, by_problem, by_row, by_code,
            key_low, key_high, draw, GIVEN, ROWS, CODES,
        )  # fmt: skip
        row = block * ROWS + tl.arange(0, ROWS)[:, None]
        y = softened(scores, kept, row, row < count, channels, tau)
        right = tl.load(upstream + row * channels + channel, mask=(row < count) & (channel < channels), other=0.0)
        total = tl.dot(tl.trans(y), right, total, input_precision=PRECISION)
    code = first + tl.arange(0, CODES)[:, None]
    here = (code < codes) & (channel < channels)
    tl.store(out + code.to(tl.int64) * channels + channel, total.to(out.dtype.element_ty), mask=here)


def update_choice(count: int, channels: int) -> Choice:
    """The block of `update`, and its warps."""
    few = count <= 512
    default = {
        "ROWS": 16 if few else 64,
        "CODES": 64,
        "CHANNELS": power_of_two(channels, 16, 32 if few else 16),
        "num_warps": 4 if few else 8,
        "num_stages": 3 if few else 2,
    }
    return choice(
        "update", [count, channels, precision()], default, ROWS=(16, 32, 64), CODES=(32, 64), num_warps=(4, 8)
    )


def outer_choice(channels: int) -> Choice:
    """The block of `outer`, and its warps."""
    default = {"ROWS": 16, "CODES": 64, "CHANNELS": power_of_two(channels, 16, 64), "num_warps": 4}
    return choice("outer", [channels, precision()], default, ROWS=(16, 32), CODES=(32, 64, 128), num_warps=(4, 8))


def _terms(
    logits: Tensor,
    gumbel: Tensor | None,
    item_ids: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    kept: Tensor,
    anchor: Tensor | None,
    stay_penalty: float,
    schedule: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
) -> Tensor:
    _, rows, codes = logits.shape
    channels = upstream.shape[2]
    terms = torch.empty((*upstream.shape[:2], 2), dtype=torch.float32, device=logits.device)
    launching.launch(
        row_terms, [terms.numel() // 2], logits,
        logits, gumbel, item_ids, codebook, upstream, kept, anchor, schedule, terms, tau, stay_penalty,
        *philox.stream_key(seed, philox.GUMBEL), draw, rows, codes, channels, *logits.stride(),
        GIVEN=gumbel is not None, SCHEDULED=schedule is not None, ANCHOR=anchor is not None,
        CHANNELS=power_of_two(channels, 16, 512),
    )  # fmt: skip
    return terms


def _update(
    rule: str,
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    kept: Tensor,
    schedule: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    out: Tensor,
    moments: tuple[Tensor, Tensor] | None = None,
    lr: float = 0.0,
    betas: tuple[float, float] = (0.0, 0.0),
    eps: float = 0.0,
    number: int = 1,
    anchor: Tensor | None = None,
    stay_penalty: float = 0.0,
) -> None:
    problems, rows, codes = logits.shape
    channels, count = codebook.shape[1], problems * rows
    terms = _terms(logits, gumbel, item_ids, codebook, upstream, kept, anchor, stay_penalty, schedule, tau, seed, draw)
    block = block_of(logits.device, update_choice(count, channels))
    first, second = moments or (out, out)
    launching.launch(
        update, [ceil_div(count, block["ROWS"]) * ceil_div(codes, block["CODES"])], logits,
        logits, gumbel, item_ids, codebook, upstream, kept, terms, anchor, schedule, out, first,
        second, tau, stay_penalty, lr, number, betas[1], *(1 - beta for beta in betas),
        *(math.log(beta) if beta else -math.inf for beta in betas), eps,
        *philox.stream_key(seed, philox.GUMBEL), draw, count, rows, codes, channels, *logits.stride(),
        GIVEN=gumbel is not None, SCHEDULED=schedule is not None, ANCHOR=anchor is not None, RULE=rule,
        PRECISION=precision(), **block,
    )  # fmt: skip


def backward(
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    index: Tensor,
    kept: Tensor,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    codebook_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d]. kept:
    what the forward pass kept."""
    upstream, codebook = upstream.float().contiguous(), codebook.contiguous()
    item_ids, gumbel = item_ids.contiguous(), None if gumbel is None else gumbel.contiguous()
    tau = as_float32(tau)
    codes, channels = codebook.shape
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_codebook = torch.empty((codes if codebook_needed else 0, channels), dtype=codebook.dtype, device=logits.device)
    common = (upstream, item_ids, gumbel, kept, schedule, tau, seed, draw)
    _update("gradient", logits, codebook, *common, grad_logits)
    if codebook_needed and hard:
        # sorted by code and added in order: torch has that, and codes are few beside the elements of P
        sums = reference.sum_by_code(upstream.flatten(0, 1), index.flatten(), codes)
        grad_codebook.copy_(sums)
    elif codebook_needed:
        count, rows = index.numel(), index.shape[1]
        block = block_of(logits.device, outer_choice(channels))
        launching.launch(
            outer, [ceil_div(codes, block["CODES"]), ceil_div(channels, block["CHANNELS"])], logits,
            logits, gumbel, item_ids, upstream, kept, schedule, grad_codebook, tau,
            *philox.stream_key(seed, philox.GUMBEL), draw, count, rows, codes, channels, *logits.stride(),
            GIVEN=gumbel is not None, SCHEDULED=schedule is not None, PRECISION=precision(), **block,
        )  # fmt: skip
    return grad_logits, grad_codebook


def step(
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    kept: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    moments: tuple[Tensor, Tensor] | None,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    number: int,
    anchor: Tensor | None,
    stay_penalty: float,
) -> None:
    """One step of Adam (moments) or gradient descent (None) on contiguous logits [P,R,K], in place."""
    upstream, codebook = upstream.float().contiguous(), codebook.contiguous()
    item_ids, gumbel = item_ids.contiguous(), None if gumbel is None else gumbel.contiguous()
    tau = as_float32(tau)
    if kept is None or not kept.numel():
        _, _, kept = forward(logits, codebook, item_ids, gumbel, schedule, tau, seed, draw, hard=True, keep=True)
    _update(
        "sgd" if moments is None else "adam", logits, codebook, upstream, item_ids, gumbel, kept.contiguous(), schedule,
        tau, seed, draw, logits, moments, lr, betas, eps, number, None if anchor is None else anchor.contiguous(),
        stay_penalty,
    )  # fmt: skip
