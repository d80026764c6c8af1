"""An extractor's graph with BatchNorm folded into the layers before it."""

import copy

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from cortex_fast.engine.assembling import assembled
from cortex_fast.engine.graphs import Graph, layers
from cortex_fast.engine.lifting import lift
from cortex_fast.engine.tracing import recorded


def traced(extractor: nn.Module, few: Tensor, more: Tensor) -> Graph:
    """The graph of an extractor's operators, by two batches of different numbers of images.

    Raises UntraceableError or WritesError with the reason where there is none.
    """
    return assembled(recorded(extractor, few), recorded(extractor, more))


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
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return
    layer = graph.get_submodule(str(source.target))
    if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        merged: nn.Module = fuse_conv_bn_eval(layer, norm)
    elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        merged = fuse_linear_bn_eval(layer, norm)
    else:
        return
    graph.add_module(str(source.target), merged.requires_grad_(False).eval())
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def without_bias(module: nn.Module) -> nn.Module:
    """The linear part of an affine layer, sharing its weight."""
    if getattr(module, "bias", None) is None:
        return module
    linear = copy.copy(module)
    linear._parameters = dict(module._parameters, bias=None)
    return linear
