"""How far embeddings are from the codebook gathered at their tokens: the check of an import."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.registering import operator


def gather_error(embedding: Tensor, tokens: Tensor, codebook: Tensor, *, impl: str = "auto") -> Tensor:
    """The largest |E - C[token]| of each image.

    A NaN of E, or of C at one of the image's tokens, gives NaN. Not differentiable.

    Args:
        embedding: E, floating-point [B, d, m, m].
        tokens: integer [B, m, m], each within [0, K).
        codebook: C [K, d], of E's dtype.
        impl: backend, "auto" or one of "cuda", "triton", "native" and "reference". Default "auto".
    Returns:
        [B], of E's dtype.
    Raises:
        TypeError: a dtype is not supported, or E and C have different ones.
        ValueError: shapes do not fit, a token is out of range, or devices are mixed.
        BackendUnavailableError: `impl` forces an unavailable backend.
    """
    checks.rank("embedding", embedding, "[B, d, m, m]")
    checks.floating("embedding", embedding)
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.rank("tokens", tokens, "[B, m, m]")
    checks.integral("tokens", tokens)
    check_impl(impl)
    expected = (len(tokens), codebook.shape[1], *tokens.shape[1:])
    checks.same_shape("embedding", embedding, "tokens' images with codebook's channels", torch.Size(expected))
    checks.same_device(embedding=embedding, tokens=tokens, codebook=codebook)
    if embedding.dtype != codebook.dtype:
        raise TypeError(f"embedding: expected {codebook.dtype}, the codebook's dtype, got {embedding.dtype}")
    return _gather_error(embedding, tokens, codebook, impl)


@operator("gather_error")
def _gather_error(embedding: Tensor, tokens: Tensor, codebook: Tensor, impl: str) -> Tensor:
    # Reads the values of a tensor, which no tracer may look at.
    checks.in_range("tokens", tokens, min(len(codebook), 2**31))
    kernel = serving("gather_error", impl, embedding, codebook)
    error: Tensor = kernel(embedding=embedding, tokens=tokens.int(), codebook=codebook)
    return error


@_gather_error.register_fake
def _(embedding: Tensor, tokens: Tensor, codebook: Tensor, impl: str) -> Tensor:
    return embedding.new_empty(embedding.shape[:1])


_gather_error.constant()
