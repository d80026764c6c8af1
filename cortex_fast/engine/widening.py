"""Copies of a graph, also in float64."""

from typing import Any

import torch
from torch import Tensor, fx

from cortex_fast.engine.comparing import LogitGradients, gradients_of
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.norms import lift_norms

_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


def alone_in_float64(graph: Graph, x: Tensor, target: Tensor) -> tuple[Graph, LogitGradients] | None:
    """The graph in float64, and its result for the first image of x alone; None where an operator has no float64."""
    wide = lift_norms(widened(graph))
    try:
        return wide, gradients_of(wide, x[:1].double(), target[:1])
    except (RuntimeError, NotImplementedError):
        return None


def copied(graph: Graph) -> Graph:
    """A graph that shares the constants and may be changed."""
    nodes = fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    return Graph(nodes, graph)


def widened(graph: Graph) -> Graph:
    """A copy of a graph without modules, in float64."""
    wide = copied(graph)
    for node in wide.graph.nodes:
        node.args, node.kwargs = _wider_arguments(node.args), _wider_arguments(node.kwargs)
    for name, tensor in list(wide.named_buffers()):
        wide.register_buffer(name, tensor.to(_WIDER.get(tensor.dtype, tensor.dtype)))
    wide.compile_steps()
    return wide


def _wider_arguments(arguments: Any) -> Any:
    """A node's arguments with float64 in place of every narrower dtype."""
    if isinstance(arguments, dict):
        return {key: _wider_arguments(value) for key, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return tuple(_wider_arguments(value) for value in arguments)
    return _WIDER.get(arguments, arguments) if isinstance(arguments, torch.dtype) else arguments
