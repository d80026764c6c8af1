"""BatchNorm by its formula.

torch's own operator (2.13, CPU) gives a wrong gradient for a batch of one image where the incoming gradient is not laid
out as x is; so it does when it normalises by the batch's statistics.
"""

import torch
from torch import Tensor, nn

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import arguments
from cortex_fast.engine.rewriting import constant_of, only_first_result_read, replace_by_function, replace_by_layer

_aten = torch.ops.aten
_NORM_OPERATORS = (
    _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit_no_training.default,
    _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default,
)


class Norm(nn.Module):
    """BatchNorm in eval mode, x [B,C,...], by its formula; weight, bias, mean and variance [C]."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor

    def __init__(self, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float) -> None:
        super().__init__()
        for name, tensor in (("weight", weight), ("bias", bias), ("mean", mean), ("variance", variance)):
            self.register_buffer(name, tensor)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.weight, self.bias, self.mean, self.variance, self.eps)


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, x [B,C,...], all others [C]."""
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.to(x.dtype).view(per_channel) + shift.to(x.dtype).view(per_channel)


def normalise_by_statistics(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """By the mean and variance of x [B,C,...] itself, as InstanceNorm does with each channel of each image."""
    dims = [dim for dim in range(x.ndim) if dim != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    return normalise(x, weight, bias, mean, variance, eps)


def lift_norms(graph: Graph) -> Graph:
    """In place: replace norms by running statistics, or by those of their input alone, by their formulas."""
    for node in list(graph.graph.nodes):
        if node.target not in _NORM_OPERATORS or not only_first_result_read(node):
            continue
        source, weight, bias, mean, variance, *flags, eps = arguments(node)  # flags: [training,] momentum
        if any(flag is True for flag in flags):
            if mean is None and variance is None:
                replace_by_function(node, normalise_by_statistics, (source, weight, bias, eps))
            continue
        parameters = {"weight": weight, "bias": bias, "mean": mean, "variance": variance}
        constants = {name: constant_of(graph, argument) for name, argument in parameters.items()}
        if all((constants[name] is None) == (argument is None) for name, argument in parameters.items()):
            replace_by_layer(graph, node, Norm(**constants, eps=eps))  # type: ignore[arg-type]
        else:
            replace_by_function(node, normalise, (source, weight, bias, mean, variance, eps))
    graph.compile_steps()
    return graph
