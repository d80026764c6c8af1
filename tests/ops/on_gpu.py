"""Compiled kernels for tests that hold their tensors on the CPU: memory is copied to the GPU and back at each launch.

Triton's interpreter does the same the other way round. Whole storages are copied, so that strides, offsets and
unwritten memory stay as they are.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels import cuda
from cortex_fast.kernels.triton import launching

direct = launching.launch


def move(device: str, arguments: Sequence[object]) -> tuple[list[Any], Callable[[], None]]:
    """The arguments with their tensors on that device, and a function that copies these back."""
    leaves = [leaf for argument in arguments for leaf in (argument if isinstance(argument, tuple) else [argument])]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    copies = {
        pointer: storage.clone() if device == "cpu" else storage.to(device=device)
        for pointer, storage in storages.items()
    }

    def moved(argument: object) -> object:
        if isinstance(argument, tuple):
            return tuple(map(moved, argument))
        if not isinstance(argument, Tensor):
            return argument
        empty = torch.empty(0, dtype=argument.dtype, device=device)
        storage = copies[argument.untyped_storage().data_ptr()]
        return empty.set_(storage, argument.storage_offset(), argument.shape, argument.stride())

    def bring_back() -> None:
        for pointer, storage in storages.items():
            storage.copy_(copies[pointer])

    return [moved(argument) for argument in arguments], bring_back


def launch_on(device: str, kernel: Any, grid: tuple[int, ...], /, *arguments: object, **named: object) -> None:
    """As `launching.launch`, for arguments on the CPU."""
    (device_of, *others), bring_back = move(device, [*arguments, *named.values()])
    count = len(arguments) - 1
    direct(kernel, grid, device_of, *others[:count], **dict(zip(named, others[count:], strict=True)))
    bring_back()


def run_on(device: str, function: Callable[..., Any], /, *arguments: object, **named: object) -> Any:
    """A kernel of cortex_fast.kernels.cuda, for arguments on the CPU; so are its results."""
    moved, bring_back = move(device, [*arguments, *named.values()])
    count = len(arguments)
    results = function(*moved[:count], **dict(zip(named, moved[count:], strict=True)))
    bring_back()
    if isinstance(results, tuple):
        return tuple(result.cpu() for result in results)
    return results if results is None else results.cpu()


def adaptors() -> Iterator[tuple[ModuleType, str]]:
    """The functions that `kernels.load` takes from each module of cortex_fast.kernels.cuda."""
    for _, name, _ in pkgutil.iter_modules(cuda.__path__):
        module = importlib.import_module(f"cortex_fast.kernels.cuda.{name}")
        yield from ((module, function) for function in module.__all__)
