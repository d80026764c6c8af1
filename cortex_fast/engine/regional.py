"""An extractor whose input changes in one box only: cells that the box cannot reach are computed once.

A 3 x 3 convolution extends the reach by one cell each way. While the reach is smaller than the grid, a layer is
computed on its reach alone: on the crop that the reach depends on, with the changed part pasted into the unchanged
rest. From the first layer on that mixes all cells, or is unknown here, the whole grid is computed, with the reach
pasted in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.split_model import SplitModel
from cortex_fast.engine.windows import Box, WindowedLayer, is_pointwise, windowed_layer

Values = dict[fx.Node, Tensor]


@dataclass(frozen=True, eq=False)
class LocalChange:
    """A value [P,C,rows,columns] that changes in a box alone; unchanged: the whole value before the change."""

    box: Box
    unchanged: Tensor


def regional(model: SplitModel, embedding: Tensor, box: Box) -> Callable[[Tensor], Tensor] | None:
    """The extractor's body as a function of one box of the embedding, the rest being fixed; None where the extractor is
    not split.

    Args:
        model: the split extractor.
        embedding: float [P,d,h,w], the embeddings outside the box.
        box: the cells that change.
    Returns:
        A differentiable function from the box's embeddings [P,d,rows,columns] to the body's result h.
    """
    if not isinstance(model.prefix, Graph) or not isinstance(model.body, Graph):
        return None
    plan = _Plan([], {})
    with torch.no_grad():
        x = model.cast(embedding)
        (start,) = model.prefix.graph.find_nodes(op="placeholder")
        plan.changes[start] = LocalChange(box, x)
        prefix_results = plan.add(model.prefix, {start: x})
        body_inputs = model.body.graph.find_nodes(op="placeholder")
        gates = model.gates or (False,) * len(prefix_results)
        values = {}
        for node, (source, value), gate in zip(body_inputs, prefix_results, gates, strict=True):
            values[node] = plan.connect(node, source, value, gate=gate)
        ((last, _),) = plan.add(model.body, values)
        result = plan.whole(last)

    def run(window: Tensor) -> Tensor:
        values: Values = {start: model.cast(window)}
        for node, step in plan.steps:
            values[node] = step(values)
        return result(values)

    return run


@dataclass(frozen=True, eq=False)
class _Plan:
    """steps: nodes in order, each with the function that computes it from those before. changes: the nodes that change
    in a box alone."""

    steps: list[tuple[fx.Node, Callable[[Values], Tensor]]]
    changes: dict[fx.Node, LocalChange]

    def add(self, module: Graph, values: Values) -> list[tuple[fx.Node, Tensor]]:
        """Add all nodes of a graph, given the unchanged values of its inputs; returns its outputs and their unchanged
        values."""
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

    def connect(self, node: fx.Node, source: fx.Node, value: Tensor, *, gate: bool) -> Tensor:
        """Let a graph's input be another graph's output, behind a ReLU where there is a gate; returns its unchanged
        value."""
        value = F.relu(value) if gate else value
        change = self.changes.get(source)
        if change is not None:
            self.changes[node] = LocalChange(change.box, value)
        self.steps.append((node, lambda values: F.relu(values[source]) if gate else values[source]))
        return value

    def whole(self, node: fx.Node) -> Callable[[Values], Tensor]:
        """The node's value on the whole grid."""
        change = self.changes.get(node)
        if change is None:
            return lambda values: values[node]
        paste = _paste(change, Box(0, 0, *change.unchanged.shape[2:]))
        return lambda values: paste(values[node])

    def _everywhere(self, module: Graph, node: fx.Node) -> Callable[[Values], Tensor]:
        sources = {source: self.whole(source) for source in node.all_input_nodes}
        return lambda values: _call(module, node, lambda source: sources[source](values))

    def _local(self, module: Graph, node: fx.Node, unchanged: Tensor) -> Callable[[Values], Tensor] | None:
        """The function that computes the node in the box that its changes reach; None where that is the whole grid, or
        unknown."""
        sources = node.all_input_nodes
        if not isinstance(unchanged, Tensor) or unchanged.ndim != 4:  # a shape, a tuple of parts
            return None
        if len(sources) != 1 or sources[0] not in self.changes:
            return None
        source, change = sources[0], self.changes[sources[0]]
        if is_pointwise(module, node):
            self.changes[node] = LocalChange(change.box, unchanged)
            return lambda values: _call(module, node, lambda _: values[source])
        layer = windowed_layer(module, node)
        box = None if layer is None else _reached(layer, change.box, unchanged.shape[2], unchanged.shape[3])
        if layer is None or box is None:
            return None
        compute, pool = layer.compute, layer.pool
        before_pool = Box(box.top * pool, box.left * pool, box.bottom * pool, box.right * pool)
        paste = _paste(change, layer.window.needs(before_pool))
        self.changes[node] = LocalChange(box, unchanged)
        return lambda values: compute(paste(values[source]))


def _reached(layer: WindowedLayer, box: Box, height: int, width: int) -> Box | None:
    """The cells of a layer's result, of a grid height x width, that depend on a box of its input; None where these are
    all cells, or none."""
    pool = layer.pool
    reach = layer.window.reach(box, (height * pool, width * pool))
    (top, bottom), (left, right) = ((low // pool, -(-high // pool)) for low, high in reach.sides())
    reached = Box(top, left, min(bottom, height), min(right, width))
    if reached.bottom - reached.top >= height and reached.right - reached.left >= width:
        return None
    if reached.bottom <= reached.top or reached.right <= reached.left:  # the layer reads none of it
        return None
    return reached


def _paste(change: LocalChange, window: Box) -> Callable[[Tensor], Tensor]:
    """A function from changed values in their box to the values in a window, with zeros beyond the grid."""
    height, width = change.unchanged.shape[2:]
    inside = Box(max(window.top, 0), max(window.left, 0), min(window.bottom, height), min(window.right, width))
    rest = change.unchanged[:, :, inside.top : inside.bottom, inside.left : inside.right]
    rest = F.pad(rest, (inside.left - window.left, window.right - inside.right, inside.top - window.top,
                        window.bottom - inside.bottom)).contiguous(memory_format=torch.channels_last)  # fmt: skip
    box = change.box
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
    """Compute a node of a graph from the values of its input nodes."""
    arguments = fx.node.map_arg(node.args, value)
    options = fx.node.map_arg(node.kwargs, value)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*arguments, **options)
    if node.op == "get_attr":
        return module.get_buffer(str(node.target))
    return node.target(*arguments, **options)  # type: ignore[operator]
