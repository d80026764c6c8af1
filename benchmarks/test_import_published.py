"""Importing embeddings of the published code's layout: 2,000 rows at paper scale, in a temporary folder.

Floor: one copy of the files out of the system's memory, where they are after they were written. The plain read only
opens and reads them; the formula is np.load, a gather of the codebook and np.allclose, for rows whose tokens are given.
All use as many threads as there are cores.
"""

import csv
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import SEED, Case, Sibling
from benchmarks.machine import Floor
from cortex_fast import TokenStore
from cortex_fast.compat.published_data import import_embeddings

HEADER = 128  # bytes of a .npy file before its numbers


@dataclass(frozen=True, eq=False)
class Published:
    """tokens int64 [n, m*m], codebook float32 [K,d]; data/train has an embedding a row. The folder goes with this."""

    temporary: tempfile.TemporaryDirectory
    names: list[str]
    tokens: np.ndarray
    codebook: np.ndarray

    @property
    def folder(self) -> Path:
        return Path(self.temporary.name)


def published(rows: int, channels: int, grid: int, codes: int, _device: torch.device) -> Published:
    """As the published code writes: csv.writer and np.save."""
    rng = np.random.default_rng(SEED)
    tokens, codebook = rng.integers(0, codes, (rows, grid * grid)), rng.standard_normal((codes, channels), np.float32)
    temporary = tempfile.TemporaryDirectory()
    embeddings = Path(temporary.name) / "data" / "train"
    embeddings.mkdir(parents=True)
    names = [f"{row % 10}_{row}.npy" for row in range(rows)]
    with (embeddings.parent / "train_embeddings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label", "token_indices"])
        for row, (name, ids) in enumerate(zip(names, tokens, strict=True)):
            writer.writerow([name, row % 10, ids.tolist()])
            np.save(embeddings / name, np.ascontiguousarray(codebook[ids].T).reshape(channels, grid, grid))
    return Published(temporary, names, tokens, codebook)


def imported(data: Published, trust: bool) -> Path:
    out = data.folder / "store"
    import_embeddings(data.folder / "data", out, codebook=torch.from_numpy(data.codebook), trust_tokens=trust)
    return out


def wrong_tokens(data: Published, result: Path) -> float:
    store = TokenStore.load(result)
    return float((store.tokens.flatten(1).long().numpy() != data.tokens).sum())


def over_rows(row: Callable[[Published, int], bool], data: Published) -> list[bool]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(partial(row, data), range(len(data.names))))


def read(data: Published, row: int) -> bool:
    size = HEADER + 4 * data.tokens.shape[1] * data.codebook.shape[1]
    with (data.folder / "data" / "train" / data.names[row]).open("rb", buffering=0) as file:
        return len(file.read(size)) == size


def close(data: Published, row: int) -> bool:
    embedding = np.load(data.folder / "data" / "train" / data.names[row])
    expected = data.codebook[data.tokens[row]].T.reshape(embedding.shape)
    return np.allclose(embedding, expected)


def failures(_data: Published, result: list[bool]) -> float:
    return float(result.count(False))


def cases(quick: bool) -> list[Case]:
    rows, channels, grid, codes = (20, 8, 4, 32) if quick else (2000, 256, 16, 16384)
    return [
        Case(
            operator="import_published",
            name=f"{rows:,} rows",
            sizes=f"{rows} files of [{channels}, {grid}, {grid}] float32, K {codes}",
            floor=Floor(bytes=2 * rows * (HEADER + 4 * channels * grid**2), traffic="copy"),
            data=partial(published, rows, channels, grid, codes),
            siblings=(
                Sibling("every row", partial(imported, trust=False), wrong_tokens, tolerance=0),
                Sibling("trusted tokens", partial(imported, trust=True), wrong_tokens, tolerance=0),
                Sibling("plain read", partial(over_rows, read), failures, tolerance=0),
                Sibling("np.load, np.allclose", partial(over_rows, close), failures, tolerance=0),
            ),
        )
    ]


def test_import_published(measure):
    measure()
