"""The system's advisory locks on files: they end with the process that holds them, however it ends."""

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
WITHOUT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system, or a mount of it, that has no locks


def take(path: Path, *, make: bool = False) -> int | None:
    """Lock a file. Returns its descriptor, which holds the lock until it is closed; None where another holds it.

    Another may be a thread of this process. Raises FileNotFoundError where there is no file, unless it is to be made,
    and OSError where the file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
        kept = False
        try:
            if not _locked(descriptor):
                return None
            with suppress(FileNotFoundError):  # whoever held it before may have removed the file since it was opened
                kept = os.path.samestat(os.fstat(descriptor), path.stat())
            if kept:
                return descriptor
        finally:
            if not kept:
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
    """Be the only run that writes `path` and what lies beside it, by the file .<name>.lock, which goes at the end.

    Raises BlockingIOError where another run does. Where the file system has no locks it warns and goes on.
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
    """Remove a locked file, then let go of it."""
    with suppress(PermissionError):  # Windows removes no open file
        lock.unlink(missing_ok=True)
    os.close(descriptor)


def _holder(lock: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        if told := lock.read_text(encoding="utf-8"):
            return f" ({told})"
    return ""
