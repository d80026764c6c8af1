"""ReLUs at the beginning of a body, taken out of its graph: noise is added and clipped in the same memory."""

import torch
from torch import Tensor

from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.nodes import is_relu, only_user


def take_gates(body: Graph) -> tuple[bool, ...]:
    """Remove, in place, the ReLU of each input of the body that has no other reader; returns for which inputs."""
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
    """The gradient in the input of a ReLU whose input or output is z; over: in the given gradient's memory, where it is
    laid out as z is."""
    backward = torch.ops.aten.threshold_backward
    if over and gradient.stride() == z.stride():
        return backward.grad_input(gradient, z, 0, grad_input=gradient)
    return backward(gradient, z, 0)
