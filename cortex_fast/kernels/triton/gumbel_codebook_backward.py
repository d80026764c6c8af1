"""The backward pass of `gumbel_codebook`: dP in tiles (gumbel_gradient.py has the bound), and dC.

Bound of `outer`, dC = y^T dE of a soft selection: 2 d operations an element of P, as for D.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.reference.gumbel_codebook_backward import sum_by_code
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.gumbel_gradient import gradient_tile, launch_along_gradient
from cortex_fast.kernels.triton.gumbel_tiles import (
    Sizes,
    as_float32,
    field_of,
    power_of_two,
    precision,
    score_tile,
    softened,
    stream_of,
    tau_of,
)
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.tiles import Choice, block_of, choice


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows"])
def write_gradient(
    field,
    source,
    out,
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
    """A tile of dP."""
    tau, stream = tau_of(field.schedule, tau), stream_of(field.schedule, key_low, key_high, draw)
    gradient, inside, at = gradient_tile(
        field, stream, Sizes(count, rows, codes, channels), source, tau,
        PRECISION=PRECISION, ROWS=ROWS, CODES=CODES, CHANNELS=CHANNELS,
    )  # fmt: skip
    tl.store(out + at, gradient.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows"])
def outer(
    field,
    upstream,
    row_stats,
    out,
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
    """A tile of dC = y^T dE, the codebook's gradient of a soft selection; the rows in their order."""
    tau, stream = tau_of(field.schedule, tau), stream_of(field.schedule, key_low, key_high, draw)
    sizes = Sizes(count, rows, codes, channels)
    first, column = tl.program_id(0) * CODES, tl.program_id(1)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total = tl.zeros((CODES, CHANNELS), tl.float32)
    for block in range(0, tl.cdiv(count, ROWS)):
        block = tl.cast(block, tl.int64)
        scores, _, _ = score_tile(field, stream, sizes, block, first, ROWS=ROWS, CODES=CODES)
        row = block * ROWS + tl.arange(0, ROWS)[:, None]
        y = softened(scores, row_stats, row, row < count, tau)
        right = tl.load(upstream + row * channels + channel, mask=(row < count) & (channel < channels), other=0.0)
        total = tl.dot(tl.trans(y), right, total, input_precision=PRECISION)
    code = first + tl.arange(0, CODES)[:, None]
    inside = (code < codes) & (channel < channels)
    tl.store(out + code.to(tl.int64) * channels + channel, total.to(out.dtype.element_ty), mask=inside)


def outer_choice(channels: int) -> Choice:
    """The block of `outer`, and its warps."""
    default = {"ROWS": 16, "CODES": 64, "CHANNELS": power_of_two(channels, 16, 64), "num_warps": 4}
    return choice("outer", [channels, precision()], default, ROWS=(16, 32), CODES=(32, 64, 128), num_warps=(4, 8))


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
    upstream, row_stats = upstream.float().contiguous(), RowStats(*(tensor.contiguous() for tensor in row_stats))
    codes, channels = codebook.shape
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_codebook = torch.empty((codes if codebook_needed else 0, channels), dtype=codebook.dtype, device=logits.device)
    selection: dict[str, Any] = {
        "logits": logits,
        "upstream": upstream,
        "tau": tau,
        "seed": seed,
        "draw": draw,
        "item_ids": item_ids,
        "gumbel": gumbel,
        "schedule": schedule,
        "row_stats": row_stats,
    }
    launch_along_gradient(
        write_gradient, **selection, codebook=codebook, anchor=None, stay_penalty=0.0, out=grad_logits
    )
    if codebook_needed and hard:
        # torch sorts by code and adds in order, and codes are few beside the elements of P
        grad_codebook.copy_(sum_by_code(upstream.flatten(0, 1), index.flatten(), codes))
    elif codebook_needed:
        _launch_outer(grad_codebook, **selection)
    return grad_logits, grad_codebook


def _launch_outer(
    grad_codebook: Tensor,
    *,
    logits: Tensor,
    upstream: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    row_stats: RowStats,
) -> None:
    """Write dC [K,d] of a soft selection."""
    problems, rows, _ = logits.shape
    codes, channels = grad_codebook.shape
    key_low, key_high = philox.stream_key(seed, philox.GUMBEL)
    block = block_of(logits.device, outer_choice(channels))
    launching.launch(
        outer,
        [ceil_div(codes, block["CODES"]), ceil_div(channels, block["CHANNELS"])],
        logits,
        field=field_of(logits, item_ids, gumbel, schedule),
        upstream=upstream,
        row_stats=row_stats,
        out=grad_codebook,
        tau=as_float32(tau),
        key_low=key_low,
        key_high=key_high,
        draw=draw,
        count=problems * rows,
        rows=rows,
        codes=codes,
        channels=channels,
        PRECISION=precision(),
        **block,
    )
