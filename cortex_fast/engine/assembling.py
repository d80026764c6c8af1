"""Two recordings of a forward, of different numbers of images, as one graph for any number."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nested import each
from cortex_fast.engine.tracing import INPUT, Record, Tape, UntraceableError, Value

_aten = torch.ops.aten
_VIEWS = (_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default, _aten.reshape.default)
_SHAPED = ("reshape", "view", "expand", "repeat", "native_group_norm", "affine_grid_generator")
_MAKING = ("new_zeros", "new_ones", "new_full", "new_empty", "zeros", "ones", "full", "empty", "arange")
_SIZED = {getattr(_aten, name) for name in (*_SHAPED, *_MAKING)}  # take the number of images for a shape, not a value
_OTHER_WAY = "its forward depends on values or keeps state: it took another way the second time"
_OTHER_IMAGES = "the number of images decides what it computes"


@dataclass(frozen=True)
class _Size:
    """A whole number that is `factor` times the number of images."""

    factor: int


@dataclass(frozen=True, eq=False)
class _Assembly:
    few: Tape
    more: Tape
    graph: fx.Graph = field(default_factory=fx.Graph)
    holder: nn.Module = field(default_factory=nn.Module)
    nodes: dict[tuple[int, int], fx.Node] = field(default_factory=dict)  # by record and result
    differentiable: set[fx.Node] = field(default_factory=set)  # nodes through which gradients go
    batched: list[fx.Node] = field(default_factory=list)  # nodes whose first dimension is the images', in order
    constants: dict[int, fx.Node] = field(default_factory=dict)  # by the tensor's id


def assembled(few: Tape, more: Tape) -> Graph:
    """The graph x [B,d,h,w] -> logits that both tapes are recordings of; every node's meta tells the shape of its value
    for the first tape's images.

    A number that grows with the images becomes a size that is read off a tensor; every other difference between the
    tapes raises UntraceableError: so does what is neither of the embedding nor the same both times.
    """
    if len(few.records) != len(more.records):
        raise UntraceableError(_OTHER_IMAGES)
    assembly = _Assembly(few, more)
    start = assembly.graph.placeholder("x")
    start.meta |= {"shape": few.x.shape, "more": more.x.shape}
    assembly.nodes[INPUT, 0] = start
    assembly.differentiable.add(start)
    assembly.batched.append(start)
    needed = _needed(few)
    for index, (one, other) in enumerate(zip(few.records, more.records, strict=True)):
        if index in needed:
            _emit(assembly, index, one, other)
    result = _node(assembly, few.result, more.result)
    assembly.graph.output(result)
    return Graph(assembly.graph, assembly.holder)


def _needed(tape: Tape) -> set[int]:
    """The records of the embedding that the result is made of."""
    needed: set[int] = set()
    waiting = [tape.result.record]
    while waiting:
        index = waiting.pop()
        if index is None or index == INPUT or index in needed:
            continue
        needed.add(index)
        record = tape.records[index]
        waiting += [value.record for value in each(Value, (record.args, record.kwargs)) if value.tensor is None]
    return needed


def _emit(assembly: _Assembly, index: int, one: Record, other: Record) -> None:
    """The node of a record, and one for each of its results where there are many."""
    if one.operator is not other.operator or one.depends != other.depends or one.graded != other.graded:
        raise UntraceableError(_OTHER_WAY)
    args = _arguments(assembly, one.args, other.args)
    kwargs = _arguments(assembly, one.kwargs, other.kwargs)
    target = one.operator
    if target in _VIEWS:  # what is channels-last in the engine has no such view, and may be copied
        target = _aten.reshape.default
        args = (args[0], _inferred(args[1]))
    if target.overloadpacket not in _SIZED and _grows((args, kwargs)):
        raise UntraceableError(_OTHER_IMAGES, by_value=True)
    args, kwargs = (_sized(assembly, value) for value in (args, kwargs))
    if not one.graded:
        args, kwargs = (fx.node.map_arg(value, lambda node: _cut_off(assembly, node)) for value in (args, kwargs))
    node = assembly.graph.call_function(target, args, kwargs)
    carries = one.graded and target is not _aten.detach.default
    carries = carries and not assembly.differentiable.isdisjoint(node.all_input_nodes)
    results = [node]
    if one.many:
        results = [assembly.graph.call_function(operator.getitem, (node, output)) for output in range(len(one.shapes))]
    for output, (result, shape, dtype) in enumerate(zip(results, one.shapes, one.dtypes, strict=True)):
        assembly.nodes[index, output] = result
        result.meta |= {"shape": shape, "more": other.shapes[output]}
        if carries and dtype is not None and (dtype.is_floating_point or dtype.is_complex):
            assembly.differentiable.add(result)
        if (shape or ())[:1] == assembly.few.x.shape[:1] and (other.shapes[output] or ())[:1] == assembly.more.x.shape[
            :1
        ]:
            assembly.batched.append(result)


def _cut_off(assembly: _Assembly, node: fx.Node) -> fx.Node:
    """What torch.no_grad reads: the node without its gradient."""
    if node not in assembly.differentiable:
        return node
    detached = assembly.graph.call_function(_aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def _arguments(assembly: _Assembly, one: Any, other: Any) -> Any:
    """One argument of both recordings, nested: nodes for tensors, _Size for what grows with the images."""
    if isinstance(one, Value) and isinstance(other, Value):
        return _node(assembly, one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list) and len(one) == len(other):
        return type(one)(_arguments(assembly, *pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: _arguments(assembly, one[key], other[key]) for key in one}
    if type(one) is not type(other):
        raise UntraceableError(_OTHER_IMAGES)
    if one == other or (isinstance(one, float) and one != one and other != other):
        return one
    few, more = len(assembly.few.x), len(assembly.more.x)
    if type(one) is int and one % few == 0 and one * more == other * few:
        return _Size(one // few)
    if isinstance(one, tuple | list):
        raise UntraceableError(_OTHER_IMAGES)
    raise UntraceableError("its forward depends on values or keeps state: a number in it changed from call to call")


def _inferred(sizes: Any) -> Any:
    """Sizes of a view: one that grows with the images need not be told."""
    growing = [size for size in sizes if isinstance(size, _Size)]
    if len(growing) != 1 or -1 in sizes:
        return sizes
    return [-1 if isinstance(size, _Size) else size for size in sizes]


def _grows(value: Any) -> bool:
    """Whether there is a _Size in arguments."""
    if type(value) in (tuple, list):
        return any(map(_grows, value))
    return any(map(_grows, value.values())) if isinstance(value, dict) else isinstance(value, _Size)


def _sized(assembly: _Assembly, value: Any) -> Any:
    """Arguments in which every _Size is a node."""
    if isinstance(value, _Size):
        source = assembly.batched[-1]
        size = assembly.graph.call_function(_aten.sym_size.int, (source, 0))
        return size if value.factor == 1 else assembly.graph.call_function(operator.mul, (size, value.factor))
    if type(value) in (tuple, list):
        return type(value)(_sized(assembly, item) for item in value)
    if isinstance(value, dict):
        return {key: _sized(assembly, item) for key, item in value.items()}
    return value


def _node(assembly: _Assembly, one: Value, other: Value) -> fx.Node:
    place = (INPUT if one.record is None else one.record, one.output)
    if one.tensor is None or other.tensor is None:
        if one.tensor is not other.tensor or (one.record, one.output) != (other.record, other.output):
            raise UntraceableError(_OTHER_WAY)
        return _placed(assembly, place)
    changed = assembly.few.changed(one) or assembly.more.changed(other)
    if changed and one.record is None:
        raise UntraceableError("it writes into a constant after it was read")
    if not changed and _same(one.tensor, other.tensor):
        return _constant(assembly, one.tensor)
    if one.record is None or one.record != other.record:
        raise UntraceableError("its forward depends on values or keeps state: a tensor in it changed from call to call")
    return _placed(assembly, place)


def _placed(assembly: _Assembly, place: tuple[int, int]) -> fx.Node:
    """The node of a result; one that is of no embedding, but of as many rows as there are images, is made here."""
    if place not in assembly.nodes:
        index = place[0]
        _emit(assembly, index, assembly.few.records[index], assembly.more.records[index])
    return assembly.nodes[place]


def _constant(assembly: _Assembly, tensor: Tensor) -> fx.Node:
    if id(tensor) not in assembly.constants:
        name = f"constant_{len(assembly.constants)}"
        assembly.holder.register_buffer(name, tensor.detach())
        assembly.constants[id(tensor)] = node = assembly.graph.get_attr(name)
        node.meta |= {"shape": tensor.shape, "more": tensor.shape}
    return assembly.constants[id(tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.layout != torch.strided or other.layout != torch.strided:
        return False
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())
