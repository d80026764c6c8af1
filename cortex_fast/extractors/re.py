"""RE, the paper's residual information extractor with squeeze and excitation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channel means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.se = SqueezeExcitation(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h)) + self.shortcut(x)
        return F.relu(self.se(h))  # the published code gates the sum, not the branch


class RE(nn.Module):
    """E [B,in_channels,h,w] -> logits [B,num_classes].

    Two layers of three residual blocks, the first of each with stride 2, then a global mean and two linear layers.
    State-dict names are the published code's. Works on any grid.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.layer1 = self._layer(in_channels, width)
        self.layer2 = self._layer(width, width)
        self.fc1 = nn.Linear(width, hidden)
        self.bn_fc1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.4)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            ResidualBlock(inputs, outputs, stride=2),
            ResidualBlock(outputs, outputs, stride=1),
            ResidualBlock(outputs, outputs, stride=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(x)).mean(dim=(2, 3))
        x = self.dropout(F.relu(self.bn_fc1(self.fc1(x))))
        return self.fc2(x)
