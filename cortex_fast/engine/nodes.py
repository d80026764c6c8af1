"""Kinds of nodes of an extractor's graph."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """node.args, typed as Any."""
    return node.args


def only_user(node: fx.Node) -> fx.Node | None:
    """The single node that reads this node; None where several do, or none does."""
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
        pair(options["kernel_size"]) == (2, 2)
        and pair(options["stride"] or options["kernel_size"]) == (2, 2)
        and pair(options["padding"]) == (0, 0)
        and pair(options["dilation"]) == (1, 1)
        and not options["ceil_mode"]
    )


def pair(value: Any) -> tuple[int, int]:
    """A size for both sides of the grid: a number stands for both."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    return sides[0], sides[-1]
