"""Rows of the published code's tables: `name,label,"[1, 2, ...]"`, a line each."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cortex_fast.compat.published_data.places import Bad, PublishedDataError, problem_of_name
from cortex_fast.data.foreign import refuse_foreign


@dataclass(frozen=True, eq=False)
class Row:
    """`values` int64 or float64 [count], None where the table has no third column."""

    line: int
    name: str
    label: int
    values: np.ndarray | None


@dataclass(frozen=True)
class Style:
    """What a table looks like beyond its numbers: its first line and how lines end."""

    header: str
    line_end: str


def style_of(path: Path) -> Style:
    """Raises FileNotFoundError, or PublishedDataError where there is no first line."""
    with path.open("rb") as file:
        first = file.readline()
    line_end = b"\r\n" if first.endswith(b"\r\n") else b"\n"
    if not first.endswith(b"\n"):
        raise PublishedDataError(f"{path}:1: expected a header line, then rows; the file ends")
    try:
        return Style(first[: -len(line_end)].decode(), line_end.decode())
    except UnicodeDecodeError as error:
        raise PublishedDataError(f"{path}:1: not UTF-8 text ({error})") from error


def rows(path: Path, dtype: type[np.generic], *, whole_lines: bool = True) -> Iterator[Row | Bad]:
    """Every line after the first, in order; a malformed one as Bad. `whole_lines`: a last line without an end is one.

    Reads as a stream. Raises FileNotFoundError, or PublishedDataError for what is no table at all.
    """
    refuse_foreign(path, PublishedDataError)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy < 2.3 only warns of text that is no number
        next(file, None)
        for number, line in enumerate(file, start=2):
            if whole_lines and not line.endswith(b"\n"):
                yield Bad(path, number, _name(line), "the line has no end; the file seems cut off")
                continue
            line = line.rstrip(b"\r\n")
            if line:
                yield _row(path, number, line, dtype)


def _name(line: bytes) -> str:
    return line.split(b",", 1)[0].decode(errors="replace")


def _row(path: Path, number: int, line: bytes, dtype: type[np.generic]) -> Row | Bad:
    def bad(reason: str) -> Bad:
        return Bad(path, number, _name(line), reason)

    parts = line.split(b",", 2)  # their file names and labels have no commas: their own reader splits so
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


def write_rows(
    path: Path, style: Style, lines: Iterator[tuple[str, int, list]], tick: Callable[[], object] = lambda: None
) -> None:
    """Write a table so that `rows` reads the same numbers: name, label and the list as text."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(style.header + style.line_end)
        for name, label, values in lines:
            file.write(f'{name},{label},"{values}"{style.line_end}')
            tick()
