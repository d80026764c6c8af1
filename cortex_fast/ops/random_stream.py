"""The shared random stream, for whoever draws outside an operator: starts of optimisations, sampled tokens.

Numbers are fixed by (seed, item, draw, row, index) and nothing else, on every backend.
"""

from torch import Tensor

from cortex_fast.kernels import native
from cortex_fast.kernels.reference import philox as reference
from cortex_fast.ops.backends import choose, native_on_cpu, never, triton_on_gpu

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import random_stream as native_kernel

BACKENDS = {"triton": triton_on_gpu(), "native": native_on_cpu(), "reference": never}


def normal(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str = "auto") -> Tensor:
    """Standard normals float32 [items, draws, rows, length] of int64 vectors `items` and `draws` in [0, 2^32)."""
    return _random_stream("normal", seed, items, draws, rows, length, impl)


def gumbel(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str = "auto") -> Tensor:
    """Gumbel(0, 1) float32 [items, draws, rows, length]: the noise of `gumbel_codebook`."""
    return _random_stream("gumbel", seed, items, draws, rows, length, impl)


def sampling_gumbel(seed: int, items: Tensor, draws: Tensor, length: int, *, impl: str = "auto") -> Tensor:
    """Gumbel(0, 1) float32 [items, draws, length] for sampling images: a stream of its own, one row."""
    return _random_stream("sampling", seed, items, draws, 1, length, impl)[:, :, 0]


def _random_stream(stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int, impl: str) -> Tensor:
    backend = choose("random_stream", BACKENDS, impl, items)
    if backend == "triton":
        from cortex_fast.kernels.triton import random_stream as triton_kernel

        return triton_kernel.random_stream(stream, seed, items, draws, rows, length)
    if backend == "native":
        return native_kernel.random_stream(stream, seed, items, draws, rows, length)
    if stream == "sampling":
        return reference.sampling_gumbel(seed, items, draws, length)[:, :, None]
    return (reference.normal if stream == "normal" else reference.gumbel)(seed, items, draws, rows, length)
