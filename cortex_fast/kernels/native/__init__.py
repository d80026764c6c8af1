"""Kernels of csrc/: they hand the tensors' addresses and strides to `cortex_fast._native`.

`UNAVAILABLE` is None where the extension was built and loads, else the reason, which one warning reports. `LEVEL` is
the instruction set that the vector code runs with: the best that this processor has.
"""

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TypedDict

import torch  # first: the extension then finds torch's OpenMP library loaded, and shares its threads
from torch import Tensor

from cortex_fast.kernels.native.missing import NAME, reason

UNAVAILABLE: str | None
LEVEL = "none"
_LARGE = 8 << 20  # bytes: below it pages of 4 KB cost little
try:
    import_module(NAME)  # where it is missing, `from cortex_fast import` would report a circular import
except ImportError as error:
    UNAVAILABLE = reason(error)
    warnings.warn(f"cortex_fast runs without its native core, much slower: {UNAVAILABLE}", RuntimeWarning, stacklevel=2)
else:
    from cortex_fast import _native

    UNAVAILABLE = None
    LEVEL = _native.levels()[-1]


class Run(TypedDict):
    """How a kernel runs: its number of threads and its instruction set."""

    threads: int
    level: str


def run() -> Run:
    """As many threads as torch uses now, at `LEVEL`."""
    return {"threads": torch.get_num_threads(), "level": LEVEL}


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory for a kernel's result on the CPU, on large pages if it is large and the system has them.

    torch's default dtype and device have no influence.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    if tensor.nbytes >= _LARGE:
        _native.advise_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor
