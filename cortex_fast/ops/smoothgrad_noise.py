"""N noisy copies of each embedding (SmoothGrad's input), from the counter-based stream."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.registering import operator


def smoothgrad_noise(
    x: Tensor,
    sigma: Tensor,
    num_samples: int,
    *,
    seed: int,
    item_ids: Tensor | None = None,
    antithetic: bool = False,
    first_sample: int = 0,
    normals: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Noisy copies x + sigma e of each image, with e standard normal.

    e is fixed by (seed, item id, sample, grid position, channel) and nothing else. Differentiable in x, sigma and
    normals.

    Args:
        x: floating [B, d, m, m].
        sigma: floating [B], the noise's standard deviation of each image.
        num_samples: N, the number of copies of an image.
        seed: in [0, 2^63).
        item_ids: integer [B], in [0, 2^32); images of the same id get the same noise. Default 0, 1, 2, ...
        antithetic: whether samples 2j and 2j + 1 are x + sigma e_j and x - sigma e_j. Default False.
        first_sample: the number of the first of the N samples, to draw them in parts; even if antithetic. Default 0.
        normals: floating [B, N, d, m, m], replaces e, for exact tests. Default None: e is drawn.
        impl: the backend, "auto", "cuda", "triton", "native" or "reference". Default "auto".

    Returns:
        [B, N, d, m, m] in x's dtype, contiguous.

    Raises:
        TypeError: for other types or dtypes.
        ValueError: for shapes that do not fit, mixed devices, antithetic with normals, values out of range, samples
            beyond number 2^32, or an unknown backend.
        BackendUnavailableError: if a forced backend is unavailable.
    """
    checks.rank("x", x, "[B, d, m, m]")
    checks.floating("x", x)
    checks.floating("sigma", sigma)
    checks.same_shape("sigma", sigma, "x's batch", x.shape[:1])
    first_sample, num_samples = _check_samples(first_sample, num_samples)
    seed = checks.seed(seed)
    antithetic = checks.flag("antithetic", antithetic)
    check_impl(impl)
    if antithetic and first_sample % 2:
        raise ValueError(f"first_sample: expected an even number with antithetic, got {first_sample}")
    if item_ids is None:
        item_ids = torch.arange(x.shape[0], device=x.device)
    checks.integral("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "x's batch", x.shape[:1])
    if normals is not None:
        checks.floating("normals", normals)
    checks.same_device(x=x, sigma=sigma, item_ids=item_ids, normals=normals)
    if normals is not None:
        expected = torch.Size((x.shape[0], num_samples, *x.shape[1:]))
        checks.same_shape("normals", normals, "the result", expected)
        if antithetic:
            raise ValueError("antithetic: expected False with normals, which are taken as they are")
    return _smoothgrad_noise(
        x,
        sigma,
        num_samples,
        seed=seed,
        item_ids=item_ids.long(),
        antithetic=antithetic,
        first_sample=first_sample,
        normals=normals,
        impl=impl,
    )


def _check_samples(first_sample: int, num_samples: int) -> tuple[int, int]:
    first_sample = checks.whole("first_sample", first_sample, 0, 2**32)
    num_samples = checks.whole("num_samples", num_samples, 0)
    if first_sample + num_samples > 2**32:
        raise ValueError(
            f"first_sample: expected first_sample + num_samples of at most 2^32, beyond which the noise would repeat, "
            f"got {first_sample} + {num_samples}"
        )
    return first_sample, num_samples


@operator("smoothgrad_noise")
def _smoothgrad_noise(
    x: Tensor,
    sigma: Tensor,
    num_samples: int,
    seed: int,
    item_ids: Tensor,
    antithetic: bool,
    first_sample: int,
    normals: Tensor | None,
    impl: str,
) -> Tensor:
    checks.in_range("item_ids", item_ids, 2**32)
    floats = [x] if normals is None else [x, normals]  # no float32 kernel takes float64 normals
    copies: Tensor = serving("smoothgrad_noise", impl, *floats)(
        x=x,
        sigma=sigma,
        num_samples=num_samples,
        seed=seed,
        item_ids=item_ids,
        antithetic=antithetic,
        first_sample=first_sample,
        normals=normals,
    )
    return copies


@_smoothgrad_noise.register_fake
def _(x, sigma, num_samples, seed, item_ids, antithetic, first_sample, normals, impl):
    return x.new_empty((x.shape[0], num_samples, *x.shape[1:]))


def _setup_context(ctx, inputs, output) -> None:
    x, sigma, num_samples, seed, item_ids, antithetic, first_sample, normals, impl = inputs
    ctx.stream = {
        "num_samples": num_samples,
        "seed": seed,
        "antithetic": antithetic,
        "first_sample": first_sample,
        "impl": impl,
    }
    ctx.dtypes = x.dtype, sigma.dtype
    sigma_needed, normals_needed = ctx.needs_input_grad[1], ctx.needs_input_grad[7]
    # normals are N times x's size: saved only where they were given and are needed
    ctx.save_for_backward(
        x if sigma_needed else None, sigma if normals_needed else None, item_ids, normals if sigma_needed else None
    )
    ctx.normals_dtype = None if normals is None else normals.dtype


def _backward(ctx, upstream: Tensor):
    x, sigma, item_ids, normals = ctx.saved_tensors
    x_dtype, sigma_dtype = ctx.dtypes
    wide = torch.promote_types(upstream.dtype, torch.float32)
    upstream = upstream.to(wide)
    grad_x = upstream.sum(dim=1).to(x_dtype) if ctx.needs_input_grad[0] else None
    grad_sigma = grad_normals = None
    if ctx.needs_input_grad[1]:
        if normals is None:  # drawn again: the copies of zeros, with sigma 1
            zeros, ones = torch.zeros_like(x, dtype=wide), x.new_ones(len(x))
            normals = _smoothgrad_noise(zeros, ones, item_ids=item_ids, normals=None, **ctx.stream)
        grad_sigma = (upstream * normals.to(wide)).sum(dim=(1, 2, 3, 4)).to(sigma_dtype)
    if ctx.needs_input_grad[7]:
        grad_normals = (upstream * sigma.to(wide)[:, None, None, None, None]).to(ctx.normals_dtype)
    return grad_x, grad_sigma, None, None, None, None, None, grad_normals, None


_smoothgrad_noise.register_autograd(_backward, setup_context=_setup_context)
