"""Noisy copies of embeddings.

Bound: bytes, where images share noise: 4 (2 in half precision) an element written, x read once for each sample, from
cache. Where each image has its own noise, about 70 instructions an element take longer.

A tile is some quads of channels by some grid positions of one draw. Positions are rows of the stream, so that the four
normals of a counter go to four channels, each contiguous. A program goes through several images, and draws again only
where the item changes; both signs of an antithetic pair use one draw.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.launching import ceil_div
from cortex_fast.kernels.triton.philox import normal_quad

IMAGES = 8  # of one program
GIVEN_BLOCK = 1024  # elements


def tile(positions: int) -> dict[str, int]:
    """Quads of channels and positions of one program: 512 counters, few of them beyond the edge of a small grid."""
    block = 256 if positions > 64 else 64 if positions > 16 else 16
    return {"QUADS": 512 // block, "POSITIONS": block}


@triton.jit
def _store_copy(x, out, normal, scale, offset, inside):
    """x + scale normal, at `offset` within an image; x and out begin with their image and copy."""
    copy = tl.fma(scale, normal, tl.load(x + offset, mask=inside).to(tl.float32))
    tl.store(out + offset, copy.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["key_low", "key_high", "first_draw", "batch", "samples", "draws", "channels"])
def _draw(
    x,
    sigma,
    items,
    out,
    key_low: tl.uint32,
    key_high: tl.uint32,
    first_draw: tl.uint32,
    batch,
    samples,
    draws,
    channels,
    positions,
    ANTITHETIC: tl.constexpr,
    IMAGES: tl.constexpr,
    QUADS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    program = tl.program_id(0)
    position_blocks = tl.cdiv(positions, POSITIONS)
    quad_blocks = tl.cdiv(channels, 4 * QUADS)
    position = program % position_blocks * POSITIONS + tl.arange(0, POSITIONS)[None, :]
    program //= position_blocks
    quad = program % quad_blocks * QUADS + tl.arange(0, QUADS)[:, None]
    program //= quad_blocks
    draw = program % draws
    sample = (2 * draw if ANTITHETIC else draw).to(tl.int64)
    first_image = program // draws * IMAGES
    offset = 4 * quad.to(tl.int64) * positions + position
    size = channels.to(tl.int64) * positions
    a = tl.zeros((QUADS, POSITIONS), tl.float32)
    b, c, d = a, a, a
    drawn = tl.full((), -1, tl.int64)  # no item
    for image in range(first_image, tl.minimum(batch, first_image + IMAGES)):
        item = tl.load(items + image)
        if item != drawn:
            a, b, c, d = normal_quad(key_low, key_high, first_draw + draw, item, position, quad)
        drawn = item
        scale = tl.load(sigma + image)
        from_image = x + tl.cast(image, tl.int64) * size
        to_copy = out + (tl.cast(image, tl.int64) * samples + sample) * size
        for j in tl.static_range(4):
            normal = a if j == 0 else b if j == 1 else c if j == 2 else d
            place = offset + j * positions
            inside = (4 * quad + j < channels) & (position < positions)
            _store_copy(from_image, to_copy, normal, scale, place, inside)
            if ANTITHETIC:
                paired = inside & (sample + 1 < samples)
                _store_copy(from_image, to_copy + size, normal, -scale, place, paired)


@triton.jit(do_not_specialize=["samples"])
def _add_given(x, sigma, normals, out, samples, size, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    copy = tl.program_id(0) // blocks
    image = copy // samples
    offset = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    given = tl.load(normals + copy.to(tl.int64) * size + offset, mask=inside).to(tl.float32)
    from_image = x + tl.cast(image, tl.int64) * size
    _store_copy(from_image, out + copy.to(tl.int64) * size, given, tl.load(sigma + image), offset, inside)


def _launch_given(x: Tensor, sigma: Tensor, normals: Tensor, out: Tensor) -> None:
    """All contiguous: x [B,d,m,m], sigma [B], normals and out [B,N,d,m,m]."""
    samples, size = out.shape[1], x.shape[1:].numel()
    launching.launch(
        _add_given,
        [len(x) * samples * ceil_div(size, GIVEN_BLOCK)],
        x,
        x=x,
        sigma=sigma,
        normals=normals,
        out=out,
        samples=samples,
        size=size,
        BLOCK=GIVEN_BLOCK,
    )


def smoothgrad_noise(
    *,
    x: Tensor,
    sigma: Tensor,
    num_samples: int,
    seed: int,
    item_ids: Tensor,
    antithetic: bool,
    first_sample: int,
    normals: Tensor | None,
) -> Tensor:
    """x [B,d,m,m] -> [B,N,d,m,m] in x's dtype, contiguous. Drawn normals are never in memory."""
    batch, channels, *grid = x.shape
    positions = grid[0] * grid[1]
    x, sigma = x.contiguous(), sigma.float().contiguous()
    out = torch.empty((batch, num_samples, channels, *grid), dtype=x.dtype, device=x.device)
    if normals is not None:
        _launch_given(x, sigma, normals.contiguous(), out)
        return out
    key_low, key_high = philox.stream_key(seed, philox.NORMAL)
    draws = ceil_div(num_samples, 2) if antithetic else num_samples
    sizes = tile(positions)
    blocks = ceil_div(positions, sizes["POSITIONS"]) * ceil_div(channels, 4 * sizes["QUADS"])
    launching.launch(
        _draw,
        [blocks * draws * ceil_div(batch, IMAGES)],
        x,
        x=x,
        sigma=sigma,
        items=item_ids.contiguous(),
        out=out,
        key_low=key_low,
        key_high=key_high,
        first_draw=first_sample // 2 if antithetic else first_sample,
        batch=batch,
        samples=num_samples,
        draws=draws,
        channels=channels,
        positions=positions,
        ANTITHETIC=antithetic,
        IMAGES=IMAGES,
        **sizes,
    )
    return out
