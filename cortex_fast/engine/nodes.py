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


def is_pool(module: fx.GraphModule, node: fx.Node) -> bool:
    """2 x 2 max-pooling of stride 2, without padding."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return (
            isinstance(layer, nn.MaxPool2d)
            and layer.kernel_size in (2, (2, 2))
            and layer.stride in (2, (2, 2))
            and layer.padding in (0, (0, 0))
            and layer.dilation in (1, (1, 1))
            and not layer.ceil_mode
            and not layer.return_indices
        )
    if node.op != "call_function" or node.target is not F.max_pool2d:
        return False
    options = dict(zip(("kernel_size", "stride"), node.args[1:], strict=False)) | node.kwargs
    options = {name: value for name, value in options.items() if value is not None}
    plain = options.pop("kernel_size", None) in (2, (2, 2)) and options.pop("stride", 2) in (2, (2, 2))
    for name, default in (("padding", 0), ("dilation", 1), ("ceil_mode", False), ("return_indices", False)):
        plain = plain and options.pop(name, default) in (default, (default, default))
    return plain and not options and len(node.args) <= 3
