"""Two recordings of a forward, of different numbers of images, as one graph for any number."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from cortex_fast.engine.errors import UntraceableError
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nested import instances
from cortex_fast.engine.tape import INPUT, Record, Tape, Value

_aten = torch.ops.aten
_VIEWS = (_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default, _aten.reshape.default)
_SHAPE_OPERATORS = ("reshape", "view", "expand", "repeat", "native_group_norm", "affine_grid_generator")
_FACTORIES = ("new_zeros", "new_ones", "new_full", "new_empty", "zeros", "ones", "full", "empty", "arange")
_SIZED = {
    getattr(_aten, name) for name in (*_SHAPE_OPERATORS, *_FACTORIES)
}  # numbers in their arguments are sizes, not values
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
    """The graph x [B,d,h,w] -> logits that both tapes record. Each node's meta holds the shapes of its value: "shape"
    for the first tape's images, "more" for the second's.

    A number that grows with the images becomes a size read off a tensor. Every other difference between the tapes
    raises UntraceableError; so does a tensor that is independent of the embedding but differs between them.
    """
    if len(few.records) != len(more.records):
        raise UntraceableError(_OTHER_IMAGES)
    assembly = _Assembly(few, more)
    start = assembly.graph.placeholder("x")
    start.meta |= {"shape": few.x.shape, "more": more.x.shape}
    assembly.nodes[INPUT, 0] = start
    assembly.differentiable.add(start)
    assembly.batched.append(start)
    for index in sorted(_result_records(few)):
        _emit(assembly, index)
    result = _node(assembly, few.result, more.result)
    assembly.graph.output(result)
    return Graph(assembly.graph, assembly.holder)


def _result_records(tape: Tape) -> set[int]:
    """The records, dependent on the embedding, that the result is computed from."""
    indices: set[int] = set()
    waiting = [tape.result.record]
    while waiting:
        index = waiting.pop()
        if index is None or index == INPUT or index in indices:
            continue
        indices.add(index)
        record = tape.records[index]
        waiting += [value.record for value in instances(Value, (record.args, record.kwargs)) if value.tensor is None]
    return indices


def _emit(assembly: _Assembly, index: int) -> None:
    """Add the node of a record, and a node for each of its results where it has several."""
    few, more = assembly.few.records[index], assembly.more.records[index]
    if few.operator is not more.operator or few.depends != more.depends or few.graded != more.graded:
        raise UntraceableError(_OTHER_WAY)
    node = _call_node(assembly, few, more)
    results = [node]
    if few.many:
        results = [assembly.graph.call_function(operator.getitem, (node, output)) for output in range(len(few.shapes))]
    carries = few.graded and node.target is not _aten.detach.default
    carries = carries and not assembly.differentiable.isdisjoint(node.all_input_nodes)
    for output, (result, shape, dtype) in enumerate(zip(results, few.shapes, few.dtypes, strict=True)):
        shape_of_more = more.shapes[output]
        assembly.nodes[index, output] = result
        result.meta |= {"shape": shape, "more": shape_of_more}
        if carries and dtype is not None and (dtype.is_floating_point or dtype.is_complex):
            assembly.differentiable.add(result)
        images = assembly.few.x.shape[:1], assembly.more.x.shape[:1]
        if ((shape or ())[:1], (shape_of_more or ())[:1]) == images:
            assembly.batched.append(result)


def _call_node(assembly: _Assembly, few: Record, more: Record) -> fx.Node:
    """The call of a record's operator."""
    args = _arguments(assembly, few.args, more.args)
    kwargs = _arguments(assembly, few.kwargs, more.kwargs)
    target = few.operator
    if target in _VIEWS:  # a channels-last tensor has no such view, and may be copied
        target = _aten.reshape.default
        args = (args[0], _inferred(args[1]))
    if target.overloadpacket not in _SIZED and _grows((args, kwargs)):
        raise UntraceableError(_OTHER_IMAGES, by_value=True)
    args, kwargs = (_sized(assembly, value) for value in (args, kwargs))
    if not few.graded:
        args, kwargs = (fx.node.map_arg(value, lambda node: _detached(assembly, node)) for value in (args, kwargs))
    return assembly.graph.call_function(target, args, kwargs)


def _detached(assembly: _Assembly, node: fx.Node) -> fx.Node:
    """The node as an operator under torch.no_grad reads it: without its gradient."""
    if node not in assembly.differentiable:
        return node
    detached = assembly.graph.call_function(_aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def _arguments(assembly: _Assembly, few: Any, more: Any) -> Any:
    """An argument of both recordings, nested: nodes in place of tensors, _Size in place of numbers that grow with the
    images."""
    if isinstance(few, Value) and isinstance(more, Value):
        return _node(assembly, few, more)
    if isinstance(few, tuple | list) and isinstance(more, tuple | list) and len(few) == len(more):
        return type(few)(_arguments(assembly, *pair) for pair in zip(few, more, strict=True))
    if isinstance(few, dict) and isinstance(more, dict) and few.keys() == more.keys():
        return {key: _arguments(assembly, few[key], more[key]) for key in few}
    if type(few) is not type(more):
        raise UntraceableError(_OTHER_IMAGES)
    if few == more or (isinstance(few, float) and few != few and more != more):
        return few
    few_images, more_images = len(assembly.few.x), len(assembly.more.x)
    if type(few) is int and few % few_images == 0 and few * more_images == more * few_images:
        return _Size(few // few_images)
    if isinstance(few, tuple | list):
        raise UntraceableError(_OTHER_IMAGES)
    raise UntraceableError("its forward depends on values or keeps state: a number in it changed from call to call")


def _inferred(sizes: Any) -> Any:
    """Sizes of a view, with -1 for a single size that grows with the images."""
    growing = [size for size in sizes if isinstance(size, _Size)]
    if len(growing) != 1 or -1 in sizes:
        return sizes
    return [-1 if isinstance(size, _Size) else size for size in sizes]


def _grows(value: Any) -> bool:
    """Whether arguments contain a _Size."""
    if type(value) in (tuple, list):
        return any(map(_grows, value))
    return any(map(_grows, value.values())) if isinstance(value, dict) else isinstance(value, _Size)


def _sized(assembly: _Assembly, value: Any) -> Any:
    """Arguments with a node in place of each _Size."""
    if isinstance(value, _Size):
        source = assembly.batched[-1]
        size = assembly.graph.call_function(_aten.sym_size.int, (source, 0))
        return size if value.factor == 1 else assembly.graph.call_function(operator.mul, (size, value.factor))
    if type(value) in (tuple, list):
        return type(value)(_sized(assembly, item) for item in value)
    if isinstance(value, dict):
        return {key: _sized(assembly, item) for key, item in value.items()}
    return value


def _node(assembly: _Assembly, few: Value, more: Value) -> fx.Node:
    """The node of a tensor that both recordings read: a result, or a constant."""
    result = (INPUT if few.record is None else few.record, few.output)
    if few.tensor is None or more.tensor is None:
        if few.tensor is not more.tensor or (few.record, few.output) != (more.record, more.output):
            raise UntraceableError(_OTHER_WAY)
        return _result_node(assembly, result)
    overwritten = assembly.few.overwrites(few) or assembly.more.overwrites(more)
    if overwritten and few.record is None:
        raise UntraceableError("it writes into a constant after it was read")
    if not overwritten and _equal(few.tensor, more.tensor):
        return _constant_node(assembly, few.tensor)
    if few.record is None or few.record != more.record:
        raise UntraceableError("its forward depends on values or keeps state: a tensor in it changed from call to call")
    return _result_node(assembly, result)


def _result_node(assembly: _Assembly, result: tuple[int, int]) -> fx.Node:
    """The node of a result; one that is independent of the embedding, but has a row for each image, is added here."""
    if result not in assembly.nodes:
        _emit(assembly, result[0])
    return assembly.nodes[result]


def _constant_node(assembly: _Assembly, tensor: Tensor) -> fx.Node:
    if id(tensor) not in assembly.constants:
        name = f"constant_{len(assembly.constants)}"
        assembly.holder.register_buffer(name, tensor.detach())
        assembly.constants[id(tensor)] = node = assembly.graph.get_attr(name)
        node.meta |= {"shape": tensor.shape, "more": tensor.shape}
    return assembly.constants[id(tensor)]


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two constants are the same: NaN equals NaN."""
    if first is second:
        return True
    if first.layout != torch.strided or second.layout != torch.strided:
        return False
    if (first.shape, first.dtype, first.device) != (second.shape, second.dtype, second.device):
        return False
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True
    return bool(((first == second) | ((first != first) & (second != second))).all())
