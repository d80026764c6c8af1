"""Where a training run stands, in one file that is whole or absent."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.data.complaints import complaint
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.data.results import ResultFileError, replace_whole


def save_checkpoint(
    path: Path, run: Mapping[str, Any], extractor: nn.Module, optimizer: torch.optim.Optimizer, at: Mapping[str, Tensor]
) -> None:
    """`run` says what is being trained, in plain values; `at` where it stands. Raises OSError naming the file."""
    kept = {"run": dict(run), "extractor": extractor.state_dict(), "optimizer": optimizer.state_dict(), "at": dict(at)}
    try:
        replace_whole(path, lambda file: torch.save(kept, file))
    except RuntimeError as error:  # torch's own writer, of a full disk
        raise OSError(f"{path}: could not be written ({error})") from error


def load_checkpoint(
    path: Path, run: Mapping[str, Any], extractor: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put the module and the optimizer where `save_checkpoint` left them, and return `at`.

    Raises ResultFileError for a damaged file or one of another run, naming it.
    """
    refuse_foreign(path, ResultFileError)
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        saved = kept["run"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: not a whole checkpoint of a training run ({complaint(error)})") from error
    if saved != dict(run):
        off = sorted(key for key in saved.keys() | run.keys() if saved.get(key) != run.get(key))
        described = ", ".join(f"{key}: expected {run.get(key)!r}, got {saved.get(key)!r}" for key in off)
        raise ResultFileError(f"{path}: the checkpoint of another run ({described})")
    try:
        extractor.load_state_dict(kept["extractor"])
        optimizer.load_state_dict(kept["optimizer"])
        return kept["at"]
    except (RuntimeError, ValueError, KeyError) as error:
        raise ResultFileError(f"{path}: the checkpoint of another extractor ({error})") from error
