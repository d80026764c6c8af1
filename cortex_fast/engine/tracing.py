"""A forward recorded below autograd, operator by operator: what an extractor computes, whatever its Python.

torch.fx.symbolic_trace patches nn.Module for the whole process, sees neither statements in place nor torch.no_grad, and
leaves its proxies in the model. Recording the dispatcher's calls avoids all of these: it concerns this thread alone and
sees real tensors, in-place operators and the gradient mode. make_fx would see the same, but patches nn.Module as well
and imports torch._dynamo (2 s); so does a TorchDispatchMode in its default form, see `_Recorder`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from cortex_fast.engine.errors import UntraceableError, WritesError
from cortex_fast.engine.inplace import record_reshape, record_write, written_arguments
from cortex_fast.engine.nested import instances, map_instances
from cortex_fast.engine.recording import Call, Recording
from cortex_fast.engine.refusals import BY_VALUE, refuse_unrepeatable
from cortex_fast.engine.tape import INPUT, Tape, Value, storage_of
from cortex_fast.engine.views import View

_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_READS = (
    "tolist",
    "numpy",
    "__array__",
    "__dlpack__",
    "data_ptr",
    "storage",
    "untyped_storage",
)  # past the dispatcher


def recorded(extractor: nn.Module, x: Tensor) -> Tape:
    """Run extractor(x), x [B,d,h,w], with gradients, and record it.

    Raises UntraceableError where the forward is no fixed graph, and WritesError before the forward writes into a tensor
    of the model.
    """
    leaf = x.detach().clone().requires_grad_(True)
    recording = Recording()
    with torch.enable_grad():
        batch = leaf.clone()  # a forward may write into it, but not into a leaf
        recording.add(batch, INPUT, depends=True)
        with _ReadWatch(recording), _Recorder(recording):
            output = extractor(batch)
    if recording.forbidden_write is not None:
        raise WritesError(recording.forbidden_write)
    if not isinstance(output, Tensor):
        raise TypeError(f"extractor: expected a tensor of logits, got {type(output).__name__}")
    if recording.refusal is not None:
        raise recording.refusal
    result = recording.value(output)
    if recording.refusal is not None:
        raise recording.refusal
    if result.tensor is not None:
        raise UntraceableError("its logits come from outside torch's operators, or do not depend on the embedding")
    _refuse_custom_backward(output)
    return Tape(
        records=tuple(recording.records),
        result=result,
        output=output,
        x=leaf,
        versions=recording.versions,
        derived_storages=recording.derived_storages,
    )


def _refuse_custom_backward(output: Tensor) -> None:
    """Raise UntraceableError where the autograd graph contains a backward pass that the user wrote."""
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


class _Recorder(TorchDispatchMode):
    """Records the operators that this thread dispatches."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first call of a process imports torch._dynamo

    def __enter__(self) -> _Recorder:
        _push_mode(self)  # TorchDispatchMode's own also sets flags of the whole process
        return self

    def __exit__(self, *_: object) -> None:
        _pop_mode()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # the recorder's own reads are not the forward's
            values = map_instances(Tensor, (args, kwargs or {}), self.recording.value)
            depends = any(value.tensor is None for value in instances(Value, values))
            return _record(self.recording, Call(operator, args, kwargs or {}, values, depends))


def _record(recording: Recording, call: Call) -> Any:
    """Run an operator and record it; returns its result."""
    refuse_unrepeatable(recording, call)
    if torch.Tag.inplace_view in call.operator.tags and call.source.record is not None:
        return record_reshape(recording, call)
    written = written_arguments(call.operator)
    if written:
        return record_write(recording, call, written)
    values = call.values
    if call.name == "lift_fresh":  # new memory of torch.tensor's, which may be written into
        recording.adopt(call.args[0])
        values = ((Value(None, 0, call.args[0].clone()),), {})
    result = call.operator(*call.args, **call.kwargs)
    many = isinstance(result, tuple | list)
    results = tuple(result) if many else (result,)
    if call.depends and not any(isinstance(part, Tensor) for part in results):
        recording.refuse(BY_VALUE, by_value=True)
    record = recording.append(call.operator, *values, results, depends=call.depends, many=many)
    view, viewed_storage = None, None
    if not many and call.args and isinstance(call.args[0], Tensor) and values[0][0].record is not None:
        view = View(call.operator, values[0][1:], recording.recorded(call.args[0]))
        viewed_storage = storage_of(call.args[0])
    for output, part in enumerate(results):
        if isinstance(part, Tensor):
            part_view = view if storage_of(part) == viewed_storage else None
            recording.add(part, record, output, depends=call.depends, view=part_view)
    return result


class _ReadWatch(TorchFunctionMode):
    """Refuses a forward that reads a tensor of the graph as numbers past the dispatcher, or hangs hooks on it."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in _READS and args and isinstance(args[0], Tensor) and self.recording.depends(args[0]):
            self.recording.refuse(BY_VALUE, by_value=True)
        if name in _HOOKS:
            self.recording.refuse("it hangs a hook on a gradient")
        return function(*args, **(kwargs or {}))
