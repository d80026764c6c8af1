"""Errors in the published code's files, each with its file and line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # most names; the checks of all others take longer
_SHOWN = 10  # bad rows written out in a message; the rest is counted


class PublishedDataError(ValueError):
    """The published code's files are damaged or contradict each other; the message names file and line."""


@dataclass(frozen=True)
class Bad:
    """A row of a table that cannot be used.

    Args:
        file: the table.
        line: the row's line, from 1.
        name: the file name of its embedding; "" where the row has none.
        reason: what is wrong with it.
    """

    file: Path
    line: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name or 'no file name'}: {self.reason}"


def summary(bad: Sequence[Bad], row_count: int) -> str:
    """A message of several lines: how many of `row_count` rows are bad, and the first of them."""
    lines = [f"{len(bad)} of {row_count} rows are bad", *map(str, bad[:_SHOWN])]
    if len(bad) > _SHOWN:
        lines.append(f"... and {len(bad) - _SHOWN} more")
    return "\n".join(lines)


def problem_of_name(name: str) -> str | None:
    """Why a file name from a table is refused; None where it is printable, relative and without ".." parts."""
    if _PLAIN.fullmatch(name):
        return None
    path = PurePosixPath(name)
    if not name or not name.isprintable():
        return "expected a printable file name"
    if "\\" in name or ":" in name or path.is_absolute() or ".." in path.parts or path == PurePosixPath():
        return f"the file name {name!r} leads out of its folder"
    return None
