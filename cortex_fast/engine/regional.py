"""An extractor of which only one box of the input changes: what the box cannot reach is computed once.

Behind a 3 x 3 convolution the reach grows by one cell each way. While it is smaller than the grid a layer is computed
on its reach alone: on the crop that the reach depends on, the changed part pasted into the rest as it was. From the
first layer on that mixes everything (or that is not known here) the whole is computed, with the reach pasted in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cortex_fast import ops
from cortex_fast.engine.fusing import Convolution
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.lifting import Norm
from cortex_fast.engine.nodes import is_pool, is_relu
from cortex_fast.engine.parts import Parts

_aten = torch.ops.aten
_POINTWISE = tuple(
    getattr(_aten, name).default
    for name in ("gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus", "hardtanh", "clamp", "mish", "exp")
)

Values = dict[fx.Node, Tensor]


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
    """A layer that gives each output cell from `size` input cells, `stride` apart, behind `padding` zeros."""

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


@dataclass(frozen=True, eq=False)
class Place:
    """Where a value changes: its box; whole: all of it, as it is while nothing changes."""

    box: Box
    whole: Tensor


def regional(parts: Parts, embedding: Tensor, box: Box) -> Callable[[Tensor], Tensor] | None:
    """A function from the box's embeddings [P,d,h,w], the rest being as in embedding [P,d,h,w], to the body's result h,
    differentiable; None where the extractor is not in parts."""
    if not isinstance(parts.prefix, Graph) or not isinstance(parts.body, Graph):
        return None
    plan = _Plan([], {})
    with torch.no_grad():
        x = parts.cast(embedding)
        (start,) = parts.prefix.graph.find_nodes(op="placeholder")
        plan.places[start] = Place(box, x)
        between = plan.add(parts.prefix, {start: x})
        inputs = {}
        for node, (source, value), gate in zip(
            parts.body.graph.find_nodes(op="placeholder"), between, parts.gates or (False,) * len(between), strict=True
        ):
            inputs[node] = plan.enter(node, source, value, gate)
        ((last, _),) = plan.add(parts.body, inputs)
        result = plan.whole(last)

    def run(window: Tensor) -> Tensor:
        values: Values = {start: parts.cast(window)}
        for node, step in plan.steps:
            values[node] = step(values)
        return result(values)

    return run


@dataclass(frozen=True, eq=False)
class _Plan:
    """steps: nodes in order, with what computes each from those before; places: nodes that change in a box alone."""

    steps: list[tuple[fx.Node, Callable[[Values], Tensor]]]
    places: dict[fx.Node, Place]

    def add(self, module: Graph, values: Values) -> list[tuple[fx.Node, Tensor]]:
        """All of a graph's nodes, given its inputs' values while nothing changes; its outputs and their values."""
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
                return [(result, values[result]) for result in results]
            everywhere = self._everywhere(module, node)
            values[node] = _call(module, node, values.__getitem__)
            local = self._local(module, node, values[node])
            self.steps.append((node, everywhere if local is None else local))
        raise TypeError("the graph has no output")

    def enter(self, node: fx.Node, source: fx.Node, value: Tensor, gate: bool) -> Tensor:
        """A graph's input is another's output, behind a ReLU where there is a gate; its value while nothing changes."""
        value = F.relu(value) if gate else value
        place = self.places.get(source)
        if place is not None:
            self.places[node] = Place(place.box, value)
        self.steps.append((node, lambda values: F.relu(values[source]) if gate else values[source]))
        return value

    def whole(self, node: fx.Node) -> Callable[[Values], Tensor]:
        """The node's value everywhere."""
        place = self.places.get(node)
        if place is None:
            return lambda values: values[node]
        paste = _paste(place, Box(0, 0, *place.whole.shape[2:]))
        return lambda values: paste(values[node])

    def _everywhere(self, module: Graph, node: fx.Node) -> Callable[[Values], Tensor]:
        sources = {source: self.whole(source) for source in node.all_input_nodes}
        return lambda values: _call(module, node, lambda source: sources[source](values))

    def _local(self, module: Graph, node: fx.Node, whole: Tensor) -> Callable[[Values], Tensor] | None:
        """What computes the node in its box, where that is smaller than the grid; None where there is nothing so."""
        sources = node.all_input_nodes
        if not isinstance(whole, Tensor) or whole.ndim != 4:  # a shape, a tuple of parts
            return None
        if not sources or any(source not in self.places for source in sources):
            return None
        source, place = sources[0], self.places[sources[0]]
        if len(sources) == 1 and _pointwise(module, node):
            self.places[node] = Place(place.box, whole)
            return lambda values: _call(module, node, lambda _: values[source])
        windowed = _windowed(module, node) if len(sources) == 1 else None
        if windowed is None:
            return None
        window, compute, pool = windowed
        grid = (whole.shape[2] * pool, whole.shape[3] * pool)
        reach = window.reach(place.box, grid)
        (top, bottom), (left, right) = ((low // pool, -(-high // pool)) for low, high in reach.sides())
        box = Box(top, left, min(bottom, whole.shape[2]), min(right, whole.shape[3]))
        if box.bottom - box.top >= whole.shape[2] and box.right - box.left >= whole.shape[3]:
            return None
        if box.bottom <= box.top or box.right <= box.left:  # the layer reads none of it
            return None
        before = Box(box.top * pool, box.left * pool, box.bottom * pool, box.right * pool)
        paste = _paste(place, window.needs(before))
        self.places[node] = Place(box, whole)
        return lambda values: compute(paste(values[source]))


def _windowed(module: Graph, node: fx.Node) -> tuple[Window, Callable[[Tensor], Tensor], int] | None:
    """A layer as a window, what computes it without padding, and by how much it pools behind that; None for others."""
    if is_pool(node):
        return Window((2, 2), (2, 2), (0, 0)), lambda x: F.max_pool2d(x, 2), 1
    if node.target is _aten.avg_pool2d.default:
        return _average(node)
    if node.op != "call_module":
        return None
    layer = module.get_submodule(str(node.target))
    if isinstance(layer, Convolution):
        filters, relu, pool = layer.filters, layer.relu, layer.pool
        window = Window((3, 3), (1, 1), (1, 1))
        return window, lambda x: ops.conv3x3(x, filters, relu=relu, pool=pool, padding=0), 2 if pool else 1
    if isinstance(layer, nn.Conv2d) and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
        if isinstance(layer.padding, str):
            return None
        size, stride, padding = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.padding))
        weight, bias, groups = layer.weight, layer.bias, layer.groups
        return Window(size, stride, padding), lambda x: F.conv2d(x, weight, bias, stride, groups=groups), 1
    return None


def _average(node: fx.Node) -> tuple[Window, Callable[[Tensor], Tensor], int] | None:
    """An average pooling without padding."""
    if len(node.args) > 6:  # a divisor of its own
        return None
    size, stride, padding, ceil = (*node.args[1:], *([], [0, 0], False)[len(node.args) - 2 :])[:4]
    if _pair(padding) != (0, 0) or ceil or node.kwargs:
        return None
    window = Window(_pair(size), _pair(stride or size), (0, 0))
    return window, lambda x: F.avg_pool2d(x, window.size, window.stride), 1


def _pointwise(module: Graph, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), Norm)
    return is_relu(node) or (node.target in _POINTWISE and not node.kwargs)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _paste(place: Place, window: Box) -> Callable[[Tensor], Tensor]:
    """From a place's values in its box to those in a window that may reach beyond the grid, where zeros are."""
    height, width = place.whole.shape[2:]
    inside = Box(max(window.top, 0), max(window.left, 0), min(window.bottom, height), min(window.right, width))
    rest = place.whole[:, :, inside.top : inside.bottom, inside.left : inside.right]
    rest = F.pad(rest, (inside.left - window.left, window.right - inside.right, inside.top - window.top,
                        window.bottom - inside.bottom)).contiguous(memory_format=torch.channels_last)  # fmt: skip
    box = place.box
    common = Box(max(box.top, inside.top), max(box.left, inside.left),
                 min(box.bottom, inside.bottom), min(box.right, inside.right))  # fmt: skip
    rest[:, :, common.top - window.top : common.bottom - window.top,
         common.left - window.left : common.right - window.left] = 0  # fmt: skip
    margins = (common.left - window.left, window.right - common.right, common.top - window.top,
               window.bottom - common.bottom)  # fmt: skip

    def paste(values: Tensor) -> Tensor:
        read = values[:, :, common.top - box.top : common.bottom - box.top,
                      common.left - box.left : common.right - box.left]  # fmt: skip
        return F.pad(read, margins) + rest

    return paste


def _call(module: Graph, node: fx.Node, value: Callable[[fx.Node], Tensor]) -> Any:
    """A node of a graph, by what its input nodes are."""
    arguments = fx.node.map_arg(node.args, value)
    options = fx.node.map_arg(node.kwargs, value)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*arguments, **options)
    if node.op == "get_attr":
        return module.get_buffer(str(node.target))
    return node.target(*arguments, **options)  # type: ignore[operator]
