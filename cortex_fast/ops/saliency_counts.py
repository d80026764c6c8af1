"""TSV of noisy gradients and the counts of each concept's top tokens by it, in one operator."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.reference.token_saliency import accumulation_dtype
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.concept_counts import check_counting, check_numbers, check_values
from cortex_fast.ops.registering import operator
from cortex_fast.ops.token_saliency import check_arguments


def saliency_counts(
    grads: Tensor,
    tokens: Tensor,
    labels: Tensor,
    *,
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    reduction: str = "absmax",
    per: str = "occurrence",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`token_saliency` of noisy gradients, and `concept_counts` of its result.

    The CUDA kernels count in the same pass over the gradients, other backends after it. Not differentiable.

    Args:
        grads: floating [B, N, d, m, m], of any strides.
        tokens: integer [B, m, m], in [0, K).
        labels: integer [B], each image's concept, in [0, num_concepts).
        top_n: the number of top positions of an image, from 1 to m * m.
        num_concepts: the number of concepts.
        codebook_size: K, the number of tokens.
        reduction: "absmax", "max" or "mean", as `token_saliency`. Default "absmax".
        per: "occurrence" or "image", as `concept_counts`. Default "occurrence".
        impl: the backend, "auto", "cuda", "triton", "native" or "reference". Default "auto".

    Returns:
        TSV [B, m, m], float32 (float64 for float64 gradients); counts int64 [num_concepts, K].

    Raises:
        TypeError, ValueError, BackendUnavailableError: as `token_saliency` and `concept_counts`.
    """
    check_arguments(grads, reduction)
    batch, _, _, *grid = grads.shape
    shape = torch.Size((batch, *grid))
    sizes = check_counting(shape, tokens, labels, top_n, num_concepts, codebook_size, per=per)
    checks.same_device(grads=grads, tokens=tokens, labels=labels)
    check_impl(impl)
    return _saliency_counts(grads, tokens, labels, **sizes, reduction=reduction, per=per, impl=impl)


@operator("saliency_counts")
def _saliency_counts(
    grads: Tensor,
    tokens: Tensor,
    labels: Tensor,
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    reduction: str,
    per: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    kernel = serving("saliency_counts", impl, grads)
    check_values(tokens, labels, num_concepts, codebook_size)
    tsv, counts = kernel(
        grads=grads,
        tokens=tokens,
        labels=labels,
        top_n=top_n,
        num_concepts=num_concepts,
        codebook_size=codebook_size,
        reduction=reduction,
        per=per,
    )
    check_numbers(tsv)  # counting a NaN is harmless, and its counts are not returned
    return tsv, counts


@_saliency_counts.register_fake
def _(grads, tokens, labels, top_n, num_concepts, codebook_size, reduction, per, impl):
    batch, _, _, *grid = grads.shape
    tsv = grads.new_empty((batch, *grid), dtype=accumulation_dtype(grads.dtype))
    return tsv, grads.new_empty((num_concepts, codebook_size), dtype=torch.int64)


_saliency_counts.constant()
