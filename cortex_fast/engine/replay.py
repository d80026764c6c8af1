"""A function of tensors of fixed shapes, called many times: on a GPU as one CUDA graph, elsewhere as it is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]
_WARM_UPS = 3  # calls before a capture, as torch asks for: libraries choose their kernels in them


def replayed(function: Function, graphs: dict[tuple[torch.Size, ...], Function], *tensors: Tensor) -> Sequence[Tensor]:
    """function(*tensors). On a GPU the first call of each set of shapes is captured into `graphs`, and later ones are
    launched as a whole; their results are overwritten by the next call of the same shapes.
    """
    if tensors[0].device.type != "cuda":
        return function(*tensors)
    shapes = tuple(tensor.shape for tensor in tensors)
    if shapes not in graphs:
        graphs[shapes] = _captured(function, tensors)
    return graphs[shapes](*tensors)


def _captured(function: Function, examples: Sequence[Tensor]) -> Function:
    inputs = [example.detach().clone() for example in examples]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
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
