"""Whether an extractor's weights are still those that were prepared."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ELEMENTS = 1024  # of each tensor that are compared, at equal distances
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Weights:
    """identity: modules, addresses and versions of all parameters and buffers. elements: some of their values, for
    changes past autograd (weight.data.mul_())."""

    identity: tuple[int, ...]
    elements: tuple[Tensor, ...]


def weights_of(extractor: nn.Module) -> Weights:
    """The extractor's weights now, for `changed`, which notices the change of a whole tensor, or of more than a
    thousandth of it in one piece."""
    return Weights(identity_of(extractor), tuple(elements.clone() for elements in _elements(extractor)))


def changed(weights: Weights, extractor: nn.Module) -> bool:
    """Whether the extractor's weights have changed. On a GPU this waits once."""
    if identity_of(extractor) != weights.identity:
        return True
    now = _elements(extractor)
    return not all(torch.equal(*pair) for pair in zip(now, weights.elements, strict=True))


def identity_of(extractor: nn.Module) -> tuple[int, ...]:
    """A value that changes when autograd sees a parameter or buffer change, or when it is replaced."""
    tensors = (*extractor.parameters(), *extractor.buffers())
    versions = (number for t in tensors for number in (_address(t), 0 if t.is_inference() else t._version))
    return (*map(id, extractor.modules()), *versions)


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)


@torch.no_grad()
def _elements(extractor: nn.Module) -> list[Tensor]:
    """Some elements of every tensor, as integers of the same bits, joined by device and size."""
    joined: dict[tuple[torch.device, int], list[Tensor]] = {}
    for tensor in _dense((*extractor.parameters(), *extractor.buffers())):
        count = tensor.numel()
        step = max(1, count // _ELEMENTS)
        some = tensor.as_strided((-(-count // step),), (step,), tensor.storage_offset())
        key = tensor.device, tensor.element_size()
        joined.setdefault(key, []).append(some.view(_INTEGERS[tensor.element_size()]))
    return [torch.cat(parts) for parts in joined.values()]


def _dense(tensors: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """The real tensors that are not empty, without gaps in memory."""
    for tensor in tensors:
        plain = tensor.layout == torch.strided and not tensor.is_complex() and tensor.numel()
        if plain and tensor.device.type != "meta" and tensor.element_size() in _INTEGERS:
            yield tensor.detach() if _without_gaps(tensor) else tensor.detach().contiguous()


def _without_gaps(tensor: Tensor) -> bool:
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return span == tensor.numel()
