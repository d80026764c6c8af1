"""Embeddings in .npy files [d,h,w], one an image, compared with the codebook gathered at their tokens."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cortex_fast.data.npy_files import load_floats
from cortex_fast.ops import gather_error, gather_error_of_files

FLOAT_ERROR = 1e-5  # of the codebook's largest value; straight-through sums z + (E - z) are exact to about 1e-6 of it


def tolerance_of(codebook: Tensor) -> float:
    """The largest error of an embedding that counts as rounding."""
    return FLOAT_ERROR * float(codebook.abs().max()) if codebook.numel() else 0.0


def check_embeddings(
    folder: Path, names: Sequence[str], tokens: Tensor, codebook: Tensor, tolerance: float
) -> tuple[list[str | None], float]:
    """Compare the embeddings in files with the codebook gathered at their tokens.

    Args:
        folder: where the files are.
        names: n file names.
        tokens: integer [n, h, w] within [0, K).
        codebook: C float32 [K, d] on the CPU.
        tolerance: the largest |E - C[token]| of a good file.
    Returns:
        For each file the reason why it is bad, or None; and the largest error of the good files.
    """
    paths = [os.path.join(folder, name) for name in names]  # noqa: PTH118 (a Path takes a fifth of a row's time)
    tokens = tokens.int()
    errors = _errors(paths, tokens, codebook)
    reasons: list[str | None] = [None] * len(paths)
    largest = 0.0
    for row, path in enumerate(paths):
        try:
            error = errors[row]
            if error is None:
                error = _error_of_any(Path(path), tokens[row], codebook)
        except OSError as problem:
            reasons[row] = f"{path}: {problem.strerror}"
        except ValueError as problem:
            reasons[row] = f"{path}: {problem}"
        else:
            if error <= tolerance:
                largest = max(largest, error)
            else:  # also for NaN
                reasons[row] = f"its embedding is off the codebook at its tokens by {error:.3g}"
    return reasons, largest


def _errors(paths: list[str], tokens: Tensor, codebook: Tensor) -> list[float | None]:
    """The largest difference in each file; None where it is not just as `np.save` writes float32."""
    errors, readable = gather_error_of_files(paths, tokens, codebook)
    return [error if whole else None for error, whole in zip(errors.tolist(), readable.tolist(), strict=True)]


def _error_of_any(path: Path, tokens: Tensor, codebook: Tensor) -> float:
    """The largest difference in any .npy file of floats. Raises as `load_floats`."""
    values = load_floats(path, (codebook.shape[1], *tokens.shape))
    return float(gather_error(torch.from_numpy(values)[None], tokens[None], codebook))
