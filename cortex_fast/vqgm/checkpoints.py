"""Reading torch checkpoints: the tensors, never the code."""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from cortex_fast.data.archives import check_archive
from cortex_fast.data.complaints import complaint
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.vqgm.unpickling import INERT_PICKLE


class CheckpointError(ValueError):
    """A checkpoint or its configuration cannot be used; the message names the file and the problem."""


def read_state(path: Path, *, under: Sequence[str] = ("state_dict",), tensors_only: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, mapped from the file.

    The zip format, which torch has written since 1.6, has checksums: the file is read through once to compare them. The
    format before it has none, so that a changed number goes unnoticed; sizes are compared in both.

    Args:
        path: the file.
        under: keys of dictionaries of tensors. The first one in the file is read, or the top level if the file has none
            of them. Default ("state_dict",).
        tensors_only: whether to read a checkpoint that carries pickled objects. These become inert placeholders: only
            our own functions that rebuild tensors are called, whatever the file names. Default False: torch.load's
            `weights_only=True` refuses such a file.

    Returns:
        The tensors by name; a file that consists of one tensor gives it the name "".

    Raises:
        FileNotFoundError: the file does not exist.
        IsADirectoryError: it is a folder.
        CheckpointError: it is damaged, has no tensors, or carries pickled objects, which the message names.
    """
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a checkpoint, got the folder {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    refuse_foreign(path, CheckpointError)
    archive = _check_format(path)
    if tensors_only and not archive:  # rebuilding the older format takes more functions than those of tensors
        raise CheckpointError(
            f"{path}: tensors_only reads the zip format of torch since 1.6, and only an undamaged file"
        )
    content = _content(path, archive=archive, tensors_only=tensors_only)
    state = {"": content} if isinstance(content, Tensor) else content
    if isinstance(state, Mapping):
        state = next((state[key] for key in under if key in state), state)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: no tensors under {' or '.join(map(repr, under))}")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    return tensors


def _check_format(path: Path) -> bool:
    """Whether the file is an undamaged zip archive of torch. Raises CheckpointError for a damaged one."""
    try:
        archive = zipfile.is_zipfile(path)
        torchscript = archive and _is_torchscript(path)
        if archive and not torchscript:
            check_archive(path)
    except Exception as error:  # a damaged list of members raises nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    if torchscript:
        raise CheckpointError(f"{path}: a TorchScript archive, not a checkpoint")
    return archive


def _content(path: Path, *, archive: bool, tensors_only: bool) -> Any:
    """What torch.load reads. Raises CheckpointError for a damaged file or pickled objects."""
    options: dict[str, Any] = {"weights_only": not tensors_only}
    if tensors_only:
        options["pickle_module"] = INERT_PICKLE
    try:
        return torch.load(path, map_location="cpu", mmap=archive, **options)
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


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that the file cannot hold: with a stride of 0, a few bytes can claim any size."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(f"{path}: {name}: expected a plain tensor, got {tensor.layout}, {tensor.dtype}")
    if tensor.numel() * tensor.itemsize > (size := path.stat().st_size):
        raise CheckpointError(f"{path}: {name}: {list(tensor.shape)} is more than a file of {size} bytes holds")


def _is_torchscript(path: Path) -> bool:
    """Whether torch.load would pass the file to the reader of TorchScript."""
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("constants.pkl") for name in file.namelist())


def _unsafe_names(path: Path) -> list[str]:
    """The classes and functions that torch.load refuses."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged pickle raises nearly anything
        return []
