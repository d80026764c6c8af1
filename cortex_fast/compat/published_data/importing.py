"""The published code's embeddings into a token store, every row held against the codebook."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.compat.published_data.embeddings import FLOAT_ERROR, Files, Recovery, check
from cortex_fast.compat.published_data.layout import Split, find_split
from cortex_fast.compat.published_data.pickles import read_token_lists
from cortex_fast.compat.published_data.places import Bad, PublishedDataError, summary
from cortex_fast.compat.published_data.tables import Row, rows, style_of
from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.data.results import replace_whole
from cortex_fast.data.token_store import TokenStore

_CHUNK = 256  # rows that a thread checks at a time; between two it waits for the one that reads the table
_SPARSE = 16  # so many codes for each that is used are not what anyone means
_SAMPLE = 256  # rows checked where the tokens are trusted
_MOST_CODES = 2**22  # of a codebook that is not known yet
_MOST_CLASSES = 2**16  # where their names are not known
_NAMED = 1000  # skipped rows named in the fingerprint; the side file has them all


@dataclass(frozen=True)
class Imported:
    """rows: of the table. written: into the store. checked: rows whose embedding was read. bad: the others, in order.

    unseen: codes of a recovered codebook that no row uses. largest_error: of E against the codebook, of good rows.
    """

    rows: int
    written: int
    checked: int
    bad: tuple[Bad, ...]
    unseen: tuple[int, ...]
    largest_error: float


@dataclass(eq=False)
class _Chunk:
    """Rows that read well, until their embeddings are checked."""

    lines: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)

    def grids(self) -> Tensor:
        return torch.from_numpy(np.stack(self.tokens))


def names_file(store: Path) -> Path:
    """Where the file names of a store's images are kept: a line each."""
    return store.with_name(store.name + ".files.txt")


def bad_file(store: Path) -> Path:
    """Where the rows that were skipped are named: a line each."""
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
    tick: Callable[[int], object] = lambda rows: None,
) -> Imported:
    """`folder`'s <split>_embeddings.csv and .npy files [d,h,w] into a token store at `out`.

    codebook: C float [K,d]. Every row's embedding must equal C at its tokens within 1e-5 of C's largest value. None
    recovers C from the embeddings: the first embedding of a token is its row, later ones are held against it, codes
    never seen are 0 and named. `codes` is then K, to be given where few of many codes are used. split: "train",
    "validation" or "test"; not needed where there is only one. class_names: default "0", "1", ... up to the largest
    label, below 65,536. trust_tokens: reads the table only and checks 256 rows at random (`seed`); needs a codebook.
    skip_bad: writes the store without the bad rows, and names them in the fingerprint and in <out>.bad.txt. threads:
    that read and check, default one a core. tick gets numbers of rows.
    The images' file names go to <out>.files.txt. The store is written last, whole or not at all.
    Raises FileNotFoundError; PublishedDataError with file and line of each bad row, unless skip_bad; BlockingIOError
    while another run writes `out`.
    """
    folder, out = Path(folder), Path(out)
    place = find_split(folder, split)
    style = style_of(place.table)
    if codebook is None and (trust_tokens or skip_bad):
        raise PublishedDataError("trust_tokens and skip_bad need a codebook: a recovered one cannot tell who is wrong")
    if codebook is not None and codes is not None:
        raise PublishedDataError(f"codes: expected none beside a codebook, which has {len(codebook)}, got {codes}")
    if codes is not None:
        checks.whole("codes", codes, 1, _MOST_CODES)
    classes = _MOST_CLASSES if class_names is None else max(len(class_names), _MOST_CLASSES)
    unseen: list[int] = []
    recovered = codebook is None
    if codebook is None:
        codebook, unseen = _recover(place, codes, classes)
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.finite("codebook", codebook)
    known = codebook.detach().float().cpu().contiguous()
    found = _read(place, known, classes, trust_tokens, threads or os.cpu_count() or 1, seed, tick)
    bad = sorted(found.bad, key=lambda one: one.line)
    if bad and not skip_bad:
        raise PublishedDataError(summary(bad, found.rows))
    if not found.names:
        raise PublishedDataError(f"{place.table}: holds no row that could be imported\n{summary(bad, found.rows)}")
    classes = int(found.labels.max()) + 1
    if class_names is None:
        class_names = tuple(map(str, range(classes)))
    elif len(class_names) < classes:
        raise PublishedDataError(
            f"class_names: expected {classes} names for labels to {classes - 1}, got {len(class_names)}"
        )
    listed = "".join(f"{name}\n" for name in found.names)
    made: dict[str, Any] = {
        "made_by": "import-published",
        "split": place.name,
        "header": style.header,
        "line_end": style.line_end,
        "rows": found.rows,
        "checked": f"{found.checked} rows at random, seed {seed}" if trust_tokens else "every row",
        "float_error": FLOAT_ERROR,
        "largest_error": found.largest_error,
        "codebook": "recovered" if recovered else "given",
        "skipped": len(bad),
        "skipped_rows": [f"line {one.line}: {one.name}" for one in bad[:_NAMED]],
        "files_sha256": digests.of_text(listed),
    }
    if recovered:
        made["unseen_codes"] = unseen
    store = TokenStore(torch.from_numpy(found.tokens), torch.from_numpy(found.labels), known, class_names, made)
    with held(out):
        replace_whole(names_file(out), lambda file: file.write_text(listed, encoding="utf-8"))
        if bad:
            text = "".join(f"{one}\n" for one in bad)
            replace_whole(bad_file(out), lambda file: file.write_text(text, encoding="utf-8"))
        else:
            bad_file(out).unlink(missing_ok=True)
        store.save(out)
    return Imported(found.rows, len(store), found.checked, tuple(bad), tuple(unseen), found.largest_error)


@dataclass(frozen=True, eq=False)
class _Found:
    rows: int
    checked: int
    names: list[str]
    labels: np.ndarray
    tokens: np.ndarray
    bad: list[Bad]
    largest_error: float


def _read(
    place: Split, codebook: Tensor, classes: int, trust: bool, threads: int, seed: int, tick: Callable[[int], object]
) -> _Found:
    bad: list[Bad] = []
    tolerance = FLOAT_ERROR * float(codebook.abs().max()) if codebook.numel() else 0.0
    kept = _Chunk()
    largest = 0.0
    checked = 0

    def keep(chunk: _Chunk, reasons: Sequence[str | None]) -> None:
        for line, name, label, tokens, reason in zip(
            chunk.lines, chunk.names, chunk.labels, chunk.tokens, reasons, strict=True
        ):
            if reason is not None:
                bad.append(Bad(place.table, line, name, reason))
                continue
            kept.lines.append(line)
            kept.names.append(name)
            kept.labels.append(label)
            kept.tokens.append(tokens)

    stream = _good(place, len(codebook), classes, bad)
    if trust:
        for chunk in _chunks(stream):
            keep(chunk, [None] * len(chunk.names))
            tick(len(chunk.names))
        drawn = np.random.default_rng(seed).permutation(len(kept.names))[:_SAMPLE]
        sample = {int(row) for row in drawn}
        checked = len(sample)
        whole, kept = kept, _Chunk()
        wrong: dict[int, str | None] = {}
        if sample:
            order = sorted(sample)
            picked = torch.from_numpy(np.stack([whole.tokens[row] for row in order]))
            reasons, largest = check(place.embeddings, [whole.names[row] for row in order], picked, codebook, tolerance)
            wrong = dict(zip(order, reasons, strict=True))
        keep(whole, [wrong.get(row) for row in range(len(whole.names))])
    else:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[tuple[_Chunk, Future[tuple[list[str | None], float]]]] = deque()

            def finish() -> None:
                nonlocal largest, checked
                chunk, future = waiting.popleft()
                reasons, error = future.result()
                largest = max(largest, error)
                checked += len(reasons)
                keep(chunk, reasons)
                tick(len(reasons))

            for chunk in _chunks(stream):
                future = pool.submit(check, place.embeddings, chunk.names, chunk.grids(), codebook, tolerance)
                waiting.append((chunk, future))
                if len(waiting) > 4 * threads:
                    finish()
            while waiting:
                finish()
    tokens = np.stack(kept.tokens) if kept.tokens else np.empty((0, 0), np.int32)
    labels = np.array(kept.labels, np.int64)
    return _Found(len(kept.names) + len(bad), checked, kept.names, labels, tokens, bad, largest)


def _chunks(stream: Iterator[tuple[Row, np.ndarray]]) -> Iterator[_Chunk]:
    while part := list(islice(stream, _CHUNK)):
        chunk = _Chunk()
        for row, tokens in part:
            chunk.lines.append(row.line)
            chunk.names.append(row.name)
            chunk.labels.append(row.label)
            chunk.tokens.append(tokens)
        yield chunk


def _good(place: Split, codes: int | None, classes: int, bad: list[Bad]) -> Iterator[tuple[Row, np.ndarray]]:
    """The rows whose line holds, with their tokens [h,w]; the others go to `bad`. `codes`: K, None where not known.
    `classes`: labels are below."""
    most = codes or _MOST_CODES
    small = np.uint16 if codes is not None and codes <= 2**16 else np.int32
    seen: dict[str, int] = {}
    grid: tuple[int, int] | None = None
    lists: dict[str, list[int]] | None = None
    for row in rows(place.table, np.int64):
        if isinstance(row, Bad):
            bad.append(row)
            continue
        values = row.values
        if values is None:
            if lists is None:
                if not place.tokens.is_file():
                    text = f"expected token ids as a third column, or in {place.tokens}"
                    raise PublishedDataError(f"{place.table}:{row.line}: {text}")
                lists = read_token_lists(place.tokens)
            try:
                values = np.array(lists.get(row.name, []), np.int64)
            except (ValueError, TypeError, OverflowError):
                values = np.empty(0, np.int64)
        grid = grid or _grid_of(place.embeddings / row.name, len(values))
        count = grid[0] * grid[1] if grid else 0
        reason = None
        if row.name in seen:
            reason = f"the file name stands in line {seen[row.name]} already"
        elif row.label >= classes:
            reason = f"expected a label in [0, {classes}), got {row.label}"
        elif not count or values.shape != (count,):
            reason = f"expected {count or 'a square number of'} token ids, got {len(values)}"
        elif int(np.maximum.reduce(values.view(np.uint64))) >= most:  # negative ones are the largest of these
            reason = f"expected token ids in [0, {most}), got {values.min()} to {values.max()}"
        if reason is not None:
            bad.append(Bad(place.table, row.line, row.name, reason))
            continue
        seen[row.name] = row.line
        assert grid is not None
        yield row, values.astype(small).reshape(grid)


def _grid_of(embedding: Path, count: int) -> tuple[int, int] | None:
    """(h, w) of an image's `count` tokens: its embedding's, or where that cannot be read a square's; else None."""
    if embedding.is_file():
        with suppress(Exception):  # a damaged header raises nearly anything
            shape: tuple[int, ...] = np.load(embedding, allow_pickle=False, mmap_mode="r").shape
            if len(shape) == 3 and count and shape[1] * shape[2] == count:
                return shape[1], shape[2]
    side = isqrt(count)
    return (side, side) if count and side * side == count else None


def _recover(place: Split, codes: int | None, classes: int) -> tuple[Tensor, list[int]]:
    """The codebook out of every embedding that can be read; what cannot is found again when the rows are checked."""
    recovery = Recovery()
    files: Files | None = None
    for row, tokens in _good(place, codes, classes, []):
        try:
            if files is None:
                first = np.load(place.embeddings / row.name, allow_pickle=False, mmap_mode="r")
                files = Files(place.embeddings, (first.shape[0], *tokens.shape))
            recovery.see(files.read(row.name), tokens)
        except Exception:  # a damaged header raises nearly anything
            continue
    if codes is None and recovery.size > max(_SPARSE * recovery.seen, 2**16):
        told = f"ids to {recovery.size - 1}, of which {recovery.seen} are used"
        raise PublishedDataError(f"{place.table}: {told}: is one damaged? codes (K) tells how many there are")
    codebook, unseen = recovery.codebook(codes)
    if not codebook.numel():
        raise PublishedDataError(f"{place.table}: no row from which a codebook could be recovered")
    return torch.nan_to_num(codebook), unseen
