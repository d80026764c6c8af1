"""What the Gumbel-Softmax kernels share: a tile of scores, the schedule's numbers, and how exact their products are."""

import torch
import triton
import triton.language as tl

from cortex_fast.kernels.triton.philox import gumbel_tile, quad_words
from cortex_fast.kernels.triton.transforms import exp_of, gumbel_of

# torch.set_float32_matmul_precision: what tl.dot does with float32. The default is float32's own rounding.
_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
_PRECISIONS_OF_HIP = {"highest": "ieee", "high": "bf16x6", "medium": "bf16x3"}


def precision() -> str:
    """tl.dot's input_precision, as torch is set for its own products."""
    known = _PRECISIONS if torch.version.hip is None else _PRECISIONS_OF_HIP
    return known[torch.get_float32_matmul_precision()]


def power_of_two(at_least: int, low: int, high: int) -> int:
    """The smallest power of two from `at_least` on, within [low, high]."""
    return min(high, max(low, triton.next_power_of_2(at_least)))


_LEAST, _MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal float32: GPUs may take smaller ones for 0
_LEAST_TAU, _MOST_TAU = tl.constexpr(_LEAST), tl.constexpr(_MOST)


def as_float32(tau: float) -> float:
    """A temperature as the kernels can have it."""
    return min(max(tau, _LEAST), _MOST)


@triton.jit
def tau_of(schedule, tau, SCHEDULED: tl.constexpr):
    """The temperature given, or a schedule's."""
    if SCHEDULED:
        return tl.minimum(tl.maximum(tl.load(schedule), _LEAST_TAU), _MOST_TAU).to(tl.float32)
    else:
        return tau


@triton.jit
def draw_of(schedule, draw, SCHEDULED: tl.constexpr):
    """The draw's number given, or a schedule's."""
    if SCHEDULED:
        return tl.load(schedule + 1).to(tl.int64)
    else:
        return draw.to(tl.int64)


@triton.jit
def score_tile(
    logits,
    gumbel,
    item_ids,
    block,
    first,
    count,
    rows,
    codes,
    by_problem,
    by_row,
    by_code,
    key_low,
    key_high,
    draw,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
):
    """P + g float32 [ROWS, CODES] of a block of rows and of the codes from `first`, a multiple of 4; -inf outside.

    Of `count` rows in all, row n is row n % rows of problem n // rows. gumbel is contiguous. Also where the tile is
    inside, and its elements' places in a contiguous array.
    """
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    code = first + tl.arange(0, CODES)[None, :]
    inside = (row < count) & (code < codes)
    problem, place = row // rows, row % rows
    at = row * codes + code
    offset = problem * by_problem + place * by_row + code.to(tl.int64) * by_code
    scores = tl.load(logits + offset, mask=inside, other=float("-inf")).to(tl.float32)
    if GIVEN:
        noise = tl.load(gumbel + at, mask=inside, other=0.0).to(tl.float32)
    else:
        item = tl.load(item_ids + problem, mask=row < count, other=0)
        noise = gumbel_tile(key_low, key_high, draw, item, place, first, CODES)
    return scores + noise, inside, at


@triton.jit
def softened(scores, kept, row, there, channels, tau):
    """y of a tile of scores, whose rows [ROWS, 1] are `there`, by what the forward pass kept of them."""
    of_row = kept + row * (3 + channels)
    top = tl.load(of_row, mask=there, other=0.0)
    denominator = tl.load(of_row + 1, mask=there, other=0.0)
    return exp_of((scores - top) / tau - denominator)


@triton.jit
def score_of(
    logits,
    gumbel,
    item_ids,
    row,
    code,
    rows,
    codes,
    by_problem,
    by_row,
    by_code,
    key_low,
    key_high,
    draw,
    GIVEN: tl.constexpr,
):
    """P + g of one code of one row."""
    problem, place = row // rows, row % rows
    logit = tl.load(logits + problem * by_problem + place * by_row + code * by_code).to(tl.float32)
    if GIVEN:
        noise = tl.load(gumbel + row * codes + code).to(tl.float32)
    else:
        a, b, c, d = quad_words(key_low, key_high, draw, tl.load(item_ids + problem), place, code // 4)
        lane = code % 4
        noise = gumbel_of(tl.where(lane == 0, a, tl.where(lane == 1, b, tl.where(lane == 2, c, d))))
    return logit + noise
