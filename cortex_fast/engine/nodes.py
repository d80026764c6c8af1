"""What a node of a torch.fx graph is."""

import torch
import torch.nn.functional as F
from torch import fx, nn

_RELUS = (F.relu, torch.relu)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one; None where there are more, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_relu(module: fx.GraphModule, node: fx.Node) -> bool:
    """A ReLU, by whatever name; none with hooks."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
        return isinstance(layer, nn.ReLU) and not any(hooks)
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELUS
