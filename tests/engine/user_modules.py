"""Shared by the engine's tests: user modules written in a line, and gradients by plain autograd."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.engine.assembling import assembled
from cortex_fast.engine.borrowing import borrowed
from cortex_fast.engine.folding import fold
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.tracing import recorded

CHANNELS, GRID = 5, 8  # of every embedding here


class Of(nn.Module):
    """forward(x) = function(self, x), with the given modules as attributes; in eval mode."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def embedding(batch: int = 3, *, grid: int = GRID, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS, grid, grid, generator=generator).to(dtype)


def conv(inputs: int = CHANNELS, outputs: int = 8, size: int = 3, *, seed: int = 1, **options) -> nn.Conv2d:
    """A convolution that keeps the grid."""
    return seeded(lambda: nn.Conv2d(inputs, outputs, size, **({"padding": size // 2} | options)), seed)


def linear(inputs: int, outputs: int = 4, *, seed: int = 2, **options) -> nn.Linear:
    return seeded(lambda: nn.Linear(inputs, outputs, **options), seed)


def norm(channels: int = 8, *, flat: bool = False, seed: int = 3, **options) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """A BatchNorm with random statistics, weight and bias."""

    def make():
        layer = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels, **options)
        if layer.track_running_stats:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        if layer.affine:
            layer.weight.data.normal_()
            layer.bias.data.normal_()
        return layer.eval()

    return seeded(make, seed)


def seeded(make, seed: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def ended(body: Callable[[nn.Module, Tensor], Tensor], features: int = 8 * GRID * GRID, **modules: nn.Module) -> Of:
    """body(self, x), then ReLU, flatten and a linear layer."""
    return Of(lambda self, x: self.head(F.relu(body(self, x)).flatten(1)), head=linear(features), **modules)


def graph_of(extractor: nn.Module, grid: int = GRID) -> Graph:
    """The extractor's graph as recorded."""
    dtype = next((t.dtype for t in (*extractor.parameters(), *extractor.buffers())), torch.float64)
    few, more = (embedding(images, grid=grid, seed=images, dtype=dtype) for images in (2, 3))
    stand_in = borrowed(extractor)
    return assembled(recorded(stand_in, few), recorded(stand_in, more))


def folded(extractor: nn.Module, grid: int = GRID) -> Graph:
    return fold(graph_of(extractor, grid))


def autograd(extractor: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's logit and its gradient, one image and one backward pass at a time."""
    values, gradients = [], []
    for image, image_target in zip(x, target.tolist(), strict=True):
        leaf = image[None].clone().requires_grad_(True)
        value = extractor(leaf)[0, image_target]
        gradients += torch.autograd.grad(value, leaf)
        values.append(value.detach())
    return torch.stack(values), torch.cat(gradients)


def relative(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())
