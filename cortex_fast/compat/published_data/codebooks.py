"""The codebook that the published data indexes, from a file."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cortex_fast import checks
from cortex_fast.compat.published_data.errors import PublishedDataError
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.vqgm.checkpoints import read_state

_NAMES = ("codebook", "quantize.embedding.weight", "embedding.weight", "first_stage_model.quantize.embedding.weight")


def read_codebook(path: Path | str, *, tensors_only: bool = False) -> Tensor:
    """Read the codebook of a .npy, .safetensors (such as a token store), .pth, .pt or .ckpt file.

    In all but .npy files it is the tensor named "codebook" or "quantize.embedding.weight", with any prefix, or the only
    tensor. No pickled object is executed.

    Args:
        path: the file.
        tensors_only: read a checkpoint that carries pickled objects, without these, instead of refusing it. Default
            False.
    Returns:
        C float32 [K, d].
    Raises:
        FileNotFoundError: the file does not exist.
        PublishedDataError: it has another suffix, is damaged, or has no codebook; the message names it.
        CheckpointError: a checkpoint is damaged or carries pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such codebook file: {path}")
    of_torch = partial(_of_torch, tensors_only=tensors_only)
    refuse_foreign(path, PublishedDataError)
    readers = {".npy": _of_numpy, ".safetensors": _of_safetensors} | dict.fromkeys((".pth", ".pt", ".ckpt"), of_torch)
    reader = readers.get(path.suffix)
    if reader is None:
        raise PublishedDataError(f"{path}: expected a .npy, .safetensors, .pth, .pt or .ckpt file")
    codebook = reader(path)
    try:
        checks.rank("codebook", codebook, "[K, d]")
        checks.floating("codebook", codebook)
    except (TypeError, ValueError) as error:
        raise PublishedDataError(f"{path}: {error}") from error
    return codebook.detach().to(torch.float32, copy=True).contiguous()  # a checkpoint's tensor is mapped from its file


def _of_numpy(path: Path) -> Tensor:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # it compares the header with the file's size
        return torch.from_numpy(np.array(mapped))
    except OSError:
        raise
    except Exception as error:  # a damaged header raises nearly anything
        raise PublishedDataError(f"{path}: a truncated or damaged .npy file of numbers ({error})") from error


def _of_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_choose(path, {name: file.get_slice(name).get_shape() for name in file.keys()}))  # noqa: SIM118
    except SafetensorError as error:
        raise PublishedDataError(f"{path}: a truncated or damaged safetensors file ({error})") from error


def _of_torch(path: Path, *, tensors_only: bool) -> Tensor:
    state = read_state(path, tensors_only=tensors_only)
    return state[_choose(path, {name: list(value.shape) for name, value in state.items()})]


def _choose(path: Path, shapes: Mapping[str, list[int]]) -> str:
    """The codebook's name among those of a file's tensors."""
    named = [name for name in shapes if name in _NAMES or name.endswith(".quantize.embedding.weight")]
    if len(shapes) == 1:
        named = list(shapes)
    if len(named) != 1:
        expected = "a tensor named 'codebook' or 'quantize.embedding.weight'"
        raise PublishedDataError(f"{path}: expected {expected}, got {named or sorted(shapes)[:5]}")
    return named[0]
