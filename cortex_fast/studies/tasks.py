"""The unit of a study's work: a few files that are computed together, whole or not at all, and what they depend on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cortex_fast.data.results import ResultFileError, read_header

ENTRY = "study"  # of a file's fingerprint


class State(Enum):
    """What a task's files are."""

    DONE = "done"
    MISSING = "missing"
    STALE = "stale"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Task:
    """Some files of one stage.

    paths: the files. kind: of result file that they are. inputs: the settings and inputs that they depend on, as plain
    JSON values; each file's fingerprint holds them under "study". compute writes the files, each whole or not at all.
    """

    paths: tuple[Path, ...]
    kind: str
    inputs: Mapping[str, Any]
    compute: Callable[[], None]


def state_of(task: Task) -> tuple[State, str]:
    """A task's state and, unless it is done or missing, the reason with the file's name."""
    for path in task.paths:
        if not path.exists():
            return State.MISSING, ""
        try:
            inputs = read_header(path, task.kind).get("fingerprint", {}).get(ENTRY)
        except ResultFileError as error:
            return State.DAMAGED, str(error)
        if inputs != task.inputs:
            return State.STALE, f"{path}: {differences(inputs, task.inputs)}"
    return State.DONE, ""


def differences(before: Any, now: Mapping[str, Any], prefix: str = "") -> str:
    """What differs between the inputs that a file was computed from and those of today."""
    if not isinstance(before, Mapping):
        return "not a file of this study"
    changes = []
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if left == right:
            continue
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            changes.append(differences(left, right, f"{prefix}{key}."))
        else:
            changes.append(f"{prefix}{key} was {left!r}, is {right!r}")
    return "; ".join(changes)


@dataclass(frozen=True)
class Phase:
    """Tasks of a stage that do not depend on each other.

    title: what they are, in the plural. plan: the tasks, once the phases before are done.
    """

    title: str
    plan: Callable[[], list[Task]]
