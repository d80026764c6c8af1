"""The nearest codebook token of each vector: vector quantisation."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import nearest_code as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import operator

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import nearest_code as native_kernel


def nearest_code(z: Tensor, codebook: Tensor, *, impl: str = "auto") -> Tensor:
    """Index int64 [...] of the codebook row [K,d] nearest to z [...,d] in Euclidean distance.

    Computed in float64; among equally near codes the lowest index. A code with an infinity or a NaN is nearest to
    nothing. A vector with one gives index 0, and so do all where every code has one. Not differentiable.
    Raises TypeError for integer tensors, ValueError for shapes that do not fit, an empty codebook or mixed devices.
    """
    checks.floating("z", z)
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    if codebook.shape[0] == 0:
        raise ValueError("codebook: expected at least one code, got none")
    if z.ndim == 0 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(f"z: expected shape [..., {codebook.shape[1]}] as in codebook, got {list(z.shape)}")
    checks.same_device(z=z, codebook=codebook)
    check_impl(impl)
    flat = z.detach().reshape(z.shape[:-1].numel(), z.shape[-1])
    return _nearest_code(flat, codebook.detach(), impl).view(z.shape[:-1])


@operator("nearest_code")
def _nearest_code(z: Tensor, codebook: Tensor, impl: str) -> Tensor:
    backend = choose("nearest_code", REASONS["nearest_code"], impl, z, codebook)
    if backend == "triton":
        from cortex_fast.kernels.triton import nearest_code as triton_kernel

        return triton_kernel.nearest_code(z, codebook)
    serve = native_kernel if backend == "native" else reference
    return serve.nearest_code(z, codebook)


@_nearest_code.register_fake
def _(z: Tensor, codebook: Tensor, impl: str) -> Tensor:
    return z.new_empty((z.shape[0],), dtype=torch.int64)
