"""Compiled Triton kernels for tests that hold their tensors on the CPU: memory goes to the GPU and back at each launch.

Triton's interpreter does the same the other way round. Whole storages go, so that strides, offsets and what a kernel
left unwritten arrive as they are.
"""

from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels.triton import launching

direct = launching.launch


def launch_on(device: str, kernel: Any, grid: tuple[int, ...], /, *arguments: object, **options: object) -> None:
    """As `launching.launch`, for arguments on the CPU."""
    storages = {a.untyped_storage().data_ptr(): a.untyped_storage() for a in arguments if isinstance(a, Tensor)}
    there = {
        pointer: storage.clone() if device == "cpu" else storage.to(device=device)
        for pointer, storage in storages.items()
    }

    def moved(argument: object) -> object:
        if not isinstance(argument, Tensor):
            return argument
        empty = torch.empty(0, dtype=argument.dtype, device=device)
        storage = there[argument.untyped_storage().data_ptr()]
        return empty.set_(storage, argument.storage_offset(), argument.shape, argument.stride())

    first, *others = map(moved, arguments)
    direct(kernel, grid, first, *others, **options)
    for pointer, storage in storages.items():
        storage.copy_(there[pointer])
