"""An extractor's graph with BatchNorm folded into the layers before it."""

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from cortex_fast.engine.graphs import Graph, layers
from cortex_fast.engine.lifting import Norm, lift


def fold(graph: Graph) -> Graph:
    """The same function with fewer layers, in place: sharing the weights that folding leaves alone."""
    lift(graph)
    for node, layer in list(layers(graph)):
        _fold_norm(node, layer, graph)
    graph.compile_steps()
    return graph


def _fold_norm(node: fx.Node, norm: nn.Module, graph: Graph) -> None:
    """A BatchNorm whose only input is a convolution or linear layer that nothing else reads goes into its weights."""
    source = node.args[0]
    if not isinstance(norm, Norm) or not isinstance(source, fx.Node) or source.op != "call_module":
        return
    layer = graph.get_submodule(str(source.target))
    channels = len(node.meta["shape"]) == 2 if isinstance(layer, nn.Linear) else isinstance(layer, nn.Conv2d)
    if not channels or len(source.users) != 1:
        return
    fused = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    weight = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
    merged = copy.copy(layer)
    parameters = fused(layer.weight, layer.bias, norm.mean, norm.variance, norm.eps, weight, bias)  # type: ignore[arg-type]
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
