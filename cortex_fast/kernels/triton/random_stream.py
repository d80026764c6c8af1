"""The shared random stream written out.

Bound: arithmetic. A number is 4 bytes written against about 60 instructions: Philox's share and its transform.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.philox import gumbel_tile, normal_tile

TILE = {"BLOCK_ROWS": 16, "BLOCK": 64}


@triton.jit(do_not_specialize=["key_low", "key_high", "total", "num_draws", "rows", "length"])
def _write(
    key_low: tl.uint32,
    key_high: tl.uint32,
    items,
    draws,
    out,
    total,
    num_draws,
    rows,
    length,
    NORMAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # a row of the tile is an (item, draw, row) of the stream
    blocks = tl.cdiv(length, BLOCK)
    first = tl.program_id(0) % blocks * BLOCK
    place = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    inside = place < total
    item = tl.load(items + place // rows // num_draws, mask=inside, other=0)
    draw = tl.load(draws + place // rows % num_draws, mask=inside, other=0)
    if NORMAL:
        numbers = normal_tile(key_low, key_high, draw, item, place % rows, first, BLOCK=BLOCK)
    else:
        numbers = gumbel_tile(key_low, key_high, draw, item, place % rows, first, BLOCK=BLOCK)
    index = first + tl.arange(0, BLOCK)[None, :]
    tl.store(out + place * length + index, numbers, mask=inside & (index < length))


def random_stream(*, stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int) -> Tensor:
    """float32 [items, draws, rows, length] of int64 vectors `items` and `draws`. Same contract as the reference."""
    out = torch.empty((len(items), len(draws), rows, length), dtype=torch.float32, device=items.device)
    key_low, key_high = philox.stream_key(seed, philox.STREAMS[stream])
    total = len(items) * len(draws) * rows
    launching.launch(
        _write,
        [ceil_div(total, TILE["BLOCK_ROWS"]) * ceil_div(length, TILE["BLOCK"])],
        items,
        key_low=key_low,
        key_high=key_high,
        items=items.contiguous(),
        draws=draws.contiguous(),
        out=out,
        total=total,
        num_draws=len(draws),
        rows=rows,
        length=length,
        NORMAL=stream == "normal",
        **TILE,
    )
    return out
