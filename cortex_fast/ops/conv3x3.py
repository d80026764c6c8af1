"""3 x 3 convolution with ReLU and max-pooling in one operator, differentiable in its input only."""

from dataclasses import dataclass
from typing import List  # noqa: UP035

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import conv3x3 as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import in_memory, operator, refuse_tangents

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import conv3x3 as native_kernel


@dataclass(frozen=True, eq=False)
class Filters:
    """Filters prepared for one backend: weight [O,I,3,3], bias [O] or None.

    transformed, backward: what the native backend multiplies with, forward and to the input; empty for the reference.
    They take four times the weight's bytes each.
    """

    weight: Tensor
    bias: Tensor | None
    transformed: Tensor
    backward: Tensor
    backend: str


def prepare_filters(weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Filters:
    """Transform the filters once, for `conv3x3` to use them many times.

    Raises TypeError or ValueError for a weight that is not floating [O,I,3,3], or a bias that does not fit.
    """
    checks.rank("weight", weight, "[O, I, 3, 3]")
    checks.floating("weight", weight)
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weight: expected shape [O, I, 3, 3], got {list(weight.shape)}")
    if bias is not None:
        checks.floating("bias", bias)
        checks.same_shape("bias", bias, "weight's first dimension", weight.shape[:1])
        checks.same_device(weight=weight, bias=bias)
        if bias.dtype != weight.dtype:
            raise TypeError(f"bias: expected {weight.dtype} as weight, got {bias.dtype}")
    check_impl(impl)
    refuse_tangents(weight, bias)
    bias = None if bias is None else in_memory(bias.detach()).contiguous()
    weight = in_memory(weight.detach())
    backend = choose("conv3x3", REASONS["conv3x3"], impl, *(tensor for tensor in (weight, bias) if tensor is not None))
    if backend == "native":
        transformed = native_kernel.transformed_weights(weight)
        backward = native_kernel.transformed_weights(weight, transpose=True)
    else:
        transformed = backward = weight.new_empty(0)
    return Filters(weight, bias, transformed, backward, backend)


def conv3x3(x: Tensor, filters: Filters, *, relu: bool = False, pool: bool = False, padding: int = 1) -> Tensor:
    """pool(relu(conv(x))): x [n,I,h,w] -> [n,O,h',w'], stride 1, h' = h + 2 padding - 2; with pool half of that, 2 x 2
    maxima. padding: 0, 1 or 2 rows and columns of zeros.

    Channels-last in and out is the fast memory format. Differentiable once, in x only: of the activations only one bit
    each is kept. The native backend is Winograd's F(4 x 4, 3 x 3), within about 1e-5 of the largest output of float64.
    Raises TypeError or ValueError for an x that does not fit the filters.
    """
    checks.rank("x", x, "[n, I, h, w]")
    checks.floating("x", x)
    if not isinstance(filters, Filters):
        raise TypeError(f"filters: expected those of prepare_filters, got {checks.shown(filters)}")
    relu, pool = checks.flag("relu", relu), checks.flag("pool", pool)
    inputs = filters.weight.shape[1]
    if x.shape[1] != inputs:
        raise ValueError(f"x: expected {inputs} channels as in weight, got {list(x.shape)}")
    padding = checks.whole("padding", padding, 0, 2)
    least = max(1, 3 - 2 * padding + pool)
    if min(x.shape[2:]) < least:
        raise ValueError(f"x: expected a grid of at least {least} x {least}, got {list(x.shape)}")
    checks.same_device(x=x, weight=filters.weight)
    if x.dtype != filters.weight.dtype:
        raise TypeError(f"x: expected {filters.weight.dtype} as weight, got {x.dtype}")
    y, _ = _conv3x3(
        x, filters.weight, filters.bias, filters.transformed, filters.backward, relu, pool, padding, filters.backend
    )
    return y


@operator("conv3x3")
def _conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transformed: Tensor,
    backward: Tensor,
    relu: bool,
    pool: bool,
    padding: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "native":
        return native_kernel.forward(x, transformed, bias, weight.shape[0], relu, pool, padding)
    return reference.forward(x, weight, bias, relu, pool, padding)


@_conv3x3.register_fake
def _(x, weight, bias, transformed, backward, relu, pool, padding, backend):
    images, _, height, width = x.shape
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    outputs = weight.shape[0]
    step = 2 if pool else 1
    y = x.new_empty((images, height // step, width // step, outputs)).permute(0, 3, 1, 2)
    mask = (images, height, width, (outputs + 7) // 8) if relu or pool else (0,)
    return y, x.new_empty(mask, dtype=torch.uint8)


@operator("conv3x3_backward")
def _conv3x3_backward(
    upstream: Tensor,
    mask: Tensor,
    weight: Tensor,
    backward: Tensor,
    pool: bool,
    size: List[int],  # noqa: UP006 (torch 2.6 makes no schema of list[int])
    padding: int,
    backend: str,
) -> Tensor:
    shape = (size[0], size[1])
    if backend == "native":
        return native_kernel.backward(upstream, mask, backward, weight.shape[1], pool, shape, padding)
    return reference.backward(upstream, mask, weight, pool, shape, padding)


@_conv3x3_backward.register_fake
def _(upstream, mask, weight, backward, pool, size, padding, backend):
    return upstream.new_empty((upstream.shape[0], *size, weight.shape[1])).permute(0, 3, 1, 2)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, _, backward, _, ctx.pool, ctx.padding, ctx.backend = inputs
    _, mask = output
    ctx.size = list(x.shape[2:])
    ctx.mark_non_differentiable(mask)
    ctx.save_for_backward(mask, weight, backward)


def _backward(ctx, upstream: Tensor, _mask_upstream):
    mask, weight, backward = ctx.saved_tensors
    gradient = _conv3x3_backward(upstream, mask, weight, backward, ctx.pool, ctx.size, ctx.padding, ctx.backend)
    return gradient, None, None, None, None, None, None, None, None


_conv3x3.register_autograd(_backward, setup_context=_setup_context)
