"""TSV of noisy gradients and the counts of its top tokens: the two Triton kernels, one after the other."""

from torch import Tensor

from cortex_fast.kernels.triton.concept_counts import concept_counts
from cortex_fast.kernels.triton.token_saliency import token_saliency


def saliency_counts(
    *,
    grads: Tensor,
    tokens: Tensor,
    labels: Tensor,
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    reduction: str,
    per: str,
) -> tuple[Tensor, Tensor]:
    """TSV [B,m,m] of grads [B,N,d,m,m], and its counts int64 [num_concepts,K]."""
    tsv = token_saliency(grads=grads, reduction=reduction)
    counts = concept_counts(
        tsv=tsv,
        tokens=tokens,
        labels=labels,
        top_n=top_n,
        num_concepts=num_concepts,
        codebook_size=codebook_size,
        per=per,
    )
    return tsv, counts
