"""The random stream that every backend shares: Philox4x32-10 and its two transforms.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). The stream of one operator is fixed by
key = output number `stream` (from 1) of splitmix64 started at the seed, low word first, and
counter = (index within the row // 4, row, item, draw); the four words of a counter are the four consecutive indices.
Nothing depends on shapes of batches or chunks.

int64 tensors hold the 32-bit words: a product of two such words wraps modulo 2^64, and a shift with a mask then gives
the high word exactly.
"""

import math

import torch
from torch import Tensor

NORMAL, GUMBEL, SAMPLING = 1, 2, 3  # stream numbers
STREAMS = {"normal": NORMAL, "gumbel": GUMBEL, "sampling": SAMPLING}
_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_LARGEST = 1 - 2.0**-24  # the largest float32 below 1


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds: four broadcastable int64 tensors of 32-bit words -> the four output words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((second >> 32) & _WORD) ^ c1 ^ k0, second & _WORD
        c2, c3 = ((first >> 32) & _WORD) ^ c3 ^ k1, first & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def stream_key(seed: int, stream: int) -> tuple[int, int]:
    """The two key words of a 64-bit seed and a stream number: one step of splitmix64, which is a bijection."""
    mixed = (seed + stream * _GOLDEN) & _LONG
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _LONG
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _LONG
    mixed ^= mixed >> 31
    return mixed & _WORD, mixed >> 32


def words(seed: int, stream: int, items: Tensor, draws: Tensor, rows: int, length: int) -> tuple[Tensor, ...]:
    """The four words, each int64 [items, draws, rows, ceil(length / 4)], of int64 vectors `items` and `draws`."""
    device = items.device
    quads = torch.arange((length + 3) // 4, device=device)
    row = torch.arange(rows, device=device)[:, None]
    shape = (len(items), len(draws), rows, len(quads))
    counter = (quads, row, items[:, None, None, None], draws[:, None, None])
    return tuple(word.expand(shape) for word in philox4x32(counter, stream_key(seed, stream)))


def uniform(word: Tensor) -> Tensor:
    """32-bit words -> float32 in [2^-33, 1 - 2^-24]; float32(word) 2^-32 + 2^-33 is rounded alike everywhere."""
    return (word.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp(max=_LARGEST)


def _interleave(parts: list[Tensor], length: int) -> Tensor:
    """Four [..., n] -> [..., length]: a b c d a b c d ..."""
    return torch.stack(parts, dim=-1).flatten(-2)[..., :length]


def normal(seed: int, items: Tensor, draws: Tensor, rows: int, length: int) -> Tensor:
    """Standard normals float32 [items, draws, rows, length], by Box-Muller on each pair of words.

    The angle is float32(u float32(2 pi)): that rounding is part of the definition, or backends would disagree.
    """
    w0, w1, w2, w3 = words(seed, NORMAL, items, draws, rows, length)
    parts = []
    for first, second in ((w0, w1), (w2, w3)):
        radius = (-2 * uniform(first).log()).sqrt()
        angle = uniform(second) * (2 * math.pi)
        parts += [radius * angle.cos(), radius * angle.sin()]
    return _interleave(parts, length)


def gumbel(seed: int, items: Tensor, draws: Tensor, rows: int, length: int, stream: int = GUMBEL) -> Tensor:
    """Gumbel(0, 1) float32 [items, draws, rows, length]: -log(-log1p(-u)), which resolves the winning (upper) tail."""
    drawn = words(seed, stream, items, draws, rows, length)
    return _interleave([-(-torch.log1p(-uniform(word))).log() for word in drawn], length)
