"""3 x 3 convolutions of a graph, each with the ReLU and the max-pooling behind it, as `ops.conv3x3`."""

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from cortex_fast import ops
from cortex_fast.engine.graphs import Graph, layers
from cortex_fast.engine.nodes import is_pool, is_relu, only_user

FilterCache = dict[tuple[int, torch.Size], ops.Filters]  # by the weight's address and shape


class Convolution(nn.Module):
    """ops.conv3x3 as a layer."""

    def __init__(self, filters: ops.Filters, relu: bool, pool: bool) -> None:
        super().__init__()
        self.filters, self.relu, self.pool = filters, relu, pool

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv3x3(x, self.filters, relu=self.relu, pool=self.pool)


def fuse(graph: Graph, cache: FilterCache | None = None) -> int:
    """Replace, in place, every convolution that `ops.conv3x3` supports; returns their number.

    cache: prepared filters, which several graphs may share.
    """
    cache = {} if cache is None else cache
    replaced = 0
    for node, layer in list(layers(graph)):
        if not isinstance(layer, nn.Conv2d) or not _is_supported(layer):
            continue
        last, relu, pool = _fused_nodes(node)
        filters = _filters(layer, cache)
        name = f"{node.name}_fused"
        graph.add_module(name, Convolution(filters, relu, pool))
        with node.graph.inserting_after(last):
            fused = node.graph.call_module(name, (node.all_input_nodes[0],))
        last.replace_all_uses_with(fused)
        replaced += 1
    graph.compile_steps()
    return replaced


def _fused_nodes(convolution: fx.Node) -> tuple[fx.Node, bool, bool]:
    """The last node that is fused with a convolution; whether a ReLU is, and whether a max-pooling is."""
    last, relu, pool = convolution, False, False
    follower = only_user(last)
    if follower is not None and is_relu(follower):
        last, relu = follower, True
        follower = only_user(last)
        if follower is not None and is_pool(follower):
            last, pool = follower, True
    return last, relu, pool


def _filters(layer: nn.Conv2d, cache: FilterCache) -> ops.Filters:
    """The layer's filters, prepared once for each weight."""
    key = layer.weight.data_ptr(), layer.weight.shape
    if key not in cache:
        cache[key] = ops.prepare_filters(layer.weight, layer.bias)
    bias = None if layer.bias is None else layer.bias.detach().contiguous()
    return replace(cache[key], bias=bias)


def _is_supported(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.padding in (1, (1, 1), "same")
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
