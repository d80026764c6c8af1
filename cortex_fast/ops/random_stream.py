"""The shared random stream, for whoever draws outside an operator: starts of optimisations, sampled tokens.

Numbers are fixed by (seed, item, draw, row, index) and nothing else, on every backend.
"""

from torch import Tensor

from cortex_fast.kernels import native
from cortex_fast.kernels.reference import philox as reference
from cortex_fast.ops.backends import choose, native_on_cpu, never

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import random_stream as native_kernel

BACKENDS = {"native": native_on_cpu(), "reference": never}


def normal(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str = "auto") -> Tensor:
    """Standard normals float32 [items, draws, rows, length] of int64 vectors `items` and `draws` in [0, 2^32)."""
    if choose("random_stream", BACKENDS, impl, items) == "native":
        return native_kernel.random_stream("normal", seed, items, draws, rows, length)
    return reference.normal(seed, items, draws, rows, length)


def gumbel(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str = "auto") -> Tensor:
    """Gumbel(0, 1) float32 [items, draws, rows, length]: the noise of `gumbel_codebook`."""
    if choose("random_stream", BACKENDS, impl, items) == "native":
        return native_kernel.random_stream("gumbel", seed, items, draws, rows, length)
    return reference.gumbel(seed, items, draws, rows, length)


def sampling_gumbel(seed: int, items: Tensor, draws: Tensor, length: int, *, impl: str = "auto") -> Tensor:
    """Gumbel(0, 1) float32 [items, draws, length] for sampling images: a stream of its own, one row."""
    if choose("random_stream", BACKENDS, impl, items) == "native":
        return native_kernel.random_stream("sampling", seed, items, draws, 1, length)[:, :, 0]
    return reference.sampling_gumbel(seed, items, draws, length)
