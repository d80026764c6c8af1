"""Instances of a type within nested tuples, lists, sets and dicts: operators' arguments, modules' attributes."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def instances(kind: type[Kind], value: Any) -> Iterator[Kind]:
    """All instances of a type within a value, in order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        yield from instances(kind, list(value.values()))
    elif isinstance(value, tuple | list | set):
        for item in value:
            yield from instances(kind, item)


def map_instances(kind: type[Kind], value: Any, function: Callable[[Kind], Any]) -> Any:
    """The same tuples, lists and dicts with function(instance) for each instance of a type; named tuples become plain
    tuples."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list):
        return [map_instances(kind, item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(map_instances(kind, item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_instances(kind, item, function) for key, item in value.items()}
    return value
