"""Embeddings on disk, one .npy [d,h,w] an image, held against the codebook gathered at their tokens.

A row costs one copy of its file (262,272 bytes at paper scale), and one pass over it and as many bytes of the codebook.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.ops import gather_error, gather_error_of_files
from cortex_fast.ops.gather_error import header_of

FLOAT_ERROR = 1e-5  # of the codebook's largest value; straight-through sums z + (E - z) are exact to about 1e-6 of it


class Files:
    """Reads embeddings [d,h,w] of a folder into one buffer; for one thread."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._folder, self._shape = folder, shape
        self._expected = header_of(shape)
        self._header = bytearray(len(self._expected))
        self._values = np.empty(shape, np.float32)
        self._more = bytearray(1)  # what lies beyond the end

    def read(self, name: str) -> np.ndarray:
        """float32 [d,h,w], until the next call. Raises ValueError or OSError saying what is wrong with the file."""
        path = os.path.join(self._folder, name)  # noqa: PTH118 (a Path a row is a fifth of the row's time)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            read = os.readv(descriptor, [self._header, self._values.data, self._more])
        finally:
            os.close(descriptor)
        if read == len(self._header) + self._values.nbytes and self._header == self._expected:
            return self._values
        return load(Path(path), self._shape)


def load(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Any .npy file of floats of this shape, as float32. Raises as `Files.read`."""
    refuse_foreign(path, ValueError)
    try:
        values = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header raises nearly anything
        raise ValueError(f"not a whole .npy file ({path.stat().st_size} bytes): {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.dtype.itemsize < 4:
        raise ValueError(f"expected float32 or float64, got {getattr(values, 'dtype', type(values).__name__)}")
    if values.shape != shape:
        raise ValueError(f"expected shape {list(shape)}, got {list(values.shape)}")
    return values.astype(np.float32, order="C")


def check(
    folder: Path, names: Sequence[str], tokens: Tensor, codebook: Tensor, tolerance: float
) -> tuple[list[str | None], float]:
    """For each row the reason why its file is not C gathered at its tokens, or None; and the largest error of the good.

    tokens: integer [n,h,w]. codebook: C float32 [K,d].
    """
    paths = [os.path.join(folder, name) for name in names]  # noqa: PTH118 (as above)
    errors, known = gather_error_of_files(paths, tokens, codebook)
    reasons: list[str | None] = []
    largest = 0.0
    for row, (path, error, whole) in enumerate(zip(paths, errors.tolist(), known.tolist(), strict=True)):
        try:
            if not whole:
                values = load(Path(path), (codebook.shape[1], *tokens.shape[1:]))
                error = float(gather_error(torch.from_numpy(values)[None], tokens[row : row + 1], codebook))
        except OSError as problem:
            reasons.append(f"{path}: {problem.strerror}")
        except ValueError as problem:
            reasons.append(f"{path}: {problem}")
        else:
            good = error <= tolerance  # not so for NaN
            reasons.append(None if good else f"its embedding is off the codebook at its tokens by {error:.3g}")
            largest = max(largest, error) if good else largest
    return reasons, largest


class Recovery:
    """A codebook out of embeddings and their tokens: the first embedding of each token is its row."""

    def __init__(self) -> None:
        self._rows: dict[int, np.ndarray] = {}
        self.width = 0

    def see(self, embedding: np.ndarray, tokens: np.ndarray) -> None:
        """embedding float32 [d,h,w], tokens integer [h,w]."""
        columns = embedding.reshape(len(embedding), -1)
        self.width = self.width or len(columns)
        for token, position in zip(*np.unique(tokens, return_index=True), strict=True):
            if int(token) not in self._rows:
                self._rows[int(token)] = columns[:, position].copy()

    @property
    def seen(self) -> int:
        """How many different tokens."""
        return len(self._rows)

    @property
    def size(self) -> int:
        """One more than the largest token."""
        return max(self._rows, default=-1) + 1

    def codebook(self, codes: int | None) -> tuple[Tensor, list[int]]:
        """C float32 [K,d] and the codes never seen, whose rows are 0. `codes`: K, default up to the last seen."""
        size = max(self.size, codes or 0)
        codebook = torch.zeros(size, self.width, dtype=torch.float32)
        for token, row in self._rows.items():
            codebook[token] = torch.from_numpy(row)
        return codebook, sorted(set(range(size)) - self._rows.keys())
