"""Counts of each concept's top tokens, by csrc/cpu/concept_counts.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native

KERNELS = {
    torch.uint8: _native.concept_counts_uint8,
    torch.int16: _native.concept_counts_int16,
    torch.uint16: _native.concept_counts_uint16,
    torch.int32: _native.concept_counts_int32,
    torch.int64: _native.concept_counts_int64,
}


def concept_counts(
    *, tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> Tensor:
    """int64 [num_concepts,K] from float32 tsv [B,m,m], tokens [B,m,m] and labels [B]. Same contract as the reference.

    Raises ValueError for a token or a label out of range.
    """
    if tokens.dtype not in KERNELS:  # int8, uint32, uint64: rare, and not worth a kernel each
        tokens = tokens.long()
    labels = labels.long().contiguous()
    counts = native.empty((num_concepts, codebook_size), torch.int64).zero_()
    KERNELS[tokens.dtype](
        tsv=tsv.data_ptr(),
        tokens=tokens.data_ptr(),
        labels=labels.data_ptr(),
        top_n=top_n,
        num_concepts=num_concepts,
        codebook_size=codebook_size,
        per=per,
        sizes=tsv.shape,
        tsv_strides=tsv.stride(),
        token_strides=tokens.stride(),
        counts=counts.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return counts
