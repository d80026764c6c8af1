"""Tensors as autograd and small gradients need them."""

import math

import torch
from torch import Tensor


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor that autograd accepts: a copy of one created in inference mode, any other itself.

    Args:
        tensor: any tensor.
    Returns:
        The tensor, or its copy, of the same shape, dtype and device.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 where its dtype is narrower: small gradients fit a half only while they are scaled."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def float16_scale(gradient: Tensor, dtype: torch.dtype) -> float:
    """A power of two that lifts a gradient into float16's range, itself a float16; 1 for every other dtype."""
    largest = float(gradient.abs().max())
    if dtype != torch.float16 or not 0 < largest < float("inf"):
        return 1.0
    return 2.0 ** max(-14, min(15, math.floor(math.log2(16 / largest))))
