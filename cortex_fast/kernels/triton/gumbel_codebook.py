"""Gumbel-Softmax selection of codebook rows, in one pass over P: C[argmax(P + g)] or y C, y = softmax((P + g) / tau).

Bound: P is read once, 4 bytes an element, against about 55 instructions for its noise, of which 15 are random words.
Where y C is asked for, 2 d operations an element stand beside them: at d = 256 float32 products take longer than the
bytes.

The hard selection alone (`select`) takes logarithms only of tiles whose largest logit and smallest word, whose Gumbel
is the largest, could beat the best score so far. With y C (`scan`) it is as in attention, P + g being the scores and
the codebook the values: a program goes over some codes of a block of rows with a running largest score, denominator
and y C, never with y itself. Few rows are split over their codes, into more programs, and a further kernel (`combine`)
puts the parts together in their order: no atomics, and the same bits every time. The number of parts depends on the
sizes alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import gumbel_codebook as reference
from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.gumbel_tiles import as_float32, draw_of, power_of_two, precision, score_tile, tau_of
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.philox import word_tile
from cortex_fast.kernels.triton.tiles import Choice, block_of, choice
from cortex_fast.kernels.triton.transforms import exp_of, gumbel_of, log_of

_PROGRAMS = {"select": 2048, "scan": 192}  # as many as keep a large GPU busy; each of `scan` keeps sums of its own
_PARTS = 32  # that are put together at a time
_SLACK = tl.constexpr(1e-4)  # of a score that bounds others, for rounding


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows", "part"])
def select(
    logits,
    gumbel,
    item_ids,
    schedule,
    best_out,
    index_out,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    count,
    rows,
    codes,
    by_problem,
    by_row,
    by_code,
    part,
    GIVEN: tl.constexpr,
    SCHEDULED: tl.constexpr,
    CODES: tl.constexpr,
):
    """Of a row and a part of the codes: the largest score and its code."""
    draw = draw_of(schedule, draw, SCHEDULED)
    row, parts = tl.program_id(0).to(tl.int64), tl.program_id(1)
    problem, place = row // rows, row % rows
    item = tl.load(item_ids + problem)
    from_row = logits + problem * by_problem + place * by_row
    best = tl.full((), float("-inf"), tl.float32)
    index = tl.zeros((), tl.int32)
    for first in range(parts * part, tl.minimum(parts * part + part, codes), CODES):
        code = first + tl.arange(0, CODES)[None, :]
        inside = code < codes
        logit = tl.load(from_row + code.to(tl.int64) * by_code, mask=inside, other=float("-inf")).to(tl.float32)
        logit = tl.where(logit != logit, float("inf"), logit)  # NaN is the largest
        if GIVEN:
            score = logit + tl.load(gumbel + row * codes + code, mask=inside, other=0.0).to(tl.float32)
            score = tl.where(score != score, float("inf"), score)
            largest = tl.max(score)
            if largest > best:
                index = first + tl.argmax(score, axis=1).sum()
                best = largest
        else:
            words = word_tile(key_low, key_high, draw, item, place, first, CODES)
            bound = tl.max(logit) + gumbel_of(tl.min(words))
            if bound + _SLACK * (1.0 + tl.abs(bound)) > best:
                score = logit + gumbel_of(words)
                largest = tl.max(score)
                if largest > best:
                    index = first + tl.argmax(score, axis=1).sum()
                    best = largest
    at = parts.to(tl.int64) * count + row
    tl.store(best_out + at, best)
    tl.store(index_out + at, index)


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows", "part"])
def scan(
    logits,
    gumbel,
    item_ids,
    codebook,
    schedule,
    best_out,
    index_out,
    denominator_out,
    soft_out,
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
    part,
    GIVEN: tl.constexpr,
    SCHEDULED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Of a block of rows, a part of the codes and a block of channels: largest score and its code, denominator, y C."""
    tau, draw = tau_of(schedule, tau, SCHEDULED), draw_of(schedule, draw, SCHEDULED)
    block, parts, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    denominator = tl.zeros((ROWS,), tl.float32)
    soft = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(parts * part, tl.minimum(parts * part + part, codes), CODES):
        scores, _, _ = score_tile(
            logits, gumbel, item_ids, block, first, count, rows, codes, by_problem, by_row, by_code,
            key_low, key_high, draw, GIVEN, ROWS, CODES,
        )  # fmt: skip
        ranked = tl.where(scores != scores, float("inf"), scores)  # NaN is the largest
        largest = tl.max(ranked, axis=1)
        better = largest > best
        index = tl.where(better, first + tl.argmax(ranked, axis=1), index)
        before, best = best, tl.where(better, largest, best)
        top = tl.where(best == float("-inf"), 0.0, best)
        weights = exp_of((scores - top[:, None]) / tau)
        fading = exp_of((before - top) / tau)
        code = first + tl.arange(0, CODES)
        values = tl.load(
            codebook + code[:, None].to(tl.int64) * channels + channel[None, :],
            mask=(code < codes)[:, None] & (channel < channels)[None, :],
            other=0.0,
        ).to(tl.float32)
        denominator = denominator * fading + tl.sum(weights, axis=1)
        soft = tl.dot(weights, values, soft * fading[:, None], input_precision=PRECISION)
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = parts.to(tl.int64) * count + row
    tl.store(best_out + at, best, mask=(row < count) & (column == 0))
    tl.store(index_out + at, index, mask=(row < count) & (column == 0))
    tl.store(denominator_out + at, denominator, mask=(row < count) & (column == 0))
    here = (row < count)[:, None] & (channel < channels)[None, :]
    tl.store(soft_out + at[:, None] * channels + channel[None, :], soft, mask=here)


@triton.jit(do_not_specialize=["count", "parts"])
def combine(
    codebook,
    schedule,
    best_in,
    index_in,
    denominator_in,
    soft_in,
    embedding_out,
    index_out,
    kept_out,
    tau,
    count,
    channels,
    parts,
    SCHEDULED: tl.constexpr,
    SOFT: tl.constexpr,
    HARD: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A row's parts, put together: its index, a block of its embedding, and what the backward pass makes use of."""
    tau = tau_of(schedule, tau, SCHEDULED)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    best = tl.full((), float("-inf"), tl.float32)
    index = tl.zeros((), tl.int32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        at = part.to(tl.int64) * count + row
        bests = tl.load(best_in + at, mask=part < parts, other=float("-inf"))
        largest = tl.max(bests, axis=0)
        # the parts' codes are in order, so that among equal scores the lowest index wins
        indices = tl.load(index_in + at, mask=(part < parts) & (bests == largest), other=2147483647)
        index = tl.where(largest > best, tl.min(indices, axis=0), index)
        best = tl.maximum(best, largest)
    if column == 0:
        tl.store(index_out + row, index.to(tl.int64))
    inside = channel < channels
    if SOFT:
        top = tl.where(best == float("-inf"), 0.0, best)
        denominator = tl.zeros((), tl.float32)
        soft = tl.zeros((CHANNELS,), tl.float32)
        for first in range(0, parts, PARTS):
            part = first + tl.arange(0, PARTS)
            at = part.to(tl.int64) * count + row
            bests = tl.load(best_in + at, mask=part < parts, other=float("-inf"))
            weights = exp_of((bests - top) / tau)
            denominator += tl.sum(weights * tl.load(denominator_in + at, mask=part < parts, other=0.0), axis=0)
            values = tl.load(
                soft_in + at[:, None] * channels + channel[None, :],
                mask=(part < parts)[:, None] & inside[None, :],
                other=0.0,
            )
            soft += tl.sum(weights[:, None] * values, axis=0)
        soft /= denominator
        kept = kept_out + row * (3 + channels)
        if column == 0:
            tl.store(kept, best)
            tl.store(kept + 1, tl.where(denominator != denominator, denominator, log_of(denominator)))
            tl.store(kept + 2, index.to(tl.float32, bitcast=True))
        tl.store(kept + 3 + channel, soft, mask=inside)
        if not HARD:
            tl.store(embedding_out + row * channels + channel, soft.to(embedding_out.dtype.element_ty), mask=inside)
    if HARD:
        selected = tl.load(codebook + index.to(tl.int64) * channels + channel, mask=inside)
        tl.store(embedding_out + row * channels + channel, selected, mask=inside)


def select_choice(count: int) -> Choice:
    """The block of `select`, and its warps."""
    return choice("select", [count], {"CODES": 1024, "num_warps": 4}, CODES=(512, 1024, 2048), num_warps=(2, 4, 8))


def scan_choice(count: int, channels: int) -> Choice:
    """The block of `scan`, its warps and how many tiles ahead it loads."""
    few, width = count <= 512, power_of_two(channels, 16, 256)
    default = {
        "ROWS": 16 if few else 32,
        "CODES": 32 if few else 16,
        "CHANNELS": width,
        "num_warps": 8 if width > 64 else 4,
        "num_stages": 2,
    }
    return choice(
        "scan", [count, channels, precision()], default,
        ROWS=(16, 32), CODES=(16, 32), num_warps=(8,) if width > 64 else (4, 8), num_stages=(2, 3),
    )  # fmt: skip


def parts_of(codes: int, tile: int, programs: int, wanted: int) -> tuple[int, int]:
    """In how many parts the codes are taken, and how many codes a part has, of `programs` for each part: as many as
    are `wanted`, but at least two tiles where there are so many."""
    tiles = ceil_div(codes, tile)
    each = ceil_div(tiles, min(ceil_div(wanted, max(1, programs)), ceil_div(tiles, 2)))
    return ceil_div(tiles, each), each * tile


def forward(
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R]; and where `keep`
    is true, or the selection soft, float32 [P,R,3+d], else [0]: the largest score, the denominator's logarithm, the
    index's bits, y C."""
    problems, rows, codes = logits.shape
    channels, count, soft = codebook.shape[1], problems * rows, keep or not hard
    codebook, item_ids = codebook.contiguous(), item_ids.contiguous()
    gumbel, tau = None if gumbel is None else gumbel.contiguous(), as_float32(tau)

    def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    embedding, selected, kept = reference.empty_results(logits, codebook, soft)
    stream = (*philox.stream_key(seed, philox.GUMBEL), draw)
    if soft:
        block = block_of(logits.device, scan_choice(count, channels))
        blocks, columns = ceil_div(count, block["ROWS"]), ceil_div(channels, block["CHANNELS"])
        parts, each = parts_of(codes, block["CODES"], blocks, _PROGRAMS["scan"])
        best, index = fresh(parts, count), fresh(parts, count, dtype=torch.int32)
        denominator, sums = fresh(parts, count), fresh(parts, count, channels)
        launching.launch(
            scan, [blocks, parts, columns], logits,
            logits, gumbel, item_ids, codebook, schedule, best, index, denominator, sums, tau, *stream, count, rows,
            codes, channels, *logits.stride(), each,
            GIVEN=gumbel is not None, SCHEDULED=schedule is not None, PRECISION=precision(), **block,
        )  # fmt: skip
    else:
        block = block_of(logits.device, select_choice(count))
        parts, each = parts_of(codes, block["CODES"], count, _PROGRAMS["select"])
        best, index = fresh(parts, count), fresh(parts, count, dtype=torch.int32)
        denominator, sums = None, None
        launching.launch(
            select, [count, parts], logits,
            logits, gumbel, item_ids, schedule, best, index, *stream, count, rows, codes, *logits.stride(), each,
            GIVEN=gumbel is not None, SCHEDULED=schedule is not None, **block,
        )  # fmt: skip
    width = power_of_two(channels, 16, 128)
    launching.launch(
        combine, [count, max(1, ceil_div(channels, width))], logits,
        codebook, schedule, best, index, denominator, sums, embedding, selected, kept, tau, count, channels, parts,
        SCHEDULED=schedule is not None, SOFT=soft, HARD=hard, PARTS=_PARTS, CHANNELS=width,
    )  # fmt: skip
    return embedding, selected, kept
