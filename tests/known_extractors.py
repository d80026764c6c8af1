"""Small extractors whose gradients are known."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """logits = W flatten(x): the gradient of logit t is row t, whatever the noise."""

    def __init__(self, channels: int, grid: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, channels * grid * grid, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.weight.dtype) @ self.weight.T


class Cubic(nn.Module):
    """logit t = sum a_t x^3 / 3: the gradient is a_t x^2, and its mean under noise a_t (x^2 + sigma^2)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.arange(1.0, classes + 1)[:, None] * torch.linspace(1, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x**3 / 3).sum(dim=(2, 3)) @ self.a.T


class Convolutional(nn.Module):
    """Convolution, BatchNorm with running statistics, ReLU, dropout: the layers of real extractors."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        return self.head(self.drop(h.amax(dim=(2, 3))))


def tiny(name: str, *, classes: int = 4, channels: int = 5, grid: int = 8) -> nn.Module:
    """One of the package's extractors at its smallest, in eval mode and as training would leave it: random running
    statistics, weights and biases in every norm, and gradients of ordinary size."""
    from cortex_fast.extractors import build

    with torch.random.fork_rng():
        torch.manual_seed(2)
        extractor = build(name, num_classes=classes, in_channels=channels, width=16, grid=grid)
        for module in extractor.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.2, 0.6)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
    return extractor.eval()
