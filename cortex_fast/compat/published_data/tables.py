"""Rows of the published code's tables: `name,label,"[1, 2, ...]"`, a line each."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cortex_fast.compat.published_data.errors import Bad, PublishedDataError, problem_of_name
from cortex_fast.data.foreign import refuse_foreign


@dataclass(frozen=True, eq=False)
class Row:
    """A row that could be read.

    Args:
        line: its line in the table, from 1.
        name: the file name of an embedding.
        label: at least 0.
        values: int64 or float64 [count]; None where the table has no third column.
    """

    line: int
    name: str
    label: int
    values: np.ndarray | None


@dataclass(frozen=True)
class Style:
    """What a table looks like beyond its numbers.

    Args:
        header: its first line, without the end.
        line_end: how every line ends.
    """

    header: str
    line_end: str


def style_of(path: Path) -> Style:
    """Read a table's first line. Raises FileNotFoundError, or PublishedDataError where there is no first line."""
    with path.open("rb") as file:
        first = file.readline()
    line_end = b"\r\n" if first.endswith(b"\r\n") else b"\n"
    if not first.endswith(b"\n"):
        raise PublishedDataError(f"{path}:1: expected a header line, then rows; the file ends")
    try:
        return Style(first[: -len(line_end)].decode(), line_end.decode())
    except UnicodeDecodeError as error:
        raise PublishedDataError(f"{path}:1: not UTF-8 text ({error})") from error


def rows(path: Path, dtype: type[np.generic]) -> Iterator[Row | Bad]:
    """Read a table as a stream.

    Args:
        path: the table.
        dtype: of the third column's numbers: np.int64 or np.float64.
    Returns:
        Every line after the first that is not empty, in order; a malformed one, or a last one without an end, as `Bad`.
    Raises:
        FileNotFoundError: the file does not exist.
        PublishedDataError: it is a Git LFS pointer or a web page.
    """
    refuse_foreign(path, PublishedDataError)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy < 2.3 only warns of text that is no number
        next(file, None)
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                yield Bad(path, number, _name(line), "the line has no end; the file seems cut off")
                continue
            line = line.rstrip(b"\r\n")
            if line:
                yield _row(path, number, line, dtype)


def write_rows(path: Path, style: Style, lines: Iterator[tuple[str, int, list]]) -> None:
    """Write a table, from which `rows` reads the same numbers.

    Args:
        path: the table.
        style: its first line, and how lines end.
        lines: name, label and numbers of each row.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(style.header + style.line_end)
        for name, label, values in lines:
            file.write(f'{name},{label},"{values}"{style.line_end}')


def _name(line: bytes) -> str:
    return line.split(b",", 1)[0].decode(errors="replace")


def _row(path: Path, number: int, line: bytes, dtype: type[np.generic]) -> Row | Bad:
    def bad(reason: str) -> Bad:
        return Bad(path, number, _name(line), reason)

    parts = line.split(b",", 2)  # names and labels have no commas, and the published code's own reader splits so
    if len(parts) < 2:
        return bad("expected name,label or name,label,list")
    if not parts[1].strip().isdigit() or len(parts[1]) > 9:
        return bad(f"expected a label of at least 0, got {parts[1].decode(errors='replace')!r}")
    try:
        name = parts[0].decode()
    except UnicodeDecodeError:
        return bad("the file name is not UTF-8 text")
    problem = problem_of_name(name)
    if problem is not None:
        return bad(problem)
    values = None
    if len(parts) == 3:
        text = parts[2].strip(b'"')
        if len(parts[2]) - len(text) not in (0, 2) or text[:1] != b"[" or text[-1:] != b"]":
            return bad("expected a list in brackets as the third column")
        try:
            values = np.fromstring(text[1:-1], dtype, sep=",")
        except (ValueError, DeprecationWarning):
            return bad("the list holds something that is not such a number")
    return Row(number, name, int(parts[1]), values)
