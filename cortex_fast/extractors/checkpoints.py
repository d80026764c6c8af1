"""The checkpoint of a training run: one file, which is either whole or absent."""

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
POSITION = {"epoch": torch.int64, "step": torch.int64, "total": torch.float64, "loss": torch.float64}


def save_checkpoint(
    path: Path,
    run: Mapping[str, Any],
    extractor: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint.

    Args:
        path: the file, which is replaced.
        run: plain values that identify the run; a checkpoint of other values is refused later.
        extractor: the module that is being trained.
        optimizer: its optimizer.
        position: how far the run has come, tensors [] by the names of POSITION. "epoch" and "step" are int64, the next
            ones; "total" is float64, the loss summed over the epoch's images so far; "loss" is float64, the mean loss
            of the epoch before.

    Raises:
        OSError: the file could not be written; the message names it.
    """
    content = {"run": dict(run), "extractor": extractor.state_dict()}
    content |= {"optimizer": optimizer.state_dict(), "at": dict(position)}
    try:
        replace_whole(path, lambda file: torch.save(content, file))
    except RuntimeError as error:  # torch's own writer raises it for a full disk
        raise OSError(f"{path}: could not be written ({error})") from error


def load_checkpoint(
    path: Path, run: Mapping[str, Any], extractor: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Restore the module and the optimizer that `save_checkpoint` saved.

    Args:
        path: the checkpoint.
        run: the values that it must agree with.
        extractor: the module to restore, in place.
        optimizer: the optimizer to restore, in place.

    Returns:
        The position that was saved.

    Raises:
        ResultFileError: the file is damaged or belongs to another run; the message names it. The module and the
            optimizer are then unchanged.
    """
    content = _read(path)
    _check_run(path, content["run"], run)
    position = content["at"]
    problem = _tensor_problem("at", position, {name: torch.zeros((), dtype=dtype) for name, dtype in POSITION.items()})
    if problem is not None or position["epoch"] < 0 or position["step"] < 0:
        raise ResultFileError(f"{path}: not a checkpoint of a training run ({problem or 'at: a negative number'})")
    problem = _tensor_problem("extractor", content["extractor"], extractor.state_dict())
    problem = problem or _optimizer_problem(content["optimizer"], optimizer)
    if problem is not None:
        raise ResultFileError(f"{path}: the checkpoint of another extractor ({problem})")
    extractor.load_state_dict(content["extractor"])
    optimizer.load_state_dict(content["optimizer"])
    return position


def _read(path: Path) -> dict[str, Any]:
    """The content by name, whose values are not checked yet."""
    refuse_foreign(path, ResultFileError)
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ResultFileError(
            f"{path}: a truncated or damaged checkpoint of a training run ({complaint(error)})"
        ) from error
    if not isinstance(content, dict) or content.keys() != {"run", "extractor", "optimizer", "at"}:
        raise ResultFileError(f"{path}: not a checkpoint of a training run")
    return content


def _check_run(path: Path, saved: Any, run: Mapping[str, Any]) -> None:
    if not isinstance(saved, dict) or not _is_plain(saved):
        raise ResultFileError(f"{path}: not a checkpoint of a training run (run: expected its settings)")
    if saved != dict(run):
        different = sorted((key for key in saved.keys() | run.keys() if saved.get(key) != run.get(key)), key=str)
        described = ", ".join(f"{key}: expected {run.get(key)!r}, got {saved.get(key)!r}" for key in different)
        raise ResultFileError(f"{path}: the checkpoint of another run ({described})")


def _is_plain(value: Any) -> bool:
    """Whether a value consists of texts, numbers, None, tuples and dictionaries, which compare by `==`."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, tuple):  # a grid (h, w)
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _tensor_problem(name: str, got: Any, expected: Mapping[str, Tensor]) -> str | None:
    """Why `got` does not hold tensors of the expected names, dtypes and shapes, or None."""
    if not isinstance(got, Mapping) or got.keys() != expected.keys():
        return f"{name}: expected {', '.join(list(expected)[:3])}, ... by name"
    for key, tensor in expected.items():
        value = got[key]
        if not isinstance(value, Tensor) or (value.shape, value.dtype) != (tensor.shape, tensor.dtype):
            described = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            return f"{name}: {key}: expected {tensor.dtype} {list(tensor.shape)}, got {described}"
    return None


def _optimizer_problem(got: Any, optimizer: torch.optim.Optimizer) -> str | None:
    """Why `got` is not a state of this Adam, or None. The learning rate may differ, because every epoch sets it."""
    if not isinstance(got, dict) or {name: type(part) for name, part in got.items()} != _OPTIMIZER:
        return "optimizer: expected its state"
    groups = optimizer.state_dict()["param_groups"]
    if [_settings(group) for group in got["param_groups"]] != [_settings(group) for group in groups]:
        return "optimizer: expected the same settings, got others"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in got["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            return f"optimizer: no parameter has the number {number!r}"
        parameter = parameters[number].detach()
        expected = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        if (problem := _tensor_problem(f"optimizer: parameter {number}", state, expected)) is not None:
            return problem
    return None


def _settings(group: Any) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "lr"} if isinstance(group, dict) else {}
