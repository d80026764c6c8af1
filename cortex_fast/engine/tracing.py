"""A forward recorded below autograd, operator by operator: what an extractor computes, whatever Python it is written in.

torch.fx.symbolic_trace patches nn.Module for the whole process, sees neither statements in place nor torch.no_grad, and
leaves its proxies in the model. What the dispatcher is asked to do has none of these: it is seen in this thread alone,
with real tensors, in-place operators and the gradient mode included. make_fx would see the same, but patches nn.Module
as well and imports torch._dynamo (2 s); so does a TorchDispatchMode as it comes, see `_Recorder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
from torch.utils.weak import WeakTensorKeyDictionary

INPUT = -1  # the embedding's record
_BATCH_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit")
_BY_LAYOUT = ("as_strided", "as_strided_", "set_", "resize_", "resize_as_")
_BY_VALUE = "its forward depends on values: it reads its input in Python"
_READING = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage")  # past the dispatcher


class UntraceableError(ValueError):
    """The extractor's forward is no fixed graph of operators; the message says why. by_value: it looks at the values of
    its input, so that images or copies that go through it together may change each other's results."""

    def __init__(self, reason: str, *, by_value: bool = False) -> None:
        super().__init__(reason)
        self.by_value = by_value


class WritesError(RuntimeError):
    """The forward writes into a tensor that was there before: its model's own, most likely."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that an operator read. record, output: which operator's which result it is, where one of the forward
    made it; tensor: itself, where it does not depend on the embedding; version: how often its memory had been written
    into."""

    record: int | None
    output: int
    tensor: Tensor | None
    version: int = 0


@dataclass(frozen=True, eq=False)
class Record:
    """One operator: arguments with a Value for each tensor; shapes and dtypes of its results; depends: on the
    embedding; graded: under torch.enable_grad; many: its result is a tuple."""

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
    """What a forward did to a batch: records in order, and which is its result's; output: the result itself, with its
    graph; x: the batch, a leaf; versions: how often each storage was written into in all."""

    records: tuple[Record, ...]
    result: Value
    output: Tensor
    x: Tensor
    versions: dict[int, int]

    def changed(self, value: Value) -> bool:
        """Whether a constant was written into after it was read."""
        return value.tensor is not None and self.versions.get(_storage(value.tensor), 0) != value.version


def recorded(extractor: nn.Module, x: Tensor) -> Tape:
    """Run extractor(x), x [B,d,h,w], with gradients, and record it.

    Raises UntraceableError where the forward is not to be had as a graph, WritesError where it would have written into
    a tensor of the model's own: before it did.
    """
    leaf = x.detach().clone().requires_grad_(True)
    recorder = _Recorder()
    with torch.enable_grad():
        own = leaf.clone()  # a forward may write into it, but not into a leaf
        recorder.enter(own, INPUT, 0, depends=True)
        with _Reading(recorder), recorder:
            output = extractor(own)
    if recorder.writes is not None:
        raise WritesError(recorder.writes)
    if recorder.refusal is not None:
        raise recorder.refusal
    result = recorder.value(output)
    if recorder.refusal is not None:
        raise recorder.refusal
    if result.tensor is not None:
        raise UntraceableError("its logits come from outside torch's operators, or do not depend on the embedding")
    _look_at_graph(output)
    return Tape(tuple(recorder.records), result, output, leaf, recorder.versions)


def _look_at_graph(output: Tensor) -> None:
    """Raise UntraceableError where a backward pass of the user's own is on the way."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        function = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if isinstance(function, torch.autograd.function.BackwardCFunction):
            name = type(function).__name__
            cause = "hooks on a module's backward pass" if "Hook" in name else f"a backward pass of its own ({name})"
            raise UntraceableError(f"it has {cause}")
        waiting += [following for following, _ in function.next_functions]


@dataclass(frozen=True)
class _Entry:
    record: int
    output: int
    depends: bool
    version: int  # of its storage: a write through another tensor makes it stale


class _Recorder(TorchDispatchMode):
    """Records what this thread dispatches. After a refusal it goes on looking for writes into what is not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.refusal: UntraceableError | None = None
        self.writes: str | None = None
        # weakly: autograd makes a view of a tensor that somebody else holds into another tensor
        self._entries = WeakTensorKeyDictionary()
        self.versions: dict[int, int] = {}  # how often a storage was written into
        self._dependent: set[int] = set()  # storages that something of the embedding was written into
        self._foreign: dict[int, Tensor] = {}  # storages that were there before, and what keeps them there

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call of a process imports torch._dynamo

    def __enter__(self) -> _Recorder:
        _push_mode(self)  # TorchDispatchMode's own also sets flags of the whole process
        return self

    def __exit__(self, *_: object) -> None:
        _pop_mode()

    def refuse(self, reason: str, *, by_value: bool = False) -> None:
        if self.refusal is None:
            self.refusal = UntraceableError(reason, by_value=by_value)
        elif by_value:
            self.refusal.by_value = True

    def enter(self, tensor: Tensor, record: int, output: int, *, depends: bool) -> None:
        """The tensor is this result of this record."""
        self._entries[tensor] = _Entry(record, output, depends, self._version(_storage(tensor)))

    def depends(self, tensor: Tensor) -> bool:
        entry, storage = self._entries.get(tensor), _storage(tensor)
        if entry is None:
            return False
        return entry.depends or (entry.version != self._version(storage) and storage in self._dependent)

    def value(self, tensor: Tensor) -> Value:
        """What a tensor is to the graph."""
        entry, storage = self._entries.get(tensor), _storage(tensor)
        if entry is None:
            self._foreign.setdefault(storage, tensor)
            return Value(None, 0, tensor, self._version(storage))
        current = self._version(storage)
        if entry.version != current and self.depends(tensor):
            self.refuse("it writes into a view of a tensor that it reads again")
        if entry.depends:
            return Value(entry.record, entry.output, None)
        record = entry.record if entry.version == current else None
        return Value(record, entry.output, tensor, current)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        values = mapped((args, kwargs), self.value)
        depends = any(value.tensor is None for value in values_in(values))
        name = operator._schema.name.split("::")[-1]
        self._look_at(operator, name, args, kwargs, depends)
        written = [
            argument.name if argument.kwarg_only else position
            for position, argument in enumerate(operator._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            return self._write(operator, name, written, args, kwargs, values, depends)
        result = operator(*args, **kwargs)
        many = isinstance(result, tuple | list)
        results = tuple(result) if many else (result,)
        if depends and not any(isinstance(part, Tensor) for part in results):
            self.refuse(_BY_VALUE, by_value=True)
        self._append(operator, values, results, depends, many=many)
        for output, part in enumerate(results):
            if isinstance(part, Tensor):
                self.enter(part, len(self.records) - 1, output, depends=depends)
        return result

    def _look_at(self, operator: Any, name: str, args: Any, kwargs: Any, depends: bool) -> None:
        """Refuse what no graph can be made of."""
        if torch.Tag.nondeterministic_seeded in operator.tags and not _drops_nothing(operator, args, kwargs):
            self.refuse(f"it is random ({name})")
        if not depends:
            return
        if torch.Tag.dynamic_output_shape in operator.tags:
            self.refuse(f"the shapes of its results depend on values ({name})", by_value=True)
        if torch.Tag.data_dependent_output in operator.tags:
            self.refuse(_BY_VALUE, by_value=True)
        if name in _BY_LAYOUT:
            self.refuse(f"it depends on how its tensors are laid out ({name})")
        if name in _BATCH_NORMS and args[5] is True and isinstance(args[3], Tensor):
            self.stop("it updates its running statistics")

    def stop(self, reason: str) -> None:
        """What comes next must not be run."""
        self.writes = reason
        raise WritesError(reason)

    def _append(
        self, operator: Any, values: tuple[Any, Any], results: tuple[Any, ...], depends: bool, *, many: bool = False
    ) -> None:
        shapes = tuple(part.shape if isinstance(part, Tensor) else None for part in results)
        dtypes = tuple(part.dtype if isinstance(part, Tensor) else None for part in results)
        graded = torch.is_grad_enabled()
        self.records.append(Record(operator, values[0], values[1], shapes, dtypes, depends, graded, many))

    def _write(
        self, operator: Any, name: str, written: list[int | str], args: Any, kwargs: Any, values: Any, depends: bool
    ) -> Any:
        """An operator in place, as its counterpart that makes a new tensor, whose values go into the old one."""
        for key in written:
            for tensor in tensors_in(kwargs.get(key) if isinstance(key, str) else args[key]):
                if self._entries.get(tensor) is None or _storage(tensor) in self._foreign:
                    self.stop(f"it writes into a tensor of its own ({name})")
        counterpart = _counterpart(operator, name)
        if counterpart is None or written != [0] or not isinstance(args[0], Tensor):
            self.refuse(f"it writes into given memory ({name})")
            return operator(*args, **kwargs)
        target = args[0]
        if depends and not torch.is_grad_enabled():
            self.refuse("it writes in place under torch.no_grad")
        if values[0][0].tensor is not None:  # what it was before, for it is written into now
            before = replace(values[0][0], tensor=target.clone(), version=0)
            values = ((before, *values[0][1:]), values[1])
        if name == "copy_":
            result = args[1].to(dtype=target.dtype, device=target.device)
            self._append(torch.ops.aten._to_copy.default, (values[0][1:2], {"dtype": target.dtype}), (result,), depends)
            self._move(target, depends)
            shape = list(target.shape)
            self._append(torch.ops.aten.expand.default, ((self.value(target), shape), {}), (target,), depends)
        else:
            result = counterpart(*args, **kwargs)
            self._append(counterpart, values, (result,), depends)
            if result.dtype != target.dtype:
                self._move(target, depends)
                cast = ((self.value(target),), {"dtype": target.dtype})
                self._append(torch.ops.aten._to_copy.default, cast, (target,), depends)
        target.copy_(result)
        self._move(target, depends)
        return target

    def _move(self, target: Tensor, depends: bool) -> None:
        """The tensor is the last record's result now, and all others of its memory are out of date."""
        storage = _storage(target)
        self.versions[storage] = self._version(storage) + 1
        if depends:
            self._dependent.add(storage)
        self.enter(target, len(self.records) - 1, 0, depends=depends)

    def _version(self, storage: int) -> int:
        return self.versions.get(storage, 0)


class _Reading(TorchFunctionMode):
    """Notices that a tensor of the graph is read as numbers, past the dispatcher."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _READING and args and isinstance(args[0], Tensor):
            if self.recorder.depends(args[0]):
                self.recorder.refuse(_BY_VALUE, by_value=True)
        return function(*args, **(kwargs or {}))


def _drops_nothing(operator: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator that may be random is told not to be."""
    named = dict(zip((argument.name for argument in operator._schema.arguments), args, strict=False)) | kwargs
    defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}
    off = {"dropout_p": 0, "training": False, "train": False}
    return any(name in defaults and named.get(name, defaults[name]) == value for name, value in off.items())


def _counterpart(operator: Any, name: str) -> Any:
    """The operator that makes a new tensor of what this one does in place; None where there is none."""
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    return None if packet is None else getattr(packet, operator._overloadname, None)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def values_in(value: Any) -> Iterator[Value]:
    """All Values of nested tuples, lists and dicts."""
    if isinstance(value, Value):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from values_in(item)
    elif isinstance(value, dict):
        yield from values_in(list(value.values()))


def mapped(value: Any, function: Any) -> Any:
    """The same nested tuples, lists and dicts with function(tensor) for each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(mapped(item, function) for item in value) if type(value) in (tuple, list) else tuple(
            mapped(item, function) for item in value
        )
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    return value
