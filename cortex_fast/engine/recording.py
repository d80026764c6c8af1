"""The state of a recording: the records so far, and the record of each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from cortex_fast.engine.errors import UntraceableError, WritesError
from cortex_fast.engine.tape import Record, Value, storage_of
from cortex_fast.engine.views import RecordedTensor, View


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operator.

    values: args and kwargs with a Value for each tensor. depends: on the embedding.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: tuple[tuple[Any, ...], dict[str, Any]]
    depends: bool

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload."""
        return self.operator._schema.name.split("::")[-1]

    @property
    def source(self) -> Value:
        """The first argument, a tensor."""
        return self.values[0][0]

    @property
    def options(self) -> tuple[Any, ...]:
        """The positional arguments behind the first."""
        return self.values[0][1:]


@dataclass(frozen=True, eq=False)
class _Entry:
    recorded: RecordedTensor
    depends: bool
    storage: int
    version: int  # of its storage: a write through another tensor makes the entry stale


class Recording:
    """Records and tensors of a running forward.

    After a refusal the recording goes on, to find writes into the model's own tensors.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.refusal: UntraceableError | None = None
        self.forbidden_write: str | None = None
        self.versions: dict[int, int] = {}  # number of writes into each storage
        # storages derived from the embedding; the weak references keep their ids from being reused
        self.derived_storages: dict[int, StorageWeakRef] = {}
        # weakly: autograd turns a view of a tensor that somebody else holds into another tensor
        self._entries = WeakTensorKeyDictionary()
        self._overwritten_storages: set[int] = set()  # by tensors that depend on the embedding
        self._foreign_tensors: dict[int, Tensor] = {}  # older than the forward, by storage, which they keep alive

    def refuse(self, reason: str, *, by_value: bool = False) -> None:
        """Note that no graph can be built; the first reason counts."""
        if self.refusal is None:
            self.refusal = UntraceableError(reason, by_value=by_value)
        elif by_value:
            self.refusal.by_value = True

    def stop(self, reason: str) -> None:
        """Raise WritesError: the next operator must not run."""
        self.forbidden_write = reason
        raise WritesError(reason)

    def append(
        self,
        operator: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: tuple[Any, ...],
        *,
        depends: bool,
        many: bool = False,
    ) -> int:
        """Add a record; returns its index. results: tensors, or recorded ones, for their shapes."""
        typed = (Tensor, RecordedTensor)
        record = Record(
            operator=operator,
            args=args,
            kwargs=kwargs,
            shapes=tuple(result.shape if isinstance(result, typed) else None for result in results),
            dtypes=tuple(result.dtype if isinstance(result, typed) else None for result in results),
            depends=depends,
            graded=torch.is_grad_enabled(),
            many=many,
        )
        self.records.append(record)
        return len(self.records) - 1

    def add(self, tensor: Tensor, record: int, output: int = 0, *, depends: bool, view: View | None = None) -> None:
        """From now on the tensor is this result of this record."""
        recorded = RecordedTensor(record, output, tensor.shape, tensor.dtype, TensorWeakRef(tensor), view)
        self.track(tensor, recorded, depends=depends)

    def track(self, tensor: Tensor, recorded: RecordedTensor, *, depends: bool) -> None:
        """From now on the tensor is this recorded one."""
        storage = storage_of(tensor)
        self._entries[tensor] = _Entry(recorded, depends, storage, self._version(storage))
        if depends and storage not in self.derived_storages and tensor.layout == torch.strided:
            self.derived_storages[storage] = StorageWeakRef(tensor.untyped_storage())

    def recorded(self, tensor: Tensor) -> RecordedTensor:
        """The record and view of a tracked tensor."""
        return self._entries[tensor].recorded

    def depends(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the embedding."""
        entry, storage = self._entries.get(tensor), storage_of(tensor)
        if entry is None:
            return False
        return entry.depends or (entry.version != self._version(storage) and storage in self._overwritten_storages)

    def value(self, tensor: Tensor) -> Value:
        """The tensor as an operator that reads it now refers to it."""
        entry, storage = self._entries.get(tensor), storage_of(tensor)
        if entry is None:
            self._foreign_tensors.setdefault(storage, tensor)
            return Value(None, 0, tensor, self._version(storage))
        current, recorded = self._version(storage), entry.recorded
        if entry.storage != storage:
            self.refuse("it gives a tensor other data (.data = ...)", by_value=True)
        if entry.version != current and self.depends(tensor):
            self.refuse("it writes into a view of a tensor that it reads again")
        if entry.depends:
            return Value(recorded.record, recorded.output, None)
        return Value(recorded.record if entry.version == current else None, recorded.output, tensor, current)

    def is_foreign(self, tensor: Tensor) -> bool:
        """Whether the tensor, or its memory, is older than the forward."""
        return self._entries.get(tensor) is None or storage_of(tensor) in self._foreign_tensors

    def adopt(self, tensor: Tensor) -> None:
        """Treat the tensor's memory as created by the forward."""
        self._foreign_tensors.pop(storage_of(tensor), None)

    def count_write(self, tensor: Tensor, *, depends: bool) -> None:
        """Note a write into the tensor's memory: every other tensor that shares it becomes stale."""
        storage = storage_of(tensor)
        self.versions[storage] = self._version(storage) + 1
        if depends:
            self._overwritten_storages.add(storage)

    def tracked_dependence(self, tensor: Tensor | None) -> bool:
        """Whether a tensor was last tracked as dependent on the embedding, writes through others aside."""
        entry = None if tensor is None else self._entries.get(tensor)
        return entry is not None and entry.depends

    def _version(self, storage: int) -> int:
        return self.versions.get(storage, 0)
