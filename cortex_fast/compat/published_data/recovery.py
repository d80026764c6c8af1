"""A codebook recovered from embeddings and their tokens."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cortex_fast.compat.published_data.errors import PublishedDataError
from cortex_fast.compat.published_data.layout import Split
from cortex_fast.compat.published_data.token_rows import token_rows
from cortex_fast.data.npy_files import load_floats, read_npy_files

_SPARSE = 16  # more codes than this for each used one point to a damaged token


def recover_codebook(split: Split, codes: int | None, classes: int) -> tuple[Tensor, list[int]]:
    """Recover a codebook: the first embedding of a token is its row.

    Files that cannot be read are passed over; the check of all rows finds them again.

    Args:
        split: the table and the embeddings.
        codes: K; None for one more than the largest token.
        classes: rows with a label of at least this are passed over.
    Returns:
        C float32 [K, d], and the codes that no row uses, whose rows are 0.
    Raises:
        PublishedDataError: no row gives a code, or the tokens are so sparse that one seems damaged.
    """
    rows: dict[int, np.ndarray] = {}  # by token
    batch: np.ndarray | None = None
    for row in token_rows(split, codes, classes, []):
        path = split.embeddings / row.name
        try:
            if batch is None:
                channels = np.load(path, allow_pickle=False, mmap_mode="r").shape[0]
                batch = np.empty((1, channels, *row.tokens.shape), np.float32)
            embedding = _read(path, batch)
        except Exception:  # a damaged header raises nearly anything
            continue
        _add_new_codes(rows, embedding, row.tokens)
    return _codebook(split.table, rows, codes)


def _read(path: Path, batch: np.ndarray) -> np.ndarray:
    """float32 [d,h,w], until the next call. batch: memory for one embedding, float32 [1,d,h,w]."""
    return batch[0] if read_npy_files([path], batch)[0] else load_floats(path, batch.shape[1:])


def _add_new_codes(rows: dict[int, np.ndarray], embedding: np.ndarray, tokens: np.ndarray) -> None:
    """embedding float32 [d,h,w], tokens integer [h,w]."""
    columns = embedding.reshape(len(embedding), -1)
    for token, position in zip(*np.unique(tokens, return_index=True), strict=True):
        if int(token) not in rows:
            rows[int(token)] = columns[:, position].copy()


def _codebook(table: Path, rows: dict[int, np.ndarray], codes: int | None) -> tuple[Tensor, list[int]]:
    largest = max(rows, default=-1)
    if codes is None and largest + 1 > max(_SPARSE * len(rows), 2**16):
        ids = f"ids to {largest}, of which {len(rows)} are used"
        raise PublishedDataError(f"{table}: {ids}: is one damaged? codes (K) tells how many there are")
    width = len(next(iter(rows.values()), ()))
    codebook = torch.zeros(max(largest + 1, codes or 0), width, dtype=torch.float32)
    if not codebook.numel():
        raise PublishedDataError(f"{table}: no row from which a codebook could be recovered")
    for token, values in rows.items():
        codebook[token] = torch.from_numpy(values)
    return torch.nan_to_num(codebook), sorted(set(range(len(codebook))) - rows.keys())
