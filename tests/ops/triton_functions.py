"""The device functions of kernels/triton, called one by one: for tests of what every kernel is made of."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import philox as reference
from cortex_fast.kernels.triton import transforms
from cortex_fast.kernels.triton.philox import quad_words, word_tile

BLOCK = 16384
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _apply(first, second, out, others, count, NAME: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(first + index, mask=inside)
    if NAME == "normals":
        result, other = transforms.normals_of(value, tl.load(second + index, mask=inside))
        tl.store(others + index, other, mask=inside)
    elif NAME == "uniform":
        result = transforms.uniform_of(value)
    elif NAME == "gumbel":
        result = transforms.gumbel_of(value)
    elif NAME == "log":
        result = transforms.log_of(value)
    elif NAME == "exp":
        result = transforms.exp_of(value)
    else:
        result = transforms.minus_log_of_complement(value)
    tl.store(out + index, result, mask=inside)


def apply(name: str, *inputs: Tensor) -> Tensor:
    """float32 [inputs, n] of uint32 words or float32 numbers [n] each."""
    given = [tensor.to(DEVICE) for tensor in inputs]
    out = torch.full((len(given), len(given[0])), torch.nan, device=DEVICE)
    grid = (triton.cdiv(len(given[0]), BLOCK),)
    _apply[grid](given[0], given[-1], out[0], out[-1], len(given[0]), NAME=name, BLOCK=BLOCK)
    return out.cpu()


@triton.jit(do_not_specialize=["low", "high", "draw", "item", "row"])
def _write_words(out, low: tl.uint32, high: tl.uint32, draw, item, row, first, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, ROWS)[:, None]
    words = word_tile(low, high, draw, item, row + place, first, BLOCK)
    tl.store(out + place * BLOCK + tl.arange(0, BLOCK)[None, :], words.to(tl.int64))


def words(stream: int, seed: int, draw: int, item: int, row: int, first: int, rows: int, block: int) -> Tensor:
    """The stream's 32-bit words int64 [rows, block] of a tile that begins at (row, first)."""
    out = torch.empty((rows, block), dtype=torch.int64, device=DEVICE)
    key = reference.stream_key(seed, stream)
    _write_words[(1,)](out, *key, draw, item, row, first, ROWS=rows, BLOCK=block)
    return out.cpu()


@triton.jit
def _round(out, counter, low: tl.uint32, high: tl.uint32):
    quad, row, item, draw = tl.load(counter), tl.load(counter + 1), tl.load(counter + 2), tl.load(counter + 3)
    words = quad_words(low, high, draw, item, row, quad)
    for i in tl.static_range(4):
        tl.store(out + i, words[i].to(tl.int64))


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The four words of one counter."""
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _round[(1,)](out, torch.tensor(counter, dtype=torch.uint32, device=DEVICE), *key)
    return tuple(out.tolist())
