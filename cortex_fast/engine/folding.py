"""An eval-mode extractor as a torch.fx graph without its training parts: BatchNorm folded, dropout gone."""

import copy
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)


class UntraceableError(ValueError):
    """The extractor's forward is no fixed graph of operations; the message says why."""


def fold(extractor: nn.Module) -> fx.GraphModule:
    """The same function of x as an own graph, sharing the parameters that folding leaves alone.

    Raises UntraceableError where torch.fx cannot follow the forward, or it takes other than one tensor to one.
    """
    try:
        traced = fx.symbolic_trace(extractor)
    except Exception as error:  # tracing runs the user's forward, which may raise anything
        raise UntraceableError(f"torch.fx cannot trace it: {type(error).__name__}: {error}") from error
    if len(traced.graph.find_nodes(op="placeholder")) != 1:
        raise UntraceableError("its forward takes more than one argument")
    graph = fx.Graph()
    graph.output(graph.graph_copy(traced.graph, {}))
    modules = {str(node.target): traced.get_submodule(str(node.target)) for node in graph.find_nodes(op="call_module")}
    folded = fx.GraphModule(_holder(traced, graph, modules), graph)
    for node in list(graph.nodes):
        if _is_dropout(node, modules):
            _bypass(node)
        elif node.op == "call_module" and type(modules[str(node.target)]) is nn.ReLU:
            folded.set_submodule(str(node.target), nn.ReLU())  # in place, it would write into what others read
        elif node.op == "call_module":
            _fold_norm(node, folded)
        elif _is_view(node):
            node.target = "reshape"  # what is channels-last here has no such view, and may be copied
    graph.eliminate_dead_code()
    graph.lint()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded.eval()


def _holder(traced: fx.GraphModule, graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, object]:
    """What a graph's nodes name: its modules, and the tensors that it reads itself."""
    held: dict[str, object] = dict(modules)
    for node in graph.find_nodes(op="get_attr"):
        held[str(node.target)] = operator.attrgetter(str(node.target))(traced)
    return held


def _is_dropout(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _DROPOUTS)
    # the function drops in eval mode too, unless it is told not to train
    off = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True) is False
    return node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS and off


def _is_view(node: fx.Node) -> bool:
    """Of other sizes, not of another dtype."""
    sizes = (*node.args, *node.kwargs.values())
    return node.op == "call_method" and node.target == "view" and not any(isinstance(s, torch.dtype) for s in sizes)


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _fold_norm(node: fx.Node, folded: fx.GraphModule) -> None:
    """A BatchNorm whose only input is a convolution or linear layer that nothing else reads goes into its weights."""
    norm = folded.get_submodule(str(node.target))
    source = node.args[0] if node.args else None
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or not norm.track_running_stats:
        return
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return
    layer = folded.get_submodule(str(source.target))
    if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        merged: nn.Module = fuse_conv_bn_eval(layer, norm)
    elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        merged = fuse_linear_bn_eval(layer, norm)
    else:
        return
    name = f"{str(source.target).replace('.', '_')}_folded"
    if len([user for user in node.graph.find_nodes(op="call_module") if user.target == source.target]) > 1:
        return  # a layer used twice keeps its weights
    folded.add_submodule(name, merged.requires_grad_(False).eval())
    source.target = name
    _bypass(node)


def without_bias(module: nn.Module) -> nn.Module:
    """The linear part of an affine layer, sharing its weight."""
    if getattr(module, "bias", None) is None:
        return module
    linear = copy.copy(module)
    linear._parameters = dict(module._parameters, bias=None)
    return linear
