"""YAML configurations as OmegaConf reads them: UTF-8, with references ${...} that are resolved on access."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.vqgm.checkpoints import CheckpointError

_MISSING = "???"  # OmegaConf's mark of a missing value
_MOST_VALUES = 10_000  # read from one file: lists that refer to lists can grow without end
_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
_KEY = re.compile(r"[^.\[\]]+")


class Config(Mapping[str, Any]):
    """A mapping of a configuration, whose references are resolved on access: unread values may refer to anything.

    Access raises CheckpointError, naming the file and the key, for a reference that cannot be resolved.
    """

    def __init__(self, file: "_File", content: Mapping[str, Any], place: tuple[Any, ...]) -> None:
        self._file, self._content, self._place = file, content, place

    def __getitem__(self, key: str) -> Any:
        return self._file.resolved(self._content[key], (*self._place, key), ())

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def read_config(path: Path) -> Config:
    """Read a configuration.

    Args:
        path: the YAML file.

    Returns:
        Its mapping.

    Raises:
        ImportError: PyYAML is not installed.
        CheckpointError: the file is not a YAML mapping.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("taming's configurations need PyYAML: pip install pyyaml") from error
    refuse_foreign(path, CheckpointError)
    try:
        content = yaml.safe_load(path.read_bytes())  # from bytes, so that YAML checks that they are UTF-8
    except RecursionError as error:
        raise CheckpointError(f"{path}: a YAML file nested too deeply") from error
    except Exception as error:  # a damaged file raises nearly anything
        raise CheckpointError(f"{path}: not a YAML file ({error})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a mapping, got {type(content).__name__}")
    return Config(_File(path, content), content, ())


class _File:
    """The whole content, in which references are resolved."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self._path, self._content, self._values_read = path, content, 0

    def resolved(self, raw: Any, place: tuple[Any, ...], trail: tuple[str, ...]) -> Any:
        """The value of `raw` at its place in the file. trail: the references that are being resolved."""
        self._values_read += 1
        if self._values_read > _MOST_VALUES:
            raise self._error(place, f"more than {_MOST_VALUES} values were read; its interpolations grow without end")
        if isinstance(raw, Mapping):
            return Config(self, raw, place)
        if isinstance(raw, list):
            if len(place) > 100:
                raise self._error(place[:3], "nested too deeply")
            return [self.resolved(item, (*place, number), trail) for number, item in enumerate(raw)]
        if raw == _MISSING:
            raise self._error(place, "expected a value, got ???, the mark of a missing one")
        return self._filled(raw, place, trail) if isinstance(raw, str) and "${" in raw else raw

    def _filled(self, text: str, place: tuple[Any, ...], trail: tuple[str, ...]) -> Any:
        """A text with its references replaced, the innermost first; if it is a single reference, the value itself."""
        while reference := _INNERMOST.search(text):
            value = self._target(reference[1].strip(), place, trail)
            if reference[0] == text:
                return value
            if isinstance(value, Config | list):
                raise self._error(place, f"the interpolation {reference[0]} is no text, and stands within a text")
            text = f"{text[: reference.start()]}{value}{text[reference.end() :]}"
        if re.search(r"(?<!\\)\$\{", text):
            raise self._error(place, f"the interpolation in {text!r} cannot be read")
        return text.replace("\\${", "${")

    def _target(self, reference: str, place: tuple[Any, ...], trail: tuple[str, ...]) -> Any:
        """The value that a reference at `place` refers to."""
        shown = f"the interpolation ${{{reference}}}"
        if ":" in reference:
            raise self._error(place, f"{shown} calls a resolver, which is not supported; write its value into the file")
        dots = len(reference) - len(reference.lstrip("."))
        base = place[: len(place) - dots] if dots else ()
        keys = _KEY.findall(reference[dots:])
        if not keys or dots > len(place):
            raise self._error(place, f"{shown} names no key of the file")
        target = ".".join(map(str, (*base, *keys)))
        if target in trail:
            raise self._error(place, f"{shown} leads back to itself ({' -> '.join((*trail, target))})")
        value: Any = Config(self, self._content, ())
        for key in (*base, *keys):
            value = self._entry(value, key, (*trail, target))
            if value is _NOTHING:
                raise self._error(place, f"{shown} names no key of the file")
        return value

    def _entry(self, value: Any, key: Any, trail: tuple[str, ...]) -> Any:
        """The entry of `value` at a key, or _NOTHING."""
        if isinstance(value, Config):
            content = value._content
            for name in (key, _number(key)):  # digits may be a number in the file
                if name in content:
                    return self.resolved(content[name], (*value._place, name), trail)
        number = _number(key)
        if isinstance(value, list) and isinstance(number, int) and number < len(value):
            return value[number]
        return _NOTHING

    def _error(self, place: Sequence[Any], problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {'.'.join(map(str, place)) or 'the file'}: {problem}")


_NOTHING = object()


def _number(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() else key
