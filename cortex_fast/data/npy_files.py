"""Floats in .npy files, read into memory of the caller's.

The common case is a file that `np.save` wrote of float32: its header is compared byte by byte and its numbers go
straight to where they are wanted, about 25 us for 256 KB. Every other .npy file takes numpy's own reader.
"""

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cortex_fast import checks
from cortex_fast.data.foreign import refuse_foreign

# Without O_NONBLOCK, opening a named pipe would wait for its writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def header_of(shape: Sequence[int]) -> bytes:
    """The bytes that `np.save` writes before float32 numbers of this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": tuple(map(int, shape))}
    )
    return buffer.getvalue()


def read_npy_files(paths: Sequence[str | os.PathLike[str]], batch: np.ndarray) -> list[bool]:
    """Read one .npy file into each row of a batch, without waiting for named pipes or trusting a header.

    It runs on the caller's thread; other threads run while the system reads.

    Args:
        paths: n files.
        batch: float32 [n, ...], C-contiguous and writable; row i receives the numbers of file i.
    Returns:
        n booleans: whether the file is a regular one that holds exactly what `np.save` writes of the row's shape. The
        row of any other file, also of one that cannot be opened, has arbitrary values.
    Raises:
        TypeError: paths is no list of paths, or batch no such array.
        ValueError: the numbers of paths and rows differ, or a path has a null character.
    """
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise TypeError(f"paths: expected a list of paths, got {checks.shown(paths)}")
    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32 or not batch.flags.carray:
        raise TypeError(f"batch: expected a writable C-contiguous float32 array, got {checks.shown(batch)}")
    if len(paths) != len(batch):
        raise ValueError(f"paths: expected one for each of the {len(batch)} rows of batch, got {len(paths)}")
    header = header_of(batch.shape[1:])
    return [_read(path, header, row) for path, row in zip(paths, batch, strict=True)]


def load_floats(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Load any .npy file of float32 or float64 numbers.

    Args:
        path: the file.
        shape: the shape that its array must have.
    Returns:
        float32, C-contiguous, of that shape.
    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is damaged, a Git LFS pointer or a web page, or its array has another shape or dtype.
    """
    refuse_foreign(path, ValueError)
    try:
        values = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header raises nearly anything
        raise ValueError(f"a truncated or damaged .npy file ({path.stat().st_size} bytes): {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.dtype.itemsize < 4:
        raise ValueError(f"expected float32 or float64, got {getattr(values, 'dtype', type(values).__name__)}")
    if values.shape != shape:
        raise ValueError(f"expected shape {list(shape)}, got {list(values.shape)}")
    return values.astype(np.float32, order="C")


def _read(path: str | os.PathLike[str], header: bytes, values: np.ndarray) -> bool:
    """Whether a regular file is `header` and then as many bytes as `values` has, which it receives."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        size = len(header) + values.nbytes
        if status.st_size != size or not stat.S_ISREG(status.st_mode):
            return False
        start = bytearray(len(header))
        return _read_into(descriptor, start, values) == size and start == header
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _read_into(descriptor: int, start: bytearray, values: np.ndarray) -> int:
    """How many bytes could be read into both, one after the other."""
    if hasattr(os, "readv"):
        return os.readv(descriptor, [start, values.data])
    with io.FileIO(descriptor, closefd=False) as file:  # Windows has no readv
        return (file.readinto(start) or 0) + (file.readinto(values.data) or 0)
