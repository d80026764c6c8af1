"""The shared random stream, for whoever draws outside an operator: starts of optimisations, sampled tokens.

Numbers are fixed by (seed, item, draw, row, index) and nothing else, on every backend. All raise TypeError or
ValueError for a seed outside [0, 2^63), and items, draws or rows outside [0, 2^32); on a GPU the values of tensors are
not looked at, which would wait for them.
"""

from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import philox as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import in_memory

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import random_stream as native_kernel


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
    seed = checks.seed(seed)
    rows, length = checks.whole("rows", rows, 0, 2**32), checks.whole("length", length, 0, 2**34)
    check_impl(impl)
    for name, numbers in (("items", items), ("draws", draws)):
        checks.rank(name, numbers, "[n]")
        checks.integral(name, numbers)
        if numbers.device.type == "cpu":
            checks.in_range(name, numbers, 2**32)
    checks.same_device(items=items, draws=draws)
    items, draws = in_memory(items).long(), in_memory(draws).long()
    backend = choose("random_stream", REASONS["random_stream"], impl, items)
    if backend == "triton":
        from cortex_fast.kernels.triton import random_stream as triton_kernel

        return triton_kernel.random_stream(stream, seed, items, draws, rows, length)
    if backend == "native":
        return native_kernel.random_stream(stream, seed, items, draws, rows, length)
    if stream == "sampling":
        return reference.sampling_gumbel(seed, items, draws, length)[:, :, None]
    return (reference.normal if stream == "normal" else reference.gumbel)(seed, items, draws, rows, length)
