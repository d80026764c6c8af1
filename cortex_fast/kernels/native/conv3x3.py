"""3 x 3 convolution by csrc/cpu/conv3x3.cpp: Winograd's F(4 x 4, 3 x 3), float32."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native

_PANEL = 16  # output channels that stand together


def transformed_weights(weight: Tensor, *, transpose: bool = False) -> Tensor:
    """weight [O,I,3,3] -> U = G w G^T in panels, float32 [36, ceil(O/16), I, 16]; computed in float64.

    transpose: of the filters of the convolution's transpose, [I,O,3,3].
    """
    weight = weight.contiguous()
    sizes, strides = list(weight.shape[:2]), list(weight.stride()[:2])
    if transpose:
        sizes, strides = sizes[::-1], strides[::-1]
    outputs, inputs = sizes
    transformed = native.empty((36, (outputs + _PANEL - 1) // _PANEL, inputs, _PANEL))
    _native.conv3x3_filters(
        weight=weight.data_ptr(),
        sizes=sizes,
        strides=strides,
        turned=transpose,
        out=transformed.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return transformed


def forward(
    x: Tensor, transformed: Tensor, bias: Tensor | None, outputs: int, relu: bool, pool: bool, padding: int
) -> tuple[Tensor, Tensor]:
    """As the reference's, with `transformed_weights`."""
    images, inputs, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    step = 2 if pool else 1
    y = native.empty((images, height // step, width // step, outputs)).permute(0, 3, 1, 2)
    masked = relu or pool
    mask = native.empty((images, height, width, (outputs + 7) // 8) if masked else (0,), torch.uint8)
    _native.conv3x3(
        input=x.data_ptr(),
        input_mask=0,
        weights=transformed.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        sizes=(images, height, width, inputs, outputs, padding),
        unpool=False,
        relu=relu,
        pool=pool,
        output=y.data_ptr(),
        output_mask=mask.data_ptr() if masked else 0,
        **native.run(),
    )
    return y, mask


def backward(
    upstream: Tensor, mask: Tensor, transformed: Tensor, inputs: int, pool: bool, size: tuple[int, int], padding: int
) -> Tensor:
    """As the reference's, with the `transformed_weights` of the `transposed` filters."""
    images, outputs = upstream.shape[:2]
    upstream = upstream.contiguous(memory_format=torch.channels_last)
    gradient = native.empty((images, *size, inputs)).permute(0, 3, 1, 2)
    _native.conv3x3(
        input=upstream.data_ptr(),
        input_mask=mask.data_ptr() if mask.numel() else 0,
        weights=transformed.data_ptr(),
        bias=0,
        sizes=(images, *size, outputs, inputs, 2 - padding),
        unpool=pool,
        relu=False,
        pool=False,
        output=gradient.data_ptr(),
        output_mask=0,
        **native.run(),
    )
    return gradient
