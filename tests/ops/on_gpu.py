"""Compiled kernels for tests that hold their tensors on the CPU: memory is copied to the GPU and back at each launch.

Triton's interpreter does the same the other way round. Whole storages are copied, so that strides, offsets and
unwritten memory stay as they are.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels import cuda
from cortex_fast.kernels.triton import launching

direct = launching.launch


def mapped(function: Callable[[Tensor], Any], argument: Any) -> Any:
    """The argument with the function applied to its tensors, in tuples, named ones and dictionaries too."""
    if isinstance(argument, dict):
        return {name: mapped(function, value) for name, value in argument.items()}
    if isinstance(argument, tuple):
        results = [mapped(function, value) for value in argument]
        return type(argument)(*results) if hasattr(argument, "_fields") else tuple(results)
    return function(argument) if isinstance(argument, Tensor) else argument


def move(device: str, arguments: Any) -> tuple[Any, Callable[[], None]]:
    """The arguments with their tensors on the device, and a function that copies back what was written to them."""
    storages: dict[int, torch.UntypedStorage] = {}
    mapped(lambda tensor: storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage()), arguments)
    copies = {
        pointer: storage.clone() if device == "cpu" else storage.to(device=device)
        for pointer, storage in storages.items()
    }

    def moved(tensor: Tensor) -> Tensor:
        empty = torch.empty(0, dtype=tensor.dtype, device=device)
        storage = copies[tensor.untyped_storage().data_ptr()]
        return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def bring_back() -> None:
        for pointer, storage in storages.items():
            storage.copy_(copies[pointer])

    return mapped(moved, arguments), bring_back


def launch_on(device: str, kernel: Any, grid: tuple[int, ...], /, *arguments: object, **options: object) -> None:
    """As `launching.launch`, for arguments on the CPU."""
    (positional, named), bring_back = move(device, (arguments, options))
    direct(kernel, grid, *positional, **named)
    bring_back()


def run_on(device: str, function: Callable[..., Any], /, *arguments: object, **options: object) -> Any:
    """An adaptor of cortex_fast.kernels.cuda, for arguments on the CPU; so are its results."""
    (positional, named), bring_back = move(device, (arguments, options))
    results = function(*positional, **named)
    bring_back()
    return mapped(Tensor.cpu, results)


def adaptors() -> Iterator[tuple[ModuleType, str]]:
    """The functions that `kernels.load` takes from each module of cortex_fast.kernels.cuda."""
    for _, name, _ in pkgutil.iter_modules(cuda.__path__):
        module = importlib.import_module(f"cortex_fast.kernels.cuda.{name}")
        yield from ((module, function) for function in module.__all__)
