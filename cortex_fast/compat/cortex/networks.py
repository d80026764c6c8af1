"""The published code's extractors by its names: `cortex_fast.extractors`, built with its arguments.

Checkpoints of the published code load into them. The sizes that it fixes are arguments here.
"""

import math

from cortex_fast.data.grids import Grid
from cortex_fast.extractors.ce import CE
from cortex_fast.extractors.ce_deep import CEDeep
from cortex_fast.extractors.re import RE
from cortex_fast.extractors.te import DROPOUT, LAYERS, TE


class ClassificationNet1(CE):
    """The paper's CE, convolutional: E [B, d, m, m] -> logits [B, num_classes].

    Args:
        num_classes: number of logits.
        in_channels: d. Default 256, the published one.
        width: channels of the layers. Default 512, the published one.
        grid: m or (h, w). Default 16, the published one.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 256, width: int = 512, grid: Grid = 16) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, width=width, grid=grid)


class ClassificationNet2(CEDeep):
    """CE with two more convolutions after the second pooling: E [B, d, m, m] -> logits [B, num_classes].

    Args:
        num_classes: number of logits.
        in_channels: d. Default 256, the published one.
        width: channels of the layers. Default 512, the published one.
        grid: m or (h, w). Default 16, the published one.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 256, width: int = 512, grid: Grid = 16) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, width=width, grid=grid)


class ClassificationNet3(RE):
    """The paper's RE, residual with squeeze and excitation, for any grid: E [B, d, m, m] -> logits [B, num_classes].

    Args:
        num_classes: number of logits.
        in_channels: d. Default 256, the published one.
        width: channels of the layers. Default 512, the published one.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 256, width: int = 512) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, width=width)


class ClassificationNet4(TE):
    """A transformer encoder: E [B, d, m, m] -> logits [B, num_classes].

    Args:
        num_classes: number of logits.
        embed_dim: width of the tokens. Default 512.
        num_heads: of attention; only embed_dim / gcd(embed_dim, 64) is offered. Default 8.
        mlp_dim: only 4 embed_dim is offered. Default 2048.
        num_layers: only the published 12 are offered.
        dropout: only the published rate is offered.
        in_channels: d. Default 256, the published one.
        grid: m or (h, w). Default 16, the published one.
    Raises:
        ValueError: heads, MLP, layers or dropout differ from the published ones at that embed_dim.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 512,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        num_layers: int = LAYERS,
        dropout: float = DROPOUT,
        *,
        in_channels: int = 256,
        grid: Grid = 16,
    ) -> None:
        expected = {
            "num_heads": (num_heads, embed_dim // math.gcd(embed_dim, 64)),
            "mlp_dim": (mlp_dim, 4 * embed_dim),
            "num_layers": (num_layers, LAYERS),
            "dropout": (dropout, DROPOUT),
        }
        for name, (got, only) in expected.items():
            if got != only:
                raise ValueError(f"{name}: expected {only} for embed_dim {embed_dim}, got {got}")
        super().__init__(num_classes=num_classes, in_channels=in_channels, width=embed_dim, grid=grid)
