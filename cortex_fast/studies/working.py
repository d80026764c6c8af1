"""Working through tasks with other processes beside: by files and their locks alone, so that any process may die."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cortex_fast.data.locks import held
from cortex_fast.studies.tasks import State, Task, state_of
from cortex_fast.studies.workers import Workers

PAUSE = 0.2  # seconds between looks at what other processes compute


class StaleError(ValueError):
    """Files of a stage were computed from other settings or inputs; the message says which and what to do."""


def complete(
    tasks: Sequence[Task],
    workers: Workers,
    *,
    again: bool = False,
    tick: Callable[[], object] = lambda: None,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Return when every task is done, by this process or by another.

    Args:
        tasks: those of one stage, in the same order in every process.
        workers: which process this is of how many.
        again: compute stale and damaged files again. Default: raise.
        tick: called for each task that is done.
        wait: called with PAUSE while other processes compute what is left. Default time.sleep.
    Raises:
        StaleError: a file is stale or damaged, and `again` is false.
    """
    pending = workers.order(tasks)
    while pending:
        unfinished = []
        for task in pending:
            if not _advance(task, again):
                unfinished.append(task)
            else:
                tick()
        if len(unfinished) == len(pending):
            wait(PAUSE)
        pending = unfinished


def _advance(task: Task, again: bool) -> bool:
    """Compute a task unless it is done or another process computes it; whether it is done now."""
    if _is_done(task, again):
        return True
    try:
        with held(_lock_of(task)):
            if not _is_done(task, again):  # another process may have finished meanwhile
                task.compute()
            return True
    except BlockingIOError:
        return False


def _is_done(task: Task, again: bool) -> bool:
    state, reason = state_of(task)
    if state in (State.STALE, State.DAMAGED) and not again:
        raise StaleError(reason)
    return state is State.DONE


def _lock_of(task: Task) -> Path:
    """The path that stands for the task where locks are concerned."""
    return task.paths[0]
