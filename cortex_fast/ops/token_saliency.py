"""TSV: mean over noisy gradients, then the channel maximum (the paper's token saliency value)."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.reference.token_saliency import accumulation_dtype
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.registering import operator

REDUCTIONS = ("absmax", "max", "mean")


def token_saliency(grads: Tensor, *, reduction: str = "absmax", impl: str = "auto") -> Tensor:
    """TSV of noisy gradients: the mean over the samples, then a reduction over the channels.

    "absmax" is the paper's eq. 5, TSV = max_d |mean_N g|. Differentiable; at a tie the first channel gets the whole
    gradient.

    Args:
        grads: floating [B, N, d, m, m], of any strides; N samples of d channels.
        reduction: "absmax" (the paper), or "max" or "mean" (the published code's signed maximum and mean). Default
            "absmax".
        impl: the backend, "auto", "cuda", "triton", "native" or "reference". Default "auto".

    Returns:
        TSV [B, m, m], float32, or float64 for float64 gradients.

    Raises:
        TypeError: for gradients that are not floating.
        ValueError: for gradients of another rank, N = 0, d = 0, or an unknown reduction or backend.
        BackendUnavailableError: if a forced backend is unavailable.
    """
    check_arguments(grads, reduction)
    check_impl(impl)
    return _token_saliency(grads, reduction, impl)


def check_arguments(grads: Tensor, reduction: str) -> None:
    """Check the arguments that `token_saliency` and `saliency_counts` share."""
    checks.rank("grads", grads, "[B, N, d, m, m]")
    checks.floating("grads", grads)
    checks.one_of("reduction", reduction, REDUCTIONS)
    if grads.shape[1] == 0 or grads.shape[2] == 0:
        raise ValueError(f"grads: expected at least one sample and one channel, got {list(grads.shape)}")


@operator("token_saliency")
def _token_saliency(grads: Tensor, reduction: str, impl: str) -> Tensor:
    tsv: Tensor = serving("token_saliency", impl, grads)(grads=grads, reduction=reduction)
    return tsv


@_token_saliency.register_fake
def _(grads: Tensor, reduction: str, impl: str) -> Tensor:
    batch, _, _, *grid = grads.shape
    return grads.new_empty((batch, *grid), dtype=accumulation_dtype(grads.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grads, ctx.reduction, _ = inputs
    ctx.save_for_backward(grads)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
    (grads,) = ctx.saved_tensors
    per_channel = _DERIVATIVES[ctx.reduction](grads.to(upstream.dtype).mean(dim=1), upstream[:, None])
    return (per_channel / grads.shape[1])[:, None].expand_as(grads).to(grads.dtype), None, None


def _absmax_derivative(mean: Tensor, upstream: Tensor) -> Tensor:
    winner = mean.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(mean).scatter(1, winner, upstream * mean.gather(1, winner).sign())


def _max_derivative(mean: Tensor, upstream: Tensor) -> Tensor:
    return torch.zeros_like(mean).scatter(1, mean.argmax(dim=1, keepdim=True), upstream)


def _mean_derivative(mean: Tensor, upstream: Tensor) -> Tensor:
    return (upstream / mean.shape[1]).expand_as(mean)


# from the mean [B,d,m,m] and the upstream gradient [B,1,m,m] to the gradient of the mean
_DERIVATIVES = {"absmax": _absmax_derivative, "max": _max_derivative, "mean": _mean_derivative}


_token_saliency.register_autograd(_backward, setup_context=_setup_context)
