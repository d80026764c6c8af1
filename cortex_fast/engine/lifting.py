"""Operators of a graph as the layers that they are: what has weights becomes a module that can be folded and fused."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import arguments

_aten = torch.ops.aten
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the weight's dimensions
_IDENTITIES = (_aten.reshape.default, _aten.expand.default)
_NORM_OPERATORS = (
    _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit_no_training.default,
    _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default,
)


class Norm(nn.Module):
    """BatchNorm in eval mode, x [B,C,...], by its formula.

    torch's own operator (2.13, CPU) gives a wrong gradient for a batch of one where what comes back is not laid out as
    x is. So it does for a batch's own statistics.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float) -> None:
        super().__init__()
        for name, tensor in (("weight", weight), ("bias", bias), ("mean", mean), ("variance", variance)):
            self.register_buffer(name, tensor)
        self.eps = eps

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self.weight, self.bias, self.mean, self.variance, False, 0.0, self.eps)


def normed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """By a mean and a variance [C]: the arguments of aten.native_batch_norm."""
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    over = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.to(x.dtype).view(over) + shift.to(x.dtype).view(over)


def normed_by_own(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """By the statistics of x [B,C,...] itself, as InstanceNorm does with each channel of each image."""
    dims = [dim for dim in range(x.ndim) if dim != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    return normed(x, weight, bias, mean, variance, True, 0.0, eps)


def lift(graph: Graph) -> Graph:
    """In place: convolutions, linear layers and eval-mode BatchNorms whose weights are constants as modules that share
    them; ReLU and max-pooling as the functions that the engine knows."""
    lift_norms(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _IDENTITIES and _changes_nothing(node):
            node.replace_all_uses_with(arguments(node)[0])
            continue
        layer = _layer(graph, node)
        if layer is not None:
            _replace(graph, node, layer)
        elif node.target is _aten.relu.default:
            node.target = torch.relu
        elif node.target is _aten.native_group_norm.default:
            node.args = (_contiguous(arguments(node)[0]), *arguments(node)[1:])
        elif node.target is _aten.max_pool2d_with_indices.default and _only_first(node):
            _become(node, F.max_pool2d, arguments(node))
    graph.compile_steps()
    return graph


def lift_norms(graph: Graph) -> Graph:
    """In place: norms by running statistics, or by what they are given alone, by their formulas."""
    for node in list(graph.graph.nodes):
        if node.target not in _NORM_OPERATORS or not _only_first(node):
            continue
        source, *named = arguments(node)[:5]
        *flags, eps = arguments(node)[5:]  # [training,] momentum, eps
        if any(flag is True for flag in flags):
            if named[2:] == [None, None]:
                _become(node, normed_by_own, (source, *named[:2], eps))
            continue
        constants = [_constant(graph, argument) for argument in named]
        known = all((tensor is None) == (argument is None) for tensor, argument in zip(constants, named, strict=True))
        if known:
            _replace(graph, node, Norm(constants[0], constants[1], constants[2], constants[3], eps))  # type: ignore[arg-type]
        else:
            _become(node, normed, (source, *named, False, 0.0, eps))
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
    weight, bias = _constant(graph, weight), _constant(graph, bias)
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
    return _holding(layer, weight, bias)


def _linear(graph: Graph, node: fx.Node) -> nn.Module | None:
    if node.kwargs:
        return None  # a weighted sum
    *biases, source, matrix = arguments(node)
    weight, bias = _constant(graph, matrix), _constant(graph, biases[0]) if biases else None
    if not isinstance(source, fx.Node) or source.op == "get_attr" or weight is None:
        return None
    if biases and (bias is None or bias.shape != weight.shape[1:]):
        return None
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None, device="meta")
    return _holding(layer, weight.t(), bias)


def _linear_of_rows(graph: Graph, node: fx.Node) -> nn.Module | None:
    """A product with the same matrix for each image, as torch.matmul makes of a linear layer."""
    source, expanded = arguments(node)
    if not isinstance(expanded, fx.Node) or expanded.target is not _aten.expand.default:
        return None
    weight = _constant(graph, arguments(expanded)[0])
    if weight is None or weight.ndim != 2 or not isinstance(source, fx.Node) or "shape" not in source.meta:
        return None
    return _holding(nn.Linear(weight.shape[0], weight.shape[1], bias=False, device="meta"), weight.t(), None)


def _with_bias(graph: Graph, node: fx.Node) -> nn.Module | None:
    """A linear layer that nobody else reads, and the addition of its bias behind it."""
    if len(arguments(node)) != 2 or node.kwargs:
        return None
    source, bias = arguments(node)[0], _constant(graph, arguments(node)[1])
    if bias is None or not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    layer = graph.get_submodule(str(source.target))
    if type(layer) is not nn.Linear or getattr(layer, "bias", None) is not None or bias.shape != layer.weight.shape[:1]:
        return None
    merged = nn.Linear(layer.in_features, layer.out_features, device="meta")
    return _holding(merged, layer.weight, bias)


def _holding(layer: nn.Module, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """The layer with these weights, in eval mode."""
    if weight is not None:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.eval()


def _constant(graph: Graph, argument: object) -> Tensor | None:
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return graph.get_buffer(str(argument.target))
    return None


def _contiguous(source: Any) -> fx.Node:
    """What an operator reads that was recorded with its input laid out so, and takes no other."""
    with source.graph.inserting_after(source):
        return source.graph.call_function(_aten.contiguous.default, (source,))


def _changes_nothing(node: fx.Node) -> bool:
    """Of the same shape for whatever number of images."""
    source = arguments(node)[0]
    return isinstance(source, fx.Node) and all(node.meta[key] == source.meta.get(key) for key in ("shape", "more"))


def _only_first(node: fx.Node) -> bool:
    """Whether of a node's results nobody reads another than the first."""
    return all(arguments(user)[1] == 0 for user in node.users if user.users)


def _replace(graph: Graph, node: fx.Node, layer: nn.Module) -> None:
    """The node as a call of the layer; of a norm, its first result."""
    name = f"{type(layer).__name__.lower()}_{len(graph._modules)}"
    graph.add_module(name, layer)
    source = arguments(node)[1] if node.target is _aten.addmm.default else arguments(node)[0]
    if node.target is _aten.add.Tensor:
        source = arguments(source)[0]  # what the layer without its bias read
    with node.graph.inserting_before(node):
        called = node.graph.call_module(name, (source,))
    _take_over(node, called)


def _become(node: fx.Node, function: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
    """The node as a call of a function that gives its first result alone."""
    with node.graph.inserting_before(node):
        called = node.graph.call_function(function, args)
    _take_over(node, called)


def _take_over(node: fx.Node, called: fx.Node) -> None:
    results = [user for user in node.users if user.target is operator.getitem] or [node]
    for result in results:
        if result is node or arguments(result)[1] == 0:
            called.meta |= {key: result.meta[key] for key in ("shape", "more")}
            result.replace_all_uses_with(called)
