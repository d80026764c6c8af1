"""Gumbel-Softmax selection of codebook rows, in one pass over P: C[argmax(P + g)] or y C, y = softmax((P + g) / tau).

Bound: P is read once, 4 bytes an element, against about 55 instructions for its noise, of which 15 are random words.
Where y C is computed, 2 d operations an element are added: at d = 256 float32 products take longer than the bytes.

The hard selection alone (`select`) takes logarithms only of tiles whose largest logit and smallest word, whose Gumbel
is the largest, could beat the best score so far. With y C (`scan`) it works as attention does, P + g being the scores
and the codebook the values: a program goes over some codes of a block of rows with a running largest score, denominator
and y C, never with y itself. Few rows are split over their codes, into more programs, and a further kernel (`combine`)
merges the parts in their order: no atomics, and the same bits every time. The number of parts depends on the sizes
alone.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.row_stats import RowStats, empty_results
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.gumbel_tiles import (
    Field,
    Sizes,
    as_float32,
    field_of,
    power_of_two,
    precision,
    score_tile,
    stream_of,
    tau_of,
)
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.philox import word_tile
from cortex_fast.kernels.triton.tiles import Choice, block_of, choice
from cortex_fast.kernels.triton.transforms import exp_of, gumbel_of, log_of

_PROGRAMS = {"select": 2048, "scan": 192}  # enough to keep a large GPU busy; each of `scan` holds sums of its own
_PARTS = 32  # merged at a time
_SLACK = tl.constexpr(1e-4)  # of a score that bounds others, for rounding


class Parts(NamedTuple):
    """The results of the parts that the codes are split into, each [parts, rows], contiguous."""

    largest_score: Any
    index: Any  # int32
    denominator: Any = None  # of y, relative to the part's largest score; None when written by `select`
    soft: Any = None  # y C without its denominator, [parts, rows, channels]; None when written by `select`


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows", "part"])
def select(
    field,
    parts,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    count,
    rows,
    codes,
    part,
    CODES: tl.constexpr,
):
    """Of a row and a part of the codes: the largest score and its code."""
    stream = stream_of(field.schedule, key_low, key_high, draw)
    row, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    problem, place = row // rows, row % rows
    item = tl.load(field.item_ids + problem)
    from_row = field.logits + problem * field.by_problem + place * field.by_row
    best = tl.full((), float("-inf"), tl.float32)
    index = tl.zeros((), tl.int32)
    for first in range(number * part, tl.minimum(number * part + part, codes), CODES):
        code = first + tl.arange(0, CODES)[None, :]
        inside = code < codes
        logit = tl.load(from_row + code.to(tl.int64) * field.by_code, mask=inside, other=float("-inf")).to(tl.float32)
        logit = tl.where(logit != logit, float("inf"), logit)  # NaN is the largest
        if field.gumbel is not None:
            score = logit + tl.load(field.gumbel + row * codes + code, mask=inside, other=0.0).to(tl.float32)
            score = tl.where(score != score, float("inf"), score)
            largest = tl.max(score)
            if largest > best:
                index = first + tl.argmax(score, axis=1).sum()
                best = largest
        else:
            words = word_tile(stream.key_low, stream.key_high, stream.draw, item, place, first, BLOCK=CODES)
            bound = tl.max(logit) + gumbel_of(tl.min(words))
            if bound + _SLACK * (1.0 + tl.abs(bound)) > best:
                score = logit + gumbel_of(words)
                largest = tl.max(score)
                if largest > best:
                    index = first + tl.argmax(score, axis=1).sum()
                    best = largest
    at = number.to(tl.int64) * count + row
    tl.store(parts.largest_score + at, best)
    tl.store(parts.index + at, index)


@triton.jit(do_not_specialize=["key_low", "key_high", "draw", "count", "rows", "part"])
def scan(
    field,
    codebook,
    parts,
    tau,
    key_low: tl.uint32,
    key_high: tl.uint32,
    draw: tl.uint32,
    count,
    rows,
    codes,
    channels,
    part,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Of a block of rows, a part of the codes and a block of channels: largest score and its code, denominator, y C."""
    tau, stream = tau_of(field.schedule, tau), stream_of(field.schedule, key_low, key_high, draw)
    block, number, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    denominator = tl.zeros((ROWS,), tl.float32)
    soft = tl.zeros((ROWS, CHANNELS), tl.float32)
    sizes = Sizes(count, rows, codes, channels)
    for first in range(number * part, tl.minimum(number * part + part, codes), CODES):
        scores, _, _ = score_tile(field, stream, sizes, block, first, ROWS=ROWS, CODES=CODES)
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
    at = number.to(tl.int64) * count + row
    once = (row < count) & (column == 0)
    tl.store(parts.largest_score + at, best, mask=once)
    tl.store(parts.index + at, index, mask=once)
    tl.store(parts.denominator + at, denominator, mask=once)
    inside = (row < count)[:, None] & (channel < channels)[None, :]
    tl.store(parts.soft + at[:, None] * channels + channel[None, :], soft, mask=inside)


@triton.jit
def best_of_parts(parts, row, count, part_count, PARTS: tl.constexpr):
    """A row's largest score, and its code."""
    best = tl.full((), float("-inf"), tl.float32)
    index = tl.zeros((), tl.int32)
    for first in range(0, part_count, PARTS):
        part = first + tl.arange(0, PARTS)
        at = part.to(tl.int64) * count + row
        bests = tl.load(parts.largest_score + at, mask=part < part_count, other=float("-inf"))
        largest = tl.max(bests, axis=0)
        # the parts' codes are in order, so that among equal scores the lowest index wins
        indices = tl.load(parts.index + at, mask=(part < part_count) & (bests == largest), other=2147483647)
        index = tl.where(largest > best, tl.min(indices, axis=0), index)
        best = tl.maximum(best, largest)
    return best, index


@triton.jit
def sums_of_parts(parts, row, channel, best, tau, sizes, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """A row's denominator relative to `best`, and a block of its y C without it. sizes: rows, parts, channels."""
    count, part_count, channels = sizes
    top = tl.where(best == float("-inf"), 0.0, best)
    denominator = tl.zeros((), tl.float32)
    soft = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, part_count, PARTS):
        part = first + tl.arange(0, PARTS)
        at = part.to(tl.int64) * count + row
        bests = tl.load(parts.largest_score + at, mask=part < part_count, other=float("-inf"))
        weights = exp_of((bests - top) / tau)
        denominator += tl.sum(weights * tl.load(parts.denominator + at, mask=part < part_count, other=0.0), axis=0)
        values = tl.load(
            parts.soft + at[:, None] * channels + channel[None, :],
            mask=(part < part_count)[:, None] & (channel < channels)[None, :],
            other=0.0,
        )
        soft += tl.sum(weights[:, None] * values, axis=0)
    return denominator, soft


@triton.jit(do_not_specialize=["count", "part_count"])
def combine(
    codebook,
    parts,
    schedule,
    embedding,
    index_out,
    row_stats,
    tau,
    count,
    channels,
    part_count,
    HARD: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A row's parts merged: its index, a block of its embedding, and unless row_stats is None its statistics."""
    tau = tau_of(schedule, tau)
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = column * CHANNELS + tl.arange(0, CHANNELS)
    best, index = best_of_parts(parts, row, count, part_count, PARTS=PARTS)
    if column == 0:
        tl.store(index_out + row, index.to(tl.int64))
    inside = channel < channels
    if row_stats is not None:
        denominator, soft = sums_of_parts(
            parts, row, channel, best, tau, (count, part_count, channels), PARTS=PARTS, CHANNELS=CHANNELS
        )
        soft /= denominator
        if column == 0:
            log_denominator = tl.where(denominator != denominator, denominator, log_of(denominator))
            tl.store(row_stats.largest_score + row, best)
            tl.store(row_stats.log_denominator + row, log_denominator)
        tl.store(row_stats.soft_embedding + row * channels + channel, soft, mask=inside)
        if not HARD:
            tl.store(embedding + row * channels + channel, soft.to(embedding.dtype.element_ty), mask=inside)
    if HARD:
        selected = tl.load(codebook + index.to(tl.int64) * channels + channel, mask=inside)
        tl.store(embedding + row * channels + channel, selected, mask=inside)


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
    """How many parts the codes are split into, and how many codes a part has.

    With `programs` for each part there are about as many programs as `wanted`, but a part has at least two tiles where
    the codes have.
    """
    tiles = ceil_div(codes, tile)
    tiles_of_part = ceil_div(tiles, min(ceil_div(wanted, max(1, programs)), ceil_div(tiles, 2)))
    return ceil_div(tiles, tiles_of_part), tiles_of_part * tile


def gumbel_codebook(
    *,
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    with_row_stats: bool,
) -> tuple[Tensor, Tensor, RowStats | None]:
    """logits [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R], statistics.

    A soft selection comes with statistics whether they are wanted or not.
    """
    codebook, tau = codebook.contiguous(), as_float32(tau)
    field, stream = field_of(logits, item_ids, gumbel, schedule), (*philox.stream_key(seed, philox.GUMBEL), draw)
    embedding, index, row_stats = empty_results(logits, codebook, with_row_stats or not hard)
    parts = _selected_parts(field, stream) if row_stats is None else _scanned_parts(field, stream, codebook, tau)
    count, channels = index.numel(), codebook.shape[1]
    width = power_of_two(channels, 16, 128)
    launching.launch(
        combine,
        [count, max(1, ceil_div(channels, width))],
        logits,
        codebook=codebook,
        parts=parts,
        schedule=schedule,
        embedding=embedding,
        index_out=index,
        row_stats=row_stats,
        tau=tau,
        count=count,
        channels=channels,
        part_count=len(parts.index),
        HARD=hard,
        PARTS=_PARTS,
        CHANNELS=width,
    )
    return embedding, index, row_stats


def _selected_parts(field: Field, stream: tuple[int, int, int]) -> Parts:
    """Largest score and index of each part."""
    logits = field.logits
    (problems, rows, codes), (key_low, key_high, draw) = logits.shape, stream
    count = problems * rows
    block = block_of(logits.device, select_choice(count))
    part_count, part = parts_of(codes, block["CODES"], count, _PROGRAMS["select"])
    parts = Parts(_fresh(logits, part_count, count), _fresh(logits, part_count, count, dtype=torch.int32))
    launching.launch(
        select,
        [count, part_count],
        logits,
        field=field,
        parts=parts,
        key_low=key_low,
        key_high=key_high,
        draw=draw,
        count=count,
        rows=rows,
        codes=codes,
        part=part,
        **block,
    )
    return parts


def _scanned_parts(field: Field, stream: tuple[int, int, int], codebook: Tensor, tau: float) -> Parts:
    """The same with denominator and y C."""
    logits = field.logits
    (problems, rows, codes), (key_low, key_high, draw) = logits.shape, stream
    count, channels = problems * rows, codebook.shape[1]
    block = block_of(logits.device, scan_choice(count, channels))
    blocks, columns = ceil_div(count, block["ROWS"]), ceil_div(channels, block["CHANNELS"])
    part_count, part = parts_of(codes, block["CODES"], blocks, _PROGRAMS["scan"])
    parts = Parts(
        _fresh(logits, part_count, count),
        _fresh(logits, part_count, count, dtype=torch.int32),
        _fresh(logits, part_count, count),
        _fresh(logits, part_count, count, channels),
    )
    launching.launch(
        scan,
        [blocks, part_count, columns],
        logits,
        field=field,
        codebook=codebook,
        parts=parts,
        tau=tau,
        key_low=key_low,
        key_high=key_high,
        draw=draw,
        count=count,
        rows=rows,
        codes=codes,
        channels=channels,
        part=part,
        PRECISION=precision(),
        **block,
    )
    return parts


def _fresh(device_of: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device_of.device)
