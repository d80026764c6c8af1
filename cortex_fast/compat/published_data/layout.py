"""Where the published code keeps the embeddings of a split."""

from dataclasses import dataclass
from pathlib import Path

from cortex_fast import checks
from cortex_fast.compat.published_data.places import PublishedDataError

FOLDERS = {"train": "train", "validation": "val", "test": "test"}  # of the .npy files, by split


@dataclass(frozen=True)
class Split:
    """One of `FOLDERS` within a data folder."""

    name: str
    table: Path
    embeddings: Path
    tokens: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "Split":
        checks.one_of("split", name, FOLDERS)
        table = folder / f"{name}_embeddings.csv"
        return cls(name, table, folder / FOLDERS[name], folder / f"{name}_token_indices.pkl")


def find_split(folder: Path, name: str | None) -> Split:
    """The split of that name, or the only one there is. Raises FileNotFoundError or PublishedDataError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    there = [one for one in FOLDERS if Split.of(folder, one).table.is_file()]
    if name is None:
        if not there:
            tables = ", ".join(f"{one}_embeddings.csv" for one in FOLDERS)
            raise FileNotFoundError(f"{folder}: expected one of {tables}")
        if len(there) > 1:
            raise PublishedDataError(f"{folder}: has the splits {', '.join(there)}; say which with split")
        name = there[0]
    split = Split.of(folder, name)
    if not split.table.is_file():
        raise FileNotFoundError(f"no such table: {split.table}")
    return split
