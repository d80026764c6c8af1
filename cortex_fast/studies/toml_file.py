"""study.toml, read and written: a complaint names the file, the line, the key, what was expected and what was got."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cortex_fast.data.results import replace_whole
from cortex_fast.studies.settings import ExtractorSettings, StudySettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
Table = TypeVar("Table")
Where = tuple[str, ...]  # a key by its tables


class SettingsError(ValueError):
    """study.toml does not hold a study's settings; the message names the line, the key, the expected and the got."""


def read_settings(path: Path) -> StudySettings:
    """The settings in a file; those that it leaves out have their defaults.

    Args:
        path: a study.toml, as `write_settings` writes it.
    Returns:
        The settings, each checked.
    Raises:
        FileNotFoundError: there is no such file.
        SettingsError: it is not TOML, has an unknown key, or a value that its key does not take.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    lines = dict(_lines_of_keys(text))
    names = {field.name: field for field in dataclasses.fields(StudySettings)}
    tables: dict[str, Any] = {}
    for name, value in content.items():
        if name not in names:
            raise _unknown(path, lines, (name,), names)
        if not isinstance(value, dict):
            raise SettingsError(f"{path}:{lines.get((name,), 1)}: {name}: expected a table [{name}], got {value!r}")
        if name == "extractors":
            tables[name] = {key: _table(path, lines, (name, key), ExtractorSettings, value[key]) for key in value}
        else:
            default: Any = names[name].default_factory
            tables[name] = _table(path, lines, (name,), default, value)
    try:
        return StudySettings(**tables)
    except ValueError as error:
        raise SettingsError(f"{path}:{_line(lines, (str(error).partition(':')[0],))}: {error}") from error


def _table(path: Path, lines: Mapping[Where, int], where: Where, kind: type[Table], content: Any) -> Table:
    """One table as its dataclass."""
    if not isinstance(content, dict):
        raise SettingsError(f"{_place(path, lines, where)}: expected a table, got {content!r}")
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in content:
        if key not in names:
            raise _unknown(path, lines, (*where, key), names)
    try:
        return kind(**content)
    except (TypeError, ValueError) as error:
        key = str(error).partition(":")[0].partition(".")[0]
        raise SettingsError(f"{path}:{_line(lines, (*where, key))}: {'.'.join(where)}.{error}") from error


def _unknown(path: Path, lines: Mapping[Where, int], where: Where, names: Any) -> SettingsError:
    return SettingsError(f"{_place(path, lines, where)}: expected one of {', '.join(names)}, got an unknown setting")


def _place(path: Path, lines: Mapping[Where, int], where: Where) -> str:
    return f"{path}:{_line(lines, where)}: {'.'.join(where)}"


def _line(lines: Mapping[Where, int], where: Where) -> int:
    """The line of a key, or of the innermost table around it."""
    return next((lines[where[:length]] for length in range(len(where), 0, -1) if where[:length] in lines), 1)


def _lines_of_keys(text: str) -> Iterator[tuple[Where, int]]:
    """Keys and tables of a valid TOML text by their dotted path, with the line each stands in."""
    table: Where = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := _TABLE.match(line):
            table = _parts(heading[1])
            yield table, number
        elif key := _KEY.match(line):
            yield (*table, *_parts(key[1])), number


def _parts(dotted: str) -> Where:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def write_settings(path: Path, settings: StudySettings) -> None:
    """Write all settings, each with its comment, whole or not at all.

    Args:
        path: the file.
        settings: what it holds; `read_settings` gives it back.
    """
    replace_whole(path, lambda file: file.write_text(as_text(settings), "utf-8"))


def as_text(settings: StudySettings) -> str:
    """study.toml's text."""
    parts = ["# The settings of a study. Change any of them: only what depends on it is computed again.\n"]
    for table in dataclasses.fields(settings):
        value = getattr(settings, table.name)
        tables = {f"{table.name}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {}
        for name, content in (tables or {table.name: value}).items():
            parts.append(_table_text(name, content))
    return "\n".join(parts)


def _table_text(name: str, content: Any) -> str:
    entries = [
        (f"{field.name} = {_literal(getattr(content, field.name))}", field) for field in dataclasses.fields(content)
    ]
    width = max(len(entry) for entry, _ in entries)
    lines = [f"{entry:<{width}}  # {field.metadata['comment']}" if field.metadata["comment"] else entry
             for entry, field in entries]  # fmt: skip
    return "\n".join([f"# {type(content).__doc__}", f"[{name}]", *lines, ""])


def _literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_literal(entry)}" for key, entry in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
