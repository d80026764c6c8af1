"""A recorded forward: its operators in order, and the tensors that each of them read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from cortex_fast.engine.nested import instances

INPUT = -1  # the embedding's record


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that an operator read.

    record, output: it is this result of this record; record is None for a tensor that the forward did not compute.
    tensor: the tensor itself where it does not depend on the embedding. version: number of writes into its memory
    before it was read.
    """

    record: int | None
    output: int
    tensor: Tensor | None
    version: int = 0


@dataclass(frozen=True, eq=False)
class Record:
    """One call of an operator, its arguments with a Value for each tensor.

    shapes, dtypes: of its results. depends: on the embedding. graded: under torch.enable_grad. many: the result is a
    tuple.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[torch.Size | None, ...]
    dtypes: tuple[torch.dtype | None, ...]
    depends: bool
    graded: bool
    many: bool


@dataclass(frozen=True, eq=False)
class Tape:
    """What a forward did to a batch.

    records: in order. result: the logits as a Value. output: the logits themselves, with their autograd graph. x: the
    batch, a leaf. versions: number of writes into each storage. derived_storages: storages of tensors that depend on
    the batch.
    """

    records: tuple[Record, ...]
    result: Value
    output: Tensor
    x: Tensor
    versions: dict[int, int]
    derived_storages: dict[int, StorageWeakRef]

    def reads_results_of(self, earlier: Tape) -> bool:
        """Whether it read, as a constant, a tensor that an earlier forward computed from its batch."""
        constants = (
            value.tensor for record in self.records for value in instances(Value, (record.args, record.kwargs))
        )
        return any(tensor is not None and storage_of(tensor) in earlier.derived_storages for tensor in constants)

    def overwrites(self, value: Value) -> bool:
        """Whether a constant was written into after it was read."""
        return value.tensor is not None and self.versions.get(storage_of(value.tensor), 0) != value.version


def storage_of(tensor: Tensor) -> int:
    """A number that two tensors share while they share their memory."""
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage()._cdata
