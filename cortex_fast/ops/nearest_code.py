"""The nearest codebook token of each vector: vector quantisation."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.registering import operator


def nearest_code(z: Tensor, codebook: Tensor, *, impl: str = "auto") -> Tensor:
    """The index of the codebook row nearest to each vector, argmin_k |z - C_k|.

    Distances are float64; among equally near codes the lowest index wins. A code with an infinity or a NaN is nearest
    to nothing. The index is 0 for a vector with one, and for all vectors if every code has one. Not differentiable.

    Args:
        z: floating [..., d].
        codebook: floating C [K, d], K >= 1.
        impl: the backend, "auto", "triton", "native" or "reference". Default "auto".

    Returns:
        Index int64 [...].

    Raises:
        TypeError: for tensors that are not floating.
        ValueError: for shapes that do not fit, an empty codebook, mixed devices or an unknown backend.
        BackendUnavailableError: if a forced backend is unavailable.
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
    index: Tensor = serving("nearest_code", impl, z, codebook)(z=z, codebook=codebook)
    return index


@_nearest_code.register_fake
def _(z: Tensor, codebook: Tensor, impl: str) -> Tensor:
    return z.new_empty((z.shape[0],), dtype=torch.int64)
