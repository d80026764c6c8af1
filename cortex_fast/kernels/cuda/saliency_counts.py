"""TSV of noisy gradients and the counts of its top tokens in one pass, by csrc/cuda/token_saliency.cu."""

from torch import Tensor

from cortex_fast.kernels.cuda.concept_counts import count_arguments
from cortex_fast.kernels.cuda.token_saliency import launch

__all__ = ["saliency_counts"]


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
    """TSV [B,m,m] of grads [B,N,d,m,m], and its counts int64 [num_concepts,K]. A NaN counts as the largest TSV."""
    counting, counts, inputs = count_arguments(tokens, labels, top_n, num_concepts, codebook_size, per)
    tsv = launch(grads, reduction, counting)
    del inputs  # alive until the kernel is launched
    return tsv, counts
