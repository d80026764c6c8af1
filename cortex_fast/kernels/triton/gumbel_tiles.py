"""What the Gumbel-Softmax kernels share: their arguments, a tile of scores, and how exact their products are."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.triton.philox import gumbel_tile, quad_words
from cortex_fast.kernels.triton.transforms import exp_of, gumbel_of

# torch.set_float32_matmul_precision: what tl.dot does with float32. The default is float32's own rounding.
_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
_PRECISIONS_OF_HIP = {"highest": "ieee", "high": "bf16x6", "medium": "bf16x3"}


def precision() -> str:
    """tl.dot's input_precision, as torch is set for its own products."""
    precisions = _PRECISIONS if torch.version.hip is None else _PRECISIONS_OF_HIP
    return precisions[torch.get_float32_matmul_precision()]


def power_of_two(at_least: int, low: int, high: int) -> int:
    """The smallest power of two from `at_least` on, within [low, high]."""
    return min(high, max(low, triton.next_power_of_2(at_least)))


# In a kernel a field of the following tuples is a pointer or a number. Triton compiles a variant for the whole numbers
# in them that are 1 or multiples of 16, hence not for those of a kernel that `do_not_specialize` names.


class Field(NamedTuple):
    """The scores P + g of P [problems, rows, codes]: where they come from, and the schedule, which has their draw."""

    logits: Any
    gumbel: Any  # g as P, contiguous; None: drawn
    item_ids: Any  # [problems]
    schedule: Any  # float64 [4]; None: the kernel's arguments
    by_problem: Any  # strides of logits
    by_row: Any
    by_code: Any


class Stream(NamedTuple):
    """What fixes the noise beside item, row and code."""

    key_low: Any
    key_high: Any
    draw: Any


class Sizes(NamedTuple):
    """Of `count` rows in all, row n is row n % rows of problem n // rows."""

    count: Any
    rows: Any
    codes: Any
    channels: Any


def field_of(logits: Tensor, item_ids: Tensor, gumbel: Tensor | None, schedule: Tensor | None) -> Field:
    """The kernels' view of the scores of logits [P,R,K]."""
    gumbel = None if gumbel is None else gumbel.contiguous()
    return Field(logits, gumbel, item_ids.contiguous(), schedule, *logits.stride())


_LEAST, _MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal float32: GPUs may take smaller ones for 0
_LEAST_TAU, _MOST_TAU = tl.constexpr(_LEAST), tl.constexpr(_MOST)


def as_float32(tau: float) -> float:
    """A temperature within the kernels' normal numbers."""
    return min(max(tau, _LEAST), _MOST)


@triton.jit
def tau_of(schedule, tau):
    """The temperature of the schedule, or without one the argument."""
    if schedule is not None:
        return tl.minimum(tl.maximum(tl.load(schedule), _LEAST_TAU), _MOST_TAU).to(tl.float32)
    else:
        return tau


@triton.jit
def stream_of(schedule, key_low, key_high, draw):
    """The noise of the schedule's draw, or without one of the argument's."""
    if schedule is not None:
        return Stream(key_low, key_high, tl.load(schedule + 1).to(tl.int64))
    else:
        return Stream(key_low, key_high, draw.to(tl.int64))


@triton.jit
def score_tile(field, stream, sizes, block, first, ROWS: tl.constexpr, CODES: tl.constexpr):
    """P + g float32 [ROWS, CODES] of a block of rows and of the codes from `first`, a multiple of 4; -inf outside.

    Also where the tile is inside, and its elements' places in a contiguous array.
    """
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    code = first + tl.arange(0, CODES)[None, :]
    inside = (row < sizes.count) & (code < sizes.codes)
    problem, place = row // sizes.rows, row % sizes.rows
    at = row * sizes.codes + code
    offset = problem * field.by_problem + place * field.by_row + code.to(tl.int64) * field.by_code
    scores = tl.load(field.logits + offset, mask=inside, other=float("-inf")).to(tl.float32)
    if field.gumbel is not None:
        noise = tl.load(field.gumbel + at, mask=inside, other=0.0).to(tl.float32)
    else:
        item = tl.load(field.item_ids + problem, mask=row < sizes.count, other=0)
        noise = gumbel_tile(stream.key_low, stream.key_high, stream.draw, item, place, first, BLOCK=CODES)
    return scores + noise, inside, at


@triton.jit
def softened(scores, row_stats, row, exists, tau):
    """y of a tile of scores by its rows' statistics. row, exists: [ROWS, 1]."""
    top = tl.load(row_stats.largest_score + row, mask=exists, other=0.0)
    log_denominator = tl.load(row_stats.log_denominator + row, mask=exists, other=0.0)
    return exp_of((scores - top) / tau - log_denominator)


@triton.jit
def score_of(field, stream, sizes, row, code):
    """P + g of one code of one row."""
    problem, place = row // sizes.rows, row % sizes.rows
    offset = problem * field.by_problem + place * field.by_row + code * field.by_code
    logit = tl.load(field.logits + offset).to(tl.float32)
    if field.gumbel is not None:
        noise = tl.load(field.gumbel + row * sizes.codes + code).to(tl.float32)
    else:
        item = tl.load(field.item_ids + problem)
        a, b, c, d = quad_words(stream.key_low, stream.key_high, stream.draw, item, place, code // 4)
        lane = code % 4
        noise = gumbel_of(tl.where(lane == 0, a, tl.where(lane == 1, b, tl.where(lane == 2, c, d))))
    return logit + noise
