"""A token store as the published code's files: a table and one .npy [d,h,w] an image."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cortex_fast.compat.published_data.embeddings import check
from cortex_fast.compat.published_data.importing import names_file
from cortex_fast.compat.published_data.layout import Split
from cortex_fast.compat.published_data.pickles import write_token_lists
from cortex_fast.compat.published_data.places import PublishedDataError, problem_of_name
from cortex_fast.compat.published_data.tables import Style, write_rows
from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.data.results import replace_whole
from cortex_fast.data.token_store import TokenStore
from cortex_fast.data.workspaces import workspace

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
    is renamed when whole, the table last. So a folder without a table is what an export leaves that was killed: where
    it holds these embeddings, and nothing else, only the table is written.
    Raises FileExistsError where the split's table is there already, or its folder with anything else, BlockingIOError
    while another export writes there, OSError naming the place where the disk is full.
    """
    store_path, folder = Path(store_path), Path(folder)
    store = TokenStore.load(store_path)
    place = Split.of(folder, split or store.fingerprint.get("split", "train"))
    names = file_names(store, store_path)
    style = Style(*(store.fingerprint.get(key, getattr(_STYLE, key)) for key in ("header", "line_end")))
    labels, flat = store.labels.tolist(), store.tokens.flatten(1).numpy()

    def lines() -> Iterator[tuple[str, int, list]]:
        for name, label, tokens in zip(names, labels, flat, strict=True):
            yield name, label, tokens.tolist()

    with held(place.table):
        begun = place.embeddings.exists()
        if place.table.exists() or (begun and not _holds(place.embeddings, store, names)):
            there = place.table if place.table.exists() else place.embeddings
            raise FileExistsError(f"{there}: is there already; nothing is written over it")
        with workspace(place.embeddings) as space:
            new = space / place.embeddings.name
            if not begun:
                _write_embeddings(store, names, new, tick)
            if place.name == "test":
                lists = dict(zip(names, flat.tolist(), strict=True))
                replace_whole(place.tokens, lambda file: write_token_lists(file, lists))
            if not begun:
                new.rename(place.embeddings)
        replace_whole(place.table, lambda file: write_rows(file, style, lines()))
    return place.table


def _holds(folder: Path, store: TokenStore, names: list[str]) -> bool:
    """Whether a folder's files are the embeddings of a store, each bit of them, and no others."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if found != set(names):
        return False
    codebook = store.codebook.float().cpu().contiguous()
    for rows in store.batches(256):
        reasons, _ = check(folder, names[rows], store.tokens[rows], codebook, tolerance=0.0)
        if any(reasons):
            return False
    return True


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
