"""The shared random stream, by csrc/cpu/random_stream.cpp."""

from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def random_stream(*, stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int) -> Tensor:
    """float32 [items, draws, rows, length] of int64 vectors `items` and `draws`. Same contract as the reference."""
    items, draws = items.contiguous(), draws.contiguous()
    out = native.empty((len(items), len(draws), rows, length))
    _native.random_stream(
        stream=stream,
        seed=seed,
        items=items.data_ptr(),
        draws=draws.data_ptr(),
        rows=rows,
        length=length,
        sizes=(len(items), len(draws)),
        out=out.data_ptr(),
        **native.run(),
    )
    return out
