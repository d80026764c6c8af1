"""Result files: named tensors and a JSON header in one safetensors file, whole or absent, refused when foreign."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cortex_fast.data import digests
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.data.workspaces import workspace

FORMAT = "cortex_fast"
Result = TypeVar("Result")


class ResultFileError(ValueError):
    """A result file is truncated, damaged, foreign, or of another kind; the message names it."""


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file and rename it, so that nobody ever sees half of it under its name.

    Args:
        path: the file.
        write: called with the temporary path.
    Raises:
        OSError: of the writing, as on a full disk; it names `path`.
    """
    try:
        with workspace(path) as space:
            temporary = space / path.name
            temporary.touch()
            mode = temporary.stat().st_mode  # of the user's umask; safetensors makes the file private
            write(temporary)
            temporary.chmod(mode)
            temporary.replace(path)
    except OSError as error:
        if not error.filename or Path(error.filename).parent.suffix == ".partial":
            error.filename = str(path)
        raise


def save_result(path: Path | str, kind: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a header as one safetensors file, whole or not at all. Equal contents are equal bytes.

    Args:
        path: the file.
        kind: the name of the results of this form.
        tensors: by name.
        header: what JSON can express.
    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"kind": kind, "header": header, "tensors": digests.crc_of_state(whole)}, sort_keys=True)
    metadata = {FORMAT: f"{digests.crc_of_text(text):08x} {text}"}  # one entry: safetensors puts several in any order
    try:
        replace_whole(path, lambda file: save_file(whole, file, metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: could not be written ({error})") from error


def load_result(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_result` wrote.

    Args:
        path: the file.
        kind: of the result.
    Returns:
        The tensors by name, and the header.
    Raises:
        FileNotFoundError: the file does not exist.
        ResultFileError: the file is truncated, damaged, foreign or of another kind; the message names it.
    """
    return _load(Path(path), kind, tensors=True)


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The header alone of a result of this kind. Raises as `load_result`."""
    return _load(path, kind, tensors=False)[1]


def kind_of(path: Path) -> str | None:
    """What kind of result a file is. Raises FileNotFoundError, or ResultFileError for a truncated or foreign file."""
    return _read(path, tensors=False)[1].get("kind")


def load_partly(path: Path, kind: str, left_out: str) -> tuple[dict[str, Tensor], dict[str, Any], int | None]:
    """A result without one of its tensors, for a reader that maps this one.

    Args:
        path: the file.
        kind: of the result.
        left_out: the tensor that is not read.
    Returns:
        The other tensors by name, the header, and the checksum of all tensors; None in a file from before there were
        checksums.
    Raises:
        FileNotFoundError, ResultFileError: as `load_result`; the tensors are not held against the checksum.
    """
    about = _about(path, kind, _read(path)[1])
    tensors, _ = _opened(path, lambda name: name != left_out)
    return tensors, about["header"], about.get("tensors")


def digest_of_contents(path: Path) -> str:
    """16 hex digits of a result file's contents, by its header alone, which holds its tensors' checksums.

    Raises FileNotFoundError, or ResultFileError for a truncated or foreign file.
    """
    _, metadata = _opened(path)
    if FORMAT not in metadata:  # a file from before there were checksums
        return digests.of_files([path])
    return digests.short(digests.of_text(metadata[FORMAT]))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, also for one that is nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def _opened(path: Path, wanted: Callable[[str], bool] = lambda name: False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose names are wanted, and the metadata, of a whole safetensors file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such result file: {path}")
    refuse_foreign(path, ResultFileError)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ResultFileError(f"{path}: a truncated or damaged safetensors file ({error})") from error


def _read(path: Path, *, tensors: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, checked, and {"kind", "header"}."""
    loaded, metadata = _opened(path, lambda name: tensors)
    if metadata.get("format") == FORMAT:  # a file from before there were checksums
        return loaded, metadata | {"header": _parsed(path, metadata.get("header", ""))}
    if FORMAT not in metadata:
        raise ResultFileError(f"{path}: not a result of cortex-fast")
    checksum, _, text = metadata[FORMAT].partition(" ")
    if checksum != f"{digests.crc_of_text(text):08x}":
        raise ResultFileError(f"{path}: damaged: its header is not as it was written")
    about = _parsed(path, text)
    if not isinstance(about, dict) or about.keys() != {"kind", "header", "tensors"}:
        raise ResultFileError(f"{path}: its header is damaged")
    if tensors and about["tensors"] != digests.crc_of_state(loaded):
        raise ResultFileError(f"{path}: damaged: its tensors are not as they were written")
    return loaded, about


def _parsed(path: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ResultFileError(f"{path}: its header is damaged ({error})") from error


def _load(path: Path, kind: str, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    loaded, about = _read(path, tensors=tensors)
    return loaded, _about(path, kind, about)["header"]


def _about(path: Path, kind: str, about: dict[str, Any]) -> dict[str, Any]:
    """What `_read` says about a file of this kind, whose header has its form."""
    if about.get("kind") != kind:
        raise ResultFileError(f"{path}: expected a result of kind {kind!r}, got {about.get('kind')!r}")
    header = about["header"]
    if not isinstance(header, dict) or not isinstance(header.get("fingerprint", {}), dict):
        raise ResultFileError(f"{path}: its header is damaged (expected entries by name, as in its fingerprint)")
    return about


def read_result(path: Path | str, kind: str, build: Callable[..., Result]) -> Result:
    """Build a result from a file.

    Args:
        path: the file.
        kind: of the result.
        build: called with the tensors and the header's entries by name.
    Raises:
        FileNotFoundError: the file does not exist.
        ResultFileError: as `load_result`, and where `build` refuses the contents, as of a file of another version.
    """
    tensors, header = load_result(path, kind)
    try:
        return build(**tensors, **header)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: not a {kind} of this version ({error})") from error
