"""A folded graph split behind its affine beginning and before its last linear layer.

The affine beginning A need not run for each noisy copy: A(E + sigma e) = A(E) + sigma (A(e) - A(0)), and the mean of
the copies' gradients passes back through A once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cortex_fast.engine.folding import without_bias
from cortex_fast.engine.graphs import Graph, layers
from cortex_fast.engine.nodes import arguments

_aten = torch.ops.aten
_AFFINE_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_POOLS = (_aten.avg_pool2d.default, _aten._adaptive_avg_pool2d.default)
# linear, and independent between images unless one of their dimensions is the batch's
_DIMENSION_ARGUMENTS = {
    _aten.mean.dim: 1,
    _aten.sum.dim_IntList: 1,
    _aten.transpose.int: 2,
    _aten.unsqueeze.default: 1,
    _aten.squeeze.dim: 1,
}  # the number of arguments after the tensor that are dimensions


@dataclass(frozen=True, eq=False)
class SplitGraph:
    """prefix: x -> (z, ...), affine. linear_prefix: the same without its constants. body: (z, ...) -> h. head: the last
    linear layer, h -> logits, or None where h are the logits."""

    prefix: Graph
    linear_prefix: Graph
    body: Graph
    head: nn.Linear | None


def split(folded: Graph) -> SplitGraph:
    """Split a folded graph of one input and one output."""
    graph = folded.graph
    (start,) = graph.find_nodes(op="placeholder")
    (output,) = graph.find_nodes(op="output")
    affine = _affine_nodes(folded, start)
    border = [node for node in graph.nodes if node in affine and any(user not in affine for user in node.users)]
    (last,) = output.all_input_nodes
    head = None
    if last not in affine and last.op == "call_module" and len(last.users) == 1 and len(last.meta["shape"]) == 2:
        layer = folded.get_submodule(str(last.target))
        if isinstance(layer, nn.Linear):
            head, last = layer, last.all_input_nodes[0]
    if last in affine:  # nothing but affine layers: the whole graph is the body
        border = [start]
    prefix = subgraph(folded, [start], border)
    linear_prefix = subgraph(folded, [start], border)
    for node, layer in layers(linear_prefix):
        linear_prefix.add_module(str(node.target), without_bias(layer))
    return SplitGraph(prefix, linear_prefix, subgraph(folded, border, [last]), head)


def subgraph(module: Graph, inputs: list[fx.Node], outputs: list[fx.Node]) -> Graph:
    """The part of a graph from `inputs` to `outputs`; its result is a tuple, or a single output itself."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    between = _nodes_between(inputs, outputs)
    for node in module.graph.nodes:
        if node in between:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results = tuple(copies[node] for node in outputs)
    graph.output(results if len(results) > 1 or outputs == inputs else results[0])
    return Graph(graph, module)


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A subgraph's result, always as a tuple."""
    return (result,) if isinstance(result, Tensor) else result


def _nodes_between(inputs: list[fx.Node], outputs: list[fx.Node]) -> set[fx.Node]:
    """The nodes that the outputs are computed by, from the inputs on."""
    between: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in between and node not in inputs:
            between.add(node)
            waiting += node.all_input_nodes
    return between


def _affine_nodes(folded: Graph, start: fx.Node) -> set[fx.Node]:
    """Nodes that are affine in x and store the images' rows in order. If a node outside reads one, it must have exactly
    one row per image."""
    apart: set[fx.Node] = set()
    while True:
        affine = {start}
        for node in folded.graph.nodes:
            sources = node.all_input_nodes
            fits = sources and all(source in affine for source in sources) and node not in apart
            if fits and _keeps_affine(folded, node):
                affine.add(node)
        rows = start.meta["shape"][0]
        uneven = {node for node in affine if node.meta["shape"][0] != rows and not affine.issuperset(node.users)}
        if not uneven:
            return affine
        apart |= uneven


def _keeps_affine(folded: Graph, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(folded.get_submodule(str(node.target)), _AFFINE_LAYERS)
    if node.target is _aten.add.Tensor:
        return len(node.all_input_nodes) == len(arguments(node)) == 2 and not node.kwargs
    if node.target in _POOLS:
        return True
    if node.target is _aten.reshape.default:
        return _keeps_images(node)
    if node.target is _aten.permute.default:
        return bool(arguments(node)[1][0] == 0)
    return node.target in _DIMENSION_ARGUMENTS and _spares_the_batch(node, _DIMENSION_ARGUMENTS[node.target])


def _keeps_images(node: fx.Node) -> bool:
    """Whether only the first size of a reshape grows with the images, see `assembling`: rows stay image after image."""
    (source, sizes), shape = arguments(node), node.meta["shape"]
    images = node.graph.find_nodes(op="placeholder")[0].meta["shape"][0]
    return (
        sizes[0] == -1 and len(node.all_input_nodes) == 1 and shape[0] % images == 0 and len(source.meta["shape"]) > 0
    )


def _spares_the_batch(node: fx.Node, count: int) -> bool:
    """Whether the dimensions of a transpose, mean or sum are written out, and none is the batch's."""
    if set(node.kwargs) - {"keepdim"} or len(arguments(node)) < 1 + count:
        return False
    rank = len(arguments(node)[0].meta["shape"])
    rank += node.target is _aten.unsqueeze.default
    dims: list[object] = []
    for value in arguments(node)[1 : 1 + count]:
        dims += list(value) if isinstance(value, tuple | list) else [value]
    return bool(dims) and all(type(dim) is int and dim % rank != 0 for dim in dims)
