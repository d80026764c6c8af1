"""N noisy copies of each embedding (SmoothGrad's input), from the counter-based stream."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import smoothgrad_noise as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import operator

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import smoothgrad_noise as native_kernel


def smoothgrad_noise(
    x: Tensor,
    sigma: Tensor,
    num_samples: int,
    *,
    seed: int,
    item_ids: Tensor | None = None,
    antithetic: bool = False,
    first_sample: int = 0,
    noise: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """x[:, None] + sigma e: noisy copies [B,N,d,m,m] of x [B,d,m,m], in x's dtype; sigma [B] floating.

    e is standard normal, fixed by (seed, item id, sample, grid position, channel) and nothing else. item_ids int [B]
    defaults to 0, 1, 2, ...; images with the same id get the same noise. antithetic: samples 2j and 2j + 1 are +-e_j.
    first_sample: the number of the first of the N samples (even where antithetic), to make many in parts.
    noise [B,N,d,m,m] replaces e, for exact tests. Differentiable in x, sigma and noise.
    Raises TypeError for wrong types, ValueError for shapes that do not fit, mixed devices, antithetic with noise, a
    seed or item id outside [0, 2^63) or [0, 2^32), or samples beyond number 2^32.
    """
    checks.rank("x", x, "[B, d, m, m]")
    checks.floating("x", x)
    checks.floating("sigma", sigma)
    checks.same_shape("sigma", sigma, "x's batch", x.shape[:1])
    first_sample = checks.whole("first_sample", first_sample, 0, 2**32)
    num_samples = checks.whole("num_samples", num_samples, 0)
    if first_sample + num_samples > 2**32:
        raise ValueError(
            f"first_sample: expected first_sample + num_samples of at most 2^32, beyond which the noise would repeat, "
            f"got {first_sample} + {num_samples}"
        )
    seed = checks.seed(seed)
    antithetic = checks.flag("antithetic", antithetic)
    check_impl(impl)
    if antithetic and first_sample % 2:
        raise ValueError(f"first_sample: expected an even number with antithetic, got {first_sample}")
    if item_ids is None:
        item_ids = torch.arange(x.shape[0], device=x.device)
    checks.integral("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "x's batch", x.shape[:1])
    if noise is not None:
        checks.floating("noise", noise)
    checks.same_device(x=x, sigma=sigma, item_ids=item_ids, noise=noise)
    if noise is not None:
        expected = torch.Size((x.shape[0], num_samples, *x.shape[1:]))
        checks.same_shape("noise", noise, "the result", expected)
        if antithetic:
            raise ValueError("antithetic: expected False with noise, which is taken as it is")
    return _smoothgrad_noise(x, sigma, item_ids.long(), noise, num_samples, first_sample, seed, antithetic, impl)


@operator("smoothgrad_noise")
def _smoothgrad_noise(
    x: Tensor,
    sigma: Tensor,
    item_ids: Tensor,
    noise: Tensor | None,
    num_samples: int,
    first_sample: int,
    seed: int,
    antithetic: bool,
    impl: str,
) -> Tensor:
    checks.in_range("item_ids", item_ids, 2**32)
    wide = [x] if noise is None else [x, noise]  # float64 noise is not for a float32 kernel
    backend = choose("smoothgrad_noise", REASONS["smoothgrad_noise"], impl, *wide)
    if backend == "cuda":
        from cortex_fast.kernels.cuda import smoothgrad_noise as cuda_kernel

        return cuda_kernel.smoothgrad_noise(x, sigma, item_ids, noise, num_samples, first_sample, seed, antithetic)
    if backend == "triton":
        from cortex_fast.kernels.triton import smoothgrad_noise as triton_kernel

        return triton_kernel.smoothgrad_noise(x, sigma, item_ids, noise, num_samples, first_sample, seed, antithetic)
    if backend == "native":
        return native_kernel.smoothgrad_noise(x, sigma, item_ids, noise, num_samples, first_sample, seed, antithetic)
    if noise is None:
        _, channels, height, width = x.shape
        samples = range(first_sample, first_sample + num_samples)
        noise = reference.standard_noise(item_ids, samples, channels, (height, width), seed, antithetic)
    return reference.smoothgrad_noise(x, sigma, noise)


@_smoothgrad_noise.register_fake
def _(x, sigma, item_ids, noise, num_samples, first_sample, seed, antithetic, impl):
    return x.new_empty((x.shape[0], num_samples, *x.shape[1:]))


def _setup_context(ctx, inputs, output) -> None:
    x, sigma, item_ids, noise, *ctx.stream = inputs
    ctx.dtypes = x.dtype, sigma.dtype
    sigma_needed, noise_needed = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
    # noise is N times x's size: kept only where it was given and is wanted
    ctx.save_for_backward(
        x if sigma_needed else None, sigma if noise_needed else None, item_ids, noise if sigma_needed else None
    )
    ctx.noise_dtype = None if noise is None else noise.dtype


def _backward(ctx, upstream: Tensor):
    x, sigma, item_ids, noise = ctx.saved_tensors
    x_dtype, sigma_dtype = ctx.dtypes
    wide = torch.promote_types(upstream.dtype, torch.float32)
    upstream = upstream.to(wide)
    grad_x = upstream.sum(dim=1).to(x_dtype) if ctx.needs_input_grad[0] else None
    grad_sigma = grad_noise = None
    if ctx.needs_input_grad[1]:
        if noise is None:  # drawn again: the copies of zeros, with sigma 1
            noise = _smoothgrad_noise(torch.zeros_like(x, dtype=wide), x.new_ones(len(x)), item_ids, None, *ctx.stream)
        grad_sigma = (upstream * noise.to(wide)).sum(dim=(1, 2, 3, 4)).to(sigma_dtype)
    if ctx.needs_input_grad[3]:
        grad_noise = (upstream * sigma.to(wide)[:, None, None, None, None]).to(ctx.noise_dtype)
    return grad_x, grad_sigma, None, grad_noise, None, None, None, None, None


_smoothgrad_noise.register_autograd(_backward, setup_context=_setup_context)
