"""The random stream inside kernels: the functions of csrc/include/cortex_fast/philox.h, and tiles of its numbers.

Bound: ten rounds are 20 products and 20 high halves of products for four numbers. So a tile calls them once for four
consecutive indices and interleaves the words: neighbours stay in one thread.

The key is the two words of reference.philox.stream_key, kernel arguments of type uint32. In a kernel, item, row and
draw are whole numbers of any type, arguments or loaded: scalars, or columns [BLOCK_ROWS, 1].
"""

import triton
import triton.language as tl

from cortex_fast.kernels.triton.transforms import gumbel_of, normals_of


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32 tensors that broadcast together: the four output words."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high2, low2 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def quad_words(key_low, key_high, draw, item, row, quad):
    """The four words of the indices 4 quad to 4 quad + 3."""
    return philox4x32(
        tl.cast(quad, tl.uint32),
        tl.cast(row, tl.uint32),
        tl.cast(item, tl.uint32),
        tl.cast(draw, tl.uint32),
        tl.cast(key_low, tl.uint32),
        tl.cast(key_high, tl.uint32),
    )


@triton.jit
def quads_from(first, BLOCK: tl.constexpr):
    """[1, BLOCK / 4]: the quads of BLOCK indices from `first`, a multiple of 4."""
    return (first // 4 + tl.arange(0, BLOCK // 4))[None, :]


@triton.jit
def interleave4(a, b, c, d):
    """Four [rows, n] -> [rows, 4 n]: a b c d a b c d ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def word_tile(key_low, key_high, draw, item, row, first, BLOCK: tl.constexpr):
    """The words uint32 [BLOCK_ROWS, BLOCK] of the indices from `first`; both multiples of 4."""
    a, b, c, d = quad_words(key_low, key_high, draw, item, row, quads_from(first, BLOCK))
    return interleave4(a, b, c, d)


@triton.jit
def gumbel_tile(key_low, key_high, draw, item, row, first, BLOCK: tl.constexpr):
    """Gumbel(0, 1) float32 [BLOCK_ROWS, BLOCK] of the codes from `first`; both multiples of 4."""
    a, b, c, d = quad_words(key_low, key_high, draw, item, row, quads_from(first, BLOCK))
    return interleave4(gumbel_of(a), gumbel_of(b), gumbel_of(c), gumbel_of(d))


@triton.jit
def normal_quad(key_low, key_high, draw, item, row, quad):
    """Four standard normals float32, of the indices 4 quad to 4 quad + 3."""
    a, b, c, d = quad_words(key_low, key_high, draw, item, row, quad)
    first, second = normals_of(a, b)
    third, fourth = normals_of(c, d)
    return first, second, third, fourth


@triton.jit
def normal_tile(key_low, key_high, draw, item, row, first, BLOCK: tl.constexpr):
    """Standard normals float32 [BLOCK_ROWS, BLOCK] of the indices from `first`; both multiples of 4."""
    a, b, c, d = normal_quad(key_low, key_high, draw, item, row, quads_from(first, BLOCK))
    return interleave4(a, b, c, d)
