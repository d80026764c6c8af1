"""Compiled kernels for tests that hold their tensors on the CPU: memory goes to the GPU and back at each launch.

Triton's interpreter does the same the other way round. Whole storages go, so that strides, offsets and what a kernel
left unwritten arrive as they are.
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
    """The arguments with their tensors there, and what brings back what has been written to them."""
    found = [a for argument in arguments for a in (argument if isinstance(argument, tuple) else [argument])]
    storages = {a.untyped_storage().data_ptr(): a.untyped_storage() for a in found if isinstance(a, Tensor)}
    there = {
        pointer: storage.clone() if device == "cpu" else storage.to(device=device)
        for pointer, storage in storages.items()
    }

    def moved(argument: object) -> object:
        if isinstance(argument, tuple):
            return tuple(map(moved, argument))
        if not isinstance(argument, Tensor):
            return argument
        empty = torch.empty(0, dtype=argument.dtype, device=device)
        storage = there[argument.untyped_storage().data_ptr()]
        return empty.set_(storage, argument.storage_offset(), argument.shape, argument.stride())

    def bring_back() -> None:
        for pointer, storage in storages.items():
            storage.copy_(there[pointer])

    return [moved(argument) for argument in arguments], bring_back


def launch_on(device: str, kernel: Any, grid: tuple[int, ...], /, *arguments: object, **options: object) -> None:
    """As `launching.launch`, for arguments on the CPU."""
    (first, *others), bring_back = move(device, arguments)
    direct(kernel, grid, first, *others, **options)
    bring_back()


def run_on(device: str, function: Callable[..., Any], /, *arguments: object, **options: object) -> Any:
    """An adaptor of cortex_fast.kernels.cuda, for arguments on the CPU; so are its results."""
    names, values = list(options), list(options.values())
    there, bring_back = move(device, [*arguments, *values])
    given = len(arguments)
    results = function(*there[:given], **dict(zip(names, there[given:], strict=True)))
    bring_back()
    if isinstance(results, tuple):
        return tuple(result.cpu() for result in results)
    return results if results is None else results.cpu()


def adaptors() -> Iterator[tuple[ModuleType, str]]:
    """What `ops/` calls in each module of cortex_fast.kernels.cuda."""
    for _, name, _ in pkgutil.iter_modules(cuda.__path__):
        module = importlib.import_module(f"cortex_fast.kernels.cuda.{name}")
        yield from ((module, function) for function in module.__all__)
