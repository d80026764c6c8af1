"""Extractors by name."""

from collections.abc import Sequence

from torch import nn

from cortex_fast import checks
from cortex_fast.data.grids import Grid, grid_of, sides
from cortex_fast.extractors.ce import CE
from cortex_fast.extractors.ce_deep import CEDeep
from cortex_fast.extractors.re import RE
from cortex_fast.extractors.te import TE

MOST = 2**20  # the largest size that is accepted: a larger one is a mistake
_CLASSES = {"ce": CE, "ce_deep": CEDeep, "re": RE, "te": TE}
_POOLED_TWICE = ("ce", "ce_deep")
_ANY_GRID = ("re",)
NAMES = tuple(_CLASSES)


def build(
    name: str, *, num_classes: int = 1000, in_channels: int = 256, width: int = 512, grid: Grid = 16
) -> nn.Module:
    """An untrained information extractor f_Y: E [B,in_channels,h,w] -> logits [B,num_classes].

    The parameter names and shapes of these four are the published code's, and the defaults are the paper's sizes. The
    hidden layers scale with `width`, and te's position embedding with `grid`. te's heads have 64 channels, or 32 or 16
    where 64 does not divide the width.

    Args:
        name: "ce" (convolutional), "ce_deep" (two more convolutions after the second pooling), "re" (residual with
            squeeze and excitation) or "te" (transformer encoder with a class token).
        num_classes: number of logits, from 1. Default 1000.
        in_channels: d, from 1. Default 256.
        width: channels of the hidden layers, a multiple of 16. Default 512.
        grid: m or (h, w); sides of "ce" and "ce_deep" must be multiples of 4. "re" works on any grid. Default 16.

    Returns:
        The module, in training mode, with torch's random initial weights.

    Raises:
        ValueError: an unknown name, a size out of range, or a width or grid that the extractor cannot have.
        TypeError: a size that is not a whole number.
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
    if any(side % 4 for side in sides(grid)) and name in _POOLED_TWICE:
        raise ValueError(f"grid: expected a multiple of 4 (two poolings), got {grid}")
    bound_to = {} if name in _ANY_GRID else {"grid": grid}
    return _CLASSES[name](num_classes=num_classes, in_channels=in_channels, width=width, **bound_to)


def check_grid(extractor: nn.Module, shape: Sequence[int]) -> None:
    """Raise ValueError if tokens or embeddings [...,h,w] have another grid than one of our extractors was built for.

    Without this check, a grid of as many tokens in other rows would be accepted.
    """
    if isinstance(extractor, CE | CEDeep | TE) and extractor.grid != tuple(shape[-2:]):
        raise ValueError(f"extractor: expected a grid of {grid_of(extractor.grid)}, got {grid_of(shape)}")
