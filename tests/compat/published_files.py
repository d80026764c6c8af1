"""A small data folder in the published code's layout, written as by the published code: csv.writer and np.save."""

import csv
from pathlib import Path

import numpy as np

CODES, CHANNELS, SIDE = 40, 6, 4


def codebook() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((CODES, CHANNELS)).astype(np.float32)


def write_data(folder: Path, split: str = "train", images: int = 7, seed: int = 1) -> np.ndarray:
    """Returns the tokens [images, SIDE * SIDE]. Labels run 0, 1, 2, 0, ..."""
    tokens = np.random.default_rng(seed).integers(0, CODES, (images, SIDE * SIDE))
    embeddings = folder / {"validation": "val"}.get(split, split)
    embeddings.mkdir(parents=True)
    with (folder / f"{split}_embeddings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["embedding", "label", "indices"])
        for row, ids in enumerate(tokens):
            name = f"{row % 3}_{row}.npy"
            writer.writerow([name, row % 3, ids.tolist()])
            np.save(embeddings / name, codebook()[ids].T.reshape(CHANNELS, SIDE, SIDE).copy())
    return tokens


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
