"""The published code's embeddings into a token store."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.compat.published_data.checking import CheckedRows, check_every_row, check_sample
from cortex_fast.compat.published_data.embeddings import FLOAT_ERROR
from cortex_fast.compat.published_data.errors import Bad, PublishedDataError, summary
from cortex_fast.compat.published_data.layout import Split, find_split
from cortex_fast.compat.published_data.recovery import recover_codebook
from cortex_fast.compat.published_data.tables import style_of
from cortex_fast.compat.published_data.token_rows import MOST_CODES
from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.data.results import replace_whole
from cortex_fast.data.token_store import TokenStore

_MOST_CLASSES = 2**16  # where their names are not known
_NAMED = 1000  # skipped rows named in the fingerprint; the side file has them all


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Args:
        rows: of the table.
        written: rows in the store.
        checked: rows whose embedding was read.
        bad: the rows that were skipped, in the table's order.
        unseen: codes of a recovered codebook that no row uses.
        largest_error: of good embeddings against the codebook.
    """

    rows: int
    written: int
    checked: int
    bad: tuple[Bad, ...]
    unseen: tuple[int, ...]
    largest_error: float


def names_file(store: Path) -> Path:
    """The text file beside a store with the file names of its images, a line each."""
    return store.with_name(store.name + ".files.txt")


def bad_file(store: Path) -> Path:
    """The text file beside a store with the rows that its import skipped, a line each."""
    return store.with_name(store.name + ".bad.txt")


def import_embeddings(
    folder: Path | str,
    out: Path | str,
    *,
    codebook: Tensor | None = None,
    codes: int | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    trust_tokens: bool = False,
    skip_bad: bool = False,
    threads: int | None = None,
    seed: int = 0,
    tick: Callable[[int], object] | None = None,
) -> Imported:
    """Import <split>_embeddings.csv and its .npy files [d, h, w] as a token store.

    Every embedding must equal the codebook at its tokens within 1e-5 of the codebook's largest value. The images' file
    names go to <out>.files.txt. The store is written last, whole or not at all.

    Args:
        folder: the data folder.
        out: the token store to write.
        codebook: C, floating-point [K, d]. None recovers C from the embeddings: the first embedding of a token is its
            row, later ones are compared with it, and codes that no row uses are 0. Default None.
        codes: K of a codebook that is recovered, from 1 to 4,194,304; needed where few of many codes are used. Default
            one more than the largest token.
        split: "train", "validation" or "test". Default the only one in the folder.
        class_names: a name for each label. Default "0", "1", ... up to the largest label, which is below 65,536.
        trust_tokens: read the table alone, and check 256 random rows; needs a codebook. Default False.
        skip_bad: write the store without the bad rows, and name them in its fingerprint and in <out>.bad.txt; needs a
            codebook. Default False.
        threads: number of threads that read and check embeddings. Default: one per core.
        seed: of the random rows of `trust_tokens`. Default 0.
        tick: called with numbers of rows that are done, for a progress bar. Default None.
    Returns:
        How many rows there were, and what became of them.
    Raises:
        FileNotFoundError: the folder or the table does not exist.
        PublishedDataError: rows are bad, without skip_bad; the message has file and line of each.
        BlockingIOError: another run is writing `out`.
    """
    folder, out = Path(folder), Path(out)
    files = find_split(folder, split)
    style_of(files.table)  # refuses a table without a first line before the work
    _check_settings(codebook, codes, needs_codebook=trust_tokens or skip_bad)
    classes = _MOST_CLASSES if class_names is None else max(len(class_names), _MOST_CLASSES)
    unseen: list[int] = []
    recovered = codebook is None
    if codebook is None:
        codebook, unseen = recover_codebook(files, codes, classes)
    codebook = _checked_codebook(codebook)
    tick = tick or _no_tick
    if trust_tokens:
        rows = check_sample(files, codebook, classes, seed=seed, tick=tick)
    else:
        rows = check_every_row(files, codebook, classes, threads=threads or os.cpu_count() or 1, tick=tick)
    _refuse_bad(files.table, rows, skip_bad=skip_bad)
    listed = "".join(f"{row.name}\n" for row in rows.good)
    fingerprint: dict[str, Any] = {
        **_about(files, rows, listed),
        "checked": f"{rows.checked} rows at random, seed {seed}" if trust_tokens else "every row",
        "codebook": "recovered" if recovered else "given",
        **({"unseen_codes": unseen} if recovered else {}),
    }
    store = _store(rows, codebook, class_names, fingerprint)
    _write(store, out, listed, rows.bad)
    return Imported(rows.row_count, len(store), rows.checked, tuple(rows.bad), tuple(unseen), rows.largest_error)


def _no_tick(_rows: int) -> None:
    """Shows no progress."""


def _check_settings(codebook: Tensor | None, codes: int | None, *, needs_codebook: bool) -> None:
    if codebook is None and needs_codebook:
        raise PublishedDataError(
            "trust_tokens and skip_bad need a codebook: a recovered one cannot tell which row is wrong"
        )
    if codebook is not None and codes is not None:
        raise PublishedDataError(f"codes: expected none beside a codebook, which has {len(codebook)}, got {codes}")
    if codes is not None:
        checks.whole("codes", codes, 1, MOST_CODES)


def _checked_codebook(codebook: Tensor) -> Tensor:
    """C float32 [K,d], contiguous on the CPU."""
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.finite("codebook", codebook)
    return codebook.detach().float().cpu().contiguous()


def _refuse_bad(table: Path, rows: CheckedRows, *, skip_bad: bool) -> None:
    message = summary(rows.bad, rows.row_count)
    if rows.bad and not skip_bad:
        raise PublishedDataError(message)
    if not rows.good:
        raise PublishedDataError(f"{table}: holds no row that could be imported\n{message}")


def _about(files: Split, rows: CheckedRows, listed: str) -> dict[str, Any]:
    """The fingerprint's entries about the rows. listed: the images' file names, a line each."""
    style = style_of(files.table)
    return {
        "made_by": "import-published",
        "split": files.name,
        "header": style.header,
        "line_end": style.line_end,
        "rows": rows.row_count,
        "float_error": FLOAT_ERROR,
        "largest_error": rows.largest_error,
        "skipped": len(rows.bad),
        "skipped_rows": [f"line {row.line}: {row.name}" for row in rows.bad[:_NAMED]],
        "files_sha256": digests.of_text(listed),
    }


def _store(
    rows: CheckedRows, codebook: Tensor, class_names: Sequence[str] | None, fingerprint: dict[str, Any]
) -> TokenStore:
    labels = np.array([row.label for row in rows.good], np.int64)
    classes = int(labels.max()) + 1
    if class_names is None:
        class_names = tuple(map(str, range(classes)))
    elif len(class_names) < classes:
        raise PublishedDataError(
            f"class_names: expected {classes} names for labels to {classes - 1}, got {len(class_names)}"
        )
    tokens = np.stack([row.tokens for row in rows.good])
    return TokenStore(torch.from_numpy(tokens), torch.from_numpy(labels), codebook, class_names, fingerprint)


def _write(store: TokenStore, out: Path, listed: str, bad: Sequence[Bad]) -> None:
    """The store, last, and the text files beside it. listed: the images' file names, a line each."""
    with held(out):
        replace_whole(names_file(out), lambda file: file.write_text(listed, encoding="utf-8"))
        if bad:
            text = "".join(f"{row}\n" for row in bad)
            replace_whole(bad_file(out), lambda file: file.write_text(text, encoding="utf-8"))
        else:
            bad_file(out).unlink(missing_ok=True)
        store.save(out)
