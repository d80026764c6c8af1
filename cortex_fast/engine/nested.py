"""Things within nested tuples, lists, sets and dicts, as operators' arguments and modules' attributes are."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def each(kind: type[Kind], value: Any) -> Iterator[Kind]:
    """All things of a kind within a value, in order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        yield from each(kind, list(value.values()))
    elif isinstance(value, tuple | list | set):
        for item in value:
            yield from each(kind, item)


def mapped(kind: type[Kind], value: Any, function: Callable[[Kind], Any]) -> Any:
    """The same tuples, lists and dicts with function(thing) for each thing of a kind; a named tuple as a plain one."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list):
        return [mapped(kind, item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(mapped(kind, item, function) for item in value)
    if isinstance(value, dict):
        return {key: mapped(kind, item, function) for key, item in value.items()}
    return value
