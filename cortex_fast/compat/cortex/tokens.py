"""Token selection's small functions as the published code offers them."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast import ops

_GRID = 16  # the published code's, which its flat masks count by


def create_mask(shape: tuple[int, ...], top_left: tuple[int, int], bottom_right: tuple[int, int]) -> Tensor:
    """Zeros of `shape`, of the default dtype, with ones in a box, both corners inclusive.

    [rows,K], rows being positions of a 16 x 16 grid: whole rows are ones; [B,d,m,m]: the box of each channel.
    """
    (top, left), (bottom, right) = top_left, bottom_right
    mask = torch.zeros(shape)
    if len(shape) == 2:
        rows, columns = torch.arange(top, bottom + 1), torch.arange(left, right + 1)
        mask[(rows[:, None] * _GRID + columns).flatten()] = 1
    else:
        mask[:, :, top : bottom + 1, left : right + 1] = 1
    return mask


def sample_gumbel(shape: Any, eps: float = 1e-20, device: torch.device | str = "cpu") -> Tensor:
    """-log(-log(U + eps) + eps), U uniform in [0, 1) from torch's generator."""
    return torch.rand(shape, device=device).add_(eps).log_().neg_().add_(eps).log_().neg_()


def gumbel_softmax(
    logits: Tensor, temperature: float, device: torch.device | str = "cpu", hard: bool = True
) -> tuple[Tensor, Tensor]:
    """logits [...,K] -> (y [...,K], the selected index int64 [...]), with y = softmax((logits + g) / temperature).

    hard: y is one-hot, its gradient the softmax's. Without it the published code fails; here it gives y as it is.
    """
    y = torch.softmax((logits + sample_gumbel(logits.shape, device=device)) / temperature, dim=-1)
    index = y.argmax(dim=-1)
    if hard:
        y = torch.zeros_like(y).scatter_(-1, index[..., None], 1.0) - y.detach() + y
    return y, index


def decode_input_embedding(input_embedding: Tensor, VQ_model: Any) -> tuple[Tensor, Tensor, Any]:
    """E [B,d,m,m] -> (each position's nearest codebook row, [B,d,m,m]; its index int64 [B m m]; VQ_model.decode of it).

    VQ_model has its codebook in quantize.embedding, an nn.Embedding [K,d]. Distances are exact; the published code's
    are rounded in float32, and may name another of two codes that are equally near within that.
    """
    embedding = VQ_model.quantize.embedding
    z = input_embedding.permute(0, 2, 3, 1)
    index = ops.nearest_code(z, embedding.weight)
    nearest = embedding(index).permute(0, 3, 1, 2).contiguous()
    return nearest, index.flatten(), VQ_model.decode(nearest)
