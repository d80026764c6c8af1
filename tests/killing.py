"""Processes that are killed: in a moment of their own, by a fork that does no arithmetic in threads."""

import os
import signal
from collections.abc import Callable
from pathlib import Path


def die(*_args: object, **_kwargs: object) -> None:
    """SIGKILL for this process: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(function: Callable[[], object]) -> None:
    """Call it in a process of its own, in which it has to `die`."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def hidden(folder: Path) -> list[Path]:
    """What is left of runs: temporaries and locks."""
    return [path for path in folder.iterdir() if path.name.startswith(".")]
