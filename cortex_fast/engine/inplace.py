"""Operators that write in place, recorded as their counterparts that create a new tensor."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast.engine.nested import instances
from cortex_fast.engine.recording import Call, Recording
from cortex_fast.engine.tape import Value
from cortex_fast.engine.views import RecordedTensor, View, written_back

_aten = torch.ops.aten


def written_arguments(operator: Any) -> list[int | str]:
    """The positions, or names, of the arguments that an operator writes into."""
    return [
        argument.name if argument.kwarg_only else position
        for position, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def record_write(recording: Recording, call: Call, written: list[int | str]) -> Any:
    """Run and record an operator that writes into the arguments `written`: its counterpart's result goes into the old
    tensor."""
    if call.name == "rrelu_with_noise" and written == [1]:  # the noise, which eval mode does not draw
        return _record_rrelu(recording, call)
    for key in written:
        for tensor in instances(Tensor, call.kwargs.get(key) if isinstance(key, str) else call.args[key]):
            if recording.is_foreign(tensor):
                recording.stop(f"it writes into a tensor of its own ({call.name})")
    counterpart = _counterpart(call)
    unsupported = counterpart is None or written != [0] or not isinstance(call.args[0], Tensor)
    if unsupported or call.source.record is None:
        recording.refuse(f"it writes into given memory ({call.name})")
        return call.operator(*call.args, **call.kwargs)
    target = call.args[0]
    recorded = recording.recorded(target)
    if call.depends and not torch.is_grad_enabled():
        recording.refuse("it writes in place under torch.no_grad")
    if call.name == "copy_":
        result = _record_copy(recording, call)
    else:
        result = _record_counterpart(recording, call, counterpart, recorded)
    target.copy_(result)
    _propagate(recording, target, recorded, call.depends)
    return target


def record_reshape(recording: Recording, call: Call) -> Any:
    """Run and record an operator that turns a tensor into a view of itself, in place: squeeze_, t_ and the like."""
    target = call.args[0]
    base = recording.recorded(target)
    counterpart = _counterpart(call)
    if counterpart is None:
        recording.refuse(f"it changes a tensor's shape in place ({call.name})")
        return call.operator(*call.args, **call.kwargs)
    before = _current(base)
    call.operator(*call.args, **call.kwargs)
    record = recording.append(counterpart, (before, *call.options), call.values[1], (target,), depends=call.depends)
    base.tensor = None
    recording.add(target, record, depends=call.depends, view=View(counterpart, call.options, base))
    return target


def _record_rrelu(recording: Recording, call: Call) -> Tensor:
    result = call.operator(*call.args, **call.kwargs)
    slope = (call.args[2] + call.args[3]) / 2 if len(call.args) > 3 else (1 / 8 + 1 / 3) / 2
    record = recording.append(_aten.leaky_relu.default, (call.source, slope), {}, (result,), depends=call.depends)
    recording.add(result, record, depends=call.depends)
    return result


def _record_copy(recording: Recording, call: Call) -> Tensor:
    """copy_: the source in the target's dtype, expanded to its shape."""
    target, depends = call.args[0], call.depends
    result = call.args[1].to(dtype=target.dtype, device=target.device)
    record = recording.append(
        _aten._to_copy.default, call.options[:1], {"dtype": target.dtype}, (result,), depends=depends
    )
    expanded = (Value(record, 0, None), list(target.shape))
    recording.append(_aten.expand.default, expanded, {}, (target,), depends=depends)
    return result


def _record_counterpart(recording: Recording, call: Call, counterpart: Any, recorded: RecordedTensor) -> Tensor:
    """The counterpart's result, in the target's dtype."""
    target, depends = call.args[0], call.depends
    before = (_current(recorded), *call.options)  # not the constant that it may be: that is written into now
    result = counterpart(*call.args, **call.kwargs)
    record = recording.append(counterpart, before, call.values[1], (result,), depends=depends)
    if result.dtype != target.dtype:
        result_value = (Value(record, 0, None),)
        recording.append(_aten._to_copy.default, result_value, {"dtype": target.dtype}, (target,), depends=depends)
    return result


def _propagate(recording: Recording, target: Tensor, recorded: RecordedTensor, depends: bool) -> None:
    """After a write the target is the last record's result, the tensors that it is a view of contain it, and all others
    that share its memory are stale."""
    recording.count_write(target, depends=depends)
    recorded.record, recorded.output = len(recording.records) - 1, 0
    recording.track(target, recorded, depends=depends)
    while recorded.view is not None:
        base = recorded.view.base
        back = written_back(recorded.view, _current(base), _current(recorded))
        if back is None:
            return  # the base is stale, too
        tensor = None if base.tensor is None else base.tensor()
        depends = depends or recording.tracked_dependence(tensor)
        base.record, base.output = recording.append(back[0], back[1], {}, (base,), depends=depends), 0
        if tensor is not None:
            recording.track(tensor, base, depends=depends)
        del tensor
        recorded = base


def _current(recorded: RecordedTensor) -> Value:
    return Value(recorded.record, recorded.output, None)


def _counterpart(call: Call) -> Any:
    """The operator that creates a new tensor with the values that this one writes in place, or None."""
    packet = getattr(_aten, call.name[:-1], None) if call.name.endswith("_") else None
    overload = "int" if call.name == "transpose_" else call.operator._overloadname
    return None if packet is None else getattr(packet, overload, None)
