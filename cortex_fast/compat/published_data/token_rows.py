"""Rows of a table of embeddings whose file name, label and tokens are valid."""

from collections.abc import Iterator
from contextlib import suppress
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cortex_fast.compat.published_data.errors import Bad, PublishedDataError
from cortex_fast.compat.published_data.layout import Split
from cortex_fast.compat.published_data.pickles import read_token_lists
from cortex_fast.compat.published_data.tables import Row, rows

MOST_CODES = 2**22  # of a codebook that is not known yet


class TokenRow(NamedTuple):
    """A valid row.

    Args:
        line: its line in the table, from 1.
        name: the file name of its embedding.
        label: its class.
        tokens: uint16 or int32 [h, w].
    """

    line: int
    name: str
    label: int
    tokens: np.ndarray


def token_rows(split: Split, codes: int | None, classes: int, bad: list[Bad]) -> Iterator[TokenRow]:
    """Read a split's table, and token ids that are missing there from its pickle.

    Args:
        split: the table, the pickle, and the embeddings, of which the first one tells the grid.
        codes: K; None for a codebook that is not known yet.
        classes: labels must be below this number.
        bad: receives the invalid rows.
    Returns:
        The valid rows, in order, as a stream.
    Raises:
        PublishedDataError: the table or the pickle cannot be read.
    """
    most = codes or MOST_CODES
    dtype = np.uint16 if codes is not None and codes <= 2**16 else np.int32
    lines: dict[str, int] = {}
    grid: tuple[int, int] | None = None
    for row, ids in _rows_with_ids(split, bad):
        grid = grid or _grid_of(split.embeddings / row.name, len(ids))
        count = grid[0] * grid[1] if grid else 0
        reason = None
        if row.name in lines:
            reason = f"the file name stands in line {lines[row.name]} already"
        elif row.label >= classes:
            reason = f"expected a label in [0, {classes}), got {row.label}"
        elif not count or ids.shape != (count,):
            reason = f"expected {count or 'a square number of'} token ids, got {len(ids)}"
        elif int(np.maximum.reduce(ids.view(np.uint64))) >= most:  # negative ones are the largest of these
            reason = f"expected token ids in [0, {most}), got {ids.min()} to {ids.max()}"
        if reason is not None:
            bad.append(Bad(split.table, row.line, row.name, reason))
            continue
        lines[row.name] = row.line
        assert grid is not None
        yield TokenRow(row.line, row.name, row.label, ids.astype(dtype).reshape(grid))


def _rows_with_ids(split: Split, bad: list[Bad]) -> Iterator[tuple[Row, np.ndarray]]:
    """The rows that can be read, with their token ids int64 [count], from the pickle where the table has none."""
    lists: dict[str, list[int]] | None = None
    for row in rows(split.table, np.int64):
        if isinstance(row, Bad):
            bad.append(row)
            continue
        if row.values is not None:
            yield row, row.values
            continue
        if lists is None:
            lists = _token_lists(split, row.line)
        try:
            yield row, np.array(lists.get(row.name, []), np.int64)
        except (ValueError, TypeError, OverflowError):
            yield row, np.empty(0, np.int64)


def _token_lists(split: Split, line: int) -> dict[str, list[int]]:
    if not split.tokens.is_file():
        message = f"expected token ids as a third column, or in {split.tokens}"
        raise PublishedDataError(f"{split.table}:{line}: {message}")
    return read_token_lists(split.tokens)


def _grid_of(embedding: Path, count: int) -> tuple[int, int] | None:
    """(h, w) of an image's `count` tokens: its embedding's, or where that cannot be read a square's; else None."""
    if embedding.is_file():
        with suppress(Exception):  # a damaged header raises nearly anything
            shape: tuple[int, ...] = np.load(embedding, allow_pickle=False, mmap_mode="r").shape
            if len(shape) == 3 and count and shape[1] * shape[2] == count:
                return shape[1], shape[2]
    side = isqrt(count)
    return (side, side) if count and side * side == count else None
