"""Views of a recorded forward: what a write into a view does to the tensor that it is a view of."""

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
class RecordedTensor:
    """A tensor of the forward: result `output` of record `record`, the last one that wrote into it.

    tensor: the tensor itself, weakly, while it exists; view: how it is a view of another tensor, or None.
    """

    record: int
    output: int
    shape: torch.Size
    dtype: torch.dtype
    tensor: TensorWeakRef | None
    view: View | None = None


@dataclass(frozen=True, eq=False)
class View:
    """The view operator(base, *arguments)."""

    operator: Any
    arguments: tuple[Any, ...]
    base: RecordedTensor


def written_back(view: View, base: Any, part: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """The operator and arguments that give the view's base with the view's new values, or None for unsupported views.

    base, part: the base before the write and the view after it, as the operator's arguments refer to them.
    """
    shape = view.base.shape
    if view.operator in _RESHAPES:
        return _aten.view.default, (part, list(shape))
    if view.operator is _aten.slice.Tensor:
        return _aten.slice_scatter.default, (base, part, *view.arguments)
    if view.operator is _aten.select.int:
        return _aten.select_scatter.default, (base, part, *view.arguments)
    if view.operator in (_aten.transpose.int, _aten.t.default):
        return view.operator, (part, *view.arguments)
    if view.operator is _aten.permute.default:
        dims = [dim % len(shape) for dim in view.arguments[0]]
        return view.operator, (part, [dims.index(dim) for dim in range(len(dims))])
    return None
