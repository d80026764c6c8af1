"""The checkpoint of an optimisation of tokens: its trajectory, and the state of the group under way."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cortex_fast.data.results import ResultFileError, load_result, read_header, save_result
from cortex_fast.explain.stepping import Moments
from cortex_fast.explain.trajectories import Trajectory

_KIND = "TokenSelectionState"


@dataclass(eq=False)
class GroupState:
    """The state of one group of G problems.

    Args:
        step_count: number of steps taken.
        active: int64 [A], the problems that still step.
        variables: float [A,...], theirs.
        moments: Adam's, each shaped as variables; None for SGD.
        latest: int64 [G,rows], the tokens of all problems when last decided.
        unchanged: int64 [G], for how many decisions they have been the same.
    """

    step_count: int
    active: Tensor
    variables: Tensor
    moments: Moments | None
    latest: Tensor
    unchanged: Tensor


class Position(NamedTuple):
    """How far a run is: the sizes of its groups, the index of the group under way, and its state (None: not begun)."""

    sizes: list[int]
    group: int
    state: GroupState | None


@dataclass(frozen=True)
class Checkpoint:
    """A run's file, and what identifies the run: its fingerprint, and its problems' targets."""

    path: Path
    fingerprint: dict[str, Any]
    targets: list[int]


def save_checkpoint(checkpoint: Checkpoint, trajectory: Trajectory, position: Position) -> None:
    """Write the trajectory and the position."""
    state, tensors = position.state, dict(vars(trajectory))
    if state is not None:
        tensors |= {"active": state.active, "variables": state.variables}
        tensors |= {"latest": state.latest, "same": state.unchanged}
        if state.moments is not None:
            tensors |= {"first": state.moments[0], "second": state.moments[1]}
    header = {
        "made": checkpoint.fingerprint,
        "targets": checkpoint.targets,
        "sizes": position.sizes,
        "group": position.group,
        "step": None if state is None else state.step_count,
    }
    save_result(checkpoint.path, _KIND, tensors, header)


def load_checkpoint(checkpoint: Checkpoint, trajectory: Trajectory) -> Position | None:
    """Read the trajectory, in place, and the position to go on from; None where no file exists.

    Raises:
        ResultFileError: a damaged file, or another run's.
    """
    if not checkpoint.path.exists():
        return None
    tensors, header = load_result(checkpoint.path, _KIND)
    device = trajectory.history.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    if header.get("made") != checkpoint.fingerprint:
        raise ResultFileError(f"{checkpoint.path}: the state of a run with other settings, extractor or problems")
    error = _header_error(header, trajectory) or _tensor_error(tensors, header, trajectory)
    if error is not None:
        raise ResultFileError(f"{checkpoint.path}: not the state of a token selection ({error})")
    for name, tensor in vars(trajectory).items():
        tensor.copy_(tensors[name])
    if header["step"] is None:
        return Position(header["sizes"], header["group"], None)
    state = GroupState(
        step_count=header["step"],
        active=tensors["active"],
        variables=tensors["variables"],
        moments=(tensors["first"], tensors["second"]) if "first" in tensors else None,
        latest=tensors["latest"],
        unchanged=tensors["same"],
    )
    return Position(header["sizes"], header["group"], state)


def checkpoint_targets(path: Path) -> list[int]:
    """The targets of a checkpoint's problems.

    Raises:
        ResultFileError: not a checkpoint.
    """
    targets = read_header(path, _KIND).get("targets")
    if not isinstance(targets, list) or any(type(target) is not int for target in targets):
        raise ResultFileError(f"{path}: not the state of a token selection (targets: got {targets!r})")
    return targets


def _header_error(header: Mapping[str, Any], trajectory: Trajectory) -> str | None:
    """Why the header is not one of this run."""
    sizes, group, step_count = (header.get(name) for name in ("sizes", "group", "step"))
    steps, problems = trajectory.loss.shape
    if not isinstance(sizes, list) or any(type(size) is not int or size < 1 for size in sizes):
        return f"sizes: expected those of groups, got {sizes!r}"
    if sum(sizes) != problems or type(group) is not int or not 0 <= group <= len(sizes):
        return f"group: expected one of {len(sizes)} for {problems} problems, got {group!r}"
    if step_count is None:
        return None
    if type(step_count) is not int or not 0 < step_count < steps or group == len(sizes):
        return f"step: expected one of {steps} of a group, got {step_count!r}"
    return None


def _tensor_error(tensors: Mapping[str, Tensor], header: Mapping[str, Any], trajectory: Trajectory) -> str | None:
    """Why the tensors are not those of this run, whose header has been checked."""
    for name, tensor in vars(trajectory).items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype):
            return f"{name}: expected {tensor.dtype} {list(tensor.shape)}"
    if header.get("step") is None:
        return None
    moments = ("first", "second") if "first" in tensors else ()
    names = ("active", "variables", "latest", "same", *moments)
    if any(name not in tensors for name in names):
        return f"expected {', '.join(names)}"
    size, active, variables = header["sizes"][header["group"]], tensors["active"], tensors["variables"]
    if active.dtype != torch.int64 or active.ndim != 1 or len(variables) != len(active):
        return "active: expected the problems that still step"
    if not bool(((active >= 0) & (active < size)).all()):
        return f"active: expected problems of a group of {size}"
    if any(tensors[name].shape != variables.shape for name in moments):
        return "first, second: expected moments of the variables"
    if len(tensors["latest"]) != size or tensors["same"].shape != (size,):
        return f"latest, same: expected those of {size} problems"
    return None
