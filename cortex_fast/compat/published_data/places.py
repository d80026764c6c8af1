"""What is wrong with a user's files, each told with its place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # most names; what else there may be takes longer
_SHOWN = 10  # problems written out in a message; the rest is counted


class PublishedDataError(ValueError):
    """Files of the published code's layout that cannot be taken as they are; the message has file and line."""


@dataclass(frozen=True)
class Bad:
    """One row that does not hold: its line in `file`, the embedding's file name as far as it is known, and why."""

    file: Path
    line: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name or 'no file name'}: {self.reason}"


def summary(bad: Sequence[Bad], rows: int) -> str:
    """The first of many problems, and how many there are of how many rows."""
    lines = [f"{len(bad)} of {rows} rows are bad", *map(str, bad[:_SHOWN])]
    if len(bad) > _SHOWN:
        lines.append(f"... and {len(bad) - _SHOWN} more")
    return "\n".join(lines)


def problem_of_name(name: str) -> str | None:
    """Why a file name out of a table is refused; None where it is printable, relative and without ".." parts."""
    if _PLAIN.fullmatch(name):
        return None
    path = PurePosixPath(name)
    if not name or not name.isprintable():
        return "expected a printable file name"
    if "\\" in name or ":" in name or path.is_absolute() or ".." in path.parts or path == PurePosixPath():
        return f"the file name {name!r} leads out of its folder"
    return None
