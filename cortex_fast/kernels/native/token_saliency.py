"""TSV from noisy gradients, by csrc/cpu/token_saliency.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native

KERNELS = {
    torch.float32: _native.token_saliency_float32,
    torch.bfloat16: _native.token_saliency_bfloat16,
    torch.float16: _native.token_saliency_float16,
}


def token_saliency(*, grads: Tensor, reduction: str) -> Tensor:
    """grads [B,N,d,m,m] of any strides -> float32 TSV [B,m,m]; sums in float64. Same contract as the reference."""
    batch, _, _, height, width = grads.shape
    out = native.empty((batch, height, width))
    KERNELS[grads.dtype](
        grads=grads.data_ptr(),
        reduction=reduction,
        sizes=grads.shape,
        strides=grads.stride(),
        out=out.data_ptr(),
        **native.run(),
    )
    return out
