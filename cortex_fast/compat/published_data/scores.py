"""The published code's token scores, a table label_<label>.csv a class, as one result file and back."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.compat.published_data.errors import Bad, PublishedDataError, summary
from cortex_fast.compat.published_data.tables import Row, Style, rows, style_of, write_rows
from cortex_fast.data.results import read_result, replace_whole, save_result

_KIND = "PublishedScores"
_TABLE = re.compile(r"label_(\d{1,9})\.csv")
_STYLE = Style("filename,label,contribution", "\r\n")


@dataclass(frozen=True, eq=False)
class Scores:
    """Token scores of n images.

    Float64 because the published code sums in it; so a table read and written again is the same text.

    Args:
        tsv: floating-point [n, h, w]; float64 afterwards.
        labels: integer [n].
        files: the embeddings' file names, n of them.
        header: the tables' first line. Default the published code's.
        line_end: how their lines end. Default that of Python's csv.writer.
    Raises:
        TypeError: tsv or labels have another dtype.
        ValueError: shapes or numbers do not fit together.
    """

    tsv: Tensor
    labels: Tensor
    files: tuple[str, ...]
    header: str = _STYLE.header
    line_end: str = _STYLE.line_end

    def __post_init__(self) -> None:
        checks.rank("tsv", self.tsv, "[n, h, w]")
        checks.floating("tsv", self.tsv)
        checks.integral("labels", self.labels)
        checks.same_shape("labels", self.labels, "tsv's first dimension", self.tsv.shape[:1])
        if len(self.files) != len(self.tsv):
            raise ValueError(f"files: expected {len(self.tsv)} names, got {len(self.files)}")
        object.__setattr__(self, "tsv", self.tsv.double())
        object.__setattr__(self, "files", tuple(self.files))

    def of(self, files: list[str]) -> Tensor:
        """The scores of some images.

        Args:
            files: their embeddings' file names.
        Returns:
            float64 [len(files), h, w], in that order.
        Raises:
            ValueError: a file has no scores; the message names it.
        """
        rows = {name: row for row, name in enumerate(self.files)}
        missing = next((name for name in files if name not in rows), None)
        if missing is not None:
            raise ValueError(f"files: {missing!r} has no scores")
        return self.tsv[[rows[name] for name in files]]

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file.
        Raises:
            OSError: the file cannot be written.
        """
        header = {"files": list(self.files), "header": self.header, "line_end": self.line_end}
        save_result(path, _KIND, {"tsv": self.tsv, "labels": self.labels}, header)

    @classmethod
    def load(cls, path: Path | str) -> "Scores":
        """Read a file that `save` wrote.

        Args:
            path: the file.
        Returns:
            The scores.
        Raises:
            FileNotFoundError: the file does not exist.
            ResultFileError: the file is damaged or of another kind; the message names it.
        """
        return read_result(path, _KIND, cls)

    @classmethod
    def read(cls, folder: Path | str) -> "Scores":
        """Read all tables label_<label>.csv of a folder, whose scores are those of square grids.

        Args:
            folder: where the tables are.
        Returns:
            The scores, by label and within one in its table's order; header and line_end of the first table.
        Raises:
            FileNotFoundError: there is no table.
            PublishedDataError: a row is bad, or there is none; the message has file and line.
        """
        folder = Path(folder)
        tables = {int(match[1]): path for path in folder.glob("label_*.csv") if (match := _TABLE.fullmatch(path.name))}
        if not tables:
            raise FileNotFoundError(f"{folder}: expected label_<label>.csv files")
        good, values = _checked_rows(dict(sorted(tables.items())))
        if not good:
            raise PublishedDataError(f"{folder}: the tables hold no row")
        style = style_of(tables[min(tables)])
        tsv = torch.from_numpy(np.stack(values))
        side = isqrt(tsv.shape[1])
        labels = torch.tensor([row.label for row in good])
        return cls(tsv.view(-1, side, side), labels, tuple(row.name for row in good), style.header, style.line_end)

    def write(self, folder: Path | str) -> None:
        """Write a table for each label, each whole or not at all.

        Args:
            folder: where to; created where it does not exist.
        Raises:
            FileExistsError: a table already exists.
            ValueError: the grids are not square: tables do not say how many rows a grid has.
        """
        folder = Path(folder)
        if self.tsv.shape[1] != self.tsv.shape[2]:
            raise ValueError(f"tsv: expected square grids, as label_<label>.csv has them, got {list(self.tsv.shape)}")
        paths = {int(label): folder / f"label_{int(label)}.csv" for label in self.labels.unique()}
        existing = next((path for path in paths.values() if path.exists()), None)
        if existing is not None:
            raise FileExistsError(f"{existing}: already exists; it is not overwritten")
        for label, path in paths.items():
            write = partial(write_rows, style=Style(self.header, self.line_end), lines=self._lines(label))
            replace_whole(path, write)

    def _lines(self, label: int) -> Iterator[tuple[str, int, list]]:
        for row in (self.labels == label).nonzero().flatten().tolist():
            yield self.files[row], label, self.tsv[row].flatten().tolist()


def _checked_rows(tables: dict[int, Path]) -> tuple[list[Row], list[np.ndarray]]:
    """The rows of tables by label, and their scores float64 [count]. Raises PublishedDataError where any is bad."""
    good: list[Row] = []
    scores: list[np.ndarray] = []
    bad: list[Bad] = []
    for label, path in tables.items():
        for row in rows(path, np.float64):
            if isinstance(row, Bad):
                bad.append(row)
                continue
            values = np.empty(0) if row.values is None else row.values
            problem = _problem(row, label, values, scores)
            if problem is None:
                good.append(row)
                scores.append(values)
            else:
                bad.append(Bad(path, row.line, row.name, problem))
    if bad:
        raise PublishedDataError(summary(bad, len(bad) + len(good)))
    return good, scores


def _problem(row: Row, label: int, values: np.ndarray, earlier: Sequence[np.ndarray]) -> str | None:
    """Why a row is bad in the table of `label`, after rows with the scores `earlier`; None where it is good."""
    if row.label != label:
        return f"expected label {label}, got {row.label}"
    if not len(values) or isqrt(len(values)) ** 2 != len(values):
        return f"expected a square number of scores, got {len(values)}"
    if earlier and len(values) != len(earlier[0]):
        return f"expected {len(earlier[0])} scores, got {len(values)}"
    if not np.isfinite(values).all():
        return "expected finite scores"
    return None
