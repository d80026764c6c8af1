"""TSV from noisy gradients, by csrc/cpu/token_saliency.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native


def token_saliency(grads: Tensor, reduction: str) -> Tensor:
    """float32 grads [B,N,d,m,m] of any strides -> float32 TSV [B,m,m]; sums in float64. As the reference's function."""
    grads = grads.resolve_neg()
    batch, _, _, height, width = grads.shape
    out = grads.new_empty((batch, height, width))
    _native.token_saliency(
        grads=grads.data_ptr(),
        sizes=grads.shape,
        strides=grads.stride(),
        reduction=reduction,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out
