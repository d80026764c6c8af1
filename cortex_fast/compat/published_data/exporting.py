"""A token store as the published code's files: a table and one .npy [d,h,w] an image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cortex_fast.compat.published_data.embeddings import check_embeddings
from cortex_fast.compat.published_data.errors import PublishedDataError, problem_of_name
from cortex_fast.compat.published_data.importing import names_file
from cortex_fast.compat.published_data.layout import Split
from cortex_fast.compat.published_data.pickles import write_token_lists
from cortex_fast.compat.published_data.tables import Style, write_rows
from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.data.results import replace_whole
from cortex_fast.data.token_store import TokenStore
from cortex_fast.data.workspaces import workspace

_STYLE = Style("filename,label,token_indices", "\r\n")  # Python's csv.writer ends lines so


def file_names(store: TokenStore, path: Path) -> list[str]:
    """The file names of a store's images: those it was imported with, or <label>_<row>.npy.

    Args:
        store: the token store.
        path: its file; beside it stands the list of an imported store's file names.
    Raises:
        PublishedDataError: the list is missing, belongs to another store, or has a name that leads out of its folder.
    """
    expected = store.fingerprint.get("files_sha256")
    if expected is None:
        return [f"{label}_{row}.npy" for row, label in enumerate(store.labels.tolist())]
    listed = names_file(path)
    text = listed.read_bytes() if listed.is_file() else b""
    if digests.of_text(text) != expected:
        raise PublishedDataError(f"{listed}: expected the file names that {path} was imported with")
    names = text.decode().splitlines()
    for line, name in enumerate(names, start=1):
        problem = problem_of_name(name)
        if problem is not None:
            raise PublishedDataError(f"{listed}:{line}: {problem}")
    return names


def export_embeddings(
    store_path: Path | str,
    folder: Path | str,
    *,
    split: str | None = None,
    tick: Callable[[int], object] | None = None,
) -> Path:
    """Export a token store as <split>_embeddings.csv and the .npy folder of that split.

    The .npy files are written into a temporary folder that is renamed when whole, the table last. An export that was
    killed in between leaves a folder without a table: where that holds just these embeddings, only the table is
    written. For "test" there is also test_token_indices.pkl, which the published evaluation reads and nothing of the
    published code writes.

    Args:
        store_path: the token store.
        folder: the data folder; created where it does not exist.
        split: "train", "validation" or "test". Default the split that the store was imported from, else "train".
        tick: called with numbers of embeddings that were written, for a progress bar. Default None.
    Returns:
        The table's path.
    Raises:
        FileExistsError: the split's table exists, or its folder does and holds anything else.
        BlockingIOError: another export is writing there.
        PublishedDataError: see `file_names`.
        OSError: a file cannot be written, as on a full disk; the message names it.
    """
    store_path, folder = Path(store_path), Path(folder)
    store = TokenStore.load(store_path)
    files = Split.of(folder, split or store.fingerprint.get("split", "train"))
    names = file_names(store, store_path)
    with held(files.table):
        embeddings_exist = files.embeddings.exists()
        if files.table.exists() or (embeddings_exist and not _holds(files.embeddings, store, names)):
            existing = files.table if files.table.exists() else files.embeddings
            raise FileExistsError(f"{existing}: already exists; it is not overwritten")
        with workspace(files.embeddings) as space:
            new = space / files.embeddings.name
            if not embeddings_exist:
                _write_embeddings(store, names, new, tick)
            if files.name == "test":
                _write_token_lists(store, names, files.tokens)
            if not embeddings_exist:
                new.rename(files.embeddings)
        _write_table(store, names, files.table)
    return files.table


def _holds(folder: Path, store: TokenStore, names: list[str]) -> bool:
    """Whether a folder holds the embeddings of a store, bit for bit, with no other files."""
    if {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} != set(names):
        return False
    codebook = store.codebook.float().cpu().contiguous()
    for rows in store.batches(256):
        reasons, _ = check_embeddings(folder, names[rows], store.tokens[rows], codebook, tolerance=0.0)
        if any(reasons):
            return False
    return True


def _write_embeddings(store: TokenStore, names: list[str], folder: Path, tick: Callable[[int], object] | None) -> None:
    folder.mkdir()
    for rows in store.batches(64):
        for name, embedding in zip(names[rows], store.embedding(rows).cpu(), strict=True):
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, embedding.contiguous().numpy())
            except OSError as error:
                error.filename = error.filename or str(path)
                raise
        if tick is not None:
            tick(rows.stop - rows.start)


def _write_token_lists(store: TokenStore, names: list[str], path: Path) -> None:
    lists = dict(zip(names, store.tokens.flatten(1).numpy().tolist(), strict=True))
    replace_whole(path, lambda file: write_token_lists(file, lists))


def _write_table(store: TokenStore, names: list[str], path: Path) -> None:
    style = Style(*(store.fingerprint.get(key, getattr(_STYLE, key)) for key in ("header", "line_end")))
    labels, tokens = store.labels.tolist(), store.tokens.flatten(1).numpy()
    rows = ((name, label, ids.tolist()) for name, label, ids in zip(names, labels, tokens, strict=True))
    replace_whole(path, lambda file: write_rows(file, style, rows))
