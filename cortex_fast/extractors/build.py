"""Extractors by name."""

from collections.abc import Sequence

from torch import nn

from cortex_fast import checks
from cortex_fast.data.grids import Grid, grid_of, sides
from cortex_fast.extractors.ce import CE
from cortex_fast.extractors.ce_deep import CEDeep
from cortex_fast.extractors.re import RE
from cortex_fast.extractors.te import TE

MOST = 2**20  # of any size: what is larger was not meant
NAMES = ("ce", "ce_deep", "re", "te")


def build(
    name: str, *, num_classes: int = 1000, in_channels: int = 256, width: int = 512, grid: Grid = 16
) -> nn.Module:
    """An untrained information extractor f_Y: E [B,in_channels,h,w] -> logits [B,num_classes].

    name: "ce" (convolutional), "ce_deep" (two more convolutions after the second pooling), "re" (residual with squeeze
    and excitation) or "te" (transformer encoder with a class token). grid: m or (h, w). The defaults are the paper's
    scale; hidden layers scale with `width`, te's position embedding with `grid`, and te's heads have 64 channels, or 32
    or 16 where 64 does not divide the width. Parameter names and shapes are the published code's.
    Raises ValueError for an unknown name, sizes below 1, a width that 16 does not divide, or a grid with a side that 4
    does not ("ce", "ce_deep"); TypeError for sizes that are not whole numbers.
    """
    checks.one_of("name", name, NAMES)
    for argument, value in (
        ("num_classes", num_classes),
        ("in_channels", in_channels),
        ("width", width),
    ):
        checks.whole(argument, value, 1, MOST)
    if width % 16:
        raise ValueError(f"width: expected a multiple of 16, got {width}")
    if any(side % 4 for side in sides(grid)) and name in ("ce", "ce_deep"):
        raise ValueError(f"grid: expected a multiple of 4 (two poolings), got {grid}")
    if name == "re":
        return RE(num_classes=num_classes, in_channels=in_channels, width=width)
    kinds = {"ce": CE, "ce_deep": CEDeep, "te": TE}
    return kinds[name](num_classes=num_classes, in_channels=in_channels, width=width, grid=grid)


def check_grid(extractor: nn.Module, shape: Sequence[int]) -> None:
    """Raise ValueError where tokens or embeddings [...,h,w] have another grid than the extractor of ours was built for:
    as many tokens in other rows would be taken without a word."""
    if isinstance(extractor, CE | CEDeep | TE) and extractor.grid != tuple(shape[-2:]):
        raise ValueError(f"extractor: expected a grid of {grid_of(extractor.grid)}, got {grid_of(shape)}")
