"""Extractors by name."""

from torch import nn

from cortex_fast import checks
from cortex_fast.extractors.ce import CE
from cortex_fast.extractors.re import RE

NAMES = ("ce", "re")


def build(name: str, *, num_classes: int = 1000, in_channels: int = 256, width: int = 512, grid: int = 16) -> nn.Module:
    """An untrained information extractor f_Y: E [B,in_channels,grid,grid] -> logits [B,num_classes].

    name: "ce" (convolutional) or "re" (residual with squeeze and excitation). The defaults are the paper's scale;
    hidden layers scale with `width`. Parameter names and shapes are the published code's.
    Raises ValueError for an unknown name, sizes below 1, a width that 16 does not divide, or a grid that 4 does not
    (CE).
    """
    checks.one_of("name", name, NAMES)
    for argument, value in (
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("width", width),
        ("grid", grid),
    ):
        checks.whole(argument, value, 1)
    if width % 16:
        raise ValueError(f"width: expected a multiple of 16, got {width}")
    if name == "ce":
        if grid % 4:
            raise ValueError(f"grid: expected a multiple of 4 (two poolings), got {grid}")
        return CE(num_classes=num_classes, in_channels=in_channels, width=width, grid=grid)
    return RE(num_classes=num_classes, in_channels=in_channels, width=width)
