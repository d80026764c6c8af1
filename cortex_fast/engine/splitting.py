"""A folded graph cut where its affine beginning ends and before its last linear layer.

What begins affinely need not be computed for each noisy copy: A(E + sigma e) = A(E) + sigma (A(e) - A(0)), and the mean
over copies of the gradient goes back through A once.
"""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cortex_fast.engine.folding import without_bias

_AFFINE_MODULES = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SUMS = (operator.add, torch.add)
# linear, and of each image alone as long as no dimension that they name is the batch's
_LINEAR = {torch.flatten: "flatten", torch.transpose: "transpose", torch.mean: "mean", torch.sum: "sum"}


@dataclass(frozen=True, eq=False)
class Cut:
    """prefix: x -> (z, ...), affine, and linear: the same without its constants; body: (z, ...) -> h; head: the last
    linear layer, h -> logits, or None where h are the logits."""

    prefix: fx.GraphModule
    linear: fx.GraphModule
    body: fx.GraphModule
    head: nn.Linear | None


def cut(folded: fx.GraphModule) -> Cut:
    """Cut a folded graph of one input and one output."""
    graph = folded.graph
    (start,) = graph.find_nodes(op="placeholder")
    (output,) = graph.find_nodes(op="output")
    affine = _affine_nodes(folded, start)
    border = [node for node in graph.nodes if node in affine and any(user not in affine for user in node.users)]
    last = output.args[0]
    head = None
    if isinstance(last, fx.Node) and last not in affine and last.op == "call_module" and len(last.users) == 1:
        layer = folded.get_submodule(str(last.target))
        if isinstance(layer, nn.Linear) and isinstance(last.args[0], fx.Node):
            head, last = layer, last.args[0]
    if not isinstance(last, fx.Node):
        raise TypeError(f"extractor: expected a tensor of logits, got {last!r}")
    if last in affine:  # nothing but affine layers: the whole is the body
        border = [start]
    prefix = subgraph(folded, [start], border)
    linear = subgraph(folded, [start], border)
    for node in linear.graph.find_nodes(op="call_module"):
        linear.set_submodule(str(node.target), without_bias(linear.get_submodule(str(node.target))))
    return Cut(prefix, linear, subgraph(folded, border, [last]), head)


def subgraph(module: fx.GraphModule, inputs: list[fx.Node], outputs: list[fx.Node]) -> fx.GraphModule:
    """The part of a graph from `inputs` to `outputs`: a tuple of them, or the one."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in inputs}
    needed = _needed(inputs, outputs)
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results = tuple(copies[node] for node in outputs)
    graph.output(results if len(results) > 1 or outputs == inputs else results[0])
    part = fx.GraphModule(module, graph)
    part.recompile()
    return part


def tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a subgraph gives, always as a tuple."""
    return (result,) if isinstance(result, Tensor) else result


def _needed(inputs: list[fx.Node], outputs: list[fx.Node]) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in needed and node not in inputs:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _affine_nodes(folded: fx.GraphModule, start: fx.Node) -> set[fx.Node]:
    """The nodes that are affine in x, and of a tensor whose every element is in x's image of the batch."""
    affine = {start}
    for node in folded.graph.nodes:
        sources = node.all_input_nodes
        if sources and all(source in affine for source in sources) and _keeps_affine(folded, node):
            affine.add(node)
    return affine


def _keeps_affine(folded: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = folded.get_submodule(str(node.target))
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return False
        if isinstance(module, nn.Flatten):
            return module.start_dim >= 1
        return isinstance(module, _AFFINE_MODULES)
    if node.op == "call_function" and node.target in _SUMS:
        return len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs
    name = node.target if node.op == "call_method" else _LINEAR.get(node.target)  # type: ignore[arg-type]
    if name == "contiguous":
        return not node.args[1:] and not node.kwargs
    if name not in _LINEAR.values():
        return False
    return _spares_the_batch(node)


def _spares_the_batch(node: fx.Node) -> bool:
    """Whether the dimensions that a flatten, transpose, mean or sum names are written out, and none is the batch's: 0,
    or what might be it when counted from the end."""
    if node.kwargs.keys() - {"dim", "keepdim", "start_dim", "end_dim", "dim0", "dim1"}:
        return False
    dims: list[object] = []
    for value in (*node.args[1:], *(value for key, value in node.kwargs.items() if key != "keepdim")):
        dims += list(value) if isinstance(value, tuple | list) else [value]
    return bool(dims) and all(type(dim) is int and (dim >= 1 or dim == -1) for dim in dims)
