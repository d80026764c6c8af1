"""Image classifiers that judge explanations: they see pixels, never tokens.

There are two residual networks and two vision transformers of different sizes, as in the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


class ResidualJudge(nn.Module):
    """Images [B,3,64,64] in [0,1] -> logits [B,num_classes]."""

    def __init__(self, *, num_classes: int, width: int, blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inputs = width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(_Block(inputs, width << stage, stride))
                inputs = width << stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images * 2 - 1).mean(dim=(2, 3)))


class TransformerJudge(nn.Module):
    """Images [B,3,64,64] in [0,1] -> logits [B,num_classes], by patches of 8 x 8 px."""

    PATCH = 8

    def __init__(self, *, num_classes: int, width: int, depth: int, size: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=self.PATCH, stride=self.PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // self.PATCH) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 16, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images * 2 - 1).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.encoder(x).mean(dim=1))


def build_judge(name: str, num_classes: int) -> nn.Module:
    """Build an untrained judge.

    Args:
        name: "residual-s", "residual-m", "transformer-s" or "transformer-m".
        num_classes: number of logits.

    Returns:
        The module, images [B,3,64,64] in [0,1] -> logits [B,num_classes].

    Raises:
        ValueError: an unknown name.
    """
    if name == "residual-s":
        return ResidualJudge(num_classes=num_classes, width=16, blocks=1)
    if name == "residual-m":
        return ResidualJudge(num_classes=num_classes, width=24, blocks=2)
    if name == "transformer-s":
        return TransformerJudge(num_classes=num_classes, width=64, depth=3)
    if name == "transformer-m":
        return TransformerJudge(num_classes=num_classes, width=96, depth=4)
    raise ValueError(f"name: expected one of {JUDGES}, got {name!r}")


JUDGES = ("residual-s", "residual-m", "transformer-s", "transformer-m")
