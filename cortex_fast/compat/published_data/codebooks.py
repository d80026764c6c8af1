"""The codebook that the published data indexes: from a file, or out of embeddings and their tokens."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cortex_fast.compat.published_data.places import PublishedDataError

_NAMES = ("codebook", "quantize.embedding.weight", "embedding.weight", "first_stage_model.quantize.embedding.weight")


def read_codebook(path: Path | str) -> Tensor:
    """C float32 [K,d] of a .npy, a .safetensors (a token store is one) or a .pth or .ckpt file.

    In the last three it is the tensor named "codebook" or "quantize.embedding.weight" (with any prefix), or the only
    one. No pickled object is executed. Raises FileNotFoundError, or PublishedDataError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such codebook file: {path}")
    readers = {".npy": _of_numpy, ".safetensors": _of_safetensors} | dict.fromkeys((".pth", ".pt", ".ckpt"), _of_torch)
    reader = readers.get(path.suffix)
    if reader is None:
        raise PublishedDataError(f"{path}: expected a .npy, .safetensors, .pth, .pt or .ckpt file")
    codebook = reader(path)
    if codebook.ndim != 2 or not codebook.is_floating_point():
        raise PublishedDataError(f"{path}: expected floats [K, d], got {codebook.dtype} {list(codebook.shape)}")
    return codebook.detach().float().contiguous()


def _of_numpy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, TypeError) as error:
        raise PublishedDataError(f"{path}: not a whole .npy file of numbers ({error})") from error


def _of_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_choose(path, {name: file.get_slice(name).get_shape() for name in file.keys()}))  # noqa: SIM118
    except SafetensorError as error:
        raise PublishedDataError(f"{path}: not a whole safetensors file ({error})") from error


def _of_torch(path: Path) -> Tensor:
    state = read_state(path)
    return state[_choose(path, {name: list(value.shape) for name, value in state.items()})]


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, as it is or under "state_dict". Raises PublishedDataError naming the file."""
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise PublishedDataError(f"{path}: holds more than tensors; nothing was executed ({reason})") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise PublishedDataError(f"{path}: not a whole checkpoint ({error})") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if isinstance(loaded, Tensor):
        return {"codebook": loaded}
    state = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not state:
        raise PublishedDataError(f"{path}: holds no tensors")
    return state


def _choose(path: Path, shapes: Mapping[str, list[int]]) -> str:
    named = [name for name in shapes if name in _NAMES or name.endswith(".quantize.embedding.weight")]
    if len(shapes) == 1:
        named = list(shapes)
    if len(named) != 1:
        wanted = "a tensor named 'codebook' or 'quantize.embedding.weight'"
        raise PublishedDataError(f"{path}: expected {wanted}, got {named or sorted(shapes)[:5]}")
    return named[0]
