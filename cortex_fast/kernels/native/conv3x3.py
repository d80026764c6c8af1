"""3 x 3 convolution by csrc/cpu/conv3x3.cpp: Winograd's F(4 x 4, 3 x 3), float32."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def conv3x3(
    *, x: Tensor, weight: Tensor, bias: Tensor | None, winograd: Tensor, relu: bool, pool: bool, padding: int
) -> tuple[Tensor, Tensor]:
    """Same contract as the reference, from `winograd` of `conv3x3_filters`; only the weight's shape is used."""
    images, inputs, height, width = x.shape
    outputs = weight.shape[0]
    x = x.contiguous(memory_format=torch.channels_last)
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    stride = 2 if pool else 1
    y = native.empty((images, height // stride, width // stride, outputs)).permute(0, 3, 1, 2)
    masked = relu or pool
    mask = native.empty((images, height, width, (outputs + 7) // 8) if masked else (0,), torch.uint8)
    _native.conv3x3(
        x=x.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        winograd=winograd.data_ptr(),
        relu=relu,
        pool=pool,
        padding=padding,
        sizes=(images, height, width, inputs, outputs),
        y=y.data_ptr(),
        mask=mask.data_ptr() if masked else 0,
        **native.run(),
    )
    return y, mask
