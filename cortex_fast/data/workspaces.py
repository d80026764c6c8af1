"""Hidden folders for unfinished files, beside the place of the finished ones.

Each is locked by the process that writes there. A process that is killed loses the lock and leaves the folder, which
the next workspace in the same place removes. The folder of a living process is never touched.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from cortex_fast.data import locks

_NAME = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial")
_LOCK = ".lock"
_REPLACED = "replaced"  # the old content of a target while the new one is put in place


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """An empty folder on the file system of `target`. It is removed at the end, with everything still in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    folder, descriptor = _make(target)
    try:
        yield folder
    finally:
        _remove(folder, descriptor)


def put_in_place(new: Path, target: Path) -> None:
    """Rename a folder out of a workspace to `target`, and remove an old one of that name.

    Should this fail, or be killed, the old folder stays, or the next `sweep` puts it back.

    Args:
        new: the folder in a workspace of `target`.
        target: its final place.
    """
    if not target.exists():
        new.rename(target)
        return
    old = new.with_name(_REPLACED)
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise


def sweep(folder: Path) -> None:
    """Remove the workspaces that killed processes left in a folder."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            named = _NAME.fullmatch(entry.name)
            if named is None or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):  # removed by another process, not ours to remove, or on a file system without locks
                _sweep_workspace(Path(entry.path), folder / named[1])


def _sweep_workspace(space: Path, target: Path) -> None:
    try:
        descriptor = locks.take(space / _LOCK)
    except FileNotFoundError:  # killed before it locked, or after it had removed everything else
        space.rmdir()
        return
    if descriptor is None:
        return
    if (space / _REPLACED).exists() and not target.exists():
        (space / _REPLACED).rename(target)
    _remove(space, descriptor)


def _make(target: Path) -> tuple[Path, int | None]:
    """The folder and the descriptor of its lock; None where the file system has no locks."""
    while True:
        folder = target.with_name(f".{target.name}.{uuid4().hex}.partial")
        folder.mkdir()
        try:
            descriptor = locks.take(folder / _LOCK, make=True)
        except FileNotFoundError:  # a sweep removed it before it was locked
            continue
        except OSError as error:
            if error.errno not in locks.WITHOUT:
                folder.rmdir()
                raise
            return folder, None
        if descriptor is not None:  # else a sweep has it
            return folder, descriptor


def _remove(folder: Path, descriptor: int | None) -> None:
    """Remove a folder, its lock last: a folder with anything in it must have one."""
    for path in folder.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    if descriptor is not None:
        locks.remove(folder / _LOCK, descriptor)
    shutil.rmtree(folder, ignore_errors=True)
