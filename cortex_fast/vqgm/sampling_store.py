"""Images sampled straight into a token store, batch by batch, so that a run that was stopped goes on."""

import json
import os
from collections.abc import Sequence
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
from cortex_fast.data.results import parse_json, replace_whole
from cortex_fast.data.token_store import TokenStore
from cortex_fast.data.workspaces import sweep
from cortex_fast.vqgm.model import VQGM, Model


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
    """Sample an image for each of `labels` int [n], number i as item i, and write them as a TokenStore to `path`.

    The tokens go to a file of their final size beside it, `path` with .tokens added, and how many images are done to
    one with .done; at the end they become the store, whole, and these files go. Called again after it was stopped it
    goes on, to the same tokens; called again when it is done it reads the store. names: the classes', which labels may
    be. progress: a progress bar's title; None: no bar.
    Raises ValueError, naming them, where a file there is of another model, seed, labels or names, damaged or changed
    since, FileExistsError for a .tokens file that is not of such a run, BlockingIOError while another run samples to
    `path`, OSError where the disk is full, and what the model raises that cannot sample, all before it samples.
    """
    labels = class_numbers("labels", labels, names)
    checks.rank("labels", labels, "[n]")
    checks.in_range("labels", labels, len(names))
    if isinstance(model, Model):
        checks.in_range("labels", labels, model.conditions)
    seed, batch_size = checks.seed(seed), checks.whole("batch_size", batch_size, 1)
    path = Path(path)
    grid = sides(model.grid, "model.grid")
    made: dict[str, Any] = {
        "model": model.fingerprint,
        "seed": seed,
        "labels": digests.of_values(labels.long()),
        "names": digests.short(digests.of_text(json.dumps(list(names)))),
    }
    if grid[0] != grid[1]:
        made["grid"] = list(grid)
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a file to write, got the folder {path}")
    working, counter = _files_of(path)
    if not path.exists():
        with held(path):
            if not path.exists():
                _sample(model, labels, path, names, made, batch_size, progress)
    store = TokenStore.load(path)
    _require_same(path, store.fingerprint, made)
    if counter.exists():
        with suppress(ValueError, FileNotFoundError, BlockingIOError), held(path):
            _read_counter(counter, made)  # a run stopped after the store was written left them
            working.unlink(missing_ok=True)
            counter.unlink()
    sweep(path.parent)
    return store


def _sample(
    model: VQGM,
    labels: Tensor,
    path: Path,
    names: Sequence[str],
    made: dict[str, Any],
    batch_size: int,
    progress: str | None,
) -> None:
    """Write the store, as the only run that does."""
    working, counter = _files_of(path)
    shape = (len(labels), *sides(model.grid))
    dtype = torch.uint16 if len(model.codebook) <= 2**16 else torch.int32
    size = dtype.itemsize * torch.Size(shape).numel()
    each = size // max(1, len(labels))
    done, sampled = _done(working, counter, made, size, each)
    labels = labels.long().to(model.codebook.device)
    with (
        working.open("r+b") as file,
        tqdm(total=len(labels), initial=done, desc=progress or "", unit="image", disable=progress is None) as bar,
    ):
        for start in range(done, len(labels), batch_size):
            items = torch.arange(start, min(start + batch_size, len(labels)), device=labels.device)
            content = model.sample(labels[items], seed=made["seed"], item_ids=items).to(dtype).cpu().numpy().tobytes()
            file.seek(start * each)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before it counts
            sampled.update(content)
            _write_counter(counter, made, start + len(items), sampled.hexdigest())
            bar.update(len(items))
    stored = torch.from_file(str(working), size=torch.Size(shape).numel(), dtype=dtype) if size else torch.empty(0)
    store = TokenStore(stored.to(dtype).view(shape), labels.cpu(), model.codebook.cpu(), names, made)
    store.save(path)
    del store, stored  # of the file that goes
    working.unlink()
    counter.unlink()


def _files_of(path: Path) -> tuple[Path, Path]:
    """The tokens so far, and how many count."""
    return path.with_name(path.name + ".tokens"), path.with_name(path.name + ".done")


def _done(working: Path, counter: Path, made: dict[str, Any], size: int, each: int) -> tuple[int, digests.Running]:
    """How many images are in the working file, which is made where there is none, with its whole space on the disk; and
    the digest of their tokens."""
    if counter.exists():
        done, wanted = _read_counter(counter, made)
        got = working.stat().st_size if working.exists() else 0
        if done > size // max(1, each):
            raise ValueError(f"{counter}: expected at most {size // max(1, each)} images, got {done}")
        if got == size:
            sampled = digests.begun(working, done * each)
            if sampled.hexdigest() != wanted:
                raise ValueError(f"{working}: its tokens were changed since they were sampled; remove it and {counter}")
            return done, sampled
        if done:
            raise ValueError(f"{working}: expected {size} bytes, got {got}")
    elif working.exists():
        raise FileExistsError(f"{working}: is there already, without {counter.name}; nothing is written over it")
    working.parent.mkdir(parents=True, exist_ok=True)
    nothing = digests.begun()
    _write_counter(counter, made, 0, nothing.hexdigest())  # first: so the other is known as ours, however the run ends
    with working.open("wb") as file:
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
        except OSError as error:
            working.unlink()
            counter.unlink()
            raise OSError(error.errno, f"{error.strerror} ({size} bytes for the tokens)", str(working)) from error
    return 0, nothing


def _read_counter(counter: Path, made: dict[str, Any]) -> tuple[int, str]:
    """How many images are done, and the digest of their tokens."""
    try:
        kept = parse_json(counter.read_bytes())
        fingerprint, done, sampled = kept["fingerprint"], kept["done"], kept["tokens"]
        if not isinstance(fingerprint, dict) or type(done) is not int or done < 0 or not isinstance(sampled, str):
            raise ValueError("expected how many images are done, of which tokens and settings")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{counter}: not the state of a sampling run ({error})") from error
    _require_same(counter, fingerprint, made)
    return done, sampled


def _write_counter(counter: Path, made: dict[str, Any], done: int, sampled: str) -> None:
    text = json.dumps({"fingerprint": made, "done": done, "tokens": sampled})
    replace_whole(counter, lambda file: file.write_text(text, "utf-8"))


def _require_same(path: Path, got: dict[str, Any], made: dict[str, Any]) -> None:
    different = [
        f"{name}: expected {made.get(name)}, got {got.get(name)}"
        for name in dict.fromkeys((*made, "grid"))  # None where it is square, as in older files
        if got.get(name) != made.get(name)
    ]
    if different:
        raise ValueError(f"{path}: made by other settings ({'; '.join(different)})")
