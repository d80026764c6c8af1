"""Tensors that autograd takes."""

from torch import Tensor


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode: autograd refuses those."""
    return tensor.clone() if tensor.is_inference() else tensor
