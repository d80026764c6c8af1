"""Result files: named tensors and a JSON header in one safetensors file, whole or absent, refused when foreign."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cortex_fast.data.foreign import refuse_foreign

FORMAT = "cortex_fast"
Result = TypeVar("Result")


class ResultFileError(ValueError):
    """A result file is truncated, foreign, or of another kind; the message names it."""


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and rename, so that `path` is never seen half-written.

    An OSError of the writing, as of a full disk, names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex}.partial{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would make the file private
        write(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_result(path: Path | str, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header as a result of this kind."""
    path = Path(path)
    metadata = {"format": FORMAT, "kind": kind, "header": json.dumps(header, sort_keys=True)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        replace_whole(path, lambda file: save_file(whole, file, metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written ({error})") from error


def load_result(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a result of this kind.

    Raises FileNotFoundError, or ResultFileError for a truncated, foreign or other kind of file, naming it.
    """
    return _load(Path(path), kind, tensors=True)


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The header alone of a result of this kind. Raises as `load_result`."""
    return _load(path, kind, tensors=False)[1]


def kind_of(path: Path) -> str | None:
    """What kind of result a file is. Raises FileNotFoundError, or ResultFileError for a truncated or foreign file."""
    return _read(path, tensors=False)[1].get("kind")


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no such result file: {path}")
    refuse_foreign(path, ResultFileError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            loaded = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except SafetensorError as error:
        raise ResultFileError(f"{path}: not a whole safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ResultFileError(f"{path}: not a result of cortex-fast")
    return loaded, metadata


def _load(path: Path, kind: str, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    loaded, metadata = _read(path, tensors=tensors)
    if metadata.get("kind") != kind:
        raise ResultFileError(f"{path}: expected a result of kind {kind!r}, got {metadata.get('kind')!r}")
    try:
        return loaded, json.loads(metadata["header"])
    except (KeyError, ValueError) as error:
        raise ResultFileError(f"{path}: its header is damaged ({error})") from error


def read_result(path: Path | str, kind: str, build: Callable[..., Result]) -> Result:
    """`build` called with a result's tensors and header entries by name; its complaints are the file's fault.

    Raises as `load_result`, and ResultFileError where the contents do not fit, as in a file of another version.
    """
    tensors, header = load_result(path, kind)
    try:
        return build(**tensors, **header)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: not a {kind} of this version ({error})") from error
