"""TSV from noisy gradients, by csrc/cuda/token_saliency.cu."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels import cuda

__all__ = ["token_saliency"]

KERNELS = {
    torch.float32: "token_saliency_float32",
    torch.bfloat16: "token_saliency_bfloat16",
    torch.float16: "token_saliency_float16",
}


def token_saliency(*, grads: Tensor, reduction: str) -> Tensor:
    """grads [B,N,d,m,m] of any strides -> float32 TSV [B,m,m]; sums in float64. Same contract as the reference."""
    return launch(grads, reduction, None)


def launch(grads: Tensor, reduction: str, counting: Any) -> Tensor:
    """`token_saliency`; counting, of `concept_counts.count_arguments`, also counts the top tokens in the same pass."""
    batch, _, _, height, width = grads.shape
    out = torch.empty((batch, height, width), dtype=torch.float32, device=grads.device)
    gradients = {"grads": grads.data_ptr(), "sizes": grads.shape, "strides": grads.stride()}
    kernel = KERNELS[grads.dtype]
    scratch = cuda.scratch(getattr(cuda.LIBRARY, f"{kernel}_scratch")(**gradients), grads)
    cuda.call(
        kernel,
        grads,
        **gradients,
        reduction=reduction,
        counting=counting,
        scratch=scratch.data_ptr(),
        out=out.data_ptr(),
    )
    return out
