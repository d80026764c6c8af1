"""3 x 3 convolution of stride 1 with its ReLU and 2 x 2 max-pooling.

A mask says where a gradient passes ReLU and pooling: one bit for each element before pooling, uint8 [n,h,w,ceil(C/8)],
the lowest bit first. The backward pass to the input needs nothing else of the forward's activations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_bits(passes: Tensor) -> Tensor:
    """bool [n,C,h,w] -> uint8 [n,h,w,ceil(C/8)]."""
    bits = F.pad(passes.permute(0, 2, 3, 1), (0, -passes.shape[1] % 8)).unflatten(3, (-1, 8))
    weights = 2 ** torch.arange(8, device=passes.device)
    return (bits * weights).sum(dim=4).to(torch.uint8)


def conv3x3(
    *, x: Tensor, weight: Tensor, bias: Tensor | None, winograd: Tensor, relu: bool, pool: bool, padding: int
) -> tuple[Tensor, Tensor]:
    """x [n,I,h,w], weight [O,I,3,3] -> y [n,O,h',w'] with h' = h + 2 padding - 2 (half of it with pool), and the mask
    (empty without relu and pool). `winograd` is not used."""
    before = F.conv2d(x, weight, bias, padding=padding)
    y = F.relu(before) if relu else before
    passes = before > 0 if relu else torch.ones_like(before, dtype=torch.bool)
    if pool:
        y, where = F.max_pool2d(y, 2, return_indices=True)
        chosen = torch.zeros_like(passes).flatten(2).scatter(2, where.flatten(2), True).view_as(passes)
        passes = passes & chosen
    mask = pack_bits(passes) if relu or pool else x.new_empty(0, dtype=torch.uint8)
    return y.contiguous(memory_format=torch.channels_last), mask
