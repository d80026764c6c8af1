"""A function of tensors of fixed shapes, called many times: on a GPU as one CUDA graph, elsewhere as it is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]
Graphs = dict[tuple[torch.Size, ...], Function | int]  # by shapes: a captured function, or calls so far
_WORTH = 4  # calls of the same shapes: fewer cost less than a capture, with its warm-up
_WARM_UPS = 3  # calls before a capture, as torch asks for: libraries choose their kernels in them


def replayed(function: Function, graphs: Graphs, *tensors: Tensor, repeatable: bool = True) -> Sequence[Tensor]:
    """function(*tensors). On a GPU, shapes that come again and again are captured into `graphs` and launched as a
    whole; their results are overwritten by the next call of the same shapes. A capture keeps memory of its own.
    repeatable: calls of the same tensors do the same. One that changes what it reads is not called to warm up, beyond
    the calls that were asked for.
    """
    if tensors[0].device.type != "cuda":
        return function(*tensors)
    shapes = tuple(tensor.shape for tensor in tensors)
    known = graphs.get(shapes, 0)
    if isinstance(known, int):
        graphs[shapes] = known + 1
        if known < _WORTH:
            return function(*tensors)
        with torch.cuda.device(tensors[0].device):
            known = graphs[shapes] = _captured(function, tensors, _WARM_UPS if repeatable else 0)
    with torch.cuda.device(tensors[0].device):
        return known(*tensors)


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
        for kept, tensor in zip(inputs, tensors, strict=True):
            kept.copy_(tensor)
        graph.replay()
        return results

    return replay
