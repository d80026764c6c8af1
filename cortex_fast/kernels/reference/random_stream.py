"""The shared random stream written out."""

from torch import Tensor

from cortex_fast.kernels.reference import philox


def random_stream(*, stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int) -> Tensor:
    """float32 [items, draws, rows, length] of int64 vectors `items` and `draws`; stream is a name of philox.STREAMS:
    "normal" gives standard normals, the others Gumbel(0, 1)."""
    if stream == "normal":
        return philox.normal(seed, items, draws, rows, length)
    return philox.gumbel(seed, items, draws, rows, length, stream=philox.STREAMS[stream])
