"""Counts of each concept's top tokens, by csrc/cuda/token_saliency.cu."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels import cuda
from cortex_fast.kernels.cuda import token_saliency as saliency

__all__ = ["concept_counts", "of_gradients"]

TOKENS = {
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.uint16: "uint16",
    torch.int32: "int32",
    torch.int64: "int64",
}


def counting(
    tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> tuple[Any, Tensor, list[Tensor]]:
    """What the library is told of a count, the counts that it adds to, and the tensors that must outlive the call."""
    if tokens.dtype not in TOKENS:  # int8, uint32, uint64: rare, and not worth a kernel each
        tokens = tokens.long()
    labels = labels.long().contiguous()
    counts = torch.zeros((num_concepts, codebook_size), dtype=torch.int64, device=tokens.device)
    told = cuda.LIBRARY.Counting(
        tokens=tokens.data_ptr(),
        type=TOKENS[tokens.dtype],
        strides=tokens.stride(),
        labels=labels.data_ptr(),
        top_n=top_n,
        num_concepts=num_concepts,
        codebook_size=codebook_size,
        per=per,
        counts=counts.data_ptr(),
    )
    return told, counts, [tokens, labels]


def concept_counts(
    tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> Tensor:
    """int64 [num_concepts,K] from tsv [B,m,m] without NaN, tokens [B,m,m] and labels [B]. As the reference's."""
    tsv = tsv.float().resolve_neg()
    told, counts, alive = counting(tokens, labels, top_n, num_concepts, codebook_size, per)
    cuda.call("concept_counts", tsv, tsv=tsv.data_ptr(), strides=tsv.stride(), sizes=tsv.shape, counting=told)
    del alive
    return counts


def of_gradients(
    grads: Tensor,
    reduction: str,
    tokens: Tensor,
    labels: Tensor,
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    per: str,
) -> tuple[Tensor, Tensor]:
    """TSV [B,m,m] of grads [B,N,d,m,m] and its counts, in one pass over the gradients. A NaN is the largest TSV."""
    told, counts, alive = counting(tokens, labels, top_n, num_concepts, codebook_size, per)
    tsv = saliency.token_saliency(grads, reduction, told)
    del alive
    return tsv, counts
