"""Token selection's small functions as the published code offers them."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast import ops

_GRID = 16  # of the published code, whose flat masks have 256 rows


def create_mask(shape: tuple[int, ...], top_left: tuple[int, int], bottom_right: tuple[int, int]) -> Tensor:
    """Zeros with ones in a box, both corners inclusive.

    Args:
        shape: [rows, K], the rows being positions of a 16 x 16 grid, or [B, d, m, m].
        top_left: row and column of the box's first corner.
        bottom_right: row and column of its last.
    Returns:
        A tensor of that shape and torch's default dtype: whole rows of ones, or the box in each channel.
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
    """Gumbel noise -log(-log(U + eps) + eps), with U uniform in [0, 1) from torch's generator.

    Args:
        shape: of the result.
        eps: keeps the logarithms finite. Default 1e-20.
        device: of the result. Default the CPU.
    Returns:
        Noise of that shape, in torch's default dtype.
    """
    return torch.rand(shape, device=device).add_(eps).log_().neg_().add_(eps).log_().neg_()


def gumbel_softmax(
    logits: Tensor, temperature: float, device: torch.device | str = "cpu", hard: bool = True
) -> tuple[Tensor, Tensor]:
    """y = softmax((logits + g) / temperature), with g from `sample_gumbel`.

    Args:
        logits: [..., K].
        temperature: of the softmax.
        device: where g is drawn. Default the CPU.
        hard: make y one-hot, with the softmax's gradient. Default True. The published code fails without it.
    Returns:
        y [..., K], and the selected index int64 [...].
    """
    y = torch.softmax((logits + sample_gumbel(logits.shape, device=device)) / temperature, dim=-1)
    index = y.argmax(dim=-1)
    if hard:
        y = torch.zeros_like(y).scatter_(-1, index[..., None], 1.0) - y.detach() + y
    return y, index


def decode_input_embedding(input_embedding: Tensor, VQ_model: Any) -> tuple[Tensor, Tensor, Any]:
    """Take each position's nearest codebook row, and decode it.

    Distances are exact; the published code's are rounded in float32, and may name another of two codes that are equally
    near within that.

    Args:
        input_embedding: E [B, d, m, m].
        VQ_model: has `decode`, and its codebook in quantize.embedding, an nn.Embedding [K, d].
    Returns:
        The nearest rows [B, d, m, m], their indices int64 [B m m], and VQ_model.decode of the rows.
    """
    embedding = VQ_model.quantize.embedding
    z = input_embedding.permute(0, 2, 3, 1)
    index = ops.nearest_code(z, embedding.weight)
    nearest = embedding(index).permute(0, 3, 1, 2).contiguous()
    return nearest, index.flatten(), VQ_model.decode(nearest)
