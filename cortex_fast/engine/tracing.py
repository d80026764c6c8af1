"""A forward recorded below autograd, operator by operator: what an extractor computes, whatever its Python.

torch.fx.symbolic_trace patches nn.Module for the whole process, sees neither statements in place nor torch.no_grad, and
leaves its proxies in the model. What the dispatcher is asked to do has none of these: it is seen in this thread alone,
with real tensors, in-place operators and the gradient mode included. make_fx would see the same, but patches nn.Module
as well and imports torch._dynamo (2 s); so does a TorchDispatchMode as it comes, see `_Recorder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from cortex_fast.engine.nested import each, mapped
from cortex_fast.engine.views import Place, written_back

_aten = torch.ops.aten
INPUT = -1  # the embedding's record
_BATCH_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit")
_BY_LAYOUT = ("as_strided", "as_strided_copy")
_BY_VALUE = "its forward depends on values: it reads its input in Python"
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_READING = (
    "tolist",
    "numpy",
    "__array__",
    "__dlpack__",
    "data_ptr",
    "storage",
    "untyped_storage",
)  # past the dispatcher


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
    graph; x: the batch, a leaf; versions: how often each storage was written into in all; made: the storages of
    what is the batch's."""

    records: tuple[Record, ...]
    result: Value
    output: Tensor
    x: Tensor
    versions: dict[int, int]
    made: dict[int, StorageWeakRef]

    def found(self, earlier: Tape) -> bool:
        """Whether it read, as a constant, what an earlier forward made of its batch."""
        constants = (value.tensor for record in self.records for value in each(Value, (record.args, record.kwargs)))
        return any(tensor is not None and _storage(tensor) in earlier.made for tensor in constants)

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
        recorder.enter(own, Place(INPUT, 0, own.shape, own.dtype, TensorWeakRef(own)), depends=True)
        with _Reading(recorder), recorder:
            output = extractor(own)
    if recorder.writes is not None:
        raise WritesError(recorder.writes)
    if not isinstance(output, Tensor):
        raise TypeError(f"extractor: expected a tensor of logits, got {type(output).__name__}")
    if recorder.refusal is not None:
        raise recorder.refusal
    result = recorder.value(output)
    if recorder.refusal is not None:
        raise recorder.refusal
    if result.tensor is not None:
        raise UntraceableError("its logits come from outside torch's operators, or do not depend on the embedding")
    _look_at_graph(output)
    return Tape(tuple(recorder.records), result, output, leaf, recorder.versions, recorder.made)


def _look_at_graph(output: Tensor) -> None:
    """Raise UntraceableError where a backward pass of the user's own is on the way."""
    waiting: list[Any] = [output.grad_fn]
    seen: set[Any] = set()
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


@dataclass(frozen=True, eq=False)
class _Entry:
    place: Place
    depends: bool
    storage: int
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
        self.made: dict[
            int, StorageWeakRef
        ] = {}  # storages of what is the embedding's; while held, none has its number
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

    def enter(self, tensor: Tensor, place: Place, *, depends: bool) -> None:
        """The tensor is at this place of the graph."""
        storage = _storage(tensor)
        self._entries[tensor] = _Entry(place, depends, storage, self._version(storage))
        if depends and storage not in self.made and tensor.layout == torch.strided:
            self.made[storage] = StorageWeakRef(tensor.untyped_storage())

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
        current, place = self._version(storage), entry.place
        if entry.storage != storage:
            self.refuse("it gives a tensor other data (.data = ...)", by_value=True)
        if entry.version != current and self.depends(tensor):
            self.refuse("it writes into a view of a tensor that it reads again")
        if entry.depends:
            return Value(place.record, place.output, None)
        return Value(place.record if entry.version == current else None, place.output, tensor, current)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # the recorder's own reading is not the forward's
            return self._dispatched(operator, args, kwargs or {})

    def _dispatched(self, operator: Any, args: Any, kwargs: Any) -> Any:
        values = mapped(Tensor, (args, kwargs), self.value)
        depends = any(value.tensor is None for value in each(Value, values))
        name = operator._schema.name.split("::")[-1]
        self._look_at(operator, name, args, kwargs, depends)
        written = [
            argument.name if argument.kwarg_only else position
            for position, argument in enumerate(operator._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if torch.Tag.inplace_view in operator.tags and values[0][0].record is not None:
            return self._reshape(operator, name, args, kwargs, values, depends)
        if written:
            return self._write(operator, name, written, args, kwargs, values, depends)
        if name == "lift_fresh":  # new memory of torch.tensor's, which may be written into
            self._foreign.pop(_storage(args[0]), None)
            values = ((Value(None, 0, args[0].clone()),), {})
        result = operator(*args, **kwargs)
        many = isinstance(result, tuple | list)
        results = tuple(result) if many else (result,)
        if depends and not any(isinstance(part, Tensor) for part in results):
            self.refuse(_BY_VALUE, by_value=True)
        self._append(operator, values[0], values[1], results, depends, many=many)
        view = None
        if not many and args and isinstance(args[0], Tensor) and values[0][0].record is not None:
            view = operator, values[0][1:], self._entries[args[0]].place
        for output, part in enumerate(results):
            if isinstance(part, Tensor):
                own = view if view is not None and _storage(part) == _storage(args[0]) else None
                place = Place(len(self.records) - 1, output, part.shape, part.dtype, TensorWeakRef(part), own)
                self.enter(part, place, depends=depends)
        return result

    def _look_at(self, operator: Any, name: str, args: Any, kwargs: Any, depends: bool) -> None:
        """Refuse what no graph can be made of."""
        if torch.Tag.nondeterministic_seeded in operator.tags and not _drops_nothing(operator, args, kwargs):
            self.refuse(f"it is random ({name})")
        if not depends:
            return
        if torch.Tag.dynamic_output_shape in operator.tags and not _by_numbers(name, args):
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
        self,
        operator: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: tuple[Any, ...],
        depends: bool,
        *,
        many: bool = False,
    ) -> None:
        """A record; results: tensors, or places, for their shapes."""
        shapes = tuple(part.shape if isinstance(part, Tensor | Place) else None for part in results)
        dtypes = tuple(part.dtype if isinstance(part, Tensor | Place) else None for part in results)
        graded = torch.is_grad_enabled()
        self.records.append(Record(operator, args, kwargs, shapes, dtypes, depends, graded, many))

    def _write(
        self, operator: Any, name: str, written: list[int | str], args: Any, kwargs: Any, values: Any, depends: bool
    ) -> Any:
        """An operator in place, as its counterpart that makes a new tensor, whose values go into the old one."""
        if name == "rrelu_with_noise" and written == [1]:  # the noise, which eval mode does not make
            result = operator(*args, **kwargs)
            slope = (args[2] + args[3]) / 2 if len(args) > 3 else (1 / 8 + 1 / 3) / 2
            self._append(_aten.leaky_relu.default, (values[0][0], slope), {}, (result,), depends)
            place = Place(len(self.records) - 1, 0, result.shape, result.dtype, TensorWeakRef(result))
            self.enter(result, place, depends=depends)
            return result
        for key in written:
            for tensor in each(Tensor, kwargs.get(key) if isinstance(key, str) else args[key]):
                if self._entries.get(tensor) is None or _storage(tensor) in self._foreign:
                    self.stop(f"it writes into a tensor of its own ({name})")
        counterpart = _counterpart(operator, name)
        if counterpart is None or written != [0] or not isinstance(args[0], Tensor) or values[0][0].record is None:
            self.refuse(f"it writes into given memory ({name})")
            return operator(*args, **kwargs)
        target = args[0]
        place = self._entries[target].place
        if depends and not torch.is_grad_enabled():
            self.refuse("it writes in place under torch.no_grad")
        before = (_at(place), *values[0][1:])  # not the constant that it may be: that is written into now
        if name == "copy_":
            result = args[1].to(dtype=target.dtype, device=target.device)
            self._append(_aten._to_copy.default, before[1:2], {"dtype": target.dtype}, (result,), depends)
            last = Value(len(self.records) - 1, 0, None)
            self._append(_aten.expand.default, (last, list(target.shape)), {}, (target,), depends)
        else:
            result = counterpart(*args, **kwargs)
            self._append(counterpart, before, values[1], (result,), depends)
            if result.dtype != target.dtype:
                last = Value(len(self.records) - 1, 0, None)
                self._append(_aten._to_copy.default, (last,), {"dtype": target.dtype}, (target,), depends)
        target.copy_(result)
        self._moved(target, place, depends)
        return target

    def _reshape(self, operator: Any, name: str, args: Any, kwargs: Any, values: Any, depends: bool) -> Any:
        """An operator that makes of a tensor a view of itself, in place: squeeze_, t_ and the like."""
        target = args[0]
        whole = self._entries[target].place
        counterpart = _counterpart(operator, name)
        if counterpart is None:
            self.refuse(f"it changes a tensor's shape in place ({name})")
            return operator(*args, **kwargs)
        before = _at(whole)
        operator(*args, **kwargs)
        self._append(counterpart, (before, *values[0][1:]), values[1], (target,), depends)
        own = TensorWeakRef(target)
        whole.tensor = None
        place = Place(len(self.records) - 1, 0, target.shape, target.dtype, own, (counterpart, values[0][1:], whole))
        self.enter(target, place, depends=depends)
        return target

    def _moved(self, target: Tensor, place: Place, depends: bool) -> None:
        """The tensor is the last record's result now, what it is a view of has it within, and all others of its memory
        are out of date."""
        storage = _storage(target)
        self.versions[storage] = self._version(storage) + 1
        if depends:
            self._dependent.add(storage)
        place.record, place.output = len(self.records) - 1, 0
        self.enter(target, place, depends=depends)
        while place.view is not None:
            operator, rest, whole = place.view
            back = written_back(operator, rest, _at(whole), _at(place), whole.shape)
            if back is None:
                return  # what it is a view of is out of date, too
            tensor = None if whole.tensor is None else whole.tensor()
            entry = None if tensor is None else self._entries.get(tensor)
            depends = depends or (entry is not None and entry.depends)
            self._append(back[0], back[1], {}, (whole,), depends)
            whole.record, whole.output = len(self.records) - 1, 0
            if tensor is not None:
                self.enter(tensor, whole, depends=depends)
            del tensor, entry
            place = whole

    def _version(self, storage: int) -> int:
        return self.versions.get(storage, 0)


class _Reading(TorchFunctionMode):
    """Notices that a tensor of the graph is read as numbers, past the dispatcher."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = getattr(function, "__name__", "") in _READING and args and isinstance(args[0], Tensor)
        if reads and self.recorder.depends(args[0]):
            self.recorder.refuse(_BY_VALUE, by_value=True)
        if getattr(function, "__name__", "") in _HOOKS:
            self.recorder.refuse("it hangs a hook on a gradient")
        return function(*args, **(kwargs or {}))


def _drops_nothing(operator: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator that may be random is told not to be."""
    named = dict(zip((argument.name for argument in operator._schema.arguments), args, strict=False)) | kwargs
    defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}
    off = {"dropout_p": 0, "training": False, "train": False}
    return any(name in defaults and named.get(name, defaults[name]) == value for name, value in off.items())


def _at(place: Place) -> Value:
    return Value(place.record, place.output, None)


def _by_numbers(name: str, args: Any) -> bool:
    """Whether an index is by positions: a mask's results have as many rows as it has ones."""
    masks = (torch.bool, torch.uint8)
    return name in ("index", "index_put") and not any(index.dtype in masks for index in each(Tensor, args[1]))


def _counterpart(operator: Any, name: str) -> Any:
    """The operator that makes a new tensor of what this one does in place; None where there is none."""
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    overload = "int" if name == "transpose_" else operator._overloadname
    return None if packet is None else getattr(packet, overload, None)


def _storage(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage()._cdata
