"""Counts of each concept's top tokens, by csrc/cuda/token_saliency.cu."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels import cuda

__all__ = ["concept_counts"]

TOKENS = {
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.uint16: "uint16",
    torch.int32: "int32",
    torch.int64: "int64",
}


def count_arguments(
    tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> tuple[Any, Tensor, list[Tensor]]:
    """The library's arguments of a count, the counts that it adds to, and the tensors that must outlive the call."""
    if tokens.dtype not in TOKENS:  # int8, uint32, uint64: rare, and not worth a kernel each
        tokens = tokens.long()
    labels = labels.long().contiguous()
    counts = torch.zeros((num_concepts, codebook_size), dtype=torch.int64, device=tokens.device)
    counting = cuda.LIBRARY.Counting(
        tokens=tokens.data_ptr(),
        labels=labels.data_ptr(),
        top_n=top_n,
        num_concepts=num_concepts,
        codebook_size=codebook_size,
        per=per,
        type=TOKENS[tokens.dtype],
        strides=tokens.stride(),
        counts=counts.data_ptr(),
    )
    return counting, counts, [tokens, labels]


def concept_counts(
    *, tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> Tensor:
    """int64 [num_concepts,K] from tsv [B,m,m], tokens [B,m,m] and labels [B]. Same contract as the reference."""
    tsv = tsv.float()
    counting, counts, inputs = count_arguments(tokens, labels, top_n, num_concepts, codebook_size, per)
    cuda.call("concept_counts", tsv, tsv=tsv.data_ptr(), counting=counting, sizes=tsv.shape, strides=tsv.stride())
    del inputs  # alive until the kernel is launched
    return counts
