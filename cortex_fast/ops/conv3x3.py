"""3 x 3 convolution with ReLU and max-pooling in one operator, differentiable in its input only."""

from dataclasses import dataclass
from typing import List  # noqa: UP035

import torch
from torch import Tensor

from cortex_fast import checks, kernels
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import in_memory, operator, refuse_tangents


@dataclass(frozen=True, eq=False)
class Filters:
    """Filters prepared for one backend by `prepare_filters`.

    The transformed filters take four times the weight's bytes each.

    Attributes:
        weight: [O, I, 3, 3].
        bias: [O], or None.
        winograd: the filters transformed for Winograd's algorithm, float32 [36, ceil(O / 16), I, 16]; empty for the
            reference, which uses the weight itself.
        winograd_transposed: the same of the transposed convolution, float32 [36, ceil(I / 16), O, 16], for gradients.
        backend: "native" or "reference", which the filters are for.
    """

    weight: Tensor
    bias: Tensor | None
    winograd: Tensor
    winograd_transposed: Tensor
    backend: str


def prepare_filters(weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto") -> Filters:
    """Transform filters once, for many calls of `conv3x3`.

    Args:
        weight: floating [O, I, 3, 3].
        bias: [O], in weight's dtype. Default None.
        impl: the backend, "auto", "native" or "reference". Default "auto".

    Returns:
        The filters, detached from weight's and bias's graphs.

    Raises:
        TypeError: for other dtypes.
        ValueError: for other shapes, mixed devices or an unknown backend.
        BackendUnavailableError: if a forced backend is unavailable.
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
            raise TypeError(f"bias: expected {weight.dtype}, the weight's dtype, got {bias.dtype}")
    check_impl(impl)
    refuse_tangents(weight, bias)
    bias = None if bias is None else in_memory(bias.detach()).contiguous()
    weight = in_memory(weight.detach())
    backend = choose("conv3x3", REASONS["conv3x3"], impl, *(tensor for tensor in (weight, bias) if tensor is not None))
    winograd, winograd_transposed = kernels.load(backend, "conv3x3_filters")(weight=weight)
    return Filters(weight, bias, winograd, winograd_transposed, backend)


def conv3x3(x: Tensor, filters: Filters, *, relu: bool = False, pool: bool = False, padding: int = 1) -> Tensor:
    """Convolution of stride 1 with its ReLU and 2 x 2 max-pooling, pool(relu(conv(x))).

    Channels-last is the fast memory format, of x and of the result. Differentiable once, in x only; of the activations
    one bit each is saved. The native backend is Winograd's F(4 x 4, 3 x 3); its error is within about 1e-5 of the
    largest output.

    Args:
        x: floating [n, I, h, w], in the filters' dtype.
        filters: those of `prepare_filters`, which also chose the backend.
        relu: whether a ReLU follows. Default False.
        pool: whether 2 x 2 max-pooling follows. Default False.
        padding: rows and columns of zeros around x, 0, 1 or 2. Default 1.

    Returns:
        [n, O, h', w'] with h' = h + 2 padding - 2, half of that (rounded down) with pool.

    Raises:
        TypeError: for arguments of other types, or an x of another dtype than the filters.
        ValueError: for an x that does not fit the filters, too small a grid, or mixed devices.
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
        raise TypeError(f"x: expected {filters.weight.dtype}, the weight's dtype, got {x.dtype}")
    y, _ = _conv3x3(
        x,
        weight=filters.weight,
        bias=filters.bias,
        winograd=filters.winograd,
        winograd_transposed=filters.winograd_transposed,
        relu=relu,
        pool=pool,
        padding=padding,
        backend=filters.backend,
    )
    return y


@operator("conv3x3")
def _conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    winograd: Tensor,
    winograd_transposed: Tensor,  # of the backward pass
    relu: bool,
    pool: bool,
    padding: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y, mask = kernels.load(backend, "conv3x3")(
        x=x, weight=weight, bias=bias, winograd=winograd, relu=relu, pool=pool, padding=padding
    )
    return y, mask


@_conv3x3.register_fake
def _(x, weight, bias, winograd, winograd_transposed, relu, pool, padding, backend):
    images, _, height, width = x.shape
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    outputs = weight.shape[0]
    stride = 2 if pool else 1
    y = x.new_empty((images, height // stride, width // stride, outputs)).permute(0, 3, 1, 2)
    mask = (images, height, width, (outputs + 7) // 8) if relu or pool else (0,)
    return y, x.new_empty(mask, dtype=torch.uint8)


@operator("conv3x3_backward")
def _conv3x3_backward(
    upstream: Tensor,
    mask: Tensor,
    weight: Tensor,
    winograd_transposed: Tensor,
    pool: bool,
    size: List[int],  # noqa: UP006 (torch 2.6 makes no schema of list[int])
    padding: int,
    backend: str,
) -> Tensor:
    gradient: Tensor = kernels.load(backend, "conv3x3_backward")(
        upstream=upstream,
        mask=mask,
        weight=weight,
        winograd_transposed=winograd_transposed,
        pool=pool,
        size=(size[0], size[1]),
        padding=padding,
    )
    return gradient


@_conv3x3_backward.register_fake
def _(upstream, mask, weight, winograd_transposed, pool, size, padding, backend):
    return upstream.new_empty((upstream.shape[0], *size, weight.shape[1])).permute(0, 3, 1, 2)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, _, winograd_transposed, _, ctx.pool, ctx.padding, ctx.backend = inputs
    _, mask = output
    ctx.size = list(x.shape[2:])
    ctx.mark_non_differentiable(mask)
    ctx.save_for_backward(mask, weight, winograd_transposed)


def _backward(ctx, upstream: Tensor, _mask_upstream):
    mask, weight, winograd_transposed = ctx.saved_tensors
    gradient = _conv3x3_backward(
        upstream,
        mask=mask,
        weight=weight,
        winograd_transposed=winograd_transposed,
        pool=ctx.pool,
        size=ctx.size,
        padding=ctx.padding,
        backend=ctx.backend,
    )
    return gradient, None, None, None, None, None, None, None, None


_conv3x3.register_autograd(_backward, setup_context=_setup_context)
