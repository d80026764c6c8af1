"""Reading torch checkpoints: their tensors, never their code."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from cortex_fast.data.archives import Inert, check_archive
from cortex_fast.data.complaints import complaint
from cortex_fast.data.foreign import refuse_foreign


class CheckpointError(ValueError):
    """A checkpoint or its configuration cannot be used; the message names the file and what is wrong."""


def read_state(path: Path, *, under: Sequence[str] = ("state_dict",), tensors_only: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, mapped from the file: under its first key of `under`, or of it where it has none.
    A file that is one tensor gives it the name "".

    By default torch.load's `weights_only=True` reads it, which refuses pickled objects. With `tensors_only` they become
    inert placeholders: only functions of ours that put tensors together are ever called, whatever the file names.
    The zip format, which torch writes since 1.6, has checksums: it is read through once to compare them, then mapped.
    The format before it has none, so that a changed number in it goes unseen; sizes are compared in both.
    Raises FileNotFoundError, IsADirectoryError, or CheckpointError for a file that is damaged, that carries pickled
    objects (naming them), or that has no tensors.
    """
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a checkpoint, got the folder {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    refuse_foreign(path, CheckpointError)
    try:
        archive = zipfile.is_zipfile(path)
        torchscript = archive and _is_torchscript(path)
        if archive and not torchscript:
            check_archive(path)
    except Exception as error:  # a damaged list of members raises nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    if torchscript:
        raise CheckpointError(f"{path}: a TorchScript archive, not a checkpoint")
    if tensors_only and not archive:  # what came before needs more than tensors put together
        raise CheckpointError(f"{path}: tensors_only reads the zip format, whole, that torch writes since 1.6")
    how: dict[str, Any] = {"pickle_module": _INERT, "weights_only": False} if tensors_only else {"weights_only": True}
    try:
        content = torch.load(path, map_location="cpu", mmap=archive, **how)
    except pickle.UnpicklingError as error:
        names = _unsafe_names(path) if archive and not tensors_only else []
        if not names:
            raise CheckpointError(f"{path}: not a readable checkpoint ({complaint(error)})") from error
        raise CheckpointError(
            f"{path}: carries pickled objects beside its tensors ({', '.join(names)}); "
            "tensors_only=True takes the tensors alone and executes nothing"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({complaint(error)})") from error
    if isinstance(content, Tensor):
        content = {"": content}
    state = next((content[key] for key in under if key in content), content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: no tensors under {' or '.join(map(repr, under))}")
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in found.items():
        _check_tensor(path, name, tensor)
    return found


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Its numbers are in the file: a stride of 0, as after `expand`, makes any size of a few bytes."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(f"{path}: {name}: expected a plain tensor, got {tensor.layout}, {tensor.dtype}")
    if tensor.numel() * tensor.itemsize > (size := path.stat().st_size):
        raise CheckpointError(f"{path}: {name}: {list(tensor.shape)} is more than a file of {size} bytes holds")


def _is_torchscript(path: Path) -> bool:
    """torch.load would hand it to another reader."""
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("constants.pkl") for name in file.namelist())


def _unsafe_names(path: Path) -> list[str]:
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it reads the pickle by itself, and a damaged one raises nearly anything
        return []


class _Allowed:
    """A function that a pickle may call, and nothing else: without attributes of its own that it could set."""

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
    """Stands for the storage of types that have no storage of their own, such as uint16."""

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
    """Resolves tensors' own functions, and dtypes, by name; everything else is inert. (torch resolves storages.)"""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _Allowed(_FUNCTIONS[module, name])
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        return _Bytes if (module, name) == ("torch.storage", "UntypedStorage") else Inert


def _refuse(*_args: object, **_kwargs: object) -> None:
    raise pickle.UnpicklingError("not a zip archive of torch")


# What torch.load takes for a pickle module. `load` is for formats older than the archive.
_INERT = SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_refuse)
