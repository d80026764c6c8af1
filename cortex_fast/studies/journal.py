"""log.jsonl of a study: which process ran which stage when, where, with which versions, how long."""

import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import torch

from cortex_fast.studies.study import Study
from cortex_fast.version import __version__

FILE = "log.jsonl"


@contextmanager
def noted(study: Study, stage: str) -> Iterator[None]:
    """Append a line to the study's log when a stage ends, with the error where it ends by one."""
    began, clock = datetime.now(timezone.utc), time.monotonic()
    outcome = "done"
    try:
        yield
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        entry = {
            "stage": stage,
            "began": began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 1),  # whatever the system's clock does meanwhile
            "outcome": outcome,
            "process": f"{os.getpid()} on {socket.gethostname()}, {study.workers.rank + 1} of {study.workers.size}",
            "device": str(study.settings.run.device),
            "versions": {
                "cortex-fast": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }
        _append(study.folder / FILE, json.dumps(entry))


def _append(path: Path, line: str) -> None:
    """One write of one line: processes may append at the same time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
