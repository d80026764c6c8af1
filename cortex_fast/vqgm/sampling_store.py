"""Images sampled into a token store, batch by batch, so that an interrupted run can continue."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.classes import Target, class_numbers
from cortex_fast.data.grids import sides
from cortex_fast.data.locks import held
from cortex_fast.data.token_store import TokenStore
from cortex_fast.data.workspaces import sweep
from cortex_fast.vqgm.model import VQGM, Model
from cortex_fast.vqgm.sampling_files import (
    Unfinished,
    open_unfinished,
    read_counter,
    remove,
    require_same,
    write_counter,
)


def sample_store(
    model: VQGM,
    labels: Target,
    path: Path | str,
    *,
    names: Sequence[str],
    seed: int = 0,
    batch_size: int = 32,
    progress: str | None = None,
) -> TokenStore:
    """Sample an image for each label and write them as a token store.

    The tokens are collected in `path` + ".tokens", a file of their final size, and `path` + ".done" counts the images
    that are done. At the end they become the store, and both files are removed. After an interruption, the same call
    continues and gives the same tokens; once the store is written, the same call reads it.

    Args:
        model: the model, which must be able to sample.
        labels: int [n] or n names. Image number i is sampled as item i.
        path: the store.
        names: the classes' names.
        seed: fixes the images, together with their numbers. Default 0.
        batch_size: images sampled at a time. Default 32.
        progress: title of a progress bar. Default None: no bar.

    Returns:
        The store.

    Raises:
        TypeError or ValueError: an argument is of another type, shape or range; the message names it.
        ValueError: an existing file is of another model, seed, labels or names, or damaged, or changed since it was
            written; the message names it.
        FileExistsError: the tokens file exists without its counter.
        IsADirectoryError: `path` is a folder.
        BlockingIOError: another run samples to `path`.
        OSError: the disk is full. Space is reserved before the first image.
        UnsupportedError: the model cannot sample.
    """
    labels = class_numbers("labels", labels, names)
    _check_labels(labels, model, names)
    seed, batch_size = checks.seed(seed), checks.whole("batch_size", batch_size, 1)
    path, grid = Path(path), sides(model.grid, "model.grid")
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a file to write, got the folder {path}")
    fingerprint = _fingerprint(model, labels, names, seed)
    files = Unfinished(path, fingerprint, len(labels), grid[0] * grid[1] * _dtype_of(model).itemsize)
    if not path.exists():
        with held(path):
            if not path.exists():
                _sample(model, labels, files, names, batch_size=batch_size, progress=progress)
    store = TokenStore.load(path)
    require_same(path, store.fingerprint, fingerprint)
    if files.counter.exists():
        with suppress(ValueError, FileNotFoundError, BlockingIOError), held(path):
            read_counter(files)  # of a run that was interrupted after it had written the store
            remove(files)
    sweep(path.parent)
    return store


def _check_labels(labels: Tensor, model: VQGM, names: Sequence[str]) -> None:
    checks.rank("labels", labels, "[n]")
    checks.in_range("labels", labels, len(names))
    if isinstance(model, Model):
        checks.in_range("labels", labels, model.conditions)


def _fingerprint(model: VQGM, labels: Tensor, names: Sequence[str], seed: int) -> dict[str, Any]:
    """The model, seed, labels, names and, unless it is square, the grid, as in files of earlier versions."""
    fingerprint: dict[str, Any] = {
        "model": model.fingerprint,
        "seed": seed,
        "labels": digests.of_values(labels.long()),
        "names": digests.short(digests.of_text(json.dumps(list(names)))),
    }
    height, width = sides(model.grid)
    return fingerprint if height == width else fingerprint | {"grid": [height, width]}


def _dtype_of(model: VQGM) -> torch.dtype:
    """The dtype that the store's tokens have in the file."""
    return torch.uint16 if len(model.codebook) <= 2**16 else torch.int32


def _sample(
    model: VQGM, labels: Tensor, files: Unfinished, names: Sequence[str], *, batch_size: int, progress: str | None
) -> None:
    """Write the store, as the only run that does, from the images that are done on."""
    done, digest = open_unfinished(files)
    with (
        files.tokens.open("r+b") as file,
        tqdm(total=len(labels), initial=done, desc=progress or "", unit="image", disable=progress is None) as bar,
    ):
        file.seek(done * files.image_bytes)
        for count, content in _batches(model, labels, done, batch_size, files.fingerprint["seed"]):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the counter counts them
            digest.update(content)
            done += count
            write_counter(files, done, digest.hexdigest())
            bar.update(count)
    dtype, shape = _dtype_of(model), (len(labels), *sides(model.grid))
    size = torch.Size(shape).numel()
    tokens = torch.from_file(str(files.tokens), size=size, dtype=dtype) if size else torch.empty(0, dtype=dtype)
    store = TokenStore(tokens.view(shape), labels.cpu(), model.codebook.cpu(), names, files.fingerprint)
    store.save(files.store)
    del store, tokens  # they map the file that is removed next
    remove(files)


def _batches(model: VQGM, labels: Tensor, first: int, batch_size: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """The number of images of each batch from number `first` on, and the bytes of their tokens."""
    labels = labels.long().to(model.codebook.device)
    for start in range(first, len(labels), batch_size):
        items = torch.arange(start, min(start + batch_size, len(labels)), device=labels.device)
        tokens = model.sample(labels[items], seed=seed, item_ids=items).to(_dtype_of(model))
        yield len(items), tokens.cpu().numpy().tobytes()
