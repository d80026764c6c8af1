"""Layers of a graph as windows: which output cells depend on a box of input cells, and the reverse."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cortex_fast import ops
from cortex_fast.engine.fusing import Convolution
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import is_pool, is_relu, pair
from cortex_fast.engine.norms import Norm

_aten = torch.ops.aten
_POINTWISE = tuple(
    getattr(_aten, name).default
    for name in ("gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus", "hardtanh", "clamp", "mish", "exp")
)


@dataclass(frozen=True)
class Box:
    """Half-open: rows [top, bottom), columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    def sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.top, self.bottom), (self.left, self.right)


@dataclass(frozen=True)
class Window:
    """A layer whose output cells read `size` input cells each, `stride` apart, of a grid padded by `padding` zeros."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def reach(self, box: Box, grid: tuple[int, int]) -> Box:
        """The output cells, of a grid [rows, columns], that depend on the box."""
        sides = []
        for (low, high), size, stride, padding, limit in zip(
            box.sides(), self.size, self.stride, self.padding, grid, strict=True
        ):
            first = max(
                0, -((size - 1 - low - padding) // stride)
            )  # the ceiling of (low + padding - size + 1) / stride
            last = min(limit, (high - 1 + padding) // stride + 1)
            sides.append((first, max(first, last)))
        (top, bottom), (left, right) = sides
        return Box(top, left, bottom, right)

    def needs(self, box: Box) -> Box:
        """The input cells that the output box depends on; some may be padding, outside the grid."""
        sides = [
            (low * stride - padding, (high - 1) * stride - padding + size)
            for (low, high), size, stride, padding in zip(
                box.sides(), self.size, self.stride, self.padding, strict=True
            )
        ]
        (top, bottom), (left, right) = sides
        return Box(top, left, bottom, right)


@dataclass(frozen=True)
class WindowedLayer:
    """window: of the layer. compute: the layer without its padding. pool: by how much it pools its result."""

    window: Window
    compute: Callable[[Tensor], Tensor]
    pool: int = 1


def windowed_layer(module: Graph, node: fx.Node) -> WindowedLayer | None:
    """The layer of a node where it is a window, else None."""
    if is_pool(node):
        return WindowedLayer(Window((2, 2), (2, 2), (0, 0)), lambda x: F.max_pool2d(x, 2))
    if node.target is _aten.avg_pool2d.default:
        return _average_pool(node)
    if node.op != "call_module":
        return None
    layer = module.get_submodule(str(node.target))
    if isinstance(layer, Convolution):
        return _fused_convolution(layer)
    if isinstance(layer, nn.Conv2d) and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
        return _convolution(layer)
    return None


def is_pointwise(module: Graph, node: fx.Node) -> bool:
    """Whether each output cell depends on its input cell alone."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), Norm)
    return is_relu(node) or (node.target in _POINTWISE and not node.kwargs)


def _fused_convolution(layer: Convolution) -> WindowedLayer:
    filters, relu, pool = layer.filters, layer.relu, layer.pool
    return WindowedLayer(
        Window((3, 3), (1, 1), (1, 1)),
        lambda x: ops.conv3x3(x, filters, relu=relu, pool=pool, padding=0),
        pool=2 if pool else 1,
    )


def _convolution(layer: nn.Conv2d) -> WindowedLayer | None:
    if isinstance(layer.padding, str):
        return None
    size, stride, padding = (pair(value) for value in (layer.kernel_size, layer.stride, layer.padding))
    weight, bias, groups = layer.weight, layer.bias, layer.groups
    return WindowedLayer(Window(size, stride, padding), lambda x: F.conv2d(x, weight, bias, stride, groups=groups))


def _average_pool(node: fx.Node) -> WindowedLayer | None:
    """An average pooling without padding."""
    if len(node.args) > 6:  # with another divisor
        return None
    size, stride, padding, ceil = (*node.args[1:], *([], [0, 0], False)[len(node.args) - 2 :])[:4]
    if pair(padding) != (0, 0) or ceil or node.kwargs:
        return None
    window = Window(pair(size), pair(stride or size), (0, 0))
    return WindowedLayer(window, lambda x: F.avg_pool2d(x, window.size, window.stride))
