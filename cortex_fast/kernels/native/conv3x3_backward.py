"""The gradient of `conv3x3`'s input, by csrc/cpu/conv3x3.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def conv3x3_backward(
    *,
    upstream: Tensor,
    mask: Tensor,
    weight: Tensor,
    winograd_transposed: Tensor,
    pool: bool,
    size: tuple[int, int],
    padding: int,
) -> Tensor:
    """Same contract as the reference, from `winograd_transposed` of `conv3x3_filters`; of the weight only the shape."""
    images, outputs = upstream.shape[:2]
    inputs = weight.shape[1]
    upstream = upstream.contiguous(memory_format=torch.channels_last)
    gradient = native.empty((images, *size, inputs)).permute(0, 3, 1, 2)
    _native.conv3x3_backward(
        upstream=upstream.data_ptr(),
        mask=mask.data_ptr() if mask.numel() else 0,
        winograd_transposed=winograd_transposed.data_ptr(),
        pool=pool,
        padding=padding,
        sizes=(images, *size, inputs, outputs),
        gradient=gradient.data_ptr(),
        **native.run(),
    )
    return gradient
