"""An extractor's graph with BatchNorm folded into the layers before it."""

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from cortex_fast.engine.graphs import Graph, layers
from cortex_fast.engine.lifting import lift
from cortex_fast.engine.norms import Norm


def fold(graph: Graph) -> Graph:
    """Fold in place: the same function with fewer layers, which shares the weights that folding leaves unchanged."""
    lift(graph)
    for node, layer in list(layers(graph)):
        _fold_norm(node, layer, graph)
    graph.compile_steps()
    return graph


def _fold_norm(node: fx.Node, norm: nn.Module, graph: Graph) -> None:
    """Fold a BatchNorm into the weights of the convolution or linear layer before it, where nothing else reads that."""
    source = node.args[0]
    if not isinstance(norm, Norm) or not isinstance(source, fx.Node) or source.op != "call_module":
        return
    layer = graph.get_submodule(str(source.target))
    channels = len(node.meta["shape"]) == 2 if isinstance(layer, nn.Linear) else isinstance(layer, nn.Conv2d)
    if not channels or len(source.users) != 1:
        return
    fold_weights = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    weight = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
    merged = copy.copy(layer)
    parameters = fold_weights(
        layer.weight,  # type: ignore[arg-type]
        layer.bias,  # type: ignore[arg-type]
        bn_rm=norm.mean,
        bn_rv=norm.variance,
        bn_eps=norm.eps,
        bn_w=weight,
        bn_b=bias,
    )
    merged._parameters = dict(zip(("weight", "bias"), parameters, strict=True))
    graph.add_module(str(source.target), merged.requires_grad_(False))
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def without_bias(module: nn.Module) -> nn.Module:
    """The linear part of an affine layer, sharing its weight."""
    if getattr(module, "bias", None) is None:
        return module
    linear = copy.copy(module)
    linear._parameters = dict(module._parameters, bias=None)
    return linear
