"""A model small enough to run a whole study in seconds: three classes, each with its own favourite tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from cortex_fast.ops.random_stream import gumbel
from cortex_fast.vqgm import Model, Sampler

CLASSES, CODES, CHANNELS, SIDE = 3, 16, 8, 8


def build() -> Model:
    """A VQGM whose class c prefers tokens 4 c to 4 c + 3."""
    codebook = torch.randn(CODES, CHANNELS, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(CLASSES, CODES)
    for label in range(CLASSES):
        logits[label, 4 * label : 4 * label + 4] = 1.5

    def draw(labels: Tensor, items: Tensor, seed: int, tick: Callable[[], object]) -> Tensor:
        noise = gumbel(seed, items, torch.zeros(1, dtype=torch.int64), SIDE * SIDE, CODES)[:, 0]
        return (logits[labels][:, None] + noise).argmax(dim=2)

    return Model(codebook, SIDE, "tiny", sampler=Sampler(draw, CLASSES))
