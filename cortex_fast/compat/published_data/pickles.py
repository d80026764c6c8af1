"""The published code's dictionary of file names and token ids: a pickle, of which nothing is executed."""

import pickle
from pathlib import Path
from typing import Any, NoReturn

from cortex_fast.compat.published_data.errors import PublishedDataError
from cortex_fast.data.foreign import refuse_foreign


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries alone: everything else starts with the look-up of a name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"refused to look up {module}.{name}")


def read_token_lists(path: Path) -> dict[str, list[int]]:
    """Read token ids by file name. Raises FileNotFoundError, or PublishedDataError naming the file."""
    refuse_foreign(path, PublishedDataError)
    with path.open("rb") as file:
        try:
            loaded: Any = _PlainUnpickler(file).load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise PublishedDataError(f"{path}: not a plain dictionary of token ids ({error})") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, list) for value in loaded.values()):
        raise PublishedDataError(f"{path}: expected a dictionary of lists")
    return loaded


def write_token_lists(path: Path, lists: dict[str, list[int]]) -> None:
    """Write token ids by file name."""
    with path.open("wb") as file:
        pickle.dump(lists, file)
