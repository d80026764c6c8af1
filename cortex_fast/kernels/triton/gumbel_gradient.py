"""Tiles of dP = y (D - <y, D>) / tau with D = dE C^T, which the backward pass of `gumbel_codebook` writes and its fused
steps follow.

Bound: an Adam step reads and writes P, m and v, with the read for the forward pass 28 bytes an element; D costs 2 d
operations an element, which at d = 256 in float32's own precision take longer than the bytes.

One pass: the row's term <y, D> is dE . (y C), and y C is one of the row statistics, so that a tile of dE C^T is all
that a tile of dP needs. y comes from P, the noise drawn again, and the row's largest score and denominator. Nothing of
size R x K is written but dP, in a step not even that.

Both D and its mean are taken relative to the selected code w: D_k - D_w, 0 for w itself, and dE . (y C - C_w). Where a
row has settled on w its gradient is then 0, as it is in the formula; the difference of two large sums would leave
their rounding, which Adam makes a step of full length from. (With tf32 y C is rounded too roughly for that.)
The penalty for leaving a row's anchor is subtracted from the anchor's D, and from the mean.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.gumbel_tiles import (
    Sizes,
    as_float32,
    field_of,
    power_of_two,
    precision,
    score_of,
    score_tile,
    softened,
    stream_of,
    tau_of,
)
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.tiles import Choice, block_of, choice
from cortex_fast.kernels.triton.transforms import exp_of


class Source(NamedTuple):
    """What dP is computed from, beside the scores."""

    codebook: Any  # [codes, channels], contiguous like the following
    upstream: Any  # float32 dE [rows, channels]
    row_stats: Any  # RowStats
    terms: Any  # float32 [rows, 2], from `row_terms`
    anchor: Any  # int64 [rows]; None: no penalty
    stay_penalty: Any


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "rows"])
def row_terms(
    field,
    source,
    tau,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    rows,
    codes,
    channels,
    CHANNELS: tl.constexpr,
):
    """Of a row D_w = dE . C_w, and <y, D> - D_w = dE . (y C - C_w), less stay_penalty y[anchor]."""
    row = tl.program_id(0).to(tl.int64)
    row_stats = source.row_stats
    selected = source.codebook + tl.load(row_stats.selected + row) * channels
    highest = tl.zeros((CHANNELS,), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = channel < channels
        code = tl.load(selected + channel, mask=inside, other=0.0).to(tl.float32)
        left = tl.load(source.upstream + row * channels + channel, mask=inside, other=0.0)
        highest += left * code
        total += left * (tl.load(row_stats.soft_embedding + row * channels + channel, mask=inside, other=0.0) - code)
    term = tl.sum(total, axis=0)
    if source.anchor is not None:
        tau, stream = tau_of(field.schedule, tau), stream_of(field.schedule, key_low, key_high, draw)
        sizes = Sizes(0, rows, codes, channels)  # of all rows nothing is needed here
        score = score_of(field, stream, sizes, row, tl.load(source.anchor + row))
        top, log_denominator = tl.load(row_stats.largest_score + row), tl.load(row_stats.log_denominator + row)
        term -= source.stay_penalty * exp_of((score - top) / tau - log_denominator)
    tl.store(source.terms + 2 * row, tl.sum(highest, axis=0))
    tl.store(source.terms + 2 * row + 1, term)


@triton.jit
def gradient_tile(
    field,
    stream,
    sizes,
    source,
    tau,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """This program's tile of dP, where it is inside, and its elements' places in a contiguous array."""
    blocks = tl.cdiv(sizes.count, ROWS)  # rows vary fastest, so that neighbouring programs share the codes
    block, first = tl.program_id(0) % blocks, tl.program_id(0) // blocks * CODES
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    code = first + tl.arange(0, CODES)[None, :]
    exists = row < sizes.count
    d = tl.zeros((ROWS, CODES), tl.float32)
    for first_channel in range(0, sizes.channels, CHANNELS):
        channel = first_channel + tl.arange(0, CHANNELS)
        left = tl.load(
            source.upstream + row * sizes.channels + channel[None, :],
            mask=exists & (channel < sizes.channels)[None, :],
            other=0.0,
        )
        right = tl.load(
            source.codebook + code.to(tl.int64) * sizes.channels + channel[:, None],
            mask=(code < sizes.codes) & (channel < sizes.channels)[:, None],
            other=0.0,
        ).to(tl.float32)
        d = tl.dot(left, right, d, input_precision=PRECISION)
    scores, inside, at = score_tile(field, stream, sizes, block, first, ROWS=ROWS, CODES=CODES)
    y = softened(scores, source.row_stats, row, exists, tau)
    selected = tl.load(source.row_stats.selected + row, mask=exists, other=0).to(tl.int32)
    d = tl.where(code == selected, 0.0, d - tl.load(source.terms + 2 * row, mask=exists, other=0.0))
    if source.anchor is not None:
        anchor = tl.load(source.anchor + row, mask=exists, other=0)
        d -= tl.where(code == anchor, source.stay_penalty, 0.0)
    gradient = y * (d - tl.load(source.terms + 2 * row + 1, mask=exists, other=0.0)) / tau
    return gradient, inside, at


def update_choice(count: int, channels: int) -> Choice:
    """The block of a kernel over tiles of dP, and its warps."""
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


def launch_along_gradient(
    kernel: Any,
    *,
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor,
    gumbel: Tensor | None,
    anchor: Tensor | None,
    stay_penalty: float,
    schedule: Tensor | None,
    row_stats: RowStats,
    **further: object,
) -> None:
    """Run a kernel over all tiles of dP, after `row_terms`. upstream: float32. further: its own arguments."""
    problems, rows, codes = logits.shape
    count, channels = problems * rows, codebook.shape[1]
    key_low, key_high = philox.stream_key(seed, philox.GUMBEL)
    source = Source(
        codebook.contiguous(),
        upstream.contiguous(),
        RowStats(*(tensor.contiguous() for tensor in row_stats)),
        torch.empty((count, 2), dtype=torch.float32, device=logits.device),
        None if anchor is None else anchor.contiguous(),
        stay_penalty,
    )
    arguments = {
        "field": field_of(logits, item_ids, gumbel, schedule),
        "source": source,
        "tau": as_float32(tau),
        "key_low": key_low,
        "key_high": key_high,
        "draw": draw,
        "rows": rows,
        "codes": codes,
        "channels": channels,
    }
    launching.launch(row_terms, [count], logits, **arguments, CHANNELS=power_of_two(channels, 16, 512))
    block = block_of(logits.device, update_choice(count, channels))
    grid = [ceil_div(count, block["ROWS"]) * ceil_div(codes, block["CODES"])]
    launching.launch(kernel, grid, logits, **arguments, count=count, PRECISION=precision(), **block, **further)
