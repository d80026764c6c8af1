"""The ReLUs at a body's beginning, taken out of it: noise is added and cut off in one place, in the same memory."""

import torch
from torch import Tensor

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import is_relu, only_user


def take_gates(body: Graph) -> tuple[bool, ...]:
    """For each input of the body whether it went through a ReLU and nothing else, which is now out of the graph."""
    gates = []
    for start in list(body.graph.find_nodes(op="placeholder")):
        relu = only_user(start)
        gate = relu is not None and is_relu(relu) and all(user.op != "output" for user in relu.users)
        if gate and relu is not None:
            relu.replace_all_uses_with(start)
            body.graph.erase_node(relu)
        gates.append(gate)
    body.compile_steps()
    return tuple(gates)


def gated(gradient: Tensor, z: Tensor, *, over: bool) -> Tensor:
    """The gradient where z, or what became z in a ReLU, is positive; `over` the given one, if that is laid out so."""
    backward = torch.ops.aten.threshold_backward
    if over and gradient.stride() == z.stride():
        return backward.grad_input(gradient, z, 0, grad_input=gradient)
    return backward(gradient, z, 0)
