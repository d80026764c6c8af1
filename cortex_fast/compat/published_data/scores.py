"""The published code's token scores, a table label_<label>.csv a class, as one result file and back."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.compat.published_data.places import Bad, PublishedDataError, summary
from cortex_fast.compat.published_data.tables import Row, Style, rows, style_of, write_rows
from cortex_fast.data.results import read_result, replace_whole, save_result

_KIND = "PublishedScores"
_TABLE = re.compile(r"label_(\d{1,9})\.csv")
_STYLE = Style("filename,label,contribution", "\r\n")


@dataclass(frozen=True, eq=False)
class Scores:
    """Token scores of n images. tsv: float64 [n,h,w]. labels: int64 [n]. files: the embeddings' file names.

    Float64 because the published code sums in it; so a table read and written again is the same text.
    Raises TypeError or ValueError for parts that do not fit together.
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
        """The scores [len(files),h,w] of these files, in their order. Raises ValueError naming one without scores."""
        rows = {name: row for row, name in enumerate(self.files)}
        missing = next((name for name in files if name not in rows), None)
        if missing is not None:
            raise ValueError(f"files: {missing!r} has no scores")
        return self.tsv[[rows[name] for name in files]]

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        header = {"files": list(self.files), "header": self.header, "line_end": self.line_end}
        save_result(path, _KIND, {"tsv": self.tsv, "labels": self.labels}, header)

    @classmethod
    def load(cls, path: Path | str) -> "Scores":
        """Read what `save` wrote. Raises ResultFileError for anything else, naming the file."""
        return read_result(path, _KIND, cls)

    @classmethod
    def read(cls, folder: Path | str) -> "Scores":
        """All label_<label>.csv of a folder, by label, whose scores are those of square grids.

        Raises FileNotFoundError, or PublishedDataError by line.
        """
        folder = Path(folder)
        tables = {int(found[1]): path for path in folder.glob("label_*.csv") if (found := _TABLE.fullmatch(path.name))}
        if not tables:
            raise FileNotFoundError(f"{folder}: expected label_<label>.csv files")
        good: list[Row] = []
        arrays: list[np.ndarray] = []
        bad: list[Bad] = []
        for label, path in sorted(tables.items()):
            for row in rows(path, np.float64):
                if isinstance(row, Bad):
                    bad.append(row)
                    continue
                values = np.empty(0) if row.values is None else row.values
                reason = None
                if row.label != label:
                    reason = f"expected label {label}, got {row.label}"
                elif not len(values) or isqrt(len(values)) ** 2 != len(values):
                    reason = f"expected a square number of scores, got {len(values)}"
                elif arrays and len(values) != len(arrays[0]):
                    reason = f"expected {len(arrays[0])} scores, got {len(values)}"
                elif not np.isfinite(values).all():
                    reason = "expected finite scores"
                if reason is None:
                    good.append(row)
                    arrays.append(values)
                else:
                    bad.append(Bad(path, row.line, row.name, reason))
        if bad:
            raise PublishedDataError(summary(bad, len(bad) + len(good)))
        if not good:
            raise PublishedDataError(f"{folder}: the tables hold no row")
        style = style_of(tables[min(tables)])
        tsv = torch.from_numpy(np.stack(arrays))
        side = isqrt(tsv.shape[1])
        labels = torch.tensor([row.label for row in good])
        return cls(tsv.view(-1, side, side), labels, tuple(row.name for row in good), style.header, style.line_end)

    def write(self, folder: Path | str) -> None:
        """A table a label, each whole or not at all.

        Raises FileExistsError where one is there already, ValueError for grids that are not square, since the tables do
        not say how many rows one has.
        """
        folder = Path(folder)
        if self.tsv.shape[1] != self.tsv.shape[2]:
            raise ValueError(f"tsv: expected square grids, as label_<label>.csv has them, got {list(self.tsv.shape)}")
        paths = {int(label): folder / f"label_{int(label)}.csv" for label in self.labels.unique()}
        there = next((path for path in paths.values() if path.exists()), None)
        if there is not None:
            raise FileExistsError(f"{there}: is there already; nothing is written over it")
        for label, path in paths.items():
            write = partial(write_rows, style=Style(self.header, self.line_end), lines=self._lines(label))
            replace_whole(path, write)

    def _lines(self, label: int) -> Iterator[tuple[str, int, list]]:
        for row in (self.labels == label).nonzero().flatten().tolist():
            yield self.files[row], label, self.tsv[row].flatten().tolist()
