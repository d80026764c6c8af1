"""TSV of noisy gradients and the counts of each concept's top tokens by it: what is left of a batch of gradients."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.reference.token_saliency import accumulation_dtype
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.concept_counts import check_counting, check_numbers, check_values, concept_counts
from cortex_fast.ops.registering import operator
from cortex_fast.ops.token_saliency import check_arguments, token_saliency


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
    """`token_saliency` of noisy gradients [B,N,d,m,m], and `concept_counts` of that: [B,m,m], int64 [num_concepts,K].

    The CUDA kernels count in the same pass over the gradients, other backends after it. Not differentiable.
    Raises what the two operators raise.
    """
    check_arguments(grads, reduction)
    batch, _, _, *grid = grads.shape
    sizes = check_counting(torch.Size((batch, *grid)), tokens, labels, top_n, num_concepts, codebook_size, per)
    checks.same_device(grads=grads, tokens=tokens, labels=labels)
    check_impl(impl)
    return _saliency_counts(grads, tokens, labels, *sizes, reduction, per, impl)


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
    backend = choose("saliency_counts", REASONS["saliency_counts"], impl, grads)
    if backend != "cuda":
        tsv = token_saliency(grads, reduction=reduction, impl=backend)
        sizes = {"top_n": top_n, "num_concepts": num_concepts, "codebook_size": codebook_size}
        return tsv, concept_counts(tsv, tokens, labels, per=per, impl=backend, **sizes)
    from cortex_fast.kernels.cuda import concept_counts as cuda_kernel

    check_values(tokens, labels, num_concepts, codebook_size)
    tsv, counts = cuda_kernel.of_gradients(grads, reduction, tokens, labels, top_n, num_concepts, codebook_size, per)
    check_numbers(tsv)
    return tsv, counts


@_saliency_counts.register_fake
def _(grads, tokens, labels, top_n, num_concepts, codebook_size, reduction, per, impl):
    batch, _, _, *grid = grads.shape
    tsv = grads.new_empty((batch, *grid), dtype=accumulation_dtype(grads.dtype))
    return tsv, grads.new_empty((num_concepts, codebook_size), dtype=torch.int64)


_saliency_counts.constant()
