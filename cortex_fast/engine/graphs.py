"""A torch.fx graph that runs node by node: the engine's form of an extractor.

Not an fx.GraphModule: that generates code, which torch holds until the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn


@dataclass(frozen=True)
class _Slot:
    """The index of a node's value while the graph runs."""

    index: int


@dataclass(frozen=True)
class _Step:
    """One node: module, the name of one, or function; its arguments with slots in place of nodes; to: its value's slot;
    last: the slots that are not read again."""

    module: str | None
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    to: int
    last: tuple[int, ...]


class Graph(nn.Module):
    """A graph of call_module and call_function nodes, run node by node.

    Args:
        graph: the nodes; inputs are placeholders, constants get_attr nodes.
        holder: the module that holds the modules and buffers that the nodes name.
    """

    def __init__(self, graph: fx.Graph, holder: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        for node in graph.nodes:
            name = str(node.target)
            if node.op == "call_module" and name not in self._modules:
                self.add_module(name, holder.get_submodule(name))
            if node.op == "get_attr" and name not in self._buffers:
                self.register_buffer(name, getattr(holder, name))
        self.compile_steps()

    def forward(self, *inputs: Tensor) -> Any:
        constants = [self._buffers[name] for name in self._constants]
        values: list[Any] = [*inputs, *constants, *[None] * self._results]
        for step in self._steps:
            function: Any = step.function if step.module is None else self._modules[step.module]
            values[step.to] = function(*_filled(step.args, values), **_filled(step.kwargs, values))
            for index in step.last:
                values[index] = None
        return _filled(self._result, values)

    def compile_steps(self) -> None:
        """Drop unread nodes and order the rest; to be called after each change of the graph."""
        drop_unread(self.graph)
        nodes = [node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
        inputs = self.graph.find_nodes(op="placeholder")
        constants = self.graph.find_nodes(op="get_attr")
        (output,) = self.graph.find_nodes(op="output")
        slots = {node: _Slot(index) for index, node in enumerate((*inputs, *constants, *nodes))}
        self._constants, self._results = tuple(str(node.target) for node in constants), len(nodes)
        self._result = _slotted(output.args[0], slots)
        steps = []
        last: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            last |= dict.fromkeys(node.all_input_nodes, node)
        results = set(output.all_input_nodes)
        for node in nodes:
            ends = tuple(slots[n].index for n in node.all_input_nodes if last[n] is node and n not in results)
            module = str(node.target) if node.op == "call_module" else None
            args, kwargs = (_slotted(value, slots) for value in (node.args, node.kwargs))
            steps.append(_Step(module, None if module else node.target, args, kwargs, slots[node].index, ends))
        self._steps = steps
        used = {str(node.target) for node in self.graph.find_nodes(op="call_module")}
        for name in set(self._modules) - used:
            del self._modules[name]


def drop_unread(graph: fx.Graph) -> None:
    """Erase unread nodes: no operator of a graph has another effect than its value."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def discard(*graphs: Graph) -> None:
    """Take unused graphs apart: their nodes refer to each other, and would stay until a garbage collection."""
    for graph in graphs:
        for node in reversed(list(graph.graph.nodes)):
            graph.graph.erase_node(node)
        vars(graph.graph).clear()  # its namespace holds the nodes as well


def layers(graph: Graph) -> Iterator[tuple[fx.Node, nn.Module]]:
    """The nodes that call a module, each with the module."""
    for node in graph.graph.find_nodes(op="call_module"):
        yield node, graph.get_submodule(str(node.target))


def _slotted(value: Any, slots: dict[fx.Node, _Slot]) -> Any:
    return fx.node.map_arg(value, slots.__getitem__)  # type: ignore[arg-type]


def _filled(value: Any, values: list[Any]) -> Any:
    if type(value) is _Slot:
        return values[value.index]
    if type(value) is tuple:
        return tuple([_filled(item, values) for item in value])
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value
