"""Implementations of the operators by backend: reference (the definition), native (csrc/cpu), cuda (csrc/cuda), triton.

An operator is one function of one name and one signature, `cortex_fast/kernels/<backend>/<operator>.py`, called by
keyword. `OPERATORS` lists which backend has which; a new kernel is a file there and an entry here.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch

BACKENDS = ("cuda", "triton", "native", "reference")  # best first

HALVES = (torch.float16, torch.bfloat16)
_SINGLE = (torch.float32,)
_FLOATS = (torch.float32, *HALVES)
_ANY: tuple[torch.dtype, ...] = ()

# operator -> backend -> the floating dtypes that its kernel takes; no dtypes: any
OPERATORS: Mapping[str, Mapping[str, tuple[torch.dtype, ...]]] = {
    "concept_counts": {"cuda": _FLOATS, "triton": _FLOATS, "native": _SINGLE, "reference": _ANY},
    "conv3x3": {"native": _SINGLE, "reference": _ANY},
    "gather_error": {"native": _SINGLE, "reference": _ANY},
    "gumbel_codebook": {"cuda": _FLOATS, "triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
    "gumbel_codebook_backward": {"cuda": _FLOATS, "triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
    "gumbel_codebook_step": {"cuda": _FLOATS, "triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
    "nearest_code": {"triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
    "random_stream": {"triton": _ANY, "native": _ANY, "reference": _ANY},
    "saliency_counts": {"cuda": _FLOATS, "triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
    "smoothgrad_noise": {"cuda": _FLOATS, "triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
    "token_saliency": {"cuda": _FLOATS, "triton": _FLOATS, "native": _FLOATS, "reference": _ANY},
}


_module = cache(import_module)


def load(backend: str, operator: str) -> Callable[..., Any]:
    """The backend's function of that operator. Its module is imported here, where it was chosen: triton takes 0.3 s.

    Args:
        backend: one of `BACKENDS`.
        operator: a name that `OPERATORS` lists for that backend, or one that belongs to it, such as its backward pass.
    """
    function: Callable[..., Any] = getattr(_module(f"{__name__}.{backend}.{operator}"), operator)
    return function
