"""The random stream in float64: the definition's words, each transform's last step rounded nowhere."""

import math

import numpy as np
import torch
from torch import Tensor

from cortex_fast.kernels.reference import philox

UNIT = 2.0**-24
STREAMS = philox.STREAMS


def words(stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int) -> np.ndarray:
    """int64 [items, draws, rows, length + up to 3], index by index."""
    four = philox.words(seed, STREAMS[stream], items, draws, rows, length)
    return torch.stack(four, dim=-1).flatten(-2).numpy()


def uniform(word: np.ndarray) -> np.ndarray:
    """float32, both steps taken where they are exact and then rounded."""
    return np.minimum((word.astype(np.float32).astype(np.float64) / 2**32 + 2.0**-33).astype(np.float32), 1 - UNIT)


def gumbel(word: np.ndarray) -> np.ndarray:
    return -np.log(-np.log1p(-uniform(word).astype(np.float64)))


def normal(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two normals of two words, and their radius. The angle is rounded to float32, by definition."""
    radius = np.sqrt(-2 * np.log(uniform(first).astype(np.float64)))
    angle = (uniform(second) * np.float32(2 * math.pi)).astype(np.float64)
    return radius * np.cos(angle), radius * np.sin(angle), radius


def gumbel_noise(seed: int, items: Tensor, draw: int, rows: int, codes: int) -> np.ndarray:
    """g [items, rows, codes] of gumbel_codebook."""
    drawn = words("gumbel", seed, items, torch.tensor([draw]), rows, codes)
    return gumbel(drawn[:, 0, :, :codes])


def normal_noise(
    seed: int, items: Tensor, samples: int, channels: int, grid: tuple[int, int], first_sample: int = 0
) -> np.ndarray:
    """e [items, samples, channels, *grid] of smoothgrad_noise."""
    draws = torch.arange(first_sample, first_sample + samples)
    drawn = words("normal", seed, items, draws, grid[0] * grid[1], channels)
    first, second, _ = normal(drawn[..., ::2], drawn[..., 1::2])
    noise = np.stack((first, second), axis=-1).reshape(drawn.shape)[..., :channels]  # [items, samples, positions, d]
    return noise.swapaxes(2, 3).reshape(*noise.shape[:2], channels, *grid)
