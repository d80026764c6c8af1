"""How far embeddings are from the codebook gathered at their tokens."""

from torch import Tensor


def gather_error(*, embedding: Tensor, tokens: Tensor, codebook: Tensor) -> Tensor:
    """embedding [B,d,m,m], tokens int32 [B,m,m], codebook [K,d] -> [B]."""
    difference = (embedding - codebook[tokens.long()].permute(0, 3, 1, 2)).abs().flatten(1)
    return difference.amax(dim=1) if difference.numel() else difference.new_zeros(len(difference))
