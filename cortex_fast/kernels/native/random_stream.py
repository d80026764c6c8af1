"""The shared random stream, by csrc/cpu/random_stream.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def random_stream(stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int) -> Tensor:
    """float32 [items, draws, rows, length] of int64 vectors `items` and `draws`: normals, or Gumbel(0, 1)."""
    items, draws = items.contiguous(), draws.contiguous()
    out = native.empty((len(items), len(draws), rows, length))
    _native.random_stream(
        seed=seed,
        stream=stream,
        items=items.data_ptr(),
        draws=draws.data_ptr(),
        sizes=out.shape,
        out=out.data_ptr(),
        **native.run(),
    )
    return out


def words(stream: str, seed: int, item: int, draw: int, rows: int, length: int) -> Tensor:
    """The stream's 32-bit words, int64 [rows, length]."""
    out = native.empty((rows, length), torch.int32)
    _native.random_words(
        seed=seed, stream=stream, item=item, draw=draw, sizes=out.shape, out=out.data_ptr(), **native.run()
    )
    return out.long() & 0xFFFFFFFF
