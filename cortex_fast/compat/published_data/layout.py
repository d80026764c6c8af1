"""Where the published code keeps the embeddings of a split."""

from dataclasses import dataclass
from pathlib import Path

from cortex_fast import checks
from cortex_fast.compat.published_data.errors import PublishedDataError

FOLDERS = {"train": "train", "validation": "val", "test": "test"}  # of the .npy files, by split


@dataclass(frozen=True)
class Split:
    """The files of one split in a data folder.

    Args:
        name: one of `FOLDERS`.
        table: the .csv file of file names, labels and mostly tokens.
        embeddings: the folder of .npy files.
        tokens: the pickle of tokens, for tables without them.
    """

    name: str
    table: Path
    embeddings: Path
    tokens: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "Split":
        """The split of that name in a data folder. Raises ValueError for a name that is not in `FOLDERS`."""
        checks.one_of("split", name, FOLDERS)
        table = folder / f"{name}_embeddings.csv"
        return cls(name, table, folder / FOLDERS[name], folder / f"{name}_token_indices.pkl")


def find_split(folder: Path, name: str | None) -> Split:
    """Find a split in a data folder.

    Args:
        folder: the data folder.
        name: one of `FOLDERS`; None for the only split in the folder.
    Raises:
        FileNotFoundError: the folder or the table does not exist.
        PublishedDataError: name is None and the folder has several splits.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if name is None:
        name = _only_split(folder)
    split = Split.of(folder, name)
    if not split.table.is_file():
        raise FileNotFoundError(f"no such table: {split.table}")
    return split


def _only_split(folder: Path) -> str:
    names = [name for name in FOLDERS if Split.of(folder, name).table.is_file()]
    if not names:
        tables = ", ".join(f"{name}_embeddings.csv" for name in FOLDERS)
        raise FileNotFoundError(f"{folder}: expected one of {tables}")
    if len(names) > 1:
        raise PublishedDataError(f"{folder}: has the splits {', '.join(names)}; say which with split")
    return names[0]
