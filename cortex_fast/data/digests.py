"""Digests: SHA-256 of the inputs of a result, by which runs are distinguished. The only module that computes them.

Tensors count by their values: the device, strides, memory format, and lazy conjugation or negation do not matter. They
are read some megabytes at a time. Files of earlier versions hold digests of these forms, so the forms stay.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_SHORT = 16  # hex digits, for people to read
_PIECE = 4 << 20  # bytes
_SHORTENED = (Tensor, np.ndarray, BytesIO)  # whose repr leaves values out


def of_state(state: Mapping[str, Tensor], about: str = "") -> str:
    """16 hex digits of `about`, and of names, dtypes, shapes and values in the names' order."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {list(state[name].shape)}\n".encode())
        _add(digest, state[name])
    return digest.hexdigest()[:_SHORT]


def of_parts(parts: Iterable[Any]) -> str:
    """64 hex digits of tensors' shapes, dtypes and values, and of other values, in order."""
    digest = hashlib.sha256()
    for part in parts:
        _add_part(digest, part)
    return digest.hexdigest()


def of_images(codebook: Tensor, tokens: Tensor, labels: Tensor) -> str:
    """The digest of a data set, which the dtypes do not change.

    Args:
        codebook: floating-point [K, d].
        tokens: integer [n, m, m].
        labels: integer [n].
    Returns:
        16 hex digits.
    """
    small = torch.uint16 if len(codebook) <= 2**16 else torch.int32
    digest = hashlib.sha256()
    for tensor in (codebook.detach().float(), tokens.to(small), labels.long()):
        digest.update(repr(tuple(tensor.shape)).encode())
        _add(digest, tensor)
    return digest.hexdigest()[:_SHORT]


def of_values(tensor: Tensor) -> str:
    """16 hex digits of a tensor's values alone."""
    digest = hashlib.sha256()
    _add(digest, tensor)
    return digest.hexdigest()[:_SHORT]


def of_files(paths: Iterable[Path]) -> str:
    """16 hex digits of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:_SHORT]


def of_text(text: str | bytes) -> str:
    """64 hex digits of a text, in UTF-8."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


class Running(Protocol):
    """A digest that bytes can be added to."""

    def update(self, content: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


def begun(path: Path | None = None, size: int = 0) -> Running:
    """Begin a digest, to which bytes can be added.

    Args:
        path: a file to begin with. Default none.
        size: how many of its first bytes count. Default 0.
    """
    digest = hashlib.sha256()
    if path is not None:
        with path.open("rb") as file:
            while size > 0 and (piece := file.read(min(size, _PIECE))):
                digest.update(piece)
                size -= len(piece)
    return digest


def crc_of_state(state: Mapping[str, Tensor]) -> int:
    """CRC-32 of names, dtypes, shapes and values in the names' order: fast, and enough against damage."""
    crc = 0
    for name in sorted(state):
        crc = zlib.crc32(f"{name} {state[name].dtype} {list(state[name].shape)}\n".encode(), crc)
        for piece in _pieces(state[name]):
            crc = zlib.crc32(piece, crc)
    return crc


def crc_continued(content: Any, crc: int) -> int:
    """CRC-32 of bytes that follow those of `crc`, such as one tensor after others of a state.

    Args:
        content: the bytes, or a text in UTF-8.
        crc: of what comes before.
    Returns:
        The CRC-32 of all.
    """
    return zlib.crc32(content.encode() if isinstance(content, str) else content, crc)


def crc_of_text(text: str) -> int:
    """CRC-32 of a text, in UTF-8."""
    return zlib.crc32(text.encode())


def short(digest: str) -> str:
    """The first 16 hex digits."""
    return digest[:_SHORT]


def seed_of(*parts: object) -> int:
    """A seed of 63 bits that differs with any of the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _add(digest: Running, tensor: Tensor) -> None:
    for piece in _pieces(tensor):
        digest.update(piece)


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes in the order of its elements, some megabytes at a time."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        tensor = tensor.view(-1)
    row = tensor[:1].nbytes
    for part in tensor.split(max(1, _PIECE // row)) if row else ():
        yield part.cpu().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy().data


def _add_part(digest: Running, part: Any) -> None:
    leaves = list(_leaves(part))
    if isinstance(part, Tensor):
        digest.update(f"{list(part.shape)} {part.dtype}".encode())
        _add(digest, part)
    elif isinstance(part, np.ndarray) and part.dtype != object:
        digest.update(f"{list(part.shape)} {part.dtype}".encode())
        digest.update(part.tobytes())
    elif isinstance(part, BytesIO):
        digest.update(part.getvalue())
    elif isinstance(part, Mapping | list | tuple) and any(
        isinstance(leaf, Tensor | np.ndarray | BytesIO) for leaf in leaves
    ):
        digest.update(f"{len(leaves)} parts".encode())
        for leaf in leaves:
            _add_part(digest, leaf)
    else:
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(part)).encode())  # addresses differ between processes


def _leaves(part: Any) -> Iterator[Any]:
    """The values and keys in nested containers."""
    if isinstance(part, Mapping):
        part = [value for item in part.items() for value in item]
    if not isinstance(part, list | tuple):
        yield part
        return
    for value in part:
        yield from _leaves(value)
