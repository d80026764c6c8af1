"""Tensors from a pickle without executing any of it, for torch.load."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cortex_fast.data.archives import Inert


class _Allowed:
    """A function that a pickle may call. It has no attributes that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("a checkpoint tried to change the function that it calls")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: object) -> Tensor:
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


def _typed_tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _grad: bool, _hooks: object,
    dtype: torch.dtype, *_rest: object,
) -> Tensor:  # fmt: skip
    return torch.empty(0, dtype=dtype).set_(storage._untyped_storage, offset, size, stride)


class _Bytes(Inert):
    """Stands for the storage of dtypes without a storage class, such as uint16."""

    dtype = torch.uint8


def _parameter(data: Tensor, *_rest: object) -> Tensor:
    return data


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Resolves the functions that rebuild tensors, and dtypes; everything else is inert. torch resolves storages."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _Allowed(_FUNCTIONS[module, name])
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        return _Bytes if (module, name) == ("torch.storage", "UntypedStorage") else Inert


def _refuse(*_args: object, **_kwargs: object) -> None:
    raise pickle.UnpicklingError("not a zip archive of torch")


# In place of the module pickle in torch.load, which calls `load` for formats older than the zip archive.
INERT_PICKLE = SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_refuse)
