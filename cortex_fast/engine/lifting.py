"""Operators of a graph turned back into layers: those with weights become modules, which can be folded and fused."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import arguments
from cortex_fast.engine.norms import lift_norms
from cortex_fast.engine.rewriting import constant_of, only_first_result_read, replace_by_function, replace_by_layer

_aten = torch.ops.aten
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the weight's dimensions
_IDENTITIES = (_aten.reshape.default, _aten.expand.default)


def lift(graph: Graph) -> Graph:
    """In place: convolutions, linear layers and eval-mode BatchNorms with constant weights become modules that share
    the weights; ReLU and max-pooling become the functions that `nodes` recognises."""
    lift_norms(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _IDENTITIES and _changes_nothing(node):
            node.replace_all_uses_with(arguments(node)[0])
            continue
        layer = _layer(graph, node)
        if layer is not None:
            replace_by_layer(graph, node, layer)
        elif node.target is _aten.relu.default:
            node.target = torch.relu
        elif node.target is _aten.native_group_norm.default:
            node.args = (_contiguous(arguments(node)[0]), *arguments(node)[1:])
        elif node.target is _aten.max_pool2d_with_indices.default and only_first_result_read(node):
            replace_by_function(node, F.max_pool2d, arguments(node))
    graph.compile_steps()
    return graph


def _layer(graph: Graph, node: fx.Node) -> nn.Module | None:
    if node.target is _aten.convolution.default:
        return _convolution(graph, node)
    if node.target in (_aten.addmm.default, _aten.mm.default):
        return _linear(graph, node)
    if node.target is _aten.bmm.default:
        return _linear_of_rows(graph, node)
    if node.target is _aten.add.Tensor:
        return _with_bias(graph, node)
    return None


def _convolution(graph: Graph, node: fx.Node) -> nn.Module | None:
    source, weight, bias, stride, padding, dilation, transposed, _, groups = arguments(node)
    weight, bias = constant_of(graph, weight), constant_of(graph, bias)
    if not isinstance(source, fx.Node) or source.op == "get_attr" or weight is None or transposed:
        return None
    if (bias is None) != (arguments(node)[2] is None) or len(source.meta["shape"]) != weight.ndim:
        return None
    kind: Any = _CONVOLUTIONS.get(weight.ndim)
    if kind is None:
        return None
    outputs, inputs, *size = weight.shape
    options = {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation), "groups": groups}
    layer = kind(inputs * groups, outputs, tuple(size), bias=bias is not None, device="meta", **options)
    return _with_weights(layer, weight, bias)


def _linear(graph: Graph, node: fx.Node) -> nn.Module | None:
    if node.kwargs:
        return None  # a weighted sum
    *biases, source, matrix = arguments(node)
    weight, bias = constant_of(graph, matrix), constant_of(graph, biases[0]) if biases else None
    if not isinstance(source, fx.Node) or source.op == "get_attr" or weight is None:
        return None
    if biases and (bias is None or bias.shape != weight.shape[1:]):
        return None
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None, device="meta")
    return _with_weights(layer, weight.t(), bias)


def _linear_of_rows(graph: Graph, node: fx.Node) -> nn.Module | None:
    """A product with the same matrix for each image: torch.matmul's form of a linear layer."""
    source, expanded = arguments(node)
    if not isinstance(expanded, fx.Node) or expanded.target is not _aten.expand.default:
        return None
    weight = constant_of(graph, arguments(expanded)[0])
    if weight is None or weight.ndim != 2 or not isinstance(source, fx.Node) or "shape" not in source.meta:
        return None
    return _with_weights(nn.Linear(weight.shape[0], weight.shape[1], bias=False, device="meta"), weight.t(), None)


def _with_bias(graph: Graph, node: fx.Node) -> nn.Module | None:
    """A linear layer without other readers, merged with the addition of its bias."""
    if len(arguments(node)) != 2 or node.kwargs:
        return None
    source, bias = arguments(node)[0], constant_of(graph, arguments(node)[1])
    if bias is None or not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    layer = graph.get_submodule(str(source.target))
    if type(layer) is not nn.Linear or getattr(layer, "bias", None) is not None or bias.shape != layer.weight.shape[:1]:
        return None
    merged = nn.Linear(layer.in_features, layer.out_features, device="meta")
    return _with_weights(merged, layer.weight, bias)


def _with_weights(layer: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """The layer with these weights, in eval mode."""
    if weight is not None:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.eval()


def _contiguous(source: Any) -> fx.Node:
    """The input made contiguous, for an operator that was recorded so and accepts no other layout."""
    with source.graph.inserting_after(source):
        return source.graph.call_function(_aten.contiguous.default, (source,))


def _changes_nothing(node: fx.Node) -> bool:
    """Whether input and result have the same shape for any number of images."""
    source = arguments(node)[0]
    return isinstance(source, fx.Node) and all(node.meta[key] == source.meta.get(key) for key in ("shape", "more"))
