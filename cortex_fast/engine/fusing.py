"""3 x 3 convolutions of a graph, each with the ReLU and the max-pooling behind it, as `ops.conv3x3`."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cortex_fast import ops
from cortex_fast.engine.graphs import Graph, layers
from cortex_fast.engine.nodes import is_pool, is_relu, only_user

Filters = dict[tuple[int, torch.Size], ops.Filters]


class Convolution(nn.Module):
    """ops.conv3x3 with filters of its own."""

    def __init__(self, filters: ops.Filters, relu: bool, pool: bool) -> None:
        super().__init__()
        self.filters, self.relu, self.pool = filters, relu, pool

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv3x3(x, self.filters, relu=self.relu, pool=self.pool)


def fuse(graph: Graph, known: Filters | None = None) -> int:
    """Replace, in place, every convolution that `ops.conv3x3` can serve; returns how many.

    known: filters by their weight's address and shape, which more graphs may share.
    """
    known = {} if known is None else known
    replaced = 0
    for node, layer in list(layers(graph)):
        if not isinstance(layer, nn.Conv2d) or not _serves(layer):
            continue
        last, relu, pool = node, False, False
        follower = only_user(last)
        if follower is not None and is_relu(follower):
            last, relu = follower, True
            follower = only_user(last)
            if follower is not None and is_pool(follower):
                last, pool = follower, True
        address = layer.weight.data_ptr(), layer.weight.shape
        if address not in known:
            known[address] = ops.prepare_filters(layer.weight, layer.bias)
        bias = None if layer.bias is None else layer.bias.detach().contiguous()
        filters = replace(known[address], bias=bias)
        name = f"{node.name}_fused"
        graph.add_module(name, Convolution(filters, relu, pool))
        with node.graph.inserting_after(last):
            fused = node.graph.call_module(name, (node.all_input_nodes[0],))
        last.replace_all_uses_with(fused)
        replaced += 1
    graph.compile_steps()
    return replaced


def _serves(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == (1, 1)
        and layer.padding in (1, (1, 1), "same")
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
