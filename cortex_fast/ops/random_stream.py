"""The shared random stream, for draws outside an operator: starts of optimisations, sampled tokens.

A number is fixed by (seed, item, draw, row, index) and nothing else, on every backend.
"""

from torch import Tensor

from cortex_fast import checks
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.registering import in_memory


def normal(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str = "auto") -> Tensor:
    """Standard normals of the shared stream: the noise of `smoothgrad_noise`.

    Args:
        seed: in [0, 2^63).
        items: integer [items], in [0, 2^32). On a GPU the values are not checked, because reading them waits.
        draws: integer [draws], in [0, 2^32). On a GPU the values are not checked.
        rows: the number of rows, from 0 to 2^32.
        length: the number of values of a row, from 0 to 2^34.
        impl: the backend, "auto", "triton", "native" or "reference". Default "auto".

    Returns:
        float32 [items, draws, rows, length].

    Raises:
        TypeError: for arguments of other types.
        ValueError: for values out of range, tensors that are not vectors, mixed devices or an unknown backend.
        BackendUnavailableError: if a forced backend is unavailable.
    """
    return _random_stream("normal", seed, items, draws, rows, length, impl=impl)


def gumbel(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str = "auto") -> Tensor:
    """Gumbel(0, 1) numbers of the shared stream: the noise of `gumbel_codebook`.

    Args:
        seed: in [0, 2^63).
        items: integer [items], in [0, 2^32). On a GPU the values are not checked, because reading them waits.
        draws: integer [draws], in [0, 2^32). On a GPU the values are not checked.
        rows: the number of rows, from 0 to 2^32.
        length: the number of values of a row, from 0 to 2^34.
        impl: the backend, "auto", "triton", "native" or "reference". Default "auto".

    Returns:
        float32 [items, draws, rows, length].

    Raises:
        TypeError, ValueError, BackendUnavailableError: as `normal`.
    """
    return _random_stream("gumbel", seed, items, draws, rows, length, impl=impl)


def sampling_gumbel(seed: int, items: Tensor, draws: Tensor, length: int, *, impl: str = "auto") -> Tensor:
    """Gumbel(0, 1) numbers for sampling images, from a stream of their own with one row.

    Args:
        seed: in [0, 2^63).
        items: integer [items], in [0, 2^32). On a GPU the values are not checked, because reading them waits.
        draws: integer [draws], in [0, 2^32). On a GPU the values are not checked.
        length: the number of values of a draw, from 0 to 2^34.
        impl: the backend, "auto", "triton", "native" or "reference". Default "auto".

    Returns:
        float32 [items, draws, length].

    Raises:
        TypeError, ValueError, BackendUnavailableError: as `normal`.
    """
    return _random_stream("sampling", seed, items, draws, 1, length, impl=impl)[:, :, 0]


def _random_stream(
    stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int, *, impl: str
) -> Tensor:
    seed = checks.seed(seed)
    rows, length = checks.whole("rows", rows, 0, 2**32), checks.whole("length", length, 0, 2**34)
    check_impl(impl)
    for name, vector in (("items", items), ("draws", draws)):
        checks.rank(name, vector, "[n]")
        checks.integral(name, vector)
        if vector.device.type == "cpu":
            checks.in_range(name, vector, 2**32)
    checks.same_device(items=items, draws=draws)
    items, draws = in_memory(items).long(), in_memory(draws).long()
    numbers: Tensor = serving("random_stream", impl, items)(
        stream=stream, seed=seed, items=items, draws=draws, rows=rows, length=length
    )
    return numbers
