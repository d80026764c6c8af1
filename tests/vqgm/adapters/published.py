"""State dicts of published layouts, filled from a seed."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor


def layout(name: str, *, narrowed: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes, written by the published code; narrowed: a quarter of the channels, 64 codes."""
    narrow = {128: 32, 256: 64, 512: 128, 16384: 64} if narrowed else {}
    lines = (Path(__file__).parent / f"{name}.txt").read_text().splitlines()
    words = (line.split() for line in lines)
    return {key: tuple(narrow.get(int(size), int(size)) for size in sizes) for key, *sizes in words}


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Normal values that keep activations of ordinary size, drawn in the names' order."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in sorted(shapes):
        value = torch.randn(shapes[name], generator=generator)
        if value.ndim == 1:
            value = value * 0.1 + ("norm" in name and name.endswith("weight"))
        elif "embedding" not in name:
            value = value / prod(value.shape[1:]) ** 0.5
        state[name] = value
    return state


def picture(size: int) -> Tensor:
    """One image [1,3,size,size] in [0,1] of coarse patches."""
    coarse = torch.rand(1, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="nearest")
