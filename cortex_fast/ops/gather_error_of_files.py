"""`gather_error` of embeddings in .npy files, read a few at a time."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.npy_files import read_npy_files
from cortex_fast.ops.gather_error import gather_error

_BATCH = 16  # files; their embeddings stay near the processor


def gather_error_of_files(
    paths: Sequence[str | os.PathLike[str]], tokens: Tensor, codebook: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The largest |E - C[token]| of each embedding in a list of files.

    It runs on the caller's thread; other threads run while the system reads.

    Args:
        paths: B files.
        tokens: int [B,m,m].
        codebook: C float32 [K,d] on the CPU.
        impl: "auto" or a backend of `gather_error`. Default "auto".

    Returns:
        The errors float32 [B], NaN for a file that is not readable, and bool [B], whether it is: a regular file that
        holds exactly what `np.save` writes of a float32 [d,m,m].

    Raises:
        TypeError, ValueError: as `gather_error` and `read_npy_files`, and for a codebook of another dtype or device.
    """
    checks.rank("codebook", codebook, "[K, d]")
    checks.rank("tokens", tokens, "[B, m, m]")
    if codebook.dtype != torch.float32 or codebook.device.type != "cpu":
        raise TypeError(f"codebook: expected torch.float32 on the CPU, got {codebook.dtype} on {codebook.device}")
    if len(paths) != len(tokens):
        raise ValueError(f"paths: expected one for each of the {len(tokens)} images of tokens, got {len(paths)}")
    batch = np.empty((min(_BATCH, len(paths)), codebook.shape[1], *tokens.shape[1:]), np.float32)
    errors, readable = [torch.empty(0)], []
    with torch.inference_mode():  # the operator is called faster without autograd
        for first in range(0, len(paths), _BATCH):
            part = paths[first : first + _BATCH]
            embedding = batch[: len(part)]
            readable += read_npy_files(part, embedding)
            errors.append(
                gather_error(torch.from_numpy(embedding), tokens[first : first + _BATCH], codebook, impl=impl)
            )
    whole = torch.tensor(readable, dtype=torch.bool)
    return torch.cat(errors).clone().where(whole, torch.nan), whole
