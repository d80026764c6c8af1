"""The gradient of `conv3x3`'s input."""

import torch
import torch.nn.functional as F
from torch import Tensor


def unpack_bits(mask: Tensor, channels: int) -> Tensor:
    """uint8 [n,h,w,ceil(C/8)] -> bool [n,C,h,w], the inverse of `conv3x3.pack_bits`."""
    bits = (mask[..., None] >> torch.arange(8, device=mask.device, dtype=torch.uint8)) & 1
    return bits.flatten(3)[..., :channels].permute(0, 3, 1, 2).bool()


def conv3x3_backward(
    *,
    upstream: Tensor,
    mask: Tensor,
    weight: Tensor,
    winograd_transposed: Tensor,
    pool: bool,
    size: tuple[int, int],
    padding: int,
) -> Tensor:
    """upstream, the gradient of y -> that of the input [n,I,h,w], (h, w) = size. `winograd_transposed` is not used."""
    gradient = upstream
    height, width = (side + 2 * padding - 2 for side in size)
    if pool:
        wide = upstream.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        gradient = F.pad(wide, (0, width - wide.shape[3], 0, height - wide.shape[2]))
    if mask.numel():
        gradient = gradient.where(unpack_bits(mask, weight.shape[0]), 0)  # a product would let NaN through
    return F.conv_transpose2d(gradient, weight, padding=padding).contiguous(memory_format=torch.channels_last)
