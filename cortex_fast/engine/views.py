"""Views of a recorded forward: what a write into a view makes of the tensor that it is a view of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import TensorWeakRef

_aten = torch.ops.aten
_RESHAPES = (
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten._reshape_alias.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.squeeze.default,
)


@dataclass(eq=False)
class Place:
    """A tensor of the forward: which record's which result it is by now, and what it is a view of: an operator, its
    arguments behind the tensor, and that tensor's place; tensor: itself, weakly, while it is there."""

    record: int
    output: int
    shape: torch.Size
    dtype: torch.dtype
    tensor: TensorWeakRef | None
    view: tuple[Any, tuple[Any, ...], Place] | None = None


def written_back(operator: Any, rest: tuple[Any, ...], whole: Any, part: Any, shape: torch.Size) -> Any:
    """The operator and arguments that give a tensor of this shape, `whole`, in which its view, operator(whole, *rest),
    is `part`; None where that is not known."""
    if operator in _RESHAPES:
        return _aten.view.default, (part, list(shape))
    if operator is _aten.slice.Tensor:
        return _aten.slice_scatter.default, (whole, part, *rest)
    if operator is _aten.select.int:
        return _aten.select_scatter.default, (whole, part, *rest)
    if operator in (_aten.transpose.int, _aten.t.default):
        return operator, (part, *rest)
    if operator is _aten.permute.default:
        dims = [dim % len(shape) for dim in rest[0]]
        return operator, (part, [dims.index(dim) for dim in range(len(dims))])
    return None
