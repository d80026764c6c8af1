"""Random choices of one call, and tensors of random values and memory layouts."""

import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
HALVES = (torch.float16, torch.bfloat16)


class Draw:
    """All that is random about a call, from one text."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(self._random.getrandbits(62))

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def among(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices)

    def whole(self, low: int, high: int) -> int:
        """Within [low, high], mostly near low."""
        return low + int((high - low + 1) * self._random.random() ** 2)

    def sample(self, population: Sequence[T], count: int) -> list[T]:
        return self._random.sample(population, count)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def integers(self, stop: int, *shape: int) -> Tensor:
        return torch.randint(stop, shape, generator=self._generator)

    def tensor(
        self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, special: bool = False
    ) -> Tensor:
        """Normals times scale; special: some of them infinite, NaN, -0, denormal or the largest of the dtype."""
        values = (self.normal(*shape) * scale).to(dtype)
        if special and values.numel() and self.chance(0.4):
            info = torch.finfo(dtype)
            odd = (torch.inf, -torch.inf, torch.nan, -0.0, info.tiny / 4, info.max, info.min)
            flat = values.view(-1)
            for _ in range(self.whole(1, 4)):
                flat[self.whole(0, flat.numel() - 1)] = self.among(odd)
        return self.laid_out(values)

    def laid_out(self, values: Tensor) -> Tensor:
        """These values in some other memory: transposed, with gaps, off its alignment, or lazily negated."""
        kind = self.among(("plain", "plain", "transposed", "sliced", "offset", "expanded", "negated", "graph"))
        dims = values.ndim
        if kind == "transposed" and dims > 1:
            order = self.sample(range(dims), dims)
            back = [order.index(dim) for dim in range(dims)]
            return values.permute(order).contiguous().permute(back)
        if kind == "sliced" and dims:
            dim = self.whole(0, dims - 1)
            wide = torch.cat([values, values], dim=dim)
            every = (*[slice(None)] * dim, slice(None, None, 2))
            wide[every] = values
            return wide[every]
        if kind == "offset":
            by = self.whole(1, 3)
            flat = torch.cat(
                [values.flatten()[:1].expand(by) if values.numel() else values.flatten(), values.flatten()]
            )
            return flat[-values.numel() :].view(values.shape) if values.numel() else values
        if kind == "expanded" and dims and values.numel():
            dim = self.whole(0, dims - 1)
            return values.narrow(dim, 0, 1).expand(values.shape)
        if kind == "negated" and values.dtype.is_signed:
            return torch._neg_view(-values)
        if kind == "graph" and values.is_floating_point():
            return values.requires_grad_()
        return values


def plain(tensor: Tensor) -> Tensor:
    """A copy of its values in fresh, contiguous memory."""
    return tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def wide(tensor: Tensor) -> Tensor:
    return plain(tensor).double()
