"""N noisy copies of each embedding (SmoothGrad's input), from the counter-based stream."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.reference import smoothgrad_noise as reference
from cortex_fast.ops.backends import choose, never

BACKENDS = {"reference": never}


def smoothgrad_noise(
    x: Tensor,
    sigma: Tensor,
    num_samples: int,
    *,
    seed: int,
    item_ids: Tensor | None = None,
    antithetic: bool = False,
    noise: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """x[:, None] + sigma e: noisy copies [B,N,d,m,m] of x [B,d,m,m], in x's dtype; sigma [B] floating.

    e is standard normal, fixed by (seed, item id, sample, grid position, channel) and nothing else. item_ids int [B]
    defaults to 0, 1, 2, ...; images with the same id get the same noise. antithetic: samples 2j and 2j + 1 are +-e_j.
    noise [B,N,d,m,m] replaces e, for exact tests. Differentiable in x, sigma and noise.
    Raises TypeError for wrong dtypes, ValueError for shapes that do not fit, mixed devices, antithetic with noise, or a
    seed or item id outside [0, 2^63) or [0, 2^32).
    """
    checks.rank("x", x, "[B, d, m, m]")
    checks.floating("x", x)
    checks.floating("sigma", sigma)
    checks.same_shape("sigma", sigma, "x's batch", x.shape[:1])
    checks.whole("num_samples", num_samples, 0)
    checks.seed(seed)
    if item_ids is None:
        item_ids = torch.arange(x.shape[0], device=x.device)
    checks.integral("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "x's batch", x.shape[:1])
    checks.same_device(x=x, sigma=sigma, item_ids=item_ids, noise=noise)
    if noise is not None:
        checks.floating("noise", noise)
        expected = torch.Size((x.shape[0], num_samples, *x.shape[1:]))
        checks.same_shape("noise", noise, "the result", expected)
        if antithetic:
            raise ValueError("antithetic: expected False with noise, which is taken as it is")
    else:
        noise = _standard_noise(item_ids.long(), num_samples, list(x.shape[1:]), seed, antithetic)
    return _smoothgrad_noise(x, sigma, noise, impl)


@torch.library.custom_op("cortex_fast::standard_noise", mutates_args=())
def _standard_noise(item_ids: Tensor, num_samples: int, shape: list[int], seed: int, antithetic: bool) -> Tensor:
    checks.in_range("item_ids", item_ids, 2**32)
    channels, height, width = shape
    return reference.standard_noise(item_ids, num_samples, channels, (height, width), seed, antithetic)


@_standard_noise.register_fake
def _(item_ids: Tensor, num_samples: int, shape: list[int], seed: int, antithetic: bool) -> Tensor:
    return item_ids.new_empty((item_ids.shape[0], num_samples, *shape), dtype=torch.float32)


@torch.library.custom_op("cortex_fast::smoothgrad_noise", mutates_args=())
def _smoothgrad_noise(x: Tensor, sigma: Tensor, noise: Tensor, impl: str) -> Tensor:
    choose("smoothgrad_noise", BACKENDS, impl, x)
    return reference.smoothgrad_noise(x, sigma, noise)


@_smoothgrad_noise.register_fake
def _(x: Tensor, sigma: Tensor, noise: Tensor, impl: str) -> Tensor:
    return x.new_empty(noise.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, sigma, noise, _ = inputs
    ctx.dtypes = x.dtype, sigma.dtype, noise.dtype
    sigma_needed, noise_needed = ctx.needs_input_grad[1:3]
    ctx.save_for_backward(sigma if noise_needed else None, noise if sigma_needed else None)  # noise is N times x's size


def _backward(ctx, upstream: Tensor):
    sigma, noise = ctx.saved_tensors
    x_dtype, sigma_dtype, noise_dtype = ctx.dtypes
    wide = torch.promote_types(upstream.dtype, torch.float32)
    upstream = upstream.to(wide)
    grad_x = upstream.sum(dim=1).to(x_dtype) if ctx.needs_input_grad[0] else None
    grad_sigma = grad_noise = None
    if ctx.needs_input_grad[1]:
        grad_sigma = (upstream * noise.to(wide)).sum(dim=(1, 2, 3, 4)).to(sigma_dtype)
    if ctx.needs_input_grad[2]:
        grad_noise = (upstream * sigma.to(wide)[:, None, None, None, None]).to(noise_dtype)
    return grad_x, grad_sigma, grad_noise, None


_smoothgrad_noise.register_autograd(_backward, setup_context=_setup_context)
