"""The nearest codebook row.

Bound: arithmetic, one product z C^T of 2 R K d operations. Of the R x K distances only the least of each tile of codes
is written, 1/128 of them.

As csrc/cpu/nearest_code.cpp: |c|^2 - 2 <z, c> in float32 only shortlists. Tiles whose least value is within a bound on
its rounding errors of the best are searched again in float64, mostly one tile a row. So the result is exact, and equal
codes tie to the lower index. Half precision multiplies on the matrix units, which represent it exactly as tf32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.kernels.triton import launching
from cortex_fast.kernels.triton.launching import ceil_div

CODES = 128  # of a tile
MEASURE = {"CODES": CODES, "CHANNELS": 16}
SHORTLIST = {"ROWS": 64, "CODES": CODES, "CHANNELS": 16}
SEARCH = {"CODES": CODES, "PART": 32, "CHANNELS": 32, "TILES": 128}


@triton.jit(do_not_specialize=["codes"])
def _measure(codebook, squares, norms, codes, channels, CODES: tl.constexpr, CHANNELS: tl.constexpr):
    """|c|^2 of each code, infinite where the code is not finite, and the largest |c| of each tile's finite ones."""
    code = tl.program_id(0) * CODES + tl.arange(0, CODES)
    sums = tl.zeros((CODES, CHANNELS), tl.float64)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = (code < codes)[:, None] & (channel < channels)[None, :]
        at = codebook + code.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(at, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        sums += value * value
    square = tl.sum(sums, axis=1)
    finite = square < float("inf")  # False for NaN
    tl.store(squares + code, tl.where(finite, square.to(tl.float32), float("inf")), mask=code < codes)
    tl.store(norms + tl.program_id(0), tl.sqrt(tl.max(tl.where(finite, square, 0.0), axis=0)))


@triton.jit(do_not_specialize=["rows", "codes", "tiles"])
def _shortlist(
    z,
    codebook,
    squares,
    least,
    rows,
    codes,
    tiles,
    channels,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """least [R, tiles]: the least |c|^2 - 2 <z, c> of a row and a tile of codes."""
    row_blocks = tl.cdiv(rows, ROWS)
    tile = tl.program_id(0) // row_blocks
    row = tl.program_id(0) % row_blocks * ROWS + tl.arange(0, ROWS)
    code = tile * CODES + tl.arange(0, CODES)
    products = tl.zeros((ROWS, CODES), tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        at_z = z + row.to(tl.int64)[:, None] * channels + channel[None, :]
        at_code = codebook + code.to(tl.int64)[None, :] * channels + channel[:, None]
        left = tl.load(at_z, mask=(row < rows)[:, None] & (channel < channels)[None, :], other=0.0)
        right = tl.load(at_code, mask=(code < codes)[None, :] & (channel < channels)[:, None], other=0.0)
        products = tl.dot(left.to(tl.float32), right.to(tl.float32), products, input_precision=PRECISION)
    square = tl.load(squares + code, mask=code < codes, other=float("inf"))[None, :]
    value = tl.where(square < float("inf"), square - 2.0 * products, float("inf"))
    tl.store(least + row.to(tl.int64) * tiles + tile, tl.min(value, axis=1), mask=row < rows)


@triton.jit
def _error(norm, code_norm, channels):
    """Bound on |error| of a shortlisted value, with that of the distances in float64, which decide.

    d products and sums, whose |terms| add up to |z| |c|, have 2^-22 of each: matrix units round towards zero, and once
    for several terms. |c|^2 and the last subtraction have as much. Then come underflow and float64's own rounding.
    """
    of_products = 2.0**-22 * ((2.0 * channels + 4.0) * norm * code_norm + 2.0 * code_norm * code_norm)
    decisive = (channels + 4.0) * 2.0**-51 * (norm + code_norm) * (norm + code_norm)
    return of_products + (channels + 2.0) * 2.0**-125 + decisive


@triton.jit
def _distances(z, codebook, code, codes, channels, CHANNELS: tl.constexpr):
    """|z - c|^2 of a row z and some codes, in float64; infinite past the last code, and instead of NaN."""
    squares = tl.zeros((code.shape[0], CHANNELS), tl.float64)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = (code < codes)[:, None] & (channel < channels)[None, :]
        at = codebook + code.to(tl.int64)[:, None] * channels + channel[None, :]
        code_value = tl.load(at, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
        z_value = tl.load(z + channel, mask=channel < channels, other=0.0).to(tl.float32).to(tl.float64)
        difference = code_value - z_value[None, :]
        squares += difference * difference
    distance = tl.sum(squares, axis=1)
    return tl.where((code < codes) & (distance == distance), distance, float("inf"))


@triton.jit(do_not_specialize=["codes", "tiles"])
def _search(
    z,
    codebook,
    least,
    norms,
    largest,
    index,
    codes,
    tiles,
    channels,
    CODES: tl.constexpr,
    PART: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILES: tl.constexpr,
):
    """One row: the index, by distances in float64 within the tiles that may hold the nearest code."""
    row = tl.program_id(0).to(tl.int64)
    z += row * channels
    least += row * tiles
    depth = tl.cast(channels, tl.float64)
    sums = tl.zeros((CHANNELS,), tl.float64)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        value = tl.load(z + channel, mask=channel < channels, other=0.0).to(tl.float32).to(tl.float64)
        sums += value * value
    norm = tl.sqrt(tl.sum(sums, axis=0))
    most = tl.load(largest)
    finite = norm < float("inf")
    fits = (norm * most < 1e37) & (most * most < 1e37)  # else all codes are searched: products may be infinite
    limit = tl.full((), float("inf"), tl.float64)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        error = _error(norm, tl.load(norms + tile, mask=tile < tiles, other=0.0), depth)
        value = tl.load(least + tile, mask=tile < tiles, other=float("inf")).to(tl.float64)
        limit = tl.minimum(limit, tl.min(value + error, axis=0))
    best = tl.full((), float("inf"), tl.float64)
    winner = tl.full((), 0, tl.int64)
    for tile in range(0, tiles):
        lower = tl.load(least + tile).to(tl.float64) - _error(norm, tl.load(norms + tile), depth)
        if finite & ((lower <= limit) | (fits == 0)):
            for first_code in range(tile * CODES, tl.minimum(codes, (tile + 1) * CODES), PART):
                code = first_code + tl.arange(0, PART)
                distance = _distances(z, codebook, code, codes, channels, CHANNELS=CHANNELS)
                nearest = tl.min(distance, axis=0)
                first_of_them = tl.min(tl.where(distance == nearest, code, codes), axis=0)
                if nearest < best:
                    best = nearest
                    winner = first_of_them.to(tl.int64)
    tl.store(index + row, winner)


def precision(dtype: torch.dtype) -> str:
    """Halves are exact in tf32, float32 is not; few AMD GPUs have tf32."""
    return "ieee" if dtype == torch.float32 or torch.version.hip is not None else "tf32"


def nearest_code(*, z: Tensor, codebook: Tensor) -> Tensor:
    """z [R,d], codebook [K,d], float32 or narrower -> int64 [R]. Same contract as the reference."""
    dtype = torch.promote_types(z.dtype, codebook.dtype)
    z, codebook = z.to(dtype).contiguous(), codebook.to(dtype).contiguous()
    (rows, channels), codes = z.shape, len(codebook)
    tiles = ceil_div(codes, CODES)
    squares, least = z.new_empty(codes, dtype=torch.float32), z.new_empty((rows, tiles), dtype=torch.float32)
    norms = z.new_empty(tiles, dtype=torch.float64)
    index = z.new_empty(rows, dtype=torch.int64)
    launching.launch(
        _measure,
        [tiles],
        z,
        codebook=codebook,
        squares=squares,
        norms=norms,
        codes=codes,
        channels=channels,
        **MEASURE,
    )
    launching.launch(
        _shortlist,
        [tiles * ceil_div(rows, SHORTLIST["ROWS"])],
        z,
        z=z,
        codebook=codebook,
        squares=squares,
        least=least,
        rows=rows,
        codes=codes,
        tiles=tiles,
        channels=channels,
        PRECISION=precision(dtype),
        num_warps=8,
        **SHORTLIST,
    )
    launching.launch(
        _search,
        [rows],
        z,
        z=z,
        codebook=codebook,
        least=least,
        norms=norms,
        largest=norms.amax(),
        index=index,
        codes=codes,
        tiles=tiles,
        channels=channels,
        **SEARCH,
    )
    return index
