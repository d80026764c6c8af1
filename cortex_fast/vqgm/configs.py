"""YAML configurations as OmegaConf reads them: UTF-8, with ${...} resolved where a value is looked up."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.vqgm.checkpoints import CheckpointError

_MISSING = "???"  # OmegaConf's mark of a value that is still to be given
_MOST = 10_000  # values looked up in one file: lists that refer to lists grow without end
_INNERMOST = re.compile(r"(?<!\\)\$\{([^${}]*)\}")
_KEY = re.compile(r"[^.\[\]]+")


class Config(Mapping[str, Any]):
    """A mapping of a configuration. A value is looked up when it is asked for: what nobody reads may refer to anything.
    Raises CheckpointError, naming the file and the key, for a reference that leads nowhere."""

    def __init__(self, file: "_File", content: Mapping[str, Any], place: tuple[Any, ...]) -> None:
        self._file, self._content, self._place = file, content, place

    def __getitem__(self, key: str) -> Any:
        return self._file.resolved(self._content[key], (*self._place, key), ())

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def read_config(path: Path) -> Config:
    """Raises ImportError without PyYAML, and CheckpointError for a file that is no YAML mapping."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError("taming's configurations need PyYAML: pip install pyyaml") from error
    refuse_foreign(path, CheckpointError)
    try:
        content = yaml.safe_load(path.read_bytes())  # of bytes YAML itself says that they are UTF-8
    except RecursionError as error:
        raise CheckpointError(f"{path}: a YAML file nested too deeply") from error
    except Exception as error:  # a damaged one raises nearly anything
        raise CheckpointError(f"{path}: not a YAML file ({error})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a mapping, got {type(content).__name__}")
    return Config(_File(path, content), content, ())


class _File:
    """The whole content, in which references are looked up."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self._path, self._content, self._looked = path, content, 0

    def resolved(self, raw: Any, place: tuple[Any, ...], asked: tuple[str, ...]) -> Any:
        """A value at its place in the file. asked: the references that led here."""
        self._looked += 1
        if self._looked > _MOST:
            raise self._error(place, f"more than {_MOST} values were looked up; its interpolations grow without end")
        if isinstance(raw, Mapping):
            return Config(self, raw, place)
        if isinstance(raw, list):
            if len(place) > 100:
                raise self._error(place[:3], "nested too deeply")
            return [self.resolved(item, (*place, number), asked) for number, item in enumerate(raw)]
        if raw == _MISSING:
            raise self._error(place, "expected a value, got ???, which says that it is missing")
        return self._filled(raw, place, asked) if isinstance(raw, str) and "${" in raw else raw

    def _filled(self, text: str, place: tuple[Any, ...], asked: tuple[str, ...]) -> Any:
        """A text with its references replaced, innermost first; of a single reference the value itself."""
        while found := _INNERMOST.search(text):
            value = self._looked_up(found[1].strip(), place, asked)
            if found[0] == text:
                return value
            if isinstance(value, Config | list):
                raise self._error(place, f"the interpolation {found[0]} is no text that could stand within another")
            text = f"{text[: found.start()]}{value}{text[found.end() :]}"
        if re.search(r"(?<!\\)\$\{", text):
            raise self._error(place, f"the interpolation in {text!r} cannot be read")
        return text.replace("\\${", "${")

    def _looked_up(self, reference: str, place: tuple[Any, ...], asked: tuple[str, ...]) -> Any:
        shown = f"the interpolation ${{{reference}}}"
        if ":" in reference:
            told = "calls a resolver, and none is followed here; write its value into the file"
            raise self._error(place, f"{shown} {told}")
        dots = len(reference) - len(reference.lstrip("."))
        base = place[: len(place) - dots] if dots else ()
        keys = _KEY.findall(reference[dots:])
        if not keys or dots > len(place):
            raise self._error(place, f"{shown} names no key of the file")
        target = ".".join(map(str, (*base, *keys)))
        if target in asked:
            raise self._error(place, f"{shown} leads back to itself ({' -> '.join((*asked, target))})")
        value: Any = Config(self, self._content, ())
        for key in (*base, *keys):
            value = self._step(value, key, (*asked, target))
            if value is _NOTHING:
                raise self._error(place, f"{shown} names no key of the file")
        return value

    def _step(self, value: Any, key: Any, asked: tuple[str, ...]) -> Any:
        """What `value` has under a key, or _NOTHING."""
        if isinstance(value, Config):
            content = value._content
            for name in (key, _number(key)):  # a key of digits may be a number in the file
                if name in content:
                    return self.resolved(content[name], (*value._place, name), asked)
        number = _number(key)
        if isinstance(value, list) and isinstance(number, int) and number < len(value):
            return value[number]
        return _NOTHING

    def _error(self, place: Sequence[Any], told: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {'.'.join(map(str, place)) or 'the file'}: {told}")


_NOTHING = object()


def _number(key: Any) -> Any:
    return int(key) if isinstance(key, str) and key.isdecimal() else key
