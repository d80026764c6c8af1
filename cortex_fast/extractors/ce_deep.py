"""CE-deep, the published code's deeper convolutional information extractor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.data.grids import Grid, sides

GROUPS = (4, 4, 2)  # convolutions before the first pooling, between the two, after the second


class CEDeep(nn.Module):
    """E [B,in_channels,h,w] -> logits [B,num_classes], for grid m or (h, w).

    Three groups of 3 x 3 convolutions (BatchNorm, ReLU) with 2 x 2 max pooling between them, then three linear layers.
    State-dict names are the published code's.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int, grid: Grid) -> None:
        super().__init__()
        self.grid = sides(grid)
        wide, narrow = 8 * width, 4 * width
        inputs = in_channels
        for group, count in enumerate(GROUPS, 1):
            for number in range(1, count + 1):
                self.add_module(f"conv{group}_{number}", nn.Conv2d(inputs, width, kernel_size=3, padding=1))
                self.add_module(f"bn{group}_{number}", nn.BatchNorm2d(width))
                inputs = width
        self.fc1 = nn.Linear(width * (self.grid[0] // 4) * (self.grid[1] // 4), wide)
        self.bn_fc1 = nn.BatchNorm1d(wide)
        self.fc2 = nn.Linear(wide, narrow)
        self.bn_fc2 = nn.BatchNorm1d(narrow)
        self.fc3 = nn.Linear(narrow, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        for group, count in enumerate(GROUPS, 1):
            if group > 1:
                x = F.max_pool2d(x, 2)
            for number in range(1, count + 1):
                conv, norm = self.get_submodule(f"conv{group}_{number}"), self.get_submodule(f"bn{group}_{number}")
                x = F.relu(norm(conv(x)))
        x = torch.flatten(x, 1)
        x = self.dropout(F.relu(self.bn_fc1(self.fc1(x))))
        x = F.relu(self.bn_fc2(self.fc2(x)))  # the published code drops after the first linear layer only
        return self.fc3(x)
