"""A token store as the published code's files: a table and one .npy [d,h,w] an image."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np

from cortex_fast.compat.published_data.importing import names_file
from cortex_fast.compat.published_data.layout import Split
from cortex_fast.compat.published_data.pickles import write_token_lists
from cortex_fast.compat.published_data.places import PublishedDataError, problem_of_name
from cortex_fast.compat.published_data.tables import Style, write_rows
from cortex_fast.data import digests
from cortex_fast.data.results import replace_whole
from cortex_fast.data.token_store import TokenStore

_STYLE = Style("filename,label,token_indices", "\r\n")  # Python's csv.writer ends lines so


def file_names(store: TokenStore, path: Path) -> list[str]:
    """The file names of the images of the store at `path`: those it was imported with, or <label>_<row>.npy.

    Raises PublishedDataError where the list beside an imported store is another's, or missing.
    """
    wanted = store.fingerprint.get("files_sha256")
    if wanted is None:
        return [f"{label}_{row}.npy" for row, label in enumerate(store.labels.tolist())]
    listed = names_file(path)
    text = listed.read_bytes() if listed.is_file() else b""
    if digests.of_text(text) != wanted:
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
    tick: Callable[[int], object] = lambda rows: None,
) -> Path:
    """Write <split>_embeddings.csv and the .npy folder of that split, and return the table's path.

    split: default the one that the store was imported from, else "train". For "test" also test_token_indices.pkl, which
    the published evaluation reads and nothing of theirs writes. The .npy files are written into a temporary folder that
    is renamed when whole, the table last. Raises FileExistsError where the split's folder or table is there already,
    OSError naming the place where the disk is full.
    """
    store_path, folder = Path(store_path), Path(folder)
    store = TokenStore.load(store_path)
    place = Split.of(folder, split or store.fingerprint.get("split", "train"))
    names = file_names(store, store_path)
    for there in (place.table, place.embeddings):
        if there.exists():
            raise FileExistsError(f"{there}: is there already; nothing is written over it")
    style = Style(*(store.fingerprint.get(key, getattr(_STYLE, key)) for key in ("header", "line_end")))
    labels, flat = store.labels.tolist(), store.tokens.flatten(1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{place.embeddings.name}.{uuid4().hex}.partial"
    try:
        _write_embeddings(store, names, partial, tick)
        if place.name == "test":
            lists = dict(zip(names, flat.tolist(), strict=True))
            replace_whole(place.tokens, lambda file: write_token_lists(file, lists))
        partial.rename(place.embeddings)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    def lines() -> Iterator[tuple[str, int, list]]:
        for name, label, tokens in zip(names, labels, flat, strict=True):
            yield name, label, tokens.tolist()

    replace_whole(place.table, lambda file: write_rows(file, style, lines()))
    return place.table


def _write_embeddings(store: TokenStore, names: list[str], folder: Path, tick: Callable[[int], object]) -> None:
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
        tick(rows.stop - rows.start)
