"""How far embeddings are from the codebook gathered at their tokens, by csrc/cpu/gather_error.cpp."""

from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def gather_error(*, embedding: Tensor, tokens: Tensor, codebook: Tensor) -> Tensor:
    """embedding float32 [B,d,m,m], tokens int32 [B,m,m], codebook float32 [K,d] -> float32 [B].

    Same contract as the reference.
    """
    embedding, tokens, codebook = embedding.contiguous(), tokens.contiguous(), codebook.contiguous()
    error = native.empty((len(embedding),))
    _native.gather_error(
        embedding=embedding.data_ptr(),
        tokens=tokens.data_ptr(),
        codebook=codebook.data_ptr(),
        sizes=(*embedding.shape[:2], embedding.shape[2:].numel()),
        error=error.data_ptr(),
        **native.run(),
    )
    return error
