"""Nodes of a graph replaced by layers and functions."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import arguments

_aten = torch.ops.aten


def constant_of(graph: Graph, argument: object) -> Tensor | None:
    """The constant that a node's argument is, or None."""
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return graph.get_buffer(str(argument.target))
    return None


def only_first_result_read(node: fx.Node) -> bool:
    """Whether no result of a node but the first is read."""
    return all(arguments(user)[1] == 0 for user in node.users if user.users)


def replace_by_layer(graph: Graph, node: fx.Node, layer: nn.Module) -> None:
    """The node becomes a call of the layer; a norm's node, its first result."""
    name = f"{type(layer).__name__.lower()}_{len(graph._modules)}"
    graph.add_module(name, layer)
    source = arguments(node)[1] if node.target is _aten.addmm.default else arguments(node)[0]
    if node.target is _aten.add.Tensor:
        source = arguments(source)[0]  # the input of the layer without its bias
    with node.graph.inserting_before(node):
        replacement = node.graph.call_module(name, (source,))
    _replace(node, replacement)


def replace_by_function(node: fx.Node, function: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
    """The node becomes a call of a function that computes its first result alone."""
    with node.graph.inserting_before(node):
        replacement = node.graph.call_function(function, args)
    _replace(node, replacement)


def _replace(node: fx.Node, replacement: fx.Node) -> None:
    results = [user for user in node.users if user.target is operator.getitem] or [node]
    for result in results:
        if result is node or arguments(result)[1] == 0:
            replacement.meta |= {key: result.meta[key] for key in ("shape", "more")}
            result.replace_all_uses_with(replacement)
