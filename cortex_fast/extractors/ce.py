"""CE, the paper's convolutional information extractor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.data.grids import Grid, sides


class CE(nn.Module):
    """E [B,in_channels,h,w] -> logits [B,num_classes], for grid m or (h, w).

    Two groups of four 3 x 3 convolutions (BatchNorm, ReLU), each followed by 2 x 2 max pooling, then three linear
    layers. State-dict names are the published code's.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int, grid: Grid) -> None:
        super().__init__()
        self.grid = sides(grid)
        hidden = 8 * width
        for group in (1, 2):
            for number in (1, 2, 3, 4):
                first = group == number == 1
                conv = nn.Conv2d(in_channels if first else width, width, kernel_size=3, padding=1)
                self.add_module(f"conv{group}_{number}", conv)
                self.add_module(f"bn{group}_{number}", nn.BatchNorm2d(width))
        self.fc1 = nn.Linear(width * (self.grid[0] // 4) * (self.grid[1] // 4), hidden)
        self.bn_fc1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.bn_fc2 = nn.BatchNorm1d(hidden)
        self.fc3 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for group in (1, 2):
            for number in (1, 2, 3, 4):
                conv, norm = self.get_submodule(f"conv{group}_{number}"), self.get_submodule(f"bn{group}_{number}")
                x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x, 2)
        x = torch.flatten(x, 1)
        x = self.dropout(F.relu(self.bn_fc1(self.fc1(x))))
        return self.fc3(F.relu(self.bn_fc2(self.fc2(x))))
