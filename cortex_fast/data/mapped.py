"""A tensor of a result file mapped into memory: opened without being read into it, and checked piece by piece.

The tokens of a million images are 512 MB. A process that maps them holds only the pages that it reads, which the system
may take back at any time.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cortex_fast.data import digests
from cortex_fast.data.results import ResultFileError

_PIECE = 4 << 20  # bytes read at a time
_DTYPES = {"U16": np.uint16, "I32": np.int32}  # those that tokens have


class Place(NamedTuple):
    """Where a tensor lies in a file: its dtype, shape, and its first byte."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def place_of(path: Path, name: str) -> Place:
    """Where a tensor lies in a safetensors file that was read before, and so is whole.

    Args:
        path: the file.
        name: of a tensor of whole numbers.
    Returns:
        Its place.
    Raises:
        ResultFileError: the file has no such tensor of uint16 or int32.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length)).get(name)
    if entry is None or entry["dtype"] not in _DTYPES:
        raise ResultFileError(f"{path}: expected {name} of uint16 or int32")
    return Place(np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])


def mapped(path: Path, place: Place) -> Tensor:
    """The tensor at a place, mapped: what is written into it stays in this process."""
    if not place.nbytes:
        return torch.from_numpy(np.zeros(place.shape, place.dtype))
    return torch.from_numpy(np.memmap(path, place.dtype, mode="c", offset=place.offset, shape=place.shape))


def crc_and_range(path: Path, place: Place, crc: int = 0) -> tuple[int, int, int]:
    """The CRC-32 of a tensor's bytes, begun with `crc`, and its least and largest value, by one pass over the file."""
    low, high = 0, 0
    for piece in _pieces(path, place):
        crc = digests.crc_continued(piece, crc)
        values = np.frombuffer(piece, place.dtype)
        low, high = min(low, int(values.min())), max(high, int(values.max()))
    return crc, low, high


def _pieces(path: Path, place: Place) -> Iterator[memoryview]:
    buffer = bytearray(_PIECE)
    with path.open("rb") as file:
        file.seek(place.offset)
        left = place.nbytes
        while left:
            size = file.readinto(memoryview(buffer)[: min(left, _PIECE)])
            if not size:
                raise ResultFileError(f"{path}: a truncated or damaged safetensors file (its end is missing)")
            left -= size
            yield memoryview(buffer)[:size]
