"""TSV from noisy gradients.

Bound: bytes. Every gradient is read once (4 B N d m^2 bytes, half as many in half precision) for a conversion and one
addition in float64, which memory hides on most GPUs. Within float32's last bit such sums do not depend on their order.

A tile is some channels by some grid positions, longer along the one that is contiguous. A program sums the samples of a
tile and folds them into the reduction over its channels; where images and positions are too few to fill a GPU, the
channels are split between programs, by sizes alone, and their results reduced by a second kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.launching import ceil_div

PROGRAMS = 1024  # enough to fill a GPU


def tile(channels_inside: bool) -> dict[str, int]:
    return {"BLOCK_C": 64, "BLOCK_P": 16} if channels_inside else {"BLOCK_C": 16, "BLOCK_P": 64}


@triton.jit(do_not_specialize=["samples", "channels", "per_split", "splits", "positions", "width"])
def _reduce(
    grads,
    out,
    samples,
    channels,
    per_split,
    splits,
    positions,
    width,
    stride_b,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    REDUCTION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    blocks = tl.cdiv(positions, BLOCK_P)
    position = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    part = tl.program_id(0) // blocks  # [B, splits]
    split = part % splits
    if FLAT:
        place = position.to(tl.int64) * stride_x
    else:
        place = (position // width).to(tl.int64) * stride_y + (position % width).to(tl.int64) * stride_x
    image = grads + (part // splits).to(tl.int64) * stride_b
    lowest = 0.0 if REDUCTION == "mean" else float("-inf")
    best = tl.full((BLOCK_C, BLOCK_P), lowest, tl.float64)
    for first in range(split * per_split, tl.minimum(channels, (split + 1) * per_split), BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = (channel < channels)[:, None] & (position < positions)[None, :]
        tile = image + channel.to(tl.int64)[:, None] * stride_c + place[None, :]
        sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float64)
        for sample in tl.range(0, samples, loop_unroll_factor=4):
            loaded = tl.load(tile + tl.cast(sample, tl.int64) * stride_n, mask=inside, other=0.0)
            sums += loaded.to(tl.float32).to(tl.float64)
        mean = sums / samples
        if REDUCTION == "mean":
            best += mean
        else:
            if REDUCTION == "absmax":
                mean = tl.abs(mean)
            else:
                tl.static_assert(REDUCTION == "max", "a reduction without a kernel")
            # NaN wins, and stays: no comparison with it is true
            best = tl.where(inside & ((mean > best) | (mean != mean)), mean, best)
    at = out + part.to(tl.int64) * positions + position
    if REDUCTION == "mean":
        tl.store(at, tl.sum(best, axis=0), mask=position < positions)
    else:
        wrong = tl.max((best != best).to(tl.int32), axis=0) > 0  # a maximum passes NaN over
        most = tl.max(tl.where(best != best, float("-inf"), best), axis=0)
        tl.store(at, tl.where(wrong, float("nan"), most.to(tl.float32)), mask=position < positions)


def token_saliency(*, grads: Tensor, reduction: str) -> Tensor:
    """grads [B,N,d,m,m] of any strides -> float32 TSV [B,m,m]; sums in float64. Same contract as the reference."""
    batch, samples, channels, height, width = grads.shape
    positions = height * width
    stride_b, stride_n, stride_c, stride_y, stride_x = grads.stride()
    flat = height == 1 or stride_y == width * stride_x
    if width == 1:
        flat, stride_x = True, stride_y
    sizes = tile(stride_c == 1)
    blocks = batch * ceil_div(positions, sizes["BLOCK_P"])
    wanted = ceil_div(PROGRAMS, blocks) if blocks else 1
    per_split = ceil_div(ceil_div(channels, wanted), sizes["BLOCK_C"]) * sizes["BLOCK_C"]
    splits = ceil_div(channels, per_split)
    dtype = torch.float64 if reduction == "mean" else torch.float32
    partial = torch.empty((batch, splits, height, width), dtype=dtype, device=grads.device)
    launching.launch(
        _reduce,
        [blocks * splits],
        grads,
        grads=grads,
        out=partial,
        samples=samples,
        channels=channels,
        per_split=per_split,
        splits=splits,
        positions=positions,
        width=width,
        stride_b=stride_b,
        stride_n=stride_n,
        stride_c=stride_c,
        stride_y=stride_y,
        stride_x=stride_x,
        REDUCTION=reduction,
        FLAT=flat,
        **sizes,
    )
    if reduction == "mean":
        return (partial.sum(dim=1) / channels).float()
    return partial.amax(dim=1) if splits > 1 else partial[:, 0]
