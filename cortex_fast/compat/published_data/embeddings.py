"""Embeddings on disk, one .npy [d,m,m] an image, held against the codebook gathered at their tokens.

A row costs one read of its file (262,272 bytes at paper scale), one gather of as many bytes and one comparison.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FLOAT_ERROR = 1e-5  # of the codebook's largest value; straight-through sums z + (E - z) are exact to about 1e-6 of it
_PAD = 8  # floats


def header_of(shape: tuple[int, ...]) -> bytes:
    """The head that numpy writes before float32 of this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class Files:
    """Reads embeddings [d,m,m] of a folder into one buffer; for one thread."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._folder, self._shape = folder, shape
        self._expected = header_of(shape)
        self._header = bytearray(len(self._expected))
        self._values = np.empty(shape, np.float32)
        self._more = bytearray(1)  # what lies beyond the end

    def read(self, name: str) -> np.ndarray:
        """float32 [d,m,m], until the next call. Raises ValueError or OSError saying what is wrong with the file."""
        path = os.path.join(self._folder, name)  # noqa: PTH118 (a Path a row is a fifth of the row's time)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            read = os.readv(descriptor, [self._header, self._values.data, self._more])
        finally:
            os.close(descriptor)
        if read == len(self._header) + self._values.nbytes and self._header == self._expected:
            return self._values
        return self._other(Path(path))

    def _other(self, path: Path) -> np.ndarray:
        """A file that is not exactly what numpy writes for such an array: of other floats, or damaged."""
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, TypeError) as error:
            raise ValueError(f"not a whole .npy file ({path.stat().st_size} bytes): {error}") from error
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.dtype.itemsize < 4:
            raise ValueError(f"expected float32 or float64, got {getattr(values, 'dtype', type(values).__name__)}")
        if values.shape != self._shape:
            raise ValueError(f"expected shape {list(self._shape)}, got {list(values.shape)}")
        return values.astype(np.float32, order="C")


def padded(codebook: np.ndarray) -> np.ndarray:
    """C float32 [K,d] -> [K,d+8]: a column of rows whose length is a power of two falls on few sets of the cache."""
    return np.pad(np.asarray(codebook, np.float32), ((0, 0), (0, _PAD)))


class Checker:
    """Largest |E - C[token]| of a row; for one thread.

    codebook: C as `padded` gives it. A NaN in E gives NaN.
    """

    def __init__(self, codebook: np.ndarray, positions: int) -> None:
        self._codebook = codebook
        self._gathered = np.empty((positions, codebook.shape[1]), np.float32)
        self._transposed = self._gathered[:, :-_PAD].T

    def error(self, embedding: np.ndarray, tokens: np.ndarray) -> float:
        """embedding float32 [d,m,m], overwritten; tokens integer [m*m] within [0, K)."""
        np.take(self._codebook, tokens, axis=0, out=self._gathered, mode="clip")
        difference = embedding.reshape(self._transposed.shape)
        np.subtract(difference, self._transposed, out=difference)
        return float(np.abs(difference, out=difference).max())


def check(
    folder: Path, names: Sequence[str], tokens: np.ndarray, codebook: np.ndarray, tolerance: float
) -> tuple[list[str | None], float]:
    """For each row the reason why its file is not C gathered at its tokens, or None; and the largest error of the good.

    tokens: integer [n, m*m]. codebook: C as `padded` gives it.
    """
    side = round(tokens.shape[1] ** 0.5)
    files, checker = Files(folder, (codebook.shape[1] - _PAD, side, side)), Checker(codebook, tokens.shape[1])
    reasons: list[str | None] = []
    largest = 0.0
    for name, row in zip(names, tokens, strict=True):
        try:
            error = checker.error(files.read(name), row)
        except OSError as problem:
            reasons.append(f"{os.path.join(folder, name)}: {problem.strerror}")  # noqa: PTH118
        except ValueError as problem:
            reasons.append(f"{os.path.join(folder, name)}: {problem}")  # noqa: PTH118
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
        """embedding float32 [d,m,m], tokens integer [m*m]."""
        columns = embedding.reshape(len(embedding), -1)
        self.width = self.width or len(columns)
        for token, position in zip(*np.unique(tokens, return_index=True), strict=True):
            if int(token) not in self._rows:
                self._rows[int(token)] = columns[:, position].copy()

    def codebook(self, codes: int | None) -> tuple[Tensor, list[int]]:
        """C float32 [K,d] and the codes never seen, whose rows are 0. `codes`: K, default up to the last seen."""
        size = max(max(self._rows, default=-1) + 1, codes or 0)
        codebook = torch.zeros(size, self.width)
        for token, row in self._rows.items():
            codebook[token] = torch.from_numpy(row)
        return codebook, sorted(set(range(size)) - self._rows.keys())
