"""A stand-in for an extractor, of the same structure and weights: running it leaves the user's module unchanged."""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cortex_fast.engine.nested import instances

Layer = TypeVar("Layer", bound=nn.Module)


def borrowed(extractor: nn.Module, *, tensors_too: bool = False) -> nn.Module:
    """A copy whose parameters, buffers and tensor attributes share the extractor's memory and require no gradient.

    State that a forward leaves behind (features, counters, lists) stays in the copy. tensors_too: the tensors are
    copies as well, for a forward that writes into them. Tensors created under torch.inference_mode are always copied:
    autograd accepts none. Attributes that cannot be copied (a lock, an open file) are shared.
    Raises whatever the extractor's __deepcopy__ raises.
    """
    whole = unwrapped(extractor)
    memo = {id(tensor): _alias(tensor, copied=tensors_too) for tensor in _tensors(whole)}
    try:
        stand_in = copy.deepcopy(whole, dict(memo))
    except Exception:
        stand_in = copy.deepcopy(whole, memo | _uncopyable(whole, memo))
    for parameter in stand_in.parameters():
        parameter.requires_grad_(False)
    return stand_in


def unwrapped(extractor: nn.Module) -> nn.Module:
    """The module inside a wrapper of torch.compile or data parallelism: the same function."""
    while True:
        inner = getattr(extractor, "_orig_mod", None)
        if inner is None and isinstance(extractor, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = extractor.module
        if not isinstance(inner, nn.Module):
            return extractor
        extractor = inner


def _tensors(extractor: nn.Module) -> Iterator[Tensor]:
    for module in extractor.modules():
        for value in vars(module).values():
            yield from instances(Tensor, value)


def _alias(tensor: Tensor, *, copied: bool) -> Tensor:
    """The same values without a graph; attributes that users add to parameters stay."""
    alias = tensor.detach()
    if copied or tensor.is_inference():
        alias = alias.clone()
    if isinstance(tensor, nn.Parameter):
        alias = nn.Parameter(alias, requires_grad=False)
    alias.__dict__.update(tensor.__dict__)
    return alias


def _uncopyable(extractor: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Attributes that cannot be copied, by id."""
    shared: dict[int, Any] = {}
    for module in extractor.modules():
        for value in vars(module).values():
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                if not _holds_modules(value):
                    shared[id(value)] = value
    return shared


def _holds_modules(value: Any) -> bool:
    return isinstance(value, nn.Module) or (
        isinstance(value, dict) and any(isinstance(item, nn.Module) for item in value.values())
    )


@torch.no_grad()
def in_dtype(module: Layer, dtype: torch.dtype) -> Layer:
    """A copy of a module in another dtype, its weights copies as well."""
    return copy.deepcopy(module).to(dtype).requires_grad_(False)


def straighten_norms(stand_in: nn.Module) -> None:
    """In place: make the gradients that enter a norm contiguous, for torch's operator; see `norms`."""
    for module in stand_in.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.register_forward_hook(_straighten)


def _straighten(module: nn.Module, inputs: Any, result: Tensor) -> None:
    if result.requires_grad:
        result.register_hook(Tensor.contiguous)
