"""The rows of a table checked against the codebook: all of them, or a sample where the tokens are trusted."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from cortex_fast.compat.published_data.embeddings import check_embeddings, tolerance_of
from cortex_fast.compat.published_data.errors import Bad
from cortex_fast.compat.published_data.layout import Split
from cortex_fast.compat.published_data.token_rows import TokenRow, token_rows

_CHUNK = 256  # rows that a thread checks before it takes the next
_SAMPLE = 256  # rows checked where the tokens are trusted

Reasons = tuple[list[str | None], float]  # of `check_embeddings`


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """The rows of a table, sorted out.

    Args:
        good: rows to be imported, in the table's order.
        bad: all others, in the table's order.
        checked: how many embeddings were read.
        largest_error: of good embeddings against the codebook.
    """

    good: list[TokenRow]
    bad: list[Bad]
    checked: int
    largest_error: float

    @property
    def row_count(self) -> int:
        """Good and bad."""
        return len(self.good) + len(self.bad)


def check_every_row(
    split: Split, codebook: Tensor, classes: int, *, threads: int, tick: Callable[[int], object]
) -> CheckedRows:
    """Read every embedding and compare it with the codebook at its tokens.

    Args:
        split: the table and the embeddings.
        codebook: C float32 [K, d] on the CPU.
        classes: labels must be below this number.
        threads: number of threads that read and compare, in addition to the calling thread, which reads the table.
        tick: called with the number of rows of each chunk that is done.
    """
    bad: list[Bad] = []
    good: list[TokenRow] = []
    checked, largest = 0, 0.0
    check = partial(_check, split, codebook, tolerance_of(codebook))
    with ThreadPoolExecutor(threads) as pool:
        chunks = _chunks(token_rows(split, len(codebook), classes, bad))
        for chunk, (reasons, error) in _in_order(pool, check, chunks, most=4 * threads):
            good += _good_rows(split, chunk, reasons, bad)
            checked, largest = checked + len(chunk), max(largest, error)
            tick(len(chunk))
    return CheckedRows(good, _by_line(bad), checked, largest)


def check_sample(
    split: Split, codebook: Tensor, classes: int, *, seed: int, tick: Callable[[int], object]
) -> CheckedRows:
    """Compare 256 random rows with the codebook, and trust the tokens of all others.

    Args:
        split: the table and the embeddings.
        codebook: C float32 [K, d] on the CPU.
        classes: labels must be below this number.
        seed: of the random rows.
        tick: called with numbers of rows that were read from the table.
    """
    bad: list[Bad] = []
    rows: list[TokenRow] = []
    for chunk in _chunks(token_rows(split, len(codebook), classes, bad)):
        rows += chunk
        tick(len(chunk))
    sample = sorted(np.random.default_rng(seed).permutation(len(rows))[:_SAMPLE].tolist())
    reasons: list[str | None] = [None] * len(rows)
    largest = 0.0
    if sample:
        answers, largest = _check(split, codebook, tolerance_of(codebook), [rows[index] for index in sample])
        for index, reason in zip(sample, answers, strict=True):
            reasons[index] = reason
    good = _good_rows(split, rows, reasons, bad)
    return CheckedRows(good, _by_line(bad), len(sample), largest)


def _chunks(rows: Iterator[TokenRow]) -> Iterator[list[TokenRow]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def _check(split: Split, codebook: Tensor, tolerance: float, rows: Sequence[TokenRow]) -> Reasons:
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
    return check_embeddings(split.embeddings, [row.name for row in rows], tokens, codebook, tolerance)


def _in_order(
    pool: ThreadPoolExecutor,
    check: Callable[[list[TokenRow]], Reasons],
    chunks: Iterable[list[TokenRow]],
    most: int,
) -> Iterator[tuple[list[TokenRow], Reasons]]:
    """Each chunk with its answer, in order, while the pool works on at most `most` of those that follow."""
    waiting: deque[tuple[list[TokenRow], Future[Reasons]]] = deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(check, chunk)))
        if len(waiting) > most:
            first, answer = waiting.popleft()
            yield first, answer.result()
    for chunk, answer in waiting:
        yield chunk, answer.result()


def _good_rows(split: Split, rows: Sequence[TokenRow], reasons: Sequence[str | None], bad: list[Bad]) -> list[TokenRow]:
    """The rows without a reason against them; `bad` receives the others."""
    bad += [
        Bad(split.table, row.line, row.name, reason)
        for row, reason in zip(rows, reasons, strict=True)
        if reason is not None
    ]
    return [row for row, reason in zip(rows, reasons, strict=True) if reason is None]


def _by_line(bad: list[Bad]) -> list[Bad]:
    return sorted(bad, key=lambda row: row.line)
