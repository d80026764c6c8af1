"""What autograd needs for gradients of the input alone: no gradient of any parameter, tensors that it takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def frozen(extractor: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient within; what did before does after."""
    learning = [parameter for parameter in extractor.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode: autograd refuses those."""
    return tensor.clone() if tensor.is_inference() else tensor
