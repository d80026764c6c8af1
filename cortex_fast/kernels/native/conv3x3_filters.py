"""The filters of `conv3x3` in Winograd's domain, by csrc/cpu/conv3x3_filters.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native

_PANEL = 16  # output channels that lie together


def conv3x3_filters(*, weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [O,I,3,3] -> U = G w G^T in panels, float32 [36, ceil(O/16), I, 16], and the same of the transposed
    convolution's filters [I,O,3,3]; computed in float64."""
    weight = weight.contiguous()
    return _transformed(weight, transposed=False), _transformed(weight, transposed=True)


def _transformed(weight: Tensor, transposed: bool) -> Tensor:
    sizes, strides = list(weight.shape[:2]), list(weight.stride()[:2])
    if transposed:
        sizes, strides = sizes[::-1], strides[::-1]
    outputs, inputs = sizes
    out = native.empty((36, (outputs + _PANEL - 1) // _PANEL, inputs, _PANEL))
    _native.conv3x3_filters(
        weight=weight.data_ptr(),
        transposed=transposed,
        sizes=sizes,
        strides=strides,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out
