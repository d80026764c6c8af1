"""The nearest codebook row, by csrc/cpu/nearest_code.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def nearest_code(*, z: Tensor, codebook: Tensor) -> Tensor:
    """z [R,d], codebook [K,d], float32 or narrower -> int64 [R]. Same contract as the reference."""
    z, codebook = z.float().contiguous(), codebook.float().contiguous()
    index = native.empty((len(z),), torch.int64)
    _native.nearest_code(
        z=z.data_ptr(),
        codebook=codebook.data_ptr(),
        sizes=(len(z), *codebook.shape),
        index=index.data_ptr(),
        **native.run(),
    )
    return index
