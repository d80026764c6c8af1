"""Where a training run stands, in one file that is whole or absent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.data.archives import check_archive
from cortex_fast.data.complaints import complaint
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.data.results import ResultFileError, replace_whole

_OPTIMIZER = {"state": dict, "param_groups": list}
AT = {"epoch": torch.int64, "step": torch.int64, "total": torch.float64, "loss": torch.float64}


def save_checkpoint(
    path: Path, run: Mapping[str, Any], extractor: nn.Module, optimizer: torch.optim.Optimizer, at: Mapping[str, Tensor]
) -> None:
    """`run` says what is being trained, in plain values. `at` where it stands: after `step` steps of `epoch`, whose
    summed loss is `total` until then, and the mean loss of the epoch before is `loss`. Raises OSError naming the file.
    """
    kept = {"run": dict(run), "extractor": extractor.state_dict(), "optimizer": optimizer.state_dict(), "at": dict(at)}
    try:
        replace_whole(path, lambda file: torch.save(kept, file))
    except RuntimeError as error:  # torch's own writer, of a full disk
        raise OSError(f"{path}: could not be written ({error})") from error


def load_checkpoint(
    path: Path, run: Mapping[str, Any], extractor: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put the module and the optimizer where `save_checkpoint` left them, and return `at`.

    Raises ResultFileError for a damaged file or one of another run, naming it; then neither is changed.
    """
    refuse_foreign(path, ResultFileError)
    try:
        check_archive(path)
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ResultFileError(f"{path}: not a whole checkpoint of a training run ({complaint(error)})") from error
    if not isinstance(kept, dict) or kept.keys() != {"run", "extractor", "optimizer", "at"}:
        raise ResultFileError(f"{path}: not a checkpoint of a training run")
    saved = kept["run"]
    if not isinstance(saved, dict) or not _plain(saved):
        raise ResultFileError(f"{path}: not a checkpoint of a training run (run: expected its settings)")
    if saved != dict(run):
        off = sorted((key for key in saved.keys() | run.keys() if saved.get(key) != run.get(key)), key=str)
        described = ", ".join(f"{key}: expected {run.get(key)!r}, got {saved.get(key)!r}" for key in off)
        raise ResultFileError(f"{path}: the checkpoint of another run ({described})")
    problem = _problem("at", kept["at"], {name: torch.zeros((), dtype=dtype) for name, dtype in AT.items()})
    if problem is not None or kept["at"]["epoch"] < 0 or kept["at"]["step"] < 0:
        raise ResultFileError(f"{path}: not a checkpoint of a training run ({problem or 'at: a negative number'})")
    problem = _problem("extractor", kept["extractor"], extractor.state_dict())
    problem = problem or _problem_of_optimizer(kept["optimizer"], optimizer)
    if problem is not None:
        raise ResultFileError(f"{path}: the checkpoint of another extractor ({problem})")
    extractor.load_state_dict(kept["extractor"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["at"]


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(entry) for key, entry in value.items())
    if isinstance(value, tuple):  # a grid (h, w)
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float)


def _problem(name: str, got: Any, wanted: Mapping[str, Tensor]) -> str | None:
    """Why these are not tensors of the wanted names, types and shapes."""
    if not isinstance(got, Mapping) or got.keys() != wanted.keys():
        return f"{name}: expected {', '.join(list(wanted)[:3])}, ... by name"
    for key, value in wanted.items():
        found = got[key]
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (value.shape, value.dtype):
            kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            return f"{name}: {key}: expected {value.dtype} {list(value.shape)}, got {kind}"
    return None


def _problem_of_optimizer(got: Any, optimizer: torch.optim.Optimizer) -> str | None:
    """Why this is no state of Adam for these parameters with these settings; the learning rate is set every epoch."""
    if not isinstance(got, dict) or {name: type(part) for name, part in got.items()} != _OPTIMIZER:
        return "optimizer: expected its state"
    groups = optimizer.state_dict()["param_groups"]
    if [_settings(group) for group in got["param_groups"]] != [_settings(group) for group in groups]:
        return "optimizer: its settings are others"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in got["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            return f"optimizer: no parameter has the number {number!r}"
        like = parameters[number].detach()
        wanted = {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}
        if (problem := _problem(f"optimizer: parameter {number}", state, wanted)) is not None:
            return problem
    return None


def _settings(group: Any) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "lr"} if isinstance(group, dict) else {}
