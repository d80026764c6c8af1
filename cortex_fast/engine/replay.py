"""A function of tensors of fixed shapes, called many times: on a GPU as one CUDA graph, elsewhere as usual."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]
Graphs = dict[tuple[torch.Size, ...], Function | int]  # by shapes: a captured function, or calls so far
_CALLS_BEFORE_CAPTURE = 4  # calls of the same shapes: fewer cost less than a capture, with its warm-up
_WARM_UPS = 3  # calls before a capture, as torch asks for: libraries choose their kernels in them


def replayed(function: Function, graphs: Graphs, *tensors: Tensor, repeatable: bool = True) -> Sequence[Tensor]:
    """Call function(*tensors), on a GPU by a CUDA graph once its shapes have come often enough.

    Args:
        function: its results depend on the tensors alone; on a GPU it may read no value of theirs in Python.
        graphs: the graphs captured so far, by shapes; filled in place. Each holds memory of its own.
        tensors: the arguments.
        repeatable: whether further calls with the same tensors have no effect. A function that changes the tensors it
            reads is not called to warm up. Default True.
    Returns:
        The function's results. The next call of the same shapes overwrites those of a graph.
    """
    if tensors[0].device.type != "cuda":
        return function(*tensors)
    shapes = tuple(tensor.shape for tensor in tensors)
    entry = graphs.get(shapes, 0)
    if isinstance(entry, int):
        graphs[shapes] = entry + 1
        if entry < _CALLS_BEFORE_CAPTURE:
            return function(*tensors)
        with torch.cuda.device(tensors[0].device):
            entry = graphs[shapes] = _captured(function, tensors, _WARM_UPS if repeatable else 0)
    with torch.cuda.device(tensors[0].device):
        return entry(*tensors)


def _captured(function: Function, examples: Sequence[Tensor], warm_ups: int) -> Function:
    inputs = [example.detach().clone() for example in examples]
    if warm_ups:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_ups):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*inputs)

    def replay(*tensors: Tensor) -> Sequence[Tensor]:
        for static_input, tensor in zip(inputs, tensors, strict=True):
            static_input.copy_(tensor)
        graph.replay()
        return results

    return replay
