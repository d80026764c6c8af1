"""Shared by the operators' tests: the backends that run here, and the comparison of bits."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from cortex_fast.kernels import cuda, native, triton
from tests.cuda import stand_in

if native.UNAVAILABLE is None:
    from cortex_fast import _native

    LEVELS = _native.levels()
else:
    LEVELS = ["baseline"]  # its tests are skipped with the reason

EPS = torch.finfo(torch.float32).eps
needs_native = pytest.mark.skipif(native.UNAVAILABLE is not None, reason=str(native.UNAVAILABLE))
WHY_NO_TRITON = triton.unavailable() or (None if triton.INTERPRETED or torch.cuda.is_available() else "no GPU here")
needs_triton = pytest.mark.skipif(WHY_NO_TRITON is not None, reason=str(WHY_NO_TRITON))
TRITON = pytest.param("triton", marks=needs_triton)
WHY_NO_CUDA = cuda.unavailable() if torch.cuda.is_available() else stand_in.missing()
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(WHY_NO_CUDA is not None, reason=str(WHY_NO_CUDA)))
NATIVE = [pytest.param(level, marks=needs_native) for level in LEVELS]


def skip_in_interpreter(impl: str, reason: str = "too many programs for Triton's interpreter") -> None:
    """A GPU runs it."""
    if impl == "triton" and triton.INTERPRETED:
        pytest.skip(reason)


def skip_on_stand_in(impl: str, reason: str = "too much work for the stand-in for a GPU") -> None:
    """A GPU runs it."""
    if impl == "cuda" and not torch.cuda.is_available():
        pytest.skip(reason)


def few(impl: str, many: int, fewer: int) -> int:
    """`fewer` in Triton's interpreter, else `many`."""
    return fewer if impl == "triton" and triton.INTERPRETED else many


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all bits agree, those of NaN and of signed zeros included."""
    return all(
        a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


def assert_same_for_any_threads(compute: Callable[[], Sequence[Tensor]]) -> None:
    """The same bits from 1, 2, 3 and 5 threads, and again."""
    before = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2, 3, 5, 5):
            torch.set_num_threads(count)
            outs.append(compute())
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(outs[0], out) for out in outs[1:])
