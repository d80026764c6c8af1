"""Launching of Triton kernels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def launch(kernel: Any, grid: Sequence[int], device_of: Tensor, /, *arguments: object, **named: object) -> None:
    """Run a kernel on this tensor's device and its current stream. Over an empty grid nothing runs.

    named: the kernel's arguments by name, and Triton's own options such as num_warps.
    """
    if math.prod(grid) > 0:
        with torch.cuda.device_of(device_of):
            kernel[tuple(grid)](*arguments, **named)
