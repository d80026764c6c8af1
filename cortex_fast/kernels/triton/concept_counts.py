"""Counts of each concept's top tokens.

Bound: launching. An image is 256 values; each is compared with all others, 65,536 comparisons, a few microseconds of
one multiprocessor. A position is chosen where fewer than n others precede it: no sorting, and any number of positions.
"image" counts a token at its first position in that order, which is chosen if any of its positions is.

Counts are added by integer atomics, whose order does not matter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.launching import ceil_div

TILE = {"BLOCK": 64, "OTHERS": 32}  # positions, and how many others they are compared with at a time
TOKENS = (torch.uint16, torch.int64)  # the token store's dtype, and the one that all others are converted to


@triton.jit
def _offset(position, width, stride_y, stride_x):
    return (position // width).to(tl.int64) * stride_y + (position % width).to(tl.int64) * stride_x


@triton.jit(do_not_specialize=["positions", "width", "top_n", "codebook_size"])
def _count(
    tsv,
    tokens,
    labels,
    counts,
    positions,
    width,
    top_n,
    codebook_size,
    tsv_b,
    tsv_y,
    tsv_x,
    tokens_b,
    tokens_y,
    tokens_x,
    PER_IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    OTHERS: tl.constexpr,
):
    blocks = tl.cdiv(positions, BLOCK)
    image = tl.program_id(0) // blocks
    tsv += image.to(tl.int64) * tsv_b
    tokens += image.to(tl.int64) * tokens_b
    position = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK))[:, None]
    inside = position < positions
    value = tl.load(tsv + _offset(position, width, tsv_y, tsv_x), mask=inside, other=0.0)
    token = tl.load(tokens + _offset(position, width, tokens_y, tokens_x), mask=inside, other=0).to(tl.int64)
    before = tl.zeros((BLOCK, 1), tl.int32)
    seen = tl.zeros((BLOCK, 1), tl.int32)
    for first in range(0, positions, OTHERS):
        other = (first + tl.arange(0, OTHERS))[None, :]
        other_inside = other < positions
        others = tl.load(tsv + _offset(other, width, tsv_y, tsv_x), mask=other_inside, other=float("-inf"))
        earlier = (others > value) | ((others == value) & (other < position))
        before += tl.sum(earlier.to(tl.int32), axis=1, keep_dims=True)
        if PER_IMAGE:
            other_token = tl.load(tokens + _offset(other, width, tokens_y, tokens_x), mask=other_inside, other=0).to(
                tl.int64
            )
            seen += tl.sum((earlier & (other_token == token)).to(tl.int32), axis=1, keep_dims=True)
    cell = counts + tl.load(labels + image) * codebook_size + token
    chosen = inside & (before < top_n) & (seen == 0)
    tl.atomic_add(cell, tl.full((BLOCK, 1), 1, tl.int64), mask=chosen, sem="relaxed")


def concept_counts(
    *, tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> Tensor:
    """int64 [num_concepts,K] from tsv [B,m,m], tokens [B,m,m] and labels [B]. Same contract as the reference."""
    batch, height, width = tsv.shape
    tsv = tsv.float()
    tokens = tokens if tokens.dtype in TOKENS else tokens.long()
    counts = torch.zeros((num_concepts, codebook_size), dtype=torch.int64, device=tsv.device)
    launching.launch(
        _count,
        [batch * ceil_div(height * width, TILE["BLOCK"])],
        tsv,
        tsv=tsv,
        tokens=tokens,
        labels=labels.long().contiguous(),
        counts=counts,
        positions=height * width,
        width=width,
        top_n=top_n,
        codebook_size=codebook_size,
        **dict(zip(("tsv_b", "tsv_y", "tsv_x"), tsv.stride(), strict=True)),
        **dict(zip(("tokens_b", "tokens_y", "tokens_x"), tokens.stride(), strict=True)),
        PER_IMAGE=per == "image",
        **TILE,
    )
    return counts
