"""The system's advisory locks on files, which end with the process that holds them, even when it is killed."""

import errno
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
WITHOUT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system, or of its mount, without locks


def take(path: Path, *, make: bool = False) -> int | None:
    """Lock a file.

    Args:
        path: the file.
        make: create the file where it does not exist. Default False.
    Returns:
        A descriptor, which holds the lock until it is closed; None where another process or thread holds it.
    Raises:
        FileNotFoundError: the file does not exist, without `make`.
        OSError: the file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
        is_current = False
        try:
            if not _locked(descriptor):
                return None
            with suppress(FileNotFoundError):  # the last holder may have removed the file since it was opened
                is_current = os.path.samestat(os.fstat(descriptor), path.stat())
            if is_current:
                return descriptor
        finally:
            if not is_current:
                os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the only run that writes a file and what belongs to it, by a lock on .<name>.lock, removed at the end.

    Where the file system has no locks it warns and goes on.

    Args:
        path: the file; its folder is created where it does not exist.
    Raises:
        BlockingIOError: another run holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = take(lock, make=True)
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        lock.unlink(missing_ok=True)
        warnings.warn(f"{path}: this file system has no locks; let no second run write it meanwhile", stacklevel=3)
        yield
        return
    if descriptor is None:
        raise BlockingIOError(
            f"{path}: another run is writing it{_holder(lock)}; wait for its end, stop it, or write to another place"
        )
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        remove(lock, descriptor)


def remove(lock: Path, descriptor: int) -> None:
    """Remove a locked file, then release it. descriptor: of `take`."""
    with suppress(PermissionError):  # Windows removes no open file
        lock.unlink(missing_ok=True)
    os.close(descriptor)


def _holder(lock: Path) -> str:
    """The process that holds a lock, in brackets, where it has written that."""
    with suppress(OSError, UnicodeDecodeError):
        if holder := lock.read_text(encoding="utf-8"):
            return f" ({holder})"
    return ""
