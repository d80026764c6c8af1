"""What a node of an extractor's graph is."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """node.args, for the type checker: of whatever type an operator takes."""
    return node.args


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one; None where there are more, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_relu(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is torch.relu


def is_pool(node: fx.Node) -> bool:
    """2 x 2 max-pooling of stride 2, without padding."""
    if node.op != "call_function" or node.target is not F.max_pool2d:
        return False
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options: dict[str, Any] = {"stride": [], "padding": [0, 0], "dilation": [1, 1], "ceil_mode": False}
    options |= dict(zip(names, arguments(node)[1:], strict=False))
    return (
        _pair(options["kernel_size"]) == (2, 2)
        and _pair(options["stride"] or options["kernel_size"]) == (2, 2)
        and _pair(options["padding"]) == (0, 0)
        and _pair(options["dilation"]) == (1, 1)
        and not options["ceil_mode"]
    )


def _pair(value: object) -> tuple[object, object]:
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    return (sides[0], sides[-1])
